"""Intervals and paired tests, from scipy: nothing here is our own statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest, bootstrap
from sklearn.metrics import roc_auc_score

from unleak.errors import BadInput


@dataclass(frozen=True)
class Row:
    """One figure of a results table, with its 95 % interval and sample size."""

    method: str
    subset: str
    metric: str
    value: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def share(hits: Sequence[bool] | np.ndarray, method: str, subset: str, metric: str) -> Row:
    """A proportion with its Wilson interval."""
    flat = np.asarray(hits, bool).ravel()
    k, n = int(flat.sum()), len(flat)
    ci = binomtest(k, n).proportion_ci(0.95, method="wilson")
    return Row(method, subset, metric, k / n, float(ci.low), float(ci.high), n)


def mean(values: Sequence[float] | np.ndarray, method: str, subset: str, metric: str, seed: int = 0) -> Row:
    """A mean with its bootstrap (BCa) interval over the first axis; further axes are averaged first."""
    x = np.asarray(values, float)
    x = x.reshape(len(x), -1).mean(1)
    if len(x) < 2 or np.ptp(x) < 1e-9 * max(1.0, float(np.abs(x).max())):
        return Row(method, subset, metric, float(x.mean()), float(x.mean()), float(x.mean()), len(x))
    ci = bootstrap((x,), np.mean, rng=np.random.default_rng(seed), n_resamples=2000).confidence_interval
    return Row(method, subset, metric, float(x.mean()), float(ci.low), float(ci.high), len(x))


def median(values: Sequence[float] | np.ndarray, method: str, subset: str, metric: str, seed: int = 0) -> Row:
    """A median with its bootstrap (percentile) interval over the first axis; further axes are averaged first."""
    x = np.asarray(values, float)
    x = x.reshape(len(x), -1).mean(1)
    middle = float(np.median(x))
    if len(x) < 2 or np.ptp(x) == 0:
        return Row(method, subset, metric, middle, middle, middle, len(x))
    ci = bootstrap(
        (x,), np.median, rng=np.random.default_rng(seed), n_resamples=2000, method="percentile"
    ).confidence_interval
    return Row(method, subset, metric, middle, float(ci.low), float(ci.high), len(x))


def paired_difference(
    before: np.ndarray, after: np.ndarray, method: str, subset: str, metric: str, seed: int = 0
) -> Row:
    """Mean of after - before over prompts (first axis; seeds are averaged first), bootstrap interval."""
    return mean(np.asarray(after, float) - np.asarray(before, float), method, subset, metric, seed)


def auroc(groups: Sequence[Sequence[tuple[float, bool]]], method: str, subset: str, metric: str, seed: int = 0) -> Row:
    """Area under the ROC curve of (score, label) pairs, with a bootstrap interval that draws whole groups (prompts).

    `n` counts the pairs. Raises BadInput where all labels are alike.
    """
    if len({label for group in groups for _, label in group}) < 2:
        raise BadInput("an AUROC needs both kinds of labels: take more prompts")
    draw = np.random.default_rng(seed)
    values: list[float] = []
    while len(values) < 1000:
        some = [groups[i] for i in draw.integers(0, len(groups), len(groups))]
        if len({label for group in some for _, label in group}) == 2:
            values.append(_area(some))
    low, high = np.quantile(values, (0.025, 0.975))
    return Row(method, subset, metric, _area(groups), float(low), float(high), sum(map(len, groups)))


def _area(groups: Sequence[Sequence[tuple[float, bool]]]) -> float:
    scores, labels = zip(*(pair for group in groups for pair in group), strict=True)
    return float(roc_auc_score(labels, scores))


def balanced_accuracy(right: Sequence[np.ndarray], method: str, subset: str, metric: str, seed: int = 0) -> Row:
    """Mean over classes of the share that is right; the bootstrap interval draws within each class.

    Args:
        right: for each class its cases [n] of bool.
    """
    each = [np.asarray(cases, float) for cases in right]

    def value(*drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean([cases.mean(axis) for cases in drawn], 0)

    ci = bootstrap(
        each, value, rng=np.random.default_rng(seed), n_resamples=2000, method="percentile"
    ).confidence_interval
    return Row(method, subset, metric, float(value(*each)), float(ci.low), float(ci.high), sum(map(len, each)))


def mcnemar(before: np.ndarray, after: np.ndarray) -> tuple[int, int, float]:
    """Exact McNemar test: (fixed, broken, two-sided p) for paired yes/no outcomes."""
    b, a = np.asarray(before, bool).ravel(), np.asarray(after, bool).ravel()
    fixed, broken = int((~b & a).sum()), int((b & ~a).sum())
    p = 1.0 if fixed + broken == 0 else float(binomtest(fixed, fixed + broken, 0.5).pvalue)
    return fixed, broken, p
