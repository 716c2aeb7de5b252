"""Pictures of the edit benchmark: how methods succeed and leak, and some cases by every method."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from unleak.bench.regions.editing import SOURCE, Scenes, drawn_with, edited
from unleak.bench.rows import Row
from unleak.bench.run import Run
from unleak.files.atomic import write_atomic
from unleak.regions.edit import edit
from unleak.world.edits import EditCase

BARS = {
    "edit_success": ("target appears in its region", "#2f6f4f"),
    "til": ("leaks into another region", "#c77d17"),
    "tel": ("leaks into the background", "#b3372f"),
}
SHOWN = 4  #: cases of the contact sheet


def save(run: Run, scenes: Scenes, methods: Sequence[str], rows: Sequence[Row]) -> None:
    """Write `methods.png` and `sheet.webp` into the run's folder."""
    write_atomic(run.out / "methods.png", bars(rows))
    write_atomic(run.out / "sheet.webp", sheet(run, scenes, methods))


def bars(rows: Sequence[Row]) -> bytes:
    """Success and both leaks of every method over all cases, with intervals, as a PNG."""
    by_name = {(r.method, r.metric): r for r in rows if r.subset == "all" and r.metric in BARS}
    methods = [m for m in dict.fromkeys(m for m, _ in by_name) if " - " not in m]
    figure = Figure(figsize=(8, 1.1 + 0.42 * len(methods)), layout="constrained")
    axes = figure.subplots()
    for k, (metric, (label, colour)) in enumerate(BARS.items()):
        at = [i for i, m in enumerate(methods) if (m, metric) in by_name]
        some = [by_name[methods[i], metric] for i in at]
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
    return _encoded(figure, "png")


def sheet(run: Run, scenes: Scenes, methods: Sequence[str]) -> bytes:
    """The first cases with two and three objects, one in a column: the source, and below it every method's edit."""
    several = [i for i, case in enumerate(scenes.cases) if len(case.edited) > 1][:SHOWN]
    shown = {SOURCE: [scenes.images[i] for i in several]}
    for method in methods:
        if method != SOURCE:
            shown[method] = [np.array(drawn, np.uint8) for drawn in _drawn(run, scenes, method, several)]
    figure = Figure(figsize=(1.3 + 1.4 * len(several), 0.9 + 1.4 * len(shown)), layout="constrained")
    cells = figure.subplots(len(shown), len(several), squeeze=False)
    for line, (method, images) in zip(cells, shown.items(), strict=True):
        line[0].set_ylabel(method, rotation=0, ha="right", va="center", fontsize=9)
        for axes, image in zip(line, images, strict=True):
            axes.imshow(image)
            axes.set(xticks=[], yticks=[])
    for axes, i in zip(cells[0], several, strict=True):
        axes.set_title("\n".join(_edit_lines(scenes.cases[i])), fontsize=7)
    return _encoded(figure, "webp")


def _edit_lines(case: EditCase) -> list[str]:
    """What becomes what, a line for each."""
    return [f"{s.phrase} > {t.phrase}" for s, t in zip(case.sources, case.targets, strict=True)]


def _encoded(figure: Figure, form: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=130)
    return buffer.getvalue()


def _drawn(run: Run, scenes: Scenes, method: str, chosen: Sequence[int]) -> list[list[list[list[int]]]]:
    """The method's pictures of some cases; white where there is no mask. Kept like the figures."""

    def compute() -> list[list[list[list[int]]]]:
        results = edited(run, scenes, chosen, method, run.seeds[0])
        white = np.full_like(scenes.images[0], 255)
        return [(white if one is None else one.image).tolist() for one in results]

    return run.part(
        f"sheet-{method}",
        [drawn_with(run, method), scenes.masks, [repr(scenes.cases[i]) for i in chosen]],
        compute,
        [edit],
    )
