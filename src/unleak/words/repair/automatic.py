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

from unleak.drawing.generate import written_seeds
from unleak.errors import UnleakError
from unleak.text.items import Item
from unleak.words.presets import RepairTask, Trial, trials


@dataclass
class Attempt:
    """One repair at some seeds: ``before`` and ``after`` [S, items] of bool, by the judge; or why it failed.

    Attributes:
        items: of the prompt, in the order of the judge's columns.
        seeds: [S] held-out ones; where it is a `redraw`, those of the returned images that still missed an item.
        works: every item that it acts on is there on half of the images or more, and more items are there than before.
        kept: it is the repair that was chosen.
        redraw: it drew single images again, after another repair was kept. ``better``: at these seeds it showed more.
    """

    trial: Trial
    items: Sequence[Item]
    seeds: Sequence[int]
    before: np.ndarray
    after: np.ndarray | None
    works: bool = False
    kept: bool = False
    failed: str = ""
    redraw: bool = False
    better: Sequence[int] = ()

    @property
    def drawings(self) -> int:
        """How many images it drew; one that is not possible counts none."""
        return 0 if self.after is None else len(self.after)

    @property
    def counts(self) -> list[tuple[str, int, int]]:
        """(item, images with it before, and after), for each item; none where it failed."""
        if self.after is None:
            return []
        pairs = zip(self.items, self.before.sum(0), self.after.sum(0), strict=True)
        return [(item.text, int(before), int(after)) for item, before, after in pairs]

    @property
    def reason(self) -> str:
        """Why it was kept or left."""
        if self.after is None:
            return f"not possible here: {self.failed}"
        if self.redraw:
            better = f"it shows more at seed {', '.join(map(str, self.better))}" if self.better else "it shows no more"
            return f"drawn again where an item was missing: {better}"
        acted = zip(self.items, self.after.mean(0), strict=True)
        missing = [item.text for item, share in acted if item in self.trial.items and share < 0.5]
        if self.works:
            return "kept: each item that it acts on is on half of the images or more"
        if self.kept:
            return f"kept: it gains most, {self.items_gained} more items, though {_missing(missing)}"
        if missing:
            return f"left: {_missing(missing)}"
        return "left: no more items are there than before"

    @property
    def items_gained(self) -> int:
        """How many more items are there, over all images."""
        return 0 if self.after is None else int(self.after.sum()) - int(self.before.sum())

    def __str__(self) -> str:
        n, which = len(self.seeds), "" if self.redraw else "held-out "
        counts = ", ".join(f"{name} {before}/{n} -> {after}/{n}" for name, before, after in self.counts)
        seen = f" {counts} at {which}seed{'s' * (n > 1)} {written_seeds(self.seeds)};" if counts else ""
        return f"{self.trial.name}:{seen} {self.reason}"


def _missing(texts: Sequence[str]) -> str:
    named = " and ".join(f"“{text}”" for text in texts)
    return f"{named} {'are' if len(texts) > 1 else 'is'} still missing from more than half of the images"


def try_repairs(
    task: RepairTask,
    items: Sequence[Item],
    seeds: Sequence[int],
    judged: Callable[..., np.ndarray],
    **parameters: Any,
) -> list[Attempt]:
    """Try repairs until one works, and mark the one to keep.

    Args:
        items: of the prompt, in the order of the judge's columns. seeds: the held-out ones.
        judged: ``judged(*interventions)``, what the judge sees on held-out seeds, [S, items] of bool.
        parameters: of the repairs.
    """
    tried: list[Attempt] = []
    before = judged()
    for trial in trials(task, **parameters):
        try:
            after = judged(trial.repair)
        except UnleakError as e:  # this pipeline cannot carry it out; the next one may do
            tried.append(Attempt(trial, items, seeds, before, None, failed=str(e)))
            continue
        acted = [k for k, item in enumerate(items) if item in trial.items]
        works = bool((after[:, acted].mean(0) >= 0.5).all() and after.sum() > before.sum())
        tried.append(Attempt(trial, items, seeds, before, after, works))
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
    ) -> list[int]:
        """Take the images that show more items than those of these rows, or with `ties` the same; the rows taken.

        An item that appears while another goes is no gain.
        """
        taken = []
        for row, image, items in zip(rows, images, present, strict=True):
            if items.sum() > self.present[row].sum() or (ties and (items == self.present[row]).all()):
                self.images[row], self.present[row], self.drawn_by[row] = image, items, name
                taken.append(row)
        return taken


def untried(task: RepairTask, tried: Sequence[Attempt], **parameters: Any) -> list[Trial]:
    """Repairs of the task that were neither kept nor impossible, in the same order; none where nothing was kept."""
    spent = [one.trial.repair for one in tried if one.kept or one.failed]
    kept = any(one.kept for one in tried)
    return [trial for trial in trials(task, **parameters) if trial.repair not in spent] if kept else []
