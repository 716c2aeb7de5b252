"""Which prompts of a batch a mitigation is for, decided once, from predictions that guidance makes anyway.

At the first step the ordinary predictions already hold what a detector needs: the text-conditional noise of Wen et
al. (ICLR 2024), the agreement of the seeds. Images of a prompt under the threshold are never touched, at no cost. All
images of a prompt share its score, which is what a calibration is of: one by one, some fall on the wrong side.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unleak.copies.detect.detectors import Detector, by_prompt
from unleak.copies.detect.guided import Guided, guidance_pair, no_guidance
from unleak.copies.scan.calibrate import SIZE, Calibration, ScanSettings
from unleak.core.intervention import Intervention
from unleak.core.predictions import Combination, combination_of, guidance
from unleak.errors import BadInput, NotFinite
from unleak.text.blocks import call_arguments

if TYPE_CHECKING:
    from unleak.core.context import Context

Combine = Callable[[Guided, float], Tensor]
"""(predictions of the chosen images, scale of guidance) -> combined prediction [N, ...]."""


@dataclass(frozen=True)
class Gated(Intervention):
    """Base of mitigations inside the denoiser. Without a gate they act on every image.

    Attributes:
        gate: act on the prompts whose score at the first step reaches this threshold; a `Calibration` gives
            the threshold, what is read, and the settings that it holds for.
        reads: (detector, weight) pairs whose weighted sum is the score, the mean over the prompt's images in the call,
            as in `unleak.scan`. A call that names no prompts (`prompt_embeds`) is judged image by image.
        made_at: the settings that the threshold was made at; in a generation at others it is refused, as far as a
            pipeline tells them (model, scheduler, steps, size, guidance, images of a prompt).
    """

    gate: Calibration | float | None = field(default=None, kw_only=True)
    reads: tuple[tuple[str, float], ...] = field(default=(("magnitude", 1.0),), kw_only=True)
    made_at: ScanSettings | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.gate, Calibration):
            calibration = self.gate
            if calibration.steps != 1:
                raise BadInput(f"a gate decides at the first step; this calibration is of {calibration.steps} steps")
            object.__setattr__(self, "reads", tuple(calibration.weights.items()) or ((calibration.detector, 1.0),))
            object.__setattr__(self, "made_at", calibration.made_at)
            object.__setattr__(self, "gate", calibration.threshold - calibration.bias)
        if isinstance(self.made_at, Mapping):  # as `from_dict` has it
            object.__setattr__(self, "made_at", ScanSettings(**self.made_at))
        if self.gate is None:
            return
        if not isinstance(self.gate, int | float) or math.isnan(self.gate):
            raise BadInput(f"a gate is a calibration or a threshold, not {self.gate!r}")
        if self.window.start > 0:
            raise BadInput("a gate decides at the first step: let the window start at 0, or leave the gate out")
        self._detectors()

    def _detectors(self) -> list[tuple[Detector, float]]:
        weighted = [(Detector.named(name), weight) for name, weight in self.reads]
        for detector, _ in weighted:
            if detector.has("on_attention") or detector.whole:
                raise BadInput(f"a gate reads the first predictions; {detector.name} needs more: calibrate another")
        return weighted

    def undecided(self, ctx: Context) -> bool:
        """The gate has not seen this generation's first predictions yet."""
        return self.gate is not None and "chosen" not in ctx.state

    def chosen(self, ctx: Context) -> tuple[int, ...] | None:
        """Images to act on in this call; None for all of them, () for none."""
        if self.gate is None:
            return None
        chosen: tuple[int, ...] = ctx.state.get("chosen", ())
        return chosen

    def decide(self, ctx: Context, preds: Mapping[str, Tensor]) -> tuple[int, ...] | None:
        """`chosen`, once the gate has looked at these predictions if it had not yet."""
        if self.undecided(ctx):
            detectors = self._detectors()
            if any(d.guided for d, _ in detectors) and guidance_pair(ctx, preds) is None:
                raise no_guidance()
            self._check_settings(ctx)
            score = torch.stack([weight * d.measure(ctx, preds) for d, weight in detectors]).sum(0)
            if ctx.encoded.prompts:
                score = by_prompt(ctx, score, torch.mean)
            if not torch.isfinite(score).all():
                raise NotFinite("the gate's score is NaN or infinite; run the model in a wider dtype")
            assert isinstance(self.gate, int | float)
            threshold = self.gate
            ctx.state["chosen"] = tuple(torch.nonzero(score >= threshold).flatten().tolist())
            decisions = ctx.results.setdefault("gate", [])
            decisions += [{"score": value, "acted": value >= threshold} for value in score.tolist()]
        return self.chosen(ctx)

    def _check_settings(self, ctx: Context) -> None:
        """The threshold belongs to the settings that it was made at."""
        if self.made_at is None:
            return
        pipe: Any = ctx.pipe
        told = {"guidance_scale": getattr(pipe, "guidance_scale", None), **dict(zip(SIZE, ctx.pixels, strict=True))}
        told["num_inference_steps"] = getattr(pipe.scheduler, "num_inference_steps", None) or ctx.steps
        accepts = call_arguments(pipe)
        seen = {name: value for name, value in told.items() if value is not None and name in accepts}
        of_prompts = Counter(ctx.encoded.image_prompts).values() if ctx.encoded.prompts else (None,)
        for seeds in sorted(set(of_prompts), key=str):
            self.made_at.check_running(pipe, seeds, seen)

    def guided(self, ctx: Context, preds: Mapping[str, Tensor], combine: Combine, scale: float | None = None,
               other: Callable[[float], float] | None = None, like: Tensor | None = None) -> Any:  # fmt: skip
        """The combined prediction: `combine` of the chosen images, the pipeline's own of the others; None if none is.

        `other`: see `detect.guided.guidance_pair`. `like`: instead of the prompt's, the predictions whose lengths a
        pipeline gives back where it rescales, [chosen images, ...].
        """
        chosen = self.decide(ctx, preds)
        if chosen == ():
            return None
        pair, cond = guidance_pair(ctx, preds, other), preds["cond"]
        if pair is not None:
            how = combination(ctx, pair, scale)
            ctx.state["guided"] = True
        elif ctx.state.get("guided"):  # a callback has turned guidance off
            pair, how = Guided(cond, cond), Combination(1.0, sign_at_step(ctx))
        else:
            raise no_guidance()
        here = slice(None) if chosen is None else list(chosen)
        combined = plain(ctx, pair, cond, how.scale)
        mixture = combine(pair.at(here), how.scale)
        combined[here] = how.finish(mixture, pair.cond[here] if like is None else like).to(combined)
        return combined

    def instead(self, ctx: Context, preds: Mapping[str, Tensor], cond: Tensor) -> Any:
        """`cond` [images, ...] instead of the prompt's prediction; the pipeline combines it if it still can."""
        if ctx.pipeline_combined is None:
            return {"cond": cond}
        chosen = self.chosen(ctx)
        mine = cond if chosen is None else cond[list(chosen)]
        return self.guided(ctx, preds, lambda pair, w: guidance(pair.uncond, pair.of(mine), w), like=mine)


def plain(ctx: Context, pair: Guided, cond: Tensor, scale: float) -> Tensor:
    """What the pipeline makes of a step's predictions, as a tensor of one's own; `cond` is the denoiser's own."""
    if ctx.pipeline_combined is not None:
        return ctx.pipeline_combined.clone()
    return guidance(pair.uncond, pair.cond, scale) if pair.distilled is None else cond.clone()


def sign_at_step(ctx: Context) -> int:
    """What a combined prediction is multiplied by: where the scheduler's step is given it, as by the pipeline."""
    return -1 if ctx.pipeline_combined is not None and ctx.sign == -1 else 1


def combination(ctx: Context, pair: Guided, given: float | None) -> Combination:
    """How the pipeline combines: at a given scale, the one that its own combination shows, or its `guidance_scale`."""
    pipe: Any = ctx.pipe
    if getattr(pipe, "guidance_rescale", 0):
        raise BadInput("a combined prediction cannot be rescaled afterwards: leave guidance_rescale out")
    shown = None
    if pair.distilled is None and ctx.pipeline_combined is not None:
        shown = combination_of(ctx.pipeline_combined, pair.uncond, pair.cond)
    if given is not None:
        return Combination(given, sign_at_step(ctx)) if shown is None else shown._replace(scale=given)
    if shown is not None:
        return shown
    if pair.distilled is None and ctx.pipeline_combined is not None:
        raise BadInput(
            f"{type(pipe).__name__} combines its predictions otherwise than by u + w (c - u), as mitigations do: "
            "give w as scale="
        )
    if not hasattr(pipe, "guidance_scale"):
        raise BadInput(f"{type(pipe).__name__} does not tell the scale of its guidance: give it as scale=")
    return Combination(float(pipe.guidance_scale))
