"""How well scores tell memorized prompts from ordinary ones, or leaking items from others. Higher means the former."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score, roc_curve

from unleak.errors import BadInput, NotFinite
from unleak.stats.intervals import Figure, Z, share

Scores = Sequence[float] | np.ndarray
Groups = Sequence[object] | np.ndarray


def auroc(positive: Scores, negative: Scores, groups: tuple[Groups, Groups] | None = None) -> Figure:
    """Area under the ROC curve: the chance that a positive (a memorized prompt, a leak) scores above a negative.

    The interval is a score interval for the Mann-Whitney statistic (Newcombe, Statistics in Medicine 25, 2006, method
    5). Unlike a bootstrap or DeLong's it does not shrink to nothing where a small sample is separated perfectly.

    Args:
        groups: for each positive and each negative what it belongs to, such as the prompt of an item; those of one
            group resemble each other. The interval then is that of fewer scores: their numbers are divided by how much
            more the area varies by group than by score (Obuchowski, Biometrics 53, 1997). Where the area has no
            variance to tell, every group counts once.

    Raises BadInput: one side is empty. NotFinite: a score is.
    """
    truth, scores = _stack(positive, negative)
    value = float(roc_auc_score(truth, scores))
    m, n = (len(positive), len(negative)) if groups is None else _effective(value, positive, negative, groups)
    typical = (m + n) / 2 - 1

    def excess(area: float) -> float:
        """How much farther `area` is from the value than 1.96 of its standard errors."""
        spread = 1 + typical * (1 - area) / (2 - area) + typical * area / (1 + area)
        return abs(area - value) - Z * math.sqrt(max(area * (1 - area), 0.0) * spread / (m * n))

    at_0, at_1 = value < 1e-9, value > 1 - 1e-9
    low = 0.0 if at_0 else brentq(excess, 0.0, 1 - 1e-12 if at_1 else value - 1e-12)
    high = 1.0 if at_1 else brentq(excess, 1e-12 if at_0 else value + 1e-12, 1.0)
    return Figure(value, float(low), float(high))


def _effective(value: float, positive: Scores, negative: Scores, groups: tuple[Groups, Groups]) -> tuple[float, float]:
    """How many independent positives and negatives say as much as these."""
    m, n = len(positive), len(negative)
    names, group = np.unique([str(g) for g in (*groups[0], *groups[1])], return_inverse=True)
    scores = np.array([*positive, *negative], float)
    every, own = rankdata(scores), np.concatenate([rankdata(positive), rankdata(negative)])
    # of each positive the share of negatives below it, of each negative the share of positives above it
    placed = np.concatenate([(every - own)[:m] / n, 1 - (every - own)[m:] / m])
    parts = (placed - value) / np.repeat([m, n], [m, n])
    by_group = np.bincount(group, parts)
    alone, together = float((parts**2).sum()) * (m + n) / (m + n - 1), float((by_group**2).sum())
    if alone < 1e-18:
        return len(set(group[:m])), len(set(group[m:]))
    more = max(1.0, together * len(names) / max(1, len(names) - 1) / alone)
    return max(1.0, m / more), max(1.0, n / more)


def tpr_at_fpr(memorized: Scores, ordinary: Scores, fpr: float = 0.01) -> tuple[Figure, float]:
    """(share of memorized prompts found, threshold) at the last point of the ROC curve with less than `fpr`.

    A prompt is flagged where its score is at least the threshold. Of all thresholds that flag the same prompts, it is
    the one midway between them and the rest. The interval is that of the share, for that threshold.
    """
    truth, scores = _stack(memorized, ordinary)
    false_positive_rates, true_positive_rates, thresholds = roc_curve(truth, scores, drop_intermediate=False)
    at = int(np.flatnonzero(false_positive_rates < fpr)[-1])
    k, n = round(true_positive_rates[at] * len(memorized)), len(memorized)
    return share(np.arange(n) < k), _midway(scores, thresholds[at])


def _midway(scores: np.ndarray, threshold: float) -> float:
    """Between the lowest score at or above the threshold and the highest below it; above all if none reaches it."""
    above, below = scores[scores >= threshold], scores[scores < threshold]
    if not len(above):
        return float(np.nextafter(scores.max(), np.inf))
    return float((above.min() + below.max()) / 2 if len(below) else above.min())


def _stack(positive: Scores, negative: Scores) -> tuple[np.ndarray, np.ndarray]:
    if not len(positive) or not len(negative):
        raise BadInput("both memorized and ordinary prompts are needed, at least one of each")
    scores = np.concatenate([np.asarray(positive, float), np.asarray(negative, float)])
    if not np.isfinite(scores).all():
        raise NotFinite("a score is NaN or infinite")
    return np.repeat([1, 0], [len(positive), len(negative)]), scores
