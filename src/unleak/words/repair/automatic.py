"""Choose a repair by trial: what the diagnosis suggests first, on held-out seeds; the first that works is kept.

Only images that fail are to be mended: those that lack an item which is to be repaired. So repairs are tried on
held-out images that fail, and held-out seeds are drawn until there are enough of them (`failing_held_out`). A repair
works if every item that it acts on comes back on half of the held-out images that lacked it or more, and all items
together are there more often than before. Candidates come in the order of what they treat and then of their cost, so
the first that works is the cheapest of its kind. Where none works, the one that gains most is kept, if any gains.

Images that do not fail stay what they are, bit by bit. No image is returned that shows fewer items than the original,
or as many but not the same: `Best` keeps the better of both. Where an item is still missing, the untried repairs may
draw that seed, each in its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

import numpy as np

from unleak.drawing.drawing import Drawing
from unleak.drawing.generate import written_seeds
from unleak.errors import UnleakError
from unleak.judges import Judge
from unleak.stats.rate import Rate
from unleak.text.items import Item
from unleak.words.presets import RepairTask, Trial, trials

ENOUGH, MOST = 4, 32
"""Held-out images that fail, of each broken item, that a choice needs; held-out images that are drawn for them."""


class Looks:
    """Which items are on images [S, H, W, 3], each in its intended sense and beside no other known one: [S, items].

    Args:
        senses: for the text of an item, the names of its other senses.
    """

    def __init__(self, judge: Judge, items: Sequence[Item], senses: Mapping[str, Sequence[str]] | None = None) -> None:
        self.judge, self.items = judge, tuple(items)
        self.others = [
            [
                Item(item.text, sense=name)
                for name in (senses or {}).get(item.text, ())
                if name != (item.sense or item.text)
            ]
            for item in items
        ]
        judge.senses([*self.items, *(other for others in self.others for other in others)])

    def __call__(self, images: np.ndarray) -> np.ndarray:
        hits = self.judge.present(images, [*self.items, *(other for others in self.others for other in others)])
        there, at = hits[:, : len(self.items)].copy(), len(self.items)
        for k, others in enumerate(self.others):
            there[:, k] &= ~hits[:, at : at + len(others)].any(1)
            at += len(others)
        return there


@dataclass
class Attempt:
    """One repair at some seeds: ``before`` and ``after`` [S, items] of bool, by the judge; or why it failed.

    Attributes:
        items: of the prompt, in the order of the judge's columns.
        seeds: [S] held-out ones whose images fail; where it is a `redraw`, or no held-out image failed (`held_out` is
            False), those of the returned images that missed an item.
        works: every item that it acts on comes back on half of the images that lacked it or more, and more items are
            there than before.
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
    held_out: bool = True

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
    def mended(self) -> dict[str, Rate]:
        """Of the images that lacked an item which it acts on, those that show it now, by item."""
        if self.after is None:
            return {}
        lacked = ((item, ~self.before[:, k], self.after[:, k]) for k, item in enumerate(self.items))
        return {item.text: Rate.of(now[was]) for item, was, now in lacked if item in self.trial.items and was.any()}

    @property
    def mended_text(self) -> str:
        """`mended` in words."""
        where = f"{'held-out ' * self.held_out}images that lacked it"
        return ", ".join(f"“{name}” is there on {rate} {where}" for name, rate in self.mended.items())

    @property
    def reason(self) -> str:
        """Why it was kept or left."""
        if self.after is None:
            return f"not possible here: {self.failed}"
        if self.redraw:
            better = f"it shows more at seed {', '.join(map(str, self.better))}" if self.better else "it shows no more"
            return f"drawn again where an item was missing: {better}"
        missing = [name for name, rate in self.mended.items() if not rate.yes]
        if self.works:
            return "kept: each item that it acts on is back on half of the images that lacked it or more"
        if self.kept:
            missed = f", though {_missing(missing)}" if missing else ""
            return f"kept: it gains most, {self.items_gained} more items{missed}"
        if missing:
            return f"left: {_missing(missing)}"
        return "left: no more items are there than before"

    @property
    def items_gained(self) -> int:
        """How many more items are there, over all images."""
        return 0 if self.after is None else int(self.after.sum()) - int(self.before.sum())

    def __str__(self) -> str:
        n, which = len(self.seeds), "held-out " if self.held_out and not self.redraw else ""
        counts = ", ".join(f"{name} {before}/{n} -> {after}/{n}" for name, before, after in self.counts)
        seen = f" {counts} at {which}seed{'s' * (n > 1)} {written_seeds(self.seeds)};" if counts else ""
        return f"{self.trial.name}:{seen} {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "method": self.trial.name, "repair": self.trial.repair.to_dict(), "works": self.works, "kept": self.kept,
            "present_before": self.before.sum(0).tolist(),
            "present_after": None if self.after is None else self.after.sum(0).tolist(),
            "seeds": len(self.before), "drawn_at": list(self.seeds), "drawings": self.drawings, "redraw": self.redraw,
            "held_out": self.held_out, "better": list(self.better), "reason": self.reason,
            "failed": self.failed or None,
        }  # fmt: skip


def _missing(texts: Sequence[str]) -> str:
    named = " and ".join(f"“{text}”" for text in texts)
    return f"{named} {'are' if len(texts) > 1 else 'is'} still missing from more than half of the images that lacked it"


def try_repairs(
    task: RepairTask,
    items: Sequence[Item],
    seeds: Sequence[int],
    judged: Callable[..., np.ndarray],
    **parameters: Any,
) -> list[Attempt]:
    """Try repairs until one works, and mark the one to keep.

    Args:
        items: of the prompt, in the order of the judge's columns. seeds: the held-out ones whose images fail.
        judged: ``judged(*interventions)``, what the judge sees at these seeds, [S, items] of bool.
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
        one = Attempt(trial, items, seeds, before, after)
        one.works = all(rate.yes for rate in one.mended.values()) and one.items_gained > 0
        tried.append(one)
        if one.works:
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


def held_out_seeds(seeds: Sequence[int]) -> list[int]:
    """As many other seeds: the smallest that are not among these."""
    return list(islice(_other_seeds(seeds), len(seeds)))


def _other_seeds(seeds: Sequence[int]) -> Iterator[int]:
    taken = {*seeds}
    return (seed for seed in count() if seed not in taken)


@dataclass
class HeldOut:
    """Held-out ``seeds`` whose images lack a broken item, what is seen there, and how many were drawn to find them."""

    seeds: list[int] = field(default_factory=list)
    present: list[np.ndarray] = field(default_factory=list)
    drawn: int = 0


def failing_held_out(drawing: Drawing, prompt: str, looks: Looks, broken: Sequence[int]) -> HeldOut:
    """Draw the prompt at other seeds until each broken item is missing from `ENOUGH` images.

    As many as the drawing has seeds at a time; `MOST` in all, or as many as it has seeds. Of those that lack an item as
    many are kept as the drawing has seeds.

    Args:
        broken: columns of `looks`.
    """
    n, found, lacking = len(drawing.seeds), HeldOut(), np.zeros(len(broken), int)
    others, most = _other_seeds(drawing.seeds), max(n, min(8 * n, MOST))
    while found.drawn < most:
        chunk = list(islice(others, min(n, most - found.drawn)))
        present = looks(drawing.images(prompt, seeds=chunk))
        found.drawn += len(chunk)
        for seed, row in zip(chunk, present, strict=True):
            if (~row[broken] & (lacking < n)).any():
                lacking += ~row[broken]
                found.seeds.append(seed)
                found.present.append(row)
        if lacking.min() >= min(ENOUGH, n):
            break
    return found


@dataclass
class Mended:
    """What became of a prompt's images.

    Attributes:
        best: the images, mended where they failed. rows: those that failed, by number.
        kept: the repair that was chosen; None where none helps. tried: what each one did.
        drawn: images of the prompt at held-out seeds. redrawn: images of the kept repair.
    """

    best: Best
    rows: list[int]
    kept: Trial | None = None
    tried: list[Attempt] = field(default_factory=list)
    drawn: int = 0
    redrawn: int = 0


def mend(
    drawing: Drawing,
    prompt: str,
    task: RepairTask,
    looks: Looks,
    images: np.ndarray,
    present: np.ndarray,
    again: bool = False,
    **parameters: Any,
) -> Mended:
    """Choose a repair on held-out images that fail, and draw by it those of `images` that fail.

    Args:
        images: [S, H, W, 3] of the prompt. present: [S, items] of `looks`.
        again: let the untried repairs draw what still misses an item.
        parameters: of the repairs.
    """
    broken = [k for k, item in enumerate(looks.items) if item in task.broken]
    best = Best(images.copy(), present.copy(), ["none"] * len(images))
    rows = [int(row) for row in np.flatnonzero(~present[:, broken].all(1))]
    done = Mended(best, rows)
    if not rows:
        return done
    found = failing_held_out(drawing, prompt, looks, broken)
    seeds, before = (found.seeds, np.stack(found.present)) if found.seeds else (_at(drawing, rows), present[rows])
    judged = lambda *them: looks(drawing.images(prompt, *them, seeds=seeds)) if them else before  # noqa: E731
    done.drawn, done.tried = found.drawn, try_repairs(task, looks.items, seeds, judged, **parameters)
    for one in done.tried:
        one.held_out = bool(found.seeds)
    done.kept = next((one.trial for one in done.tried if one.kept), None)
    if done.kept is None:
        return done
    drawing.log.clear()
    drawn = drawing.images(prompt, done.kept.repair, seeds=_at(drawing, rows))
    done.redrawn = len(rows)
    best.consider(rows, drawn, looks(drawn), done.kept.name, ties=True)
    for other in untried(task, done.tried, **parameters) if again else ():
        if left := [row for row in rows if row in best.incomplete]:
            _redraw(drawing, prompt, looks, best, left, other, done.tried)
    return done


def _at(drawing: Drawing, rows: Sequence[int]) -> list[int]:
    return [drawing.seeds[row] for row in rows]


def _redraw(
    drawing: Drawing, prompt: str, looks: Looks, best: Best, rows: list[int], trial: Trial, tried: list[Attempt]
) -> None:
    """Draw by another repair what still misses an item; `tried` learns of it."""
    one = Attempt(trial, looks.items, _at(drawing, rows), best.present[rows], None, redraw=True)
    tried.append(one)
    try:
        images = drawing.images(prompt, trial.repair, seeds=one.seeds)
    except UnleakError as e:
        one.failed = str(e)
        return
    one.after = looks(images)
    taken = best.consider(rows, images, one.after, trial.name)
    one.better = [drawing.seeds[row] for row in taken]
