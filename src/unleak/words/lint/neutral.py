"""The neutral bank: how much an item shifts in a context that should not matter, to measure other shifts against.

Every item is put beside the same plain objects, before and after them ("a mouse and a house", "a clock and a mouse").
A shift in a prompt is then a z-score: robust standard deviations above the median of the item's own bank. Both depend
on the order, because a causal encoder's rows know only what stands before them.

An item without another one has only the rest of its prompt, which shifts any object: its reference are the plain
objects in its place ("a house on a red background", "a clock on a red background").
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from unleak.errors import PromptTruncated
from unleak.words.lint.shift import (
    REST,
    Bare,
    Cut,
    Sentence,
    SentenceEncoder,
    SentenceRows,
    Shift,
    Without,
    beside,
    shifts,
    variants,
)

#: plain objects with one meaning, that turn few words into another sense
NEUTRAL = ("a house", "a clock", "a balloon", "an umbrella", "a boat", "a cactus", "a rocket", "the moon")
LEAST_DEVIATION = 0.03  #: least standard deviation of a loss; a bank may be more uniform by chance
_MAD = 1.4826  #: of a normal distribution: standard deviation / median absolute deviation


class ReferenceStatistics(NamedTuple):
    """Median and robust standard deviation of an item's loss in a neutral context."""

    median: float
    deviation: float

    def z(self, shift: Shift) -> float:
        return (shift.loss - self.median) / max(self.deviation, LEAST_DEVIATION)


class NeutralBank:
    """The reference statistics of items in one encoder; each is measured once, the latest `remember` are kept."""

    def __init__(self, encoder: SentenceEncoder, remember: int = 10_000) -> None:
        self.encoder = encoder
        self.cut = lru_cache(remember)(encoder.cut)
        self.without_item = lru_cache(64)(self._read)
        self.statistics = lru_cache(remember)(self._measure)
        self.alone = lru_cache(remember)(self._measure_alone)
        self.pair = lru_cache(remember)(self._measure_pair)

    def _measure(self, item: Bare, first: bool) -> Mapping[str, ReferenceStatistics]:
        """Per channel of `shifts`, for a bare phrase.

        Args:
            first: the item stands before its context.
        """
        others = [(text, (text.index(" ") + 1, len(text))) for text in _others(item[0])]
        return self._of([beside(item, other, first) for other in others], 1)

    def _measure_pair(self, item: Bare, other: Bare, first: bool) -> Mapping[str, Shift]:
        """What `other` does to `item` in the bank's own form: per channel of `shifts`."""
        return self._shifts([beside(item, other, first)], 1)[0]

    def _measure_alone(self, before: str, after: str) -> Mapping[str, ReferenceStatistics]:
        """Per channel of `shifts`, for plain objects between the texts `before` and `after`, where no other item is."""
        return self._of([_inside(before, neutral, after) for neutral in _others(before + after)], REST)

    def _of(self, banks: list[dict[Without, Sentence]], b: int) -> Mapping[str, ReferenceStatistics]:
        """The statistics of what b does to item 0."""
        measured = self._shifts(banks, b)
        losses = {channel: np.array([one[channel].loss for one in measured]) for channel in measured[0]}
        return {channel: _statistics(loss) for channel, loss in losses.items()}

    def _shifts(self, banks: list[dict[Without, Sentence]], b: int) -> list[dict[str, Shift]]:
        """What b does to item 0 in each context; one that the encoder would cut is left out, if another fits."""
        own, shared = dict[Sentence, Cut](), dict[Sentence, None]()
        whole = []
        for bank in banks:
            try:
                cuts = {s: self.cut(s) for s in bank.values()}
                shared.update((s, None) for gone, s in bank.items() if 0 in gone)
                own.update((s, cuts[s]) for gone, s in bank.items() if 0 not in gone)
                whole.append(bank)
            except PromptTruncated:
                if bank is banks[-1] and not whole:
                    raise
        known = dict(zip(own, self.encoder.read(list(own.values())), strict=True)) | self.without_item(tuple(shared))
        return [shifts({gone: known[s] for gone, s in bank.items()}, 0, b) for bank in whole]

    def _read(self, sentences: tuple[Sentence, ...]) -> dict[Sentence, SentenceRows]:
        """Of the sentences without the item, which other items have, too; together, so that their bits do not depend on
        what was read before."""
        return dict(zip(sentences, self.encoder.read([self.cut(s) for s in sentences]), strict=True))


def _others(text: str) -> list[str]:
    """The plain objects that the text does not name; all of them where it names every one."""
    return [neutral for neutral in NEUTRAL if neutral.split()[-1] not in text] or list(NEUTRAL)


def _inside(before: str, neutral: str, after: str) -> dict[Without, Sentence]:
    """The variants of "a house on a red background"; the house is number 0."""
    at = len(before) + neutral.index(" ") + 1
    return variants(before + neutral + after, [(at, len(before) + len(neutral))])


def _statistics(losses: np.ndarray) -> ReferenceStatistics:
    median = np.median(losses)
    return ReferenceStatistics(float(median), float(_MAD * np.median(abs(losses - median))))
