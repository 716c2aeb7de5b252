"""Choose a repair by trial: what the diagnosis suggests first, on held-out seeds; the first that works is kept.

A repair works if every item that it acts on is there on half of the held-out images or more, and all items together
are there more often than before. Candidates come in the order of what they treat and then of their cost,
so the first that works is the cheapest of its kind. Where none works, the one that gains most is kept, if any gains.

No image is returned that shows fewer items than the original, or as many but not the same: `Best` keeps the better of
both. Where an item is still missing, the untried repairs may draw that seed, each in its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unleak.errors import UnleakError
from unleak.text.items import Item
from unleak.words.presets import RepairTask, Trial, trials


@dataclass
class Attempt:
    """One repair on held-out seeds: ``before`` and ``after`` [S, items] of bool, by the judge; or why it failed."""

    trial: Trial
    before: np.ndarray
    after: np.ndarray | None
    works: bool = False
    kept: bool = False
    failed: str = ""

    @property
    def items_gained(self) -> int:
        """How many more items are there, over all images."""
        return 0 if self.after is None else int(self.after.sum()) - int(self.before.sum())

    def __str__(self) -> str:
        if self.after is None:
            return f"{self.trial.name}: {self.failed}"
        outcome = "kept" if self.kept else "left"
        counts = f"{self.before.sum()} items before, {self.after.sum()} after"
        return f"{self.trial.name}, {len(self.before)} held-out seeds: {counts}; {outcome}"


def try_repairs(
    task: RepairTask, items: Sequence[Item], judged: Callable[..., np.ndarray], **parameters: Any
) -> list[Attempt]:
    """Try repairs until one works, and mark the one to keep.

    Args:
        items: of the prompt, in the order of the judge's columns.
        judged: ``judged(*interventions)``, what the judge sees on held-out seeds, [S, items] of bool.
        parameters: of the repairs.
    """
    tried: list[Attempt] = []
    before = judged()
    for trial in trials(task, **parameters):
        try:
            after = judged(trial.repair)
        except UnleakError as e:  # this pipeline cannot carry it out; the next one may do
            tried.append(Attempt(trial, before, None, failed=str(e)))
            continue
        acted = [k for k, item in enumerate(items) if item in trial.items]
        works = bool((after[:, acted].mean(0) >= 0.5).all() and after.sum() > before.sum())
        tried.append(Attempt(trial, before, after, works))
        if works:
            break
    best = max(tried, key=lambda t: (t.works, t.items_gained), default=None)
    if best is not None and best.items_gained > 0:
        best.kept = True
    return tried


@dataclass
class Best:
    """Of every seed the image [S, H, W, 3] that shows most so far, which items [S, items] it shows, and its repair."""

    images: np.ndarray
    present: np.ndarray
    drawn_by: list[str]

    @property
    def incomplete(self) -> list[int]:
        """Seeds, by number of row, in whose image an item is missing."""
        return [int(s) for s in np.flatnonzero(~self.present.all(1))]

    def consider(
        self, rows: Sequence[int], images: np.ndarray, present: np.ndarray, name: str, ties: bool = False
    ) -> None:
        """Take the images that show more items than those of these rows, or with `ties` the same.

        An item that appears while another goes is no gain.
        """
        for row, image, items in zip(rows, images, present, strict=True):
            if items.sum() > self.present[row].sum() or (ties and (items == self.present[row]).all()):
                self.images[row], self.present[row], self.drawn_by[row] = image, items, name


def untried(task: RepairTask, tried: Sequence[Attempt], **parameters: Any) -> list[Trial]:
    """Repairs of the task that were neither kept nor impossible, in the same order; none where nothing was kept."""
    spent = [one.trial.repair for one in tried if one.kept or one.failed]
    kept = any(one.kept for one in tried)
    return [trial for trial in trials(task, **parameters) if trial.repair not in spent] if kept else []
