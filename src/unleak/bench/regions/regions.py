"""`unleak bench regions`: edits of one, two and three objects; what appears where, and what leaks.

`editing` measures every method on the embedded world; `edit_pictures` draws what it found.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unleak.bench.regions import edit_pictures, editing
from unleak.bench.results import Results
from unleak.bench.run import Run, refuse_unknown
from unleak.bench.world import reconstructed
from unleak.errors import UnsupportedModel
from unleak.world.edits import COUNTS, KINDS, SENSE, edit_cases

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from unleak.bench.run import Asked

HEADLINE = (
    "edit_success", "til", "tel", "clean_edit", "distractors_kept", "background_psnr", "background_psnr_median",
    "background_ssim", "denoiser_rows", "seconds_ratio",
)  # fmt: skip


def check(split: str, methods: Sequence[str] | None) -> None:
    """Refuse a split or a method that does not exist. Raises BadInput."""
    refuse_unknown("regions", [*editing.METHODS], split, methods)


def run(
    pipe: Any,
    out: Path,
    *,
    model: str = "emoji-sd",
    methods: Sequence[str] | None = None,
    masks: str = "exact",
    **asked: Unpack[Asked],
) -> Results:
    """Measure the chosen methods (default: all), always beside the unedited source; finished parts are reused.

    Args:
        masks: what the methods are given: ``"exact"``, the model's ``"own"``, or those of its ``"attention"`` alone.
        asked: seeds: (0,) by default. limit: at most so many cases of every kind and count. call: options of
            `unleak.edit`, which prevail over what the model recommends; each method takes those it knows.
    """
    asked.setdefault("seeds", (0,))
    one = Run.of(pipe, out, model, **asked)
    check(one.split, methods)
    cases = edit_cases(one.world, one.split, min(one.limit or editing.EACH, editing.EACH))
    able = editing.able(pipe)
    chosen = [name for name in able if methods is None or name in methods or name == editing.SOURCE]
    if missing := [name for name in methods or () if name not in able]:
        raise UnsupportedModel(f"{', '.join(missing)} cannot follow the noise of {model}: take {', '.join(able)}")
    plain = sum(case.kind != SENSE for case in cases)
    about = (
        f"{plain} cases ({len(COUNTS)} counts x {len(KINDS)} kinds), {len(cases) - plain} of a sense, masks: {masks}"
    )
    judge = {"name": one.judge.name}
    results = Results("regions", model, one.seeds, one.split, judge, notes=[about], headline=HEADLINE)
    scenes = editing.Scenes.of(one, cases, masks)
    results.rows = editing.rows(one, scenes, chosen)
    results.notes += one.notes
    results.judge["accuracy"] = reconstructed(one.judge, one.world, pipe.vae)
    results.save(out)
    edit_pictures.save(one, scenes, chosen, results.rows)
    return results
