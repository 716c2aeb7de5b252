"""`unleak bench regions`: edits of one, two and three objects; what appears where, and what leaks.

`editing` measures every method on the embedded world; `edit_pictures` draws what it found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from unleak.bench.regions import edit_pictures, editing
from unleak.bench.results import Results
from unleak.bench.run import Run, refuse_unknown
from unleak.bench.world import reconstructed
from unleak.errors import UnsupportedModel
from unleak.judges.glyphs import glyph_judge
from unleak.world.edits import COUNTS, KINDS, SENSE, edit_cases

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
    split: str = "heldout",
    seeds: Sequence[int] = (0,),
    limit: int | None = None,
    methods: Sequence[str] | None = None,
    call: dict[str, Any] | None = None,
    masks: str = "exact",
    progress: Callable[[str, int, int], None] | None = None,
) -> Results:
    """Measure the chosen methods (default: all), always beside the unedited source; finished parts are reused.

    Args:
        limit: at most so many cases of every kind and count.
        call: options of `unleak.edit`, which prevail over what the model recommends; each method takes those it knows.
        masks: what the methods are given: ``"exact"``, the model's ``"own"``, or those of its ``"attention"`` alone.
    """
    check(split, methods)
    judge = glyph_judge()
    one = Run(pipe, out, model, split, list(seeds), limit, dict(call or {}), progress)
    cases = edit_cases(one.world, split, min(limit or editing.EACH, editing.EACH))
    able = editing.able(pipe)
    chosen = [name for name in able if methods is None or name in methods or name == editing.SOURCE]
    if missing := [name for name in methods or () if name not in able]:
        raise UnsupportedModel(f"{', '.join(missing)} cannot follow the noise of {model}: take {', '.join(able)}")
    plain = sum(case.kind != SENSE for case in cases)
    about = (
        f"{plain} cases ({len(COUNTS)} counts x {len(KINDS)} kinds), {len(cases) - plain} of a sense, masks: {masks}"
    )
    results = Results("regions", model, one.seeds, split, {"name": judge.name}, notes=[about], headline=HEADLINE)
    scenes = editing.Scenes.of(one, cases, masks)
    results.rows = editing.rows(one, scenes, chosen)
    results.notes += one.notes
    results.judge["accuracy"] = reconstructed(judge, one.world, pipe.vae)
    results.save(out)
    edit_pictures.save(one, scenes, chosen, results.rows)
    return results
