"""The flow between items as a heat map."""

from __future__ import annotations

import io
import warnings

import numpy as np
from matplotlib.figure import Figure

from unleak.words.flow import Flow


def heat_map(flow: Flow) -> bytes:
    """PNG bytes: a cell for item i (row) as item j (column) changes it, in percent of the way to another name.

    Red: a leak; blue: towards the sense that is meant; pale: a change that no known name explains. Characters that
    the font lacks are boxes.
    """
    n, labels = len(flow.items), [item.text for item in flow.items]
    value = np.full((n, n), np.nan)
    for i, j in flow.changes:
        share = flow.meaning(i, j)[1]
        value[i, j] = -share if flow.kind(i, j) == "disambiguation" else share if flow.kind(i, j) == "leak" else 0
    figure = Figure(figsize=(2.5 + 1.1 * n, 1.6 + 0.8 * n), layout="constrained")
    axes = figure.subplots()
    axes.imshow(value, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    axes.set_xticks(range(n), labels, rotation=30, ha="right")
    axes.set_yticks(range(n), labels)
    axes.set_xlabel("because this item is there ...")
    axes.set_ylabel("... the rows of this one change")
    for i, j in flow.changes:
        name, share = flow.meaning(i, j)
        text = f"{100 * share:.0f} %\n{name}" if name else "" if flow.size[i, j] else "0"
        axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if abs(share) > 0.7 else "black")
    axes.set_title(flow.prompt if len(flow.prompt) <= 60 else flow.prompt[:57] + "...", fontsize=10)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(buffer, dpi=130)
    return buffer.getvalue()
