"""From a z-score to a risk: logistic regression with one feature (Platt scaling), fitted on labelled prompts.

A calibration belongs to the text encoders that it was fitted on, and says so by a digest of their weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import numpy as np

from unleak import models
from unleak.errors import BadInput
from unleak.saved import Name, Number, Rule, Saved, length

SCHEMA = "unleak/lint-calibration/3"
FEWEST = 20  #: items that leak, and items that do not


@dataclass(frozen=True)
class RiskCalibration:
    """``risk = 1 / (1 + exp(-(slope z + intercept)))``.

    Attributes:
        encoders: name -> digest of the encoders that it was fitted on.
        items, leaks: how many labelled items it was fitted on, and how many of them leak. The risk is that of an item
            drawn from such prompts.
        source: what the labelled prompts were.
    """

    slope: Annotated[float, Rule("above 0", lambda x: x > 0)]
    intercept: float
    encoders: Annotated[Mapping[Name, Name], length(1)]
    items: Number
    leaks: Number
    source: str

    def risk(self, z: float) -> float:
        """In 0..1, growing with z."""
        return float(1 / (1 + np.exp(-np.clip(self.slope * z + self.intercept, -50, 50))))

    def fits(self, encoders: Mapping[str, str]) -> bool:
        return dict(self.encoders) == dict(encoders)

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1) + "\n"

    @staticmethod
    def load(path: str | Path) -> RiskCalibration:
        """A file of `to_json`. Raises BadInput for a file that is missing, BrokenFile for one that is none."""
        return FILE.load(path)


FILE = Saved("calibration of unleak lint", RiskCalibration, "fit one with `unleak lint FILE --fit`", SCHEMA)


def fit(z: Sequence[float], leaks: Sequence[bool], encoders: Mapping[str, str], source: str) -> RiskCalibration:
    """A calibration from labelled items. Raises BadInput for too few of a kind, or where z does not tell them apart."""
    from sklearn.linear_model import LogisticRegression

    n, k = len(leaks), int(sum(leaks))
    if min(k, n - k) < FEWEST:
        raise BadInput(f"{k} of {n} labelled items leak: give at least {FEWEST} that do and {FEWEST} that do not")
    model = LogisticRegression().fit(np.asarray(z)[:, None], np.asarray(leaks))
    slope, intercept = round(float(model.coef_[0, 0]), 6), round(float(model.intercept_[0]), 6)
    if slope <= 0:
        raise BadInput("on these prompts items that leak shift no more than others: no risk can be told from it")
    return RiskCalibration(slope, intercept, dict(encoders), n, k, source)


def shipped(encoders: Mapping[str, str]) -> tuple[RiskCalibration, bool]:
    """The calibration of these encoders and True; or the default model's and False where they have none."""
    for name in models.EMBEDDED:
        if not file_of(name).is_file():  # a model that is being added: its calibration is fitted with it in place
            continue
        calibration = RiskCalibration.load(file_of(name))
        if calibration.fits(encoders):
            return calibration, True
    return RiskCalibration.load(file_of(models.EMBEDDED[0])), False


def file_of(model: str) -> Path:
    """Where the calibration of an embedded model is."""
    return Path(str(files("unleak.words") / "data" / f"lint-{model}.json"))
