"""Train a `Classifier` of redundant tokens on labels that probing gave, and say how far to trust it.

Folds never share an item: tokens of one item on both sides would be recognised instead of judged. Threshold and
setting are chosen on validation folds for precision, and reported on outer folds that neither saw.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import precision_recall_curve
from sklearn.model_selection import GroupKFold

from unleak.errors import BadInput, choose
from unleak.words.tokens.classifier import KINDS, Classifier, probabilities

PRECISION = 0.95  #: that the threshold must reach on validation folds; it was chosen there, so on others it is less
FEWEST_ITEMS = 4  #: two folds to test on, and two within each to validate on
NEVER = 2.0  #: a threshold that no probability reaches


class Examples(NamedTuple):
    """N tokens: features [N, D], whether each is redundant [N], and its item's name [N]."""

    features: np.ndarray
    redundant: np.ndarray
    items: np.ndarray


def train(
    examples: Examples, kind: str, encoder: str, encoders: dict[str, str], extras: bool = False,
    precision: float = PRECISION,
) -> Classifier:  # fmt: skip
    """Choose setting and threshold by validation, fit on everything, and report what nested cross-validation says.

    Raises:
        BadInput: fewer than `FEWEST_ITEMS` items, or all tokens are alike.
    """
    X, y, items = examples
    choose("classifier", kind, KINDS)
    if len(set(items)) < FEWEST_ITEMS:
        raise BadInput(f"{len(set(items))} different items cannot train a classifier: give {FEWEST_ITEMS} or more.")
    if y.all() or not y.any():
        raise BadInput(f"all {len(y)} tokens are {'redundant' if y.all() else 'representative'}: give more items.")
    setting, threshold = _choose(kind, X, y, items, precision)
    arrays: dict[str, np.ndarray]
    if kind == "knn":
        setting = min(setting, len(y))
        arrays = {"rows": X.astype(np.float32), "labels": y.astype(np.uint8)}
    else:
        fit = LogisticRegression(C=setting, max_iter=1000).fit(X, y)
        arrays = {"weight": fit.coef_[0].astype(np.float32), "bias": fit.intercept_.astype(np.float32)}
    report = {
        **cross_validate(examples, kind, precision),
        "tokens": len(y),
        "items": len(set(items)),
        "asked": precision,
    }
    return Classifier(kind, setting, threshold, encoder, encoders, arrays, extras, report)


def cross_validate(examples: Examples, kind: str, precision: float = PRECISION) -> dict[str, Any]:
    """Precision, recall and accuracy of "redundant" on items that neither training nor threshold saw; base rate.

    Precision is None where nothing was called redundant.
    """
    X, y, items = examples
    called = np.zeros(len(y), bool)
    for learn, test in folds(items):
        setting, threshold = _choose(kind, X[learn], y[learn], items[learn], precision)
        called[test] = probabilities(kind, setting, X[learn], y[learn], X[test]) >= threshold
    return {
        "precision": float(y[called].mean()) if called.any() else None,
        "recall": float(called[y].mean()),
        "accuracy": float((called == y).mean()),
        "base_rate": float(y.mean()),
        "called": int(called.sum()),
    }


def folds(items: np.ndarray, most: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    """(training, test) positions of up to five folds that share no item."""
    groups = np.unique(items, return_inverse=True)[1]
    return list(GroupKFold(min(most, groups.max() + 1)).split(groups, groups=groups))


def _choose(kind: str, X: np.ndarray, y: np.ndarray, items: np.ndarray, least_precision: float) -> tuple[float, float]:
    """Of all settings and thresholds that reach the precision on validation folds, those of greatest recall.

    `NEVER` stands where no setting is precise enough: nothing is then removed.
    """
    best, chosen = -1.0, (KINDS[kind][0], NEVER)
    for setting in KINDS[kind] if y.any() else ():
        scores = np.zeros(len(y))
        for learn, test in folds(items):
            scores[test] = probabilities(kind, setting, X[learn], y[learn], X[test])
        precision, recall, thresholds = precision_recall_curve(y, scores)
        for p, r, t in zip(precision[:-1], recall[:-1], thresholds, strict=True):
            if p >= least_precision and r > best:
                best, chosen = r, (setting, float(t))
    return chosen
