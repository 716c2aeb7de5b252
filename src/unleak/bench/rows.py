"""A figure of a results table, and the rows that the suites make of outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from unleak.errors import BadInput
from unleak.stats import intervals, roc
from unleak.stats.intervals import Figure, Values

SHARE = (0.0, 1.0)
"""Bounds of a mean of shares."""


@dataclass(frozen=True)
class Row:
    """One figure of a results table, with its 95 % interval and sample size.

    ``n`` counts what was looked at, mostly images; ``units`` what was drawn independently, over which the interval is
    (None: not known, of tables before units were counted).
    """

    method: str
    subset: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    units: int | None = None

    @classmethod
    def of(cls, figure: Figure, n: int, method: str, subset: str, metric: str, units: int | None = None) -> Row:
        """A figure of a sample of n."""
        return cls(method, subset, metric, *figure, n, units)

    @classmethod
    def exact(cls, value: float, method: str, subset: str, metric: str, n: int = 1) -> Row:
        """What is counted and has no interval: a cost, a p value."""
        return cls(method, subset, metric, value, value, value, n)

    @property
    def interval(self) -> str:
        """ "0.84 to 1"; nothing where there is none."""
        return "" if self.low == self.high else f"{self.low:.4g} to {self.high:.4g}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


Units = Sequence[Any]
"""For each case the unit that it belongs to; without them each case is a unit of its own."""


def share(hits: Values, method: str, subset: str, metric: str, units: Units | None = None) -> Row:
    """The share of hits in [cases] or [cases, images of each]; n counts the images."""
    each = hits if units is None else intervals.by_unit(hits, units)
    return Row.of(intervals.share(each), sum(map(np.size, hits)), method, subset, metric, len(each))


def mean(
    values: Values,
    method: str,
    subset: str,
    metric: str,
    within: tuple[float, float] | None = None,
    units: Units | None = None,
) -> Row:
    """The mean over cases; n counts them."""
    return Row.of(intervals.mean(values, within, units), len(values), method, subset, metric, _count(values, units))


def median(values: Values, method: str, subset: str, metric: str) -> Row:
    """The median over cases; n counts them."""
    return Row.of(intervals.median(values), len(values), method, subset, metric, len(values))


def paired_difference(
    before: Values,
    after: Values,
    method: str,
    subset: str,
    metric: str,
    within: tuple[float, float] | None = None,
    units: Units | None = None,
) -> Row:
    """Mean of after - before over cases; n counts them."""
    figure = intervals.paired_difference(before, after, within, units)
    return Row.of(figure, len(before), method, subset, metric, _count(before, units))


def _count(cases: Values, units: Units | None) -> int:
    return len(cases) if units is None else len(set(units))


def balanced_accuracy(right: Sequence[Values], method: str, subset: str, metric: str) -> Row:
    """Mean over classes of the share that is right; n counts the cases of all."""
    n = sum(map(len, right))
    return Row.of(intervals.balanced_accuracy(right), n, method, subset, metric, n)


def auroc(groups: Sequence[Sequence[tuple[float, bool]]], method: str, subset: str, metric: str) -> Row:
    """Area under the ROC curve of the (score, label) pairs of groups (prompts); n counts the pairs.

    Raises BadInput where all labels are alike.
    """
    pairs = [(score, label, i) for i, group in enumerate(groups) for score, label in group]
    sides = [[(score, i) for score, label, i in pairs if label is side] for side in (True, False)]
    if not all(sides):
        raise BadInput("an AUROC needs both kinds of labels: take more prompts")
    (positive, first), (negative, second) = (zip(*side, strict=True) for side in sides)
    return Row.of(roc.auroc(positive, negative, (first, second)), len(pairs), method, subset, metric, len(groups))
