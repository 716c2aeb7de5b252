"""How well scores tell memorized prompts from ordinary ones. Higher scores mean memorized, everywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score, roc_curve

from unleak.errors import BadInput, NotFinite

Scores = Sequence[float] | np.ndarray


class Figure(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def auroc(memorized: Scores, ordinary: Scores) -> Figure:
    """Area under the ROC curve: the chance that a memorized prompt scores above an ordinary one.

    The interval is a score interval for the Mann-Whitney statistic (Newcombe, Statistics in Medicine 25, 2006,
    method 5). Unlike a bootstrap it does not shrink to nothing where a small sample is separated perfectly.
    """
    truth, scores = _stack(memorized, ordinary)
    value = float(roc_auc_score(truth, scores))
    m, n = len(memorized), len(ordinary)
    typical, z = (m + n) / 2 - 1, float(norm.ppf(0.975))

    def excess(area: float) -> float:
        """How much farther `area` is from the value than 1.96 of its standard errors."""
        spread = 1 + typical * (1 - area) / (2 - area) + typical * area / (1 + area)
        return abs(area - value) - z * math.sqrt(max(area * (1 - area), 0.0) * spread / (m * n))

    low = 0.0 if value == 0.0 else brentq(excess, 0.0, value - 1e-12 if value < 1 else 1 - 1e-12)
    high = 1.0 if value == 1.0 else brentq(excess, value + 1e-12 if value > 0 else 1e-12, 1.0)
    return Figure(value, float(low), float(high))


def tpr_at_fpr(memorized: Scores, ordinary: Scores, fpr: float = 0.01) -> tuple[Figure, float]:
    """(share of memorized prompts found, threshold) at the last point of the ROC curve with less than `fpr`.

    A prompt is flagged where its score is at least the threshold. Of all thresholds that flag the same prompts, it is
    the one midway between them and the rest. Wilson's interval, for that threshold.
    """
    truth, scores = _stack(memorized, ordinary)
    rates, found, thresholds = roc_curve(truth, scores, drop_intermediate=False)
    at = int(np.flatnonzero(rates < fpr)[-1])
    k, n = round(found[at] * len(memorized)), len(memorized)
    interval = binomtest(k, n).proportion_ci(0.95, method="wilson")
    return Figure(k / n, float(interval.low), float(interval.high)), _midway(scores, thresholds[at])


def _midway(scores: np.ndarray, threshold: float) -> float:
    """Between the lowest score at or above the threshold and the highest below it; above all if none reaches it."""
    above, below = scores[scores >= threshold], scores[scores < threshold]
    if not len(above):
        return float(np.nextafter(scores.max(), np.inf))
    return float((above.min() + below.max()) / 2 if len(below) else above.min())


def _stack(memorized: Scores, ordinary: Scores) -> tuple[np.ndarray, np.ndarray]:
    if not len(memorized) or not len(ordinary):
        raise BadInput("both memorized and ordinary prompts are needed, at least one of each")
    scores = np.concatenate([np.asarray(memorized, float), np.asarray(ordinary, float)])
    if not np.isfinite(scores).all():
        raise NotFinite("a score is NaN or infinite")
    return np.repeat([1, 0], [len(memorized), len(ordinary)]), scores
