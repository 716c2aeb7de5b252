"""The neutral bank: how much an item shifts in a context that should not matter, to measure other shifts against.

Every item is put beside the same plain objects, before and after them ("a mouse and a house", "a clock and a mouse").
A shift in a prompt is then a z-score: robust standard deviations above the median of the item's own bank. Both depend
on the order, because a causal encoder's rows know only what stands before them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from unleak.text.match import Chars
from unleak.words.lint.shift import Sentence, SentenceEncoder, Shift, shifts, variants

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
        self.statistics = lru_cache(remember)(self._measure)

    def _measure(self, text: str, item: Chars, first: bool) -> Mapping[str, ReferenceStatistics]:
        """Per channel of `shifts`, for the bare phrase `text` ("a mouse") with its item at `item`.

        Args:
            first: the item stands before its context.
        """
        banks = [_beside(text, item, neutral, first) for neutral in NEUTRAL if neutral.split()[-1] not in text]
        every = list(dict.fromkeys(sentence for bank in banks for sentence in bank.values()))
        known = dict(zip(every, self.encoder.read([self.encoder.cut(s) for s in every]), strict=True))
        measured = [shifts({gone: known[s] for gone, s in bank.items()}, 0, 1) for bank in banks]
        losses = {channel: np.array([one[channel].loss for one in measured]) for channel in measured[0]}
        return {channel: _statistics(loss) for channel, loss in losses.items()}


def _beside(text: str, item: Chars, neutral: str, first: bool) -> dict[frozenset[int], Sentence]:
    """The variants of "a mouse and a house" (or the other way round); the item is number 0."""
    left, right = (text, neutral) if first else (neutral, text)
    at, by = (0, len(left) + 5) if first else (len(left) + 5, 0)
    word = (by + neutral.index(" ") + 1, by + len(neutral))
    return variants(f"{left} and {right}", [(at + item[0], at + item[1]), word])


def _statistics(losses: np.ndarray) -> ReferenceStatistics:
    median = np.median(losses)
    return ReferenceStatistics(float(median), float(_MAD * np.median(abs(losses - median))))
