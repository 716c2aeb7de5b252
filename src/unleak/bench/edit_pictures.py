"""Pictures of the edit benchmark: how methods succeed and leak, and some cases by every method."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from unleak.bench.editing import SOURCE, Scenes, edited
from unleak.bench.results import write_atomic
from unleak.bench.run import Run
from unleak.bench.stats import Row
from unleak.errors import EmptyMask
from unleak.report.pictures import contact_sheet, png

BARS = {
    "edit_success": ("target appears in its region", "#2f6f4f"),
    "til": ("leaks into another region", "#c77d17"),
    "tel": ("leaks into the background", "#b3372f"),
}
SHOWN = 4  #: cases of the contact sheet


def save(run: Run, scenes: Scenes, methods: Sequence[str], rows: Sequence[Row]) -> None:
    """Write `methods.png` and `sheet.png` into the run's folder."""
    write_atomic(run.out / "methods.png", bars(rows))
    write_atomic(run.out / "sheet.png", sheet(run, scenes, methods))


def bars(rows: Sequence[Row]) -> bytes:
    """Success and both leaks of every method over all cases, with intervals, as a PNG."""
    found = {(r.method, r.metric): r for r in rows if r.subset == "all" and r.metric in BARS}
    methods = [m for m in dict.fromkeys(m for m, _ in found) if " - " not in m]
    figure = Figure(figsize=(8, 1.1 + 0.42 * len(methods)), layout="constrained")
    axes = figure.subplots()
    for k, (metric, (label, colour)) in enumerate(BARS.items()):
        at = [i for i, m in enumerate(methods) if (m, metric) in found]
        some = [found[methods[i], metric] for i in at]
        spread = [[max(0.0, r.value - r.low) for r in some], [max(0.0, r.high - r.value) for r in some]]
        axes.barh(
            [i + (k - 1) * 0.27 for i in at], [r.value for r in some], 0.25, xerr=spread, color=colour, label=label,
            error_kw={"elinewidth": 0.8, "ecolor": "#202124"},
        )  # fmt: skip
    axes.set_yticks(range(len(methods)), methods)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share, with 95 % intervals")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def sheet(run: Run, scenes: Scenes, methods: Sequence[str]) -> bytes:
    """The first cases with two and three objects, the source and every method's edit of it, as a PNG."""
    several = [i for i, case in enumerate(scenes.cases) if len(case.edited) > 1][:SHOWN]
    rows = []
    for i in several:
        case = scenes.cases[i]
        targets = " and ".join(t.phrase for t in case.targets)
        rows.append((f"{case.caption(run.world)}  ->  {targets}", [scenes.images[i]]))
    for method in methods:
        if method != SOURCE:
            images = [np.array(drawn, np.uint8) for drawn in _drawn(run, scenes, method, several)]
            rows = [(label, [*some, image]) for (label, some), image in zip(rows, images, strict=True)]
    order = "source, " + ", ".join(m for m in methods if m != SOURCE)
    return png(contact_sheet([(f"{label}   [{order}]", some) for label, some in rows], 96, across=1))


def _drawn(run: Run, scenes: Scenes, method: str, chosen: Sequence[int]) -> list[list[list[list[int]]]]:
    """The method's pictures of some cases; the source where there is no mask. Kept like the figures."""

    def compute() -> list[list[list[list[int]]]]:
        return [_picture(run, scenes, i, method).tolist() for i in chosen]

    name = "sheet-" + method.replace("+", "_").replace(" ", "_")
    return run.part(name, [scenes.masks, [repr(scenes.cases[i]) for i in chosen]], compute)


def _picture(run: Run, scenes: Scenes, i: int, method: str) -> np.ndarray:
    try:
        return edited(run, scenes, i, method, run.seeds[0]).image
    except EmptyMask:
        return np.full_like(scenes.images[i], 255)
