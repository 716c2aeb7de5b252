"""`unleak.scan`: memorization scores of many prompts, from the first denoising steps, without drawing an image.

Image j of a prompt starts from a CPU generator seeded with `seeds[j]`, as in `generate`, so a score does not depend on
the batch that it was computed in beyond the noise of floating point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from unleak.copies.detect.detectors import Detector
from unleak.copies.presets import DETECTORS
from unleak.copies.scan.calibrate import Calibration
from unleak.core.context import Context
from unleak.core.intervention import Intervention
from unleak.core.result import Result
from unleak.drawing import first_steps as drawing
from unleak.drawing.generate import Seeds, for_each, images_at_once, memory_errors, parse_seeds, rehearse
from unleak.errors import BadInput, PromptTruncated
from unleak.text.call import TextCall
from unleak.text.prompt import check_prompt, each_prompt

DEFAULT = ("agreement", "magnitude")


@dataclass(frozen=True)
class ScanPlan:
    """What is measured and how; checked before anything runs. The first detector gives the score.

    steps    how many denoising steps from the first are looked at; None for all of them
    batch    prompts in one call of the pipeline
    """

    detectors: tuple[Detector, ...]
    seeds: tuple[int, ...]
    steps: int | None
    batch: int
    call: Mapping[str, Any]
    calibration: Calibration | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(d.name for d in self.detectors)

    @property
    def score_name(self) -> str:
        """What the score of a prompt is."""
        return self.calibration.detector if self.calibration else self.names[0]

    def score(self, scores: Mapping[str, float]) -> float:
        return float(self.calibration.score(scores) if self.calibration else scores[self.names[0]])


def plan(
    pipe: Any,
    seeds: Seeds = 4,
    first_steps: int | None = 1,
    detectors_: Sequence[str | Detector] | None = None,
    calibration: Calibration | None = None,
    batch: int | None = None,
    call: Mapping[str, Any] | None = None,
) -> ScanPlan:
    """Check the arguments of a scan against each other and the model.

    Raises:
        BadInput: unknown detectors; one that needs more steps or seeds than are given; a calibration that was made for
            another model or other settings.
    """
    if not isinstance(calibration, Calibration | None):
        raise BadInput(
            f"calibration={type(calibration).__name__}: a scan takes a Calibration, from unleak.calibrate or "
            "unleak.Calibration.load(file)"
        )
    numbers, steps = tuple(parse_seeds(seeds)), first_steps
    detectors = each_once(detectors_ or (calibration.detectors if calibration else DEFAULT))
    names, call = [d.name for d in detectors], dict(call or {})
    if steps is not None and steps < 1:
        raise BadInput(f"first_steps={steps}: give at least one step, or None for all")
    if ours := {"prompt", "num_images_per_prompt", "generator", "output_type"} & call.keys():
        raise BadInput(f"{', '.join(sorted(ours))} is set by the scan itself: leave it out of the call")
    if whole := [d.name for d in detectors if d.whole and steps is not None]:
        raise BadInput(f"{', '.join(whole)} needs the whole trajectory, not {steps} step(s): ask for all steps")
    if lonely := [d.name for d in detectors if d.compares and len(numbers) < 2]:
        raise BadInput(f"{', '.join(lonely)} compares the images of a prompt: give at least two seeds")
    if calibration:
        if missing := [name for name in calibration.detectors if name not in names]:
            raise BadInput(
                f"the calibration holds for detector {', '.join(missing)}, which is not among {', '.join(names)}: scan "
                "as it was made, or make another"
            )
        calibration.made_at.check(pipe, len(numbers), call, steps)
    batch = batch or max(1, images_at_once(pipe, call) // len(numbers))
    return ScanPlan(detectors, numbers, steps, batch, call, calibration)


def each_once(which: str | Detector | Sequence[str | Detector]) -> tuple[Detector, ...]:
    """Detectors by name, with their defaults, or as they are. Raises BadInput for an unknown or repeated one."""
    several = (which,) if isinstance(which, str | Detector) else which
    detectors = tuple(DETECTORS[d].make() if isinstance(d, str) else d for d in several)
    names = [d.name for d in detectors]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if not detectors or repeated:
        raise BadInput(f"give each detector once, and at least one: {', '.join(repeated) or 'none is given'}")
    return detectors


@dataclass(frozen=True)
class _OncePerSeed(Intervention):
    """At the first step the rows without the prompt are those of every prompt at the same seed."""

    merges = ("uncond",)


def measure(pipe: Any, prompts: Sequence[str], plan: ScanPlan) -> dict[str, np.ndarray]:
    """Scores [P, S] of one batch of prompts by detector, in one run of the pipeline.

    Raises:
        NotFinite: latents or predictions are NaN. UnsupportedModel: a detector cannot work on this pipeline.
    """
    generators = [torch.Generator("cpu").manual_seed(seed) for _ in prompts for seed in plan.seeds]
    with memory_errors(len(generators)):
        run = drawing.first_steps(
            pipe, plan.steps, *plan.detectors, _OncePerSeed(), prompt=list(prompts),
            num_images_per_prompt=len(plan.seeds), generator=generators, **for_each(plan.call, len(prompts)),
        )  # fmt: skip
    return {d.name: d.scores(run).numpy().reshape(len(prompts), -1) for d in plan.detectors}


@dataclass(frozen=True)
class _Lengths(Intervention):
    """Learns how each encoder is called."""

    def on_text(self, ctx: Context, call: TextCall) -> None:
        ctx.results.setdefault("calls", {})[call.name] = call


def fits(pipe: Any, plan: ScanPlan) -> Callable[[str], None]:
    """A check whether a prompt fits an encoder that the denoiser reads; it raises PromptTruncated.

    Also runs the part of the pipeline before the denoiser once, so that a call it refuses is found at once.
    """
    run = rehearse(pipe, "a", _Lengths(), num_images_per_prompt=len(plan.seeds), **plan.call)
    calls = [call for name, call in run.results["calls"].items() if run.encoded.columns(name) is not None]

    def check(prompt: str) -> None:
        errors = list[PromptTruncated]()
        for call in calls:
            try:
                call.check_length([prompt])
            except PromptTruncated as error:
                errors.append(error)
        if errors and len(errors) == len(calls):
            raise errors[0]

    return check


@dataclass(frozen=True, repr=False, eq=False)
class Scan(Result):
    """Scores of prompts. `images` holds [P, S] by detector; higher means memorized.

    Without a calibration a score orders prompts and says no more: `flagged` and `threshold` then raise.
    """

    verb: ClassVar[str] = "scan"
    prompts: tuple[str, ...]
    images: dict[str, np.ndarray]
    plan: ScanPlan
    model: str = ""

    @property
    def scores(self) -> np.ndarray:
        """One score per prompt [P]: of the calibration, or the first detector's mean over the images."""
        means = {name: x.mean(1) for name, x in self.images.items()}
        c = self.plan.calibration
        return np.asarray(c.score(means) if c else means[self.plan.names[0]], float)

    @property
    def threshold(self) -> float:
        """The score from which a prompt counts as memorized. Raises BadInput without a calibration."""
        if self.plan.calibration is None:
            raise BadInput("these scores are uncalibrated: calibrate the model and give scan(calibration=...)")
        return self.plan.calibration.threshold

    @property
    def flagged(self) -> np.ndarray:
        """[P] of bool: which prompts reach the threshold."""
        return self.scores >= self.threshold

    def lines(self) -> list[str]:
        scores, known = self.scores, self.plan.calibration
        lines = [f"{len(self.prompts)} prompts by {self.plan.score_name}, the highest score first"]
        if known is None:
            lines.append("  uncalibrated: the scores order the prompts, and what counts as memorized is not known")
        else:
            lines.append(f"  {int(self.flagged.sum())} score at least {known.threshold:.6g}, which counts as memorized")
        return lines + [f"  {scores[i]:<12.6g} {self.prompts[i]}" for i in np.argsort(-scores, kind="stable")]

    def data(self) -> dict[str, Any]:
        """The settings, and for every prompt in the order given what a record of a scanned file holds."""
        plan, known = self.plan, self.plan.calibration
        records = [
            {
                "line": i + 1, "prompt": prompt, "score": float(score),
                "memorized": None if known is None else bool(score >= known.threshold),
                "scores": {name: float(x[i].mean()) for name, x in self.images.items()},
                "images": {name: [float(v) for v in x[i]] for name, x in self.images.items()},
            }
            for i, (prompt, score) in enumerate(zip(self.prompts, self.scores, strict=True))
        ]  # fmt: skip
        return {
            "model": self.model, "detectors": list(plan.names), "score": plan.score_name, "steps": plan.steps,
            "seeds": list(plan.seeds), "call": dict(plan.call), "calibrated": known is not None,
            "threshold": None if known is None else known.threshold, "prompts": records,
        }  # fmt: skip


def scan(
    pipe: Any,
    prompts: str | Sequence[str],
    seeds: Seeds = 4,
    first_steps: int | None = 1,
    detectors: Sequence[str | Detector] | None = None,
    *,
    calibration: Calibration | None = None,
    model: str = "",
    batch: int | None = None,
    call: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Scan:
    """Memorization scores of prompts.

    Args:
        seeds: how many images of each prompt, or their seeds, or text such as "0:4".
        first_steps: denoising steps from the first that are looked at; None for all of them, which some detectors need.
        detectors: names (see `copies.presets.DETECTORS`) or `Detector`s; default: the calibration's, or agreement
            and magnitude.
        batch: prompts in one call; default: about one megapixel of images, at most 32.
        model: its name, for the record.
        call: arguments of the pipeline call (steps of the whole trajectory, guidance, size ...).
        progress: is told how many prompts each call measured; a repeated prompt is measured once.

    Raises:
        BadInput, PromptTruncated, UnsupportedModel, NotFinite: see `plan` and `measure`.
    """
    texts = list(each_prompt(prompts))
    if not texts:
        raise BadInput("nothing to scan: give at least one prompt")
    what = plan(pipe, seeds, first_steps, detectors, calibration, batch, call)
    check = fits(pipe, what)
    for text in texts:
        check(check_prompt(text))
    unique, batches = list(dict.fromkeys(texts)), []
    for start in range(0, len(unique), what.batch):
        part = unique[start : start + what.batch]
        batches.append(measure(pipe, part, what))
        if progress:
            progress(len(part))
    rows = [unique.index(text) for text in texts]
    images = {name: np.concatenate([scores[name] for scores in batches])[rows] for name in what.names}
    return Scan(tuple(texts), images, what, model)
