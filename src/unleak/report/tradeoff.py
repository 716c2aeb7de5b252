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
            axis.scatter([x], [y], s=28, color=colour, linewidths=0, zorder=2)
        _label(axis, {n: xy for n, xy in dots.items() if xy[0] < 50}, 12, "left")
        _label(axis, {n: xy for n, xy in dots.items() if xy[0] >= 50}, 88, "right")
        axis.set(title=title, xlim=(-4, 104), ylim=(-0.05, 1.05))
        axis.set_xlabel("images that copy a training scene, %")
        axis.set_ylabel("alignment")
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _label(axis: Any, dots: Dots, offset: float, align: str) -> None:
    """Names in a column beside the dots, apart from each other, each joined to its dot by a thin line."""
    names = sorted(dots, key=lambda n: (dots[n][1], -dots[n][0]))
    places = np.array([dots[n][1] for n in names], float)
    gap = 0.04
    for k in range(1, len(places)):
        places[k] = max(places[k], places[k - 1] + gap)
    if len(places):
        places = np.minimum(places, 1.03 - gap * np.arange(len(places))[::-1])
    for name, place in zip(names, places, strict=True):
        x, y = dots[name]
        at = max(offset, x + 5) if align == "left" else min(offset, x - 5)
        axis.annotate(
            name, (x, y), (at, place), fontsize=8, ha=align, va="center",
            arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 3,
                        "relpos": (0.0 if align == "left" else 1.0, 0.5)},
        )  # fmt: skip
