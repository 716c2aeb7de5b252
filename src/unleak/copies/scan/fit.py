"""`unleak.calibrate`: fit a threshold for a model on prompts that are known to be memorized, and on ordinary ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from unleak.copies.detect.detectors import Detector
from unleak.copies.scan.calibrate import Calibration, fingerprint_of
from unleak.copies.scan.scan import DEFAULT, Scan, scan
from unleak.drawing.generate import Seeds
from unleak.errors import BadInput
from unleak.stats.intervals import Figure
from unleak.stats.roc import auroc, tpr_at_fpr
from unleak.text.prompt import each_prompt

COMBINATION = "combination"
FOLDS = 5


@dataclass(frozen=True)
class Separation:
    """How well one detector separates the two kinds of prompts; `threshold` keeps to the rate that was asked for."""

    detector: str
    auroc: Figure
    tpr_at_1fpr: Figure
    threshold: float


def separation(name: str, memorized: np.ndarray, ordinary: np.ndarray, fpr: float = 0.01) -> Separation:
    """Figures of scores [P] and [Q] of memorized and ordinary prompts."""
    at_1, _ = tpr_at_fpr(memorized, ordinary, 0.01)
    return Separation(name, auroc(memorized, ordinary), at_1, tpr_at_fpr(memorized, ordinary, fpr)[1])


def calibrate(
    pipe: Any,
    memorized: str | Iterable[str],
    ordinary: str | Iterable[str],
    seeds: Seeds = 4,
    first_steps: int | None = 1,
    detectors: Sequence[str | Detector] = DEFAULT,
    *,
    combine: bool = False,
    fpr: float = 0.01,
    model: str = "",
    call: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Calibration:
    """The calibration of the best detector, which also holds the figures of all (`Calibration.compared`).

    The best has the highest AUROC, then the most found at 1 % false positives; of equals the first named. With
    `combine` a logistic regression joins all detectors instead; its figures and threshold are cross-validated in five
    folds. The threshold flags less than `fpr` of these ordinary prompts, so ordinary prompts must be of the kind that
    will be scanned.

    Raises:
        BadInput: a prompt is in both lists, `fpr` is no share, or there are too few prompts to combine.
    """
    each = each_prompt(memorized), each_prompt(ordinary)
    if both := set.intersection(*map(set, each)):
        raise BadInput(f"{len(both)} prompts are in both lists, such as {min(both)!r}")
    if not 0 < fpr < 1:
        raise BadInput(f"the share of false alarms must lie between 0 and 1, not {fpr}")
    kinds = [scan(pipe, p, seeds, first_steps, detectors, call=call, progress=progress) for p in each]
    tables = [{name: x.mean(1) for name, x in kind.images.items()} for kind in kinds]
    figures = [separation(name, tables[0][name], tables[1][name], fpr) for name in tables[0]]
    weights: dict[str, float] = {}
    bias = 0.0
    best = max(figures, key=lambda s: (s.auroc.value, s.tpr_at_1fpr.value))
    if combine:
        weights, bias, best = _combined(tables, fpr)
        figures.append(best)
    return _calibration(pipe, kinds, best, weights, bias, fpr, model, figures)


def _combined(tables: Sequence[Mapping[str, np.ndarray]], fpr: float) -> tuple[dict[str, float], float, Separation]:
    """Weights and bias of a logistic regression on the detectors' scores, and its cross-validated figures."""
    names = list(tables[0])
    x = np.concatenate([np.stack([table[name] for name in names], 1) for table in tables])
    sizes = [len(table[names[0]]) for table in tables]
    if len(names) < 2 or min(sizes) < FOLDS:
        raise BadInput(f"a combination needs two detectors and {FOLDS} prompts of each kind; there are {sizes}")
    y = np.repeat([1, 0], sizes)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    logits = cross_val_predict(classifier, x, y, cv=folds, method="decision_function")
    scaler, regression = classifier.fit(x, y)
    weights = regression.coef_[0] / scaler.scale_
    bias = float(regression.intercept_[0] - weights @ scaler.mean_)
    figures = separation(COMBINATION, logits[y == 1], logits[y == 0], fpr)
    return {name: float(w) for name, w in zip(names, weights, strict=True)}, bias, figures


def _calibration(
    pipe: Any,
    kinds: Sequence[Scan],
    best: Separation,
    weights: dict[str, float],
    bias: float,
    fpr: float,
    model: str,
    figures: Sequence[Separation],
) -> Calibration:
    plan = kinds[0].plan
    return Calibration(
        model=model, fingerprint=fingerprint_of(pipe, plan.call), detector=best.detector,
        threshold=best.threshold, fpr=fpr,
        steps=plan.steps, seeds=len(plan.seeds), call=dict(plan.call), auroc=best.auroc.value,
        tpr_at_1fpr=best.tpr_at_1fpr.value, memorized=len(kinds[0].prompts), ordinary=len(kinds[1].prompts),
        intervals={"auroc": best.auroc[1:], "tpr_at_1fpr": best.tpr_at_1fpr[1:]}, weights=weights, bias=bias,
        compared={
            s.detector: {"auroc": list(s.auroc), "tpr_at_1fpr": list(s.tpr_at_1fpr), "threshold": s.threshold}
            for s in figures
        },
    )  # fmt: skip
