"""The flow between items as heat maps: of their rows, and of the images that these draw."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from unleak.text.items import Item
from unleak.words.diagnosis.flow import Flow
from unleak.words.diagnosis.flow_images import ImageFlow

Cells = Mapping[tuple[int, int], tuple[float, str]]
"""By (i, j): -1 (blue) to 1 (red), and the text of the cell."""


def heat_map(flow: Flow) -> bytes:
    """PNG bytes: a cell for item i (row) as item j (column) changes it, in percent of the way to another name.

    Red: a leak; blue: towards the intended sense; pale: a change that no known name explains. Characters that
    the font lacks are boxes.
    """
    cells = {}
    for i, j in flow.changes:
        name, share = flow.meaning(i, j)
        signed = {"disambiguation": -share, "leak": share}.get(flow.kind(i, j), 0.0)
        cells[i, j] = signed, f"{100 * share:.0f} %\n{name}" if name else "" if flow.size[i, j] else "0"
    return _picture(flow.prompt, flow.items, cells, "... the rows of this one change")


def image_heat_map(flow: ImageFlow) -> bytes:
    """PNG bytes: a cell for the images of item i's rows (row) as item j (column) changes them.

    The number is the difference of the images, 0 to 1; under it what the judge sees only because of j. Red: a leak;
    blue: the item is there only because of j; pale: it stays what it was, or nobody judged.
    """
    cells = {}
    for pair, change in flow.changes.items():
        signed = {"disambiguation": -0.8, "leak": 0.8}.get(change.kind or "", 0.0)
        cells[pair] = signed, "\n".join([f"{change.distance:.2g}", *change.appears])
    return _picture(flow.prompt, flow.items, cells, "... the image of this one changes")


def _picture(prompt: str, items: Sequence[Item], cells: Cells, changed: str) -> bytes:
    n, labels = len(items), [item.text for item in items]
    value = np.full((n, n), np.nan)
    for pair, (signed, _) in cells.items():
        value[pair] = signed
    figure = Figure(figsize=(2.5 + 1.1 * n, 1.6 + 0.8 * n), layout="constrained")
    axes = figure.subplots()
    axes.imshow(value, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    axes.set_xticks(range(n), labels, rotation=30, ha="right")
    axes.set_yticks(range(n), labels)
    axes.set_xlabel("because this item is there ...")
    axes.set_ylabel(changed)
    for (i, j), (signed, text) in cells.items():
        axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if abs(signed) > 0.7 else "black")
    axes.set_title(prompt if len(prompt) <= 60 else prompt[:57] + "...", fontsize=10)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(buffer, dpi=130)
    return buffer.getvalue()
