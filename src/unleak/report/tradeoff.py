"""Copies against alignment: every method a labelled dot, and the front that no other method beats on both."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from unleak.report.spread import BAD, FAINT

Dots = Mapping[str, tuple[float, float]]
"""Method -> (share of copies in percent, alignment 0..1)."""
GOOD = "#1a73e8"


def front(dots: Dots) -> list[str]:
    """Methods that no other beats: none has fewer copies and no less alignment, or as few and more.

    >>> front({"a": (0, 0.5), "b": (0, 0.4), "c": (50, 0.9), "d": (60, 0.8)})
    ['a', 'c']
    """

    def beaten(x: float, y: float) -> bool:
        return any(a <= x and b >= y and (a, b) != (x, y) for a, b in dots.values())

    return sorted((name for name, (x, y) in dots.items() if not beaten(x, y)), key=lambda name: dots[name])


def tradeoff(panels: Mapping[str, Dots]) -> bytes:
    """PNG with a panel for each title -> dots; methods on the front are blue and joined, "none" is red."""
    figure = Figure(figsize=(5.6 * len(panels), 6.2), layout="constrained")
    for axis, (title, dots) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True):
        best = front(dots)
        axis.plot(*zip(*(dots[name] for name in best), strict=True), color=GOOD, linewidth=1, zorder=1)
        for name, (x, y) in dots.items():
            colour = BAD if name == "none" else GOOD if name in best else FAINT
            axis.scatter([x], [y], s=28, color=colour, linewidths=0, zorder=3 if name == "none" else 2)
        for low, high, offset, align in ((-1, 30, 12, "left"), (30, 52, 0, "left"), (52, 70, 100, "right"),
                                         (70, 101, 88, "right")):  # fmt: skip
            _label(axis, {n: xy for n, xy in dots.items() if low <= xy[0] < high}, offset, align)
        axis.set(title=title, xlim=(-4, 104), ylim=(-0.05, 1.05))
        axis.set_xlabel("images that copy a training scene, %")
        axis.set_ylabel("alignment")
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _label(axis: Any, dots: Dots, offset: float, align: str) -> None:
    """Names beside their dots, those of one dot together, apart from others' and joined to it by a thin line."""
    names: dict[tuple[float, float], list[str]] = {}
    for name, dot in dots.items():
        names.setdefault(dot, []).append(name)
    order = sorted(names, key=lambda dot: (dot[1], -dot[0]))
    halves = [0.02 * len(names[dot]) for dot in order]
    places = [y for _, y in order]
    bottom, top = -0.05, 1.05
    for k in range(len(places)):
        places[k] = max(places[k], bottom + halves[k])
        bottom = places[k] + halves[k]
    for k in reversed(range(len(places))):
        places[k] = min(places[k], top - halves[k])
        top = places[k] - halves[k]
    for (x, y), place in zip(order, places, strict=True):
        at = max(offset, x + 5) if align == "left" else min(offset, x - 5)
        axis.annotate(
            "\n".join(names[x, y]), (x, y), (at, place), fontsize=8, ha=align, va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.6},
            arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 3,
                        "relpos": (0.0 if align == "left" else 1.0, 0.5)},
        )  # fmt: skip
