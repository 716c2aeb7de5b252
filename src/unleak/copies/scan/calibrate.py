"""Thresholds for one model: what a score means, measured on prompts that are known to be memorized or ordinary.

A `Calibration` belongs to one model at one setting: it names the weights by their fingerprint, the call, the seeds
and the steps that were looked at, and refuses any other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from unleak.core.anatomy import Anatomy
from unleak.core.result import Result
from unleak.errors import BadInput
from unleak.text.encode import fingerprint

SCHEMA = "unleak/calibration/1"


def fingerprint_of(pipe: Any) -> str:
    """Digest of everything that decides a score: denoiser, text encoders and the scheduler's settings."""
    anatomy = Anatomy.of(pipe)
    parts = [fingerprint(part) for part in (anatomy.denoiser, *(e.module for e in anatomy.encoders))]
    settings = {k: v for k, v in sorted(pipe.scheduler.config.items()) if not k.startswith("_")}
    return hashlib.sha256(json.dumps([*parts, settings], default=str).encode()).hexdigest()[:32]


@dataclass(frozen=True, repr=False)
class Calibration(Result):
    """The operating point of one detector, or of a weighted sum of several, on one model.

    detector     name of the detector; "combination" where `weights` join several
    threshold    a prompt whose score is at least this counts as memorized
    fpr          the share of ordinary prompts that may be flagged, for which the threshold was chosen
    steps        how many denoising steps from the first were looked at (None: all);  seeds  images per prompt
    call         arguments of the pipeline call (steps, guidance, size), since scores depend on them
    auroc, tpr   with `intervals` (95 %) by name;  memorized, ordinary  number of prompts of each
    weights      detector -> weight of its score; `bias` is added to the weighted sum
    compared     detector -> its "auroc" and "tpr_at_1fpr" with their intervals [value, low, high], and its "threshold"
    """

    verb: ClassVar[str] = "calibration"
    model: str
    fingerprint: str
    detector: str
    threshold: float
    fpr: float
    steps: int | None
    seeds: int
    call: dict[str, Any]
    auroc: float
    tpr_at_1fpr: float
    intervals: dict[str, tuple[float, float]]
    memorized: int
    ordinary: int
    weights: dict[str, float] = field(default_factory=dict)
    bias: float = 0.0
    compared: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def detectors(self) -> tuple[str, ...]:
        """Names of the detectors whose scores are needed."""
        return tuple(self.weights) or (self.detector,)

    def score(self, scores: Mapping[str, Any]) -> Any:
        """The calibrated score from the detectors' own scores (numbers or arrays) by name."""
        if not self.weights:
            return scores[self.detector]
        return self.bias + sum(weight * scores[name] for name, weight in self.weights.items())

    def check(self, pipe: Any) -> None:
        """Refuse another model. Raises BadInput."""
        if fingerprint_of(pipe) != self.fingerprint:
            raise BadInput(
                f"this calibration was made for other weights or another scheduler ({self.model!r}), and a threshold "
                "holds for one model only: make one for this model with `unleak calibrate`"
            )

    def data(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        lines = [f"{self.detector} from {self.threshold:.6g} on counts as memorized ({self.model or 'this model'})"]
        kinds = f"{self.memorized} memorized and {self.ordinary} ordinary prompts, {self.seeds} images each"
        lines.append(f"  at most {100 * self.fpr:g} % of ordinary prompts are flagged; measured on {kinds}")
        for name, one in self.compared.items():
            (area, low, high), rate = one["auroc"], one["tpr_at_1fpr"][0]
            lines.append(
                f"  {name:<14} AUROC {area:.4f} ({low:.4f} to {high:.4f}), {rate:.3f} found at 1 % false alarms"
            )
        return lines

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read what `save` wrote. Raises BadInput for a file that is missing or is no calibration."""
        try:
            data = json.loads(Path(path).read_text("utf-8"))
        except (OSError, ValueError) as e:
            raise BadInput(f"cannot read the calibration {path}: {e}") from e
        if not isinstance(data, dict) or data.pop("schema", None) != SCHEMA:
            raise BadInput(f"{path} is no calibration ({SCHEMA}): make one with `unleak calibrate`")
        data.pop("versions", None)
        try:
            return cls(**{**data, "intervals": {k: tuple(v) for k, v in data["intervals"].items()}})
        except (KeyError, TypeError, AttributeError) as e:
            raise BadInput(f"{path} is damaged ({e}): make it again with `unleak calibrate`") from e
