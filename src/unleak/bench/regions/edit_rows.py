"""Figures of the edit benchmark: means, medians and shares over cases, and how far one method is from the best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from unleak.bench.rows import SHARE, Row, mean, median, paired_difference, share
from unleak.world.edits import COUNTS, KINDS, SENSE, EditCase

BEST = "ale"
Outcomes: TypeAlias = list[list[Any]]
"""[cases][seeds] of what `measured` returns."""
WIDER = "_one_cell_out"  #: of what is measured outside the masks widened by one latent cell
#: metric -> what `measured` calls it
SHARES = {"tel": "external", "til": "internal", "clean_edit": "clean", "latents_exact": "exact"}
BACKGROUND = {
    "background_psnr": "psnr_rebuilt", "background_ssim": "ssim_rebuilt", "background_psnr_source": "psnr_source",
    "background_ssim_source": "ssim_source",
}  # fmt: skip
MEANS = {
    "edit_success": "hits", "distractors_kept": "kept", **BACKGROUND,
    **{name + WIDER: key + WIDER for name, key in BACKGROUND.items()},
    "tels": "tels", "tils": "tils", "editing_performance": "performance",
    "structure_distance": "structure", "mask_iou": "iou", "masks_over_half_iou": "over_half",
}  # fmt: skip
#: means of shares
OF_SHARES = ("edit_success", "distractors_kept", "mask_iou", "masks_over_half_iou")
#: means whose median is reported too: a few cases decide them
SKEWED = [name for name in MEANS if name.startswith("background") or name == "structure_distance"]


def rows_of(method: str, outcomes: Outcomes, subset: str) -> list[Row]:
    """The figures of a method on some cases, outcomes [cases][seeds]."""

    def values(name: str) -> np.ndarray:
        """[cases, seeds] of those cases that have it."""
        return np.array(
            [[np.mean(one[name]) for one in row] for row in outcomes if row[0].get(name) is not None], float
        )

    rows = [
        mean(v, method, subset, name, SHARE if name in OF_SHARES else None)
        for name, key in MEANS.items()
        if len(v := values(key))
    ]
    rows += [median(v, method, subset, f"{name}_median") for name in SKEWED if len(v := values(MEANS[name]))]
    return rows + [share(v, method, subset, name) for name, key in SHARES.items() if len(v := values(key))]


def subsets(cases: Sequence[EditCase]) -> dict[str, np.ndarray]:
    """Bool [cases]: ALE-Bench's kinds together ("all"), by count and by kind, and the cases of a sense on their own."""
    sense = np.array([case.kind == SENSE for case in cases])
    counts = {f"{k} edited": ~sense & np.array([len(case.edited) == k for case in cases]) for k in COUNTS}
    kinds = {kind: np.array([case.kind == kind for case in cases]) for kind in (*KINDS, SENSE)}
    return {"all": ~sense, **counts, **kinds}


def against(method: str, best: Outcomes, other: Outcomes, subset: str) -> list[Row]:
    """How much better `BEST` is on the cases of both: its success minus the method's, its leaks minus the method's."""
    rows = []
    for name, key in (("edit_success", "hits"), ("tel", "external"), ("til", "internal"), ("clean_edit", "clean")):
        pairs = [(b, o) for b, o in zip(best, other, strict=True) if b[0][key] is not None]
        if pairs:
            b, o = (np.array([[np.mean(one[key]) for one in row] for row in side]) for side in zip(*pairs, strict=True))
            rows.append(paired_difference(o, b, f"{BEST} - {method}", subset, name, SHARE))
    return rows
