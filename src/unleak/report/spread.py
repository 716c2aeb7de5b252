"""Scores of several kinds of prompts, detector by detector, every prompt a dot: who is told apart is seen at once."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

BAD, FAINT = "#b3261e", "#80868b"


def spread(scores: Mapping[str, Mapping[str, Sequence[float] | np.ndarray]], marked: Sequence[str]) -> bytes:
    """PNG of detector -> kind -> scores; the `marked` kinds (memorized ones) are in red. Higher is to the right."""
    names = list(scores)
    kinds = list(scores[names[0]])
    figure = Figure(figsize=(4 + 2.6 * len(names), 0.42 * len(kinds) + 1.1), layout="constrained")
    rng = np.random.default_rng(0)
    for axis, name in zip(np.atleast_1d(figure.subplots(1, len(names), sharey=True)), names, strict=True):
        for row, kind in enumerate(kinds):
            x = np.asarray(scores[name][kind], float)
            y = row + rng.uniform(-0.28, 0.28, len(x))
            axis.scatter(x, y, s=10, alpha=0.7, linewidths=0, color=BAD if kind in marked else FAINT)
        lowest = min(float(np.min(scores[name][kind])) for kind in marked)
        axis.axvline(lowest, color=BAD, linewidth=0.8, linestyle=(0, (4, 3)))
        axis.set_title(name, fontsize=11, loc="left")
        axis.set_yticks(range(len(kinds)), kinds)
        axis.tick_params(length=0, labelsize=9)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
    figure.axes[0].invert_yaxis()  # shared by all
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
