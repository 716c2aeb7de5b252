"""Figures with their 95 % intervals: one for a share, one for a mean, one for a paired difference.

Cases (prompts, captions, pictures to edit) are drawn at random; the images of one case, from several seeds, resemble
each other and are no further cases. Every interval is therefore one over cases: the first axis of what it is given.
Where cases resemble each other too, as prompts of one pair of words do, `units` says which belong together, and the
interval is one over units.

None of them shrinks to nothing because a small sample happens to be all alike: "20 of 20" is compatible with 84 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest, bootstrap, norm

from unleak.errors import BadInput

Z = float(norm.ppf(0.975))
RESAMPLES = 2000
Values = Sequence[Any] | np.ndarray  #: [cases] or [cases, images of each, ...]


class Figure(NamedTuple):
    """A value with its 95 % interval; where nothing can be said of the interval, both ends are the value."""

    value: float
    low: float
    high: float


def wilson(value: float, n: float) -> tuple[float, float]:
    """Wilson's score interval of a share `value` of `n` independent cases; `n` need not be whole.

    (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n): Wilson, J. American Statistical Association 22 (1927).

    >>> [round(end, 3) for end in wilson(1.0, 20)]
    [0.839, 1.0]
    """
    middle, reach = value + Z**2 / (2 * n), Z * math.sqrt(value * (1 - value) / n + Z**2 / (4 * n**2))
    low, high = ((middle + side * reach) / (1 + Z**2 / n) for side in (-1, 1))
    return (max(0.0, low) if value > 0 else 0.0), (min(1.0, high) if value < 1 else 1.0)


def share(hits: Values) -> Figure:
    """The share of images that are hits, from [cases] or [cases, images of each] of bool; cases may differ in number.

    Wilson's interval at the effective number of images, n / deff. deff is how much more the shares of the cases vary
    than those of independent images would (Kish, Survey Sampling, 1965); the score interval at that number keeps its
    coverage (Franco, Little, Louis and Slud, J. Survey Statistics and Methodology 7, 2019). Few hits, or none, say
    little of deff: it is taken with one case of hits and one without added, as Agresti and Coull add images (American
    Statistician 52, 1998). Every case counts once at least.

    Raises BadInput without any image.

    >>> share([[True] * 4] * 20) == share([True] * 20)
    True
    """
    yes, of = np.array([(np.sum(case), np.size(case)) for case in hits], int).reshape(-1, 2).T
    if not of.sum():
        raise BadInput("a share of no images has no value: take more prompts")
    value = int(yes.sum()) / int(of.sum())
    return Figure(value, *wilson(value, _effective(yes, of)))


def _effective(yes: np.ndarray, of: np.ndarray) -> float:
    """How many independent images say as much as these, `yes` of `of` in each case."""
    if len(of) == 1:
        return float(of.sum())
    n, typical = of.sum(), of.mean()
    k, m = np.array([*yes, typical, 0.0]), np.array([*of, typical, typical])  # with the two that are added
    p = k.sum() / m.sum()
    by_case = len(m) / (len(m) - 1) * ((k - p * m) ** 2).sum()
    by_image = m.sum() ** 2 / (m.sum() - 1) * p * (1 - p)
    return float(min(n, max(n * by_image / by_case, n**2 / (of**2).sum())))


def by_unit(values: Values, units: Sequence[Any]) -> list[np.ndarray]:
    """The values of the cases of each unit, joined: what `share` takes as a case.

    >>> [len(unit) for unit in by_unit([[True] * 4] * 3, ["a", "b", "a"])]
    [8, 4]
    """
    grouped: dict[Any, list[np.ndarray]] = {}
    for value, unit in zip(values, units, strict=True):
        grouped.setdefault(unit, []).append(np.ravel(value))
    return [np.concatenate(each) for each in grouped.values()]


def mean(values: Values, within: tuple[float, float] | None = None, units: Sequence[Any] | None = None) -> Figure:
    """A mean over cases (first axis; further axes are averaged first) with its BCa bootstrap interval.

    Args:
        units: for each case the unit that it belongs to; default: each is one of its own. Units are then what is drawn,
            each with all of its cases, and the mean stays one over cases (a ratio of two sums).

    Where all cases are alike there is nothing to draw from. If the values lie `within` known bounds, the interval is
    then Wilson's on that scale: of all variables with a given mean those with two values vary most. Without bounds both
    ends are the mean.

    >>> [round(x, 3) for x in mean([1.0] * 20, within=(0, 1))]
    [1.0, 0.839, 1.0]
    """
    x = _cases(values)
    value = float(x.mean())
    sums, sizes = np.array(
        [(unit.sum(), unit.size) for unit in by_unit(x, range(len(x)) if units is None else units)]
    ).T
    if len(sums) < 2 or np.ptp(sums / sizes) < 1e-9 * max(1.0, float(np.abs(x).max())):
        return Figure(value, *_alike(value, len(sums), within))
    if units is None:
        return Figure(value, *_drawn((x,), np.mean, "BCa"))
    return Figure(value, *_drawn((sums, sizes), lambda s, n, axis=-1: s.sum(axis) / n.sum(axis), "BCa"))


def median(values: Values) -> Figure:
    """A median over cases (first axis; further axes are averaged first) with its percentile bootstrap interval."""
    x = _cases(values)
    value = float(np.median(x))
    if len(x) < 2 or np.ptp(x) == 0:
        return Figure(value, value, value)
    return Figure(value, *_drawn((x,), np.median, "percentile"))


def paired_difference(
    before: Values, after: Values, within: tuple[float, float] | None = None, units: Sequence[Any] | None = None
) -> Figure:
    """Mean of after - before over cases (first axis; seeds are averaged first), with its BCa bootstrap interval.

    Args:
        within: bounds of both, such as (0, 1) of shares.
        units: for each case the unit that it belongs to, as in `mean`.

    Where all cases change alike there is nothing to draw from. If bounds are known, the interval is then the score
    interval of a paired difference (Tango, Statistics in Medicine 17, 1998): if none of n cases changed it is
    ∓ z² / (n + z²) of the range.

    >>> [round(x, 3) for x in paired_difference([1.0] * 20, [1.0] * 20, within=(0, 1))]
    [0.0, -0.161, 0.161]
    """
    d = _cases(np.asarray(after, float) - np.asarray(before, float))
    if within is None:
        return mean(d, units=units)
    span = within[1] - within[0]
    if not d.any():
        reach = span * Z**2 / (len(d if units is None else set(units)) + Z**2)
        return Figure(0.0, -reach, reach)
    return mean(d, (-span, span), units)


def balanced_accuracy(right: Sequence[Values]) -> Figure:
    """Mean over classes of the share that is right.

    The intervals of the classes are joined as those of a sum of independent estimates (Zou and Donner, Statistics in
    Medicine 27, 2008).

    Args:
        right: for each class its cases [n] of bool.
    """
    each = [share(cases) for cases in right]
    value = float(np.mean([one.value for one in each]))
    down, up = (
        math.sqrt(sum((one.value - end) ** 2 for one, end in zip(each, ends, strict=True))) / len(each)
        for ends in ([one.low for one in each], [one.high for one in each])
    )
    return Figure(value, value - down, value + up)


def mcnemar(before: Values, after: Values) -> tuple[int, int, float]:
    """Exact McNemar test of paired yes/no outcomes: (fixed, broken, two-sided p)."""
    b, a = np.asarray(before, bool).ravel(), np.asarray(after, bool).ravel()
    fixed, broken = int((~b & a).sum()), int((b & ~a).sum())
    p = 1.0 if fixed + broken == 0 else float(binomtest(fixed, fixed + broken, 0.5).pvalue)
    return fixed, broken, p


def _cases(values: Values) -> np.ndarray:
    """One value for each case."""
    x = np.asarray(values, float)
    if not x.size:
        raise BadInput("a mean of no cases has no value: take more prompts")
    return x.reshape(len(x), -1).mean(1)


def _alike(value: float, n: int, within: tuple[float, float] | None) -> tuple[float, float]:
    """The interval of a mean of n cases that are all alike."""
    if within is None:
        return value, value
    start, span = within[0], within[1] - within[0]
    low, high = wilson(min(1.0, max(0.0, (value - start) / span)), n)
    return start + span * low, start + span * high


def _drawn(data: tuple[np.ndarray, ...], statistic: Any, method: str) -> tuple[float, float]:
    """Bootstrap interval, drawn over units; `data`: what the statistic needs of each."""
    rng = np.random.default_rng(0)
    interval = bootstrap(
        data, statistic, paired=len(data) > 1, rng=rng, n_resamples=RESAMPLES, method=method
    ).confidence_interval
    return float(interval.low), float(interval.high)
