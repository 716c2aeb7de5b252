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
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, TypedDict

from unleak.core.anatomy import Anatomy
from unleak.core.result import Result
from unleak.drawing.generate import image_size
from unleak.errors import BadInput
from unleak.saved import Count, Name, Number, Rule, Saved, Share, length
from unleak.text.blocks import call_arguments
from unleak.text.encode import fingerprint

SCHEMA = "unleak/calibration/1"
Triple = Annotated[list[float], length(3, 3)]
"""A figure and its interval: [value, low, high]."""


class Compared(TypedDict):
    """The figures of one detector."""

    auroc: Triple
    tpr_at_1fpr: Triple
    threshold: float


def fingerprint_of(pipe: Any, call: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Digest of everything that decides a score: denoiser, text encoders and the scheduler's settings at work.

    `call`: arguments of the pipeline, of which the number of steps may decide the scheduler's settings.
    """
    anatomy = Anatomy.of(pipe)
    parts = [fingerprint(part) for part in (anatomy.denoiser, *(e.module for e in anatomy.encoders))]
    config = config_at_work(pipe.scheduler, resolved(pipe, call).get("num_inference_steps"))
    settings = {k: v for k, v in sorted(config.items()) if not k.startswith("_")}
    return hashlib.sha256(json.dumps([*parts, settings], default=str).encode()).hexdigest()[:32]


def config_at_work(scheduler: Any, steps: int | None) -> Mapping[str, Any]:
    """A scheduler's configuration as it is once it was asked for so many steps: the same before and after.

    Some rewrite theirs then (single-step DPM-Solver, of an odd number of steps). A copy is asked, not the scheduler.
    """
    config: Mapping[str, Any] = scheduler.config
    copy = type(scheduler).from_config(config)
    try:
        copy.set_timesteps(steps)
    except (ValueError, TypeError):  # it takes more than a number of steps, such as the size of the image
        return config
    at_work: Mapping[str, Any] = copy.config
    return {name: at_work.get(name, value) for name, value in config.items()}


SIZE = ("height", "width")


def resolved(pipe: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call with the pipeline's defaults where none is given, and the size that it draws."""
    size = image_size(pipe, call) or (None, None)
    return {**call_arguments(pipe), **call, **dict(zip(SIZE, size, strict=True))}


@dataclass(frozen=True)
class ScanSettings:
    """What a score depends on beside its prompt.

    model       its name;  fingerprint  digest of its weights and its scheduler (`fingerprint_of`)
    seeds       images per prompt;  steps  how many are looked at from the first on (None: all)
    call        arguments of the pipeline; one that is left out has the pipeline's default
    """

    model: str
    fingerprint: str
    seeds: int
    steps: int | None
    call: Mapping[str, Any]

    def check(self, pipe: Any, seeds: int | None, call: Mapping[str, Any], steps: int | None = 1) -> None:
        """Refuse others. Raises BadInput, which names all that differ. `seeds`: None where it cannot be known."""
        self._compare(pipe, seeds, call, steps, {*self.call, *call, *SIZE})

    def check_running(self, pipe: Any, seeds: int | None, seen: Mapping[str, Any]) -> None:
        """The same inside a call, of whose arguments only those in `seen` are known. Raises BadInput."""
        self._compare(pipe, seeds, seen, 1, {*seen, *SIZE})

    def check_model(self, pipe: Any) -> None:
        """Refuse another model. Raises BadInput."""
        if fingerprint_of(pipe, self.call) != self.fingerprint:
            raise BadInput(
                f"this calibration was made for another model: other weights or another scheduler ({self.model!r}). A "
                "threshold holds for one model only: make one for this model with `unleak calibrate`"
            )

    def _compare(
        self, pipe: Any, seeds: int | None, call: Mapping[str, Any], steps: int | None, names: set[str]
    ) -> None:
        self.check_model(pipe)
        before, now = resolved(pipe, self.call), resolved(pipe, call)
        pairs = {f"the call's {name}": (before.get(name), now.get(name)) for name in sorted(names)}
        pairs |= {"looked-at steps": (self.steps, steps), "seeds": (self.seeds, self.seeds if seeds is None else seeds)}
        if other := [f"{name} {made!r}, not {asked!r}" for name, (made, asked) in pairs.items() if made != asked]:
            raise BadInput(
                f"the calibration holds for {'; '.join(other)}: use it as it was made, or make another with "
                "`unleak calibrate`"
            )


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
    fingerprint: Name
    detector: Name
    threshold: float
    fpr: Annotated[float, Rule("above 0 and below 1", lambda x: 0 < x < 1)]
    steps: Number | None
    seeds: Number
    call: dict[str, Any]
    auroc: Share
    tpr_at_1fpr: Share
    intervals: dict[str, tuple[Share, Share]]
    memorized: Count
    ordinary: Count
    weights: dict[str, float] = field(default_factory=dict)
    bias: float = 0.0
    compared: dict[str, Compared] = field(default_factory=dict)

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
        """Refuse another model; `made_at.check` compares everything. Raises BadInput."""
        self.made_at.check_model(pipe)

    @property
    def made_at(self) -> ScanSettings:
        """What else its scores depend on: the threshold holds for these settings alone."""
        return ScanSettings(self.model, self.fingerprint, self.seeds, self.steps, self.call)

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
        """Read what `save` wrote. Raises BadInput for a file that is missing, BrokenFile for one that is none."""
        return FILE.load(path)


FILE = Saved("calibration", Calibration, "make one with `unleak calibrate`", SCHEMA)
