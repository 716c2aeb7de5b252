"""DDIM inversion: the noise from which deterministic sampling returns to an image, as nearly as its steps allow.

Source: Song et al. (arXiv 2010.02502), run backwards as Dhariwal and Nichol (arXiv 2105.05233) do. From the clean end,
with a the cumulative alpha of the present noise level and a' of the next higher one,

    z' = sqrt(a') (z - sqrt(1 - a) eps) / sqrt(a) + sqrt(1 - a') eps,

where eps is predicted at z with the timestep of z': the approximation that fewer and larger steps make worse. On the
way back, with z(x) the clean latents that are predicted and a' of the next lower level,

    x' = sqrt(a') z(x) + sqrt(1 - a') eps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from unleak.core.anatomy import Anatomy
from unleak.core.intervention import Intervention
from unleak.core.predictions import Level, guidance, predicted
from unleak.core.rows import Branch
from unleak.drawing.generate import for_each
from unleak.engine.session import attach
from unleak.errors import BadInput, UnsupportedModel
from unleak.regions.method import Method, PromptObjects
from unleak.regions.methods.blend import Blend
from unleak.regions.methods.ddcm import SOURCE
from unleak.regions.methods.images import Prompts, per_image
from unleak.regions.methods.schedule import alphas, followed, last_alpha
from unleak.text.prompt import each_prompt

if TYPE_CHECKING:
    from unleak.core.context import Context


def invert_step(z: Tensor, eps: Tensor, a: float, next_a: float) -> Tensor:
    """z' of the equation above; `next_a` is a'."""
    return next_a**0.5 * (z - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - next_a) ** 0.5 * eps


def ddim_step(ctx: Context, output: Tensor, x: Tensor) -> Tensor:
    """x' of the equation above, by the denoiser's (guided) output at x, on the pipeline's own schedule."""
    schedule = ctx.pipe.scheduler
    a, next_a = alphas(schedule, ctx.step)
    next_a = last_alpha(schedule) if ctx.step == ctx.steps - 1 else next_a
    z, eps = predicted(output, x, schedule.config.prediction_type, Level.of(a))
    return next_a**0.5 * z + (1 - next_a) ** 0.5 * eps


@dataclass(frozen=True)
class _Invert(Intervention):
    """Take the invert step while the pipeline walks up the timesteps; `first` is a of the clean image."""

    first: float

    def on_prediction(self, ctx: Context, preds: Mapping[str, Tensor]) -> None:
        schedule, z = ctx.pipe.scheduler, ctx.latents("cond").float()
        next_a = float(schedule.alphas_cumprod[int(ctx.timestep)])
        kind = schedule.config.prediction_type
        eps = predicted(preds["cond"].float(), z, kind, Level.of(next_a)).noise
        ctx.state["z'"] = invert_step(z, eps, ctx.state.get("a", self.first), next_a)
        ctx.state["a"] = next_a

    def on_latents(self, ctx: Context, latents: Tensor) -> Tensor:
        ctx.results.setdefault("trajectory", []).append(ctx.state["z'"])
        z: Tensor = ctx.state["z'"]
        return z


SET_HERE = ("num_inference_steps", "height", "width", "guidance_scale", "negative_prompt")
"""Arguments of the pipeline that an inversion sets itself."""


def invert(
    pipe: Any,
    clean: Tensor,
    prompt: Prompts,
    size: tuple[int, int],
    steps: int = 50,
    call: Mapping[str, Any] | None = None,
) -> Tensor:
    """Latents of images at every noise level, [steps + 1, images, C, h, w]: first the clean ones, last the noise.

    Args:
        clean: the images' latents [images, C, h, w]. prompt: the caption of each; guidance is off.
        size: (height, width) of the images in pixels. call: further arguments of the pipeline.

    Raises UnsupportedModel: the pipeline has no noise schedule that can be walked backwards.
    """
    from diffusers import DDIMInverseScheduler

    with followed(pipe, steps):
        own = pipe.scheduler
        if own.config.get("timestep_spacing", "leading") not in ("leading", "trailing"):
            raise UnsupportedModel(f"timesteps spaced {own.config.timestep_spacing!r} cannot be walked backwards")
        dtype = next(Anatomy.of(pipe).denoiser.parameters()).dtype
        pipe.scheduler = DDIMInverseScheduler.from_config(own.config)
        more = for_each({n: value for n, value in (call or {}).items() if n not in SET_HERE}, len(clean))
        with attach(pipe, _Invert(last_alpha(own))) as run:
            pipe(
                prompt=[*each_prompt(prompt)], latents=clean.to(dtype), num_inference_steps=steps,
                height=size[0], width=size[1], guidance_scale=1.0, output_type="latent", **more,
            )  # fmt: skip
    return torch.stack([clean.to(run.results["trajectory"][0]), *run.results["trajectory"]])


@dataclass(frozen=True, eq=False)
class ReplayInversion(Intervention):
    """Walk down from inverted noise with the prompt of the call, while the source stays on the latents that led there.

    After each step `ctx.results[SOURCE]` holds the source's latents, at last the clean ones.

    Attributes:
        trajectory: the source's latents at every noise level, as `invert` gives them.
        target_guidance: the scale of the call's prompt; the pipeline's own is not used.
        prompt: of the source, or one for each prompt of the call, where its conditional rows stand beside the target's
            for others to read.
        empty: unconditional rows of each step [steps, L, D] instead of the pipeline's (null-text inversion).
    """

    trajectory: Tensor
    target_guidance: float = 7.5
    prompt: Prompts | None = None
    empty: Tensor | None = None
    uses_text = True

    def branches(self, ctx: Context) -> list[Branch]:
        """Raises BadInput: the run has another number of steps than the trajectory."""
        if len(self.trajectory) != ctx.steps + 1:
            raise BadInput(f"a trajectory of {len(self.trajectory) - 1} steps does not fit a run of {ctx.steps}")
        branches = []
        if self.prompt is not None:
            rows, pooled, _ = ctx.encode(each_prompt(self.prompt))
            latents = self.trajectory[ctx.steps - ctx.step]
            vectors = None if pooled is None else per_image(ctx, pooled)
            branches.append(Branch("source_cond", "cond", text=per_image(ctx, rows), pooled=vectors, latents=latents))
        if self.empty is not None:
            branches.append(Branch("empty", like="uncond", text=self.empty[ctx.step]))
        return branches

    def on_prediction(self, ctx: Context, preds: Mapping[str, Tensor]) -> Tensor:
        uncond = preds.get("uncond") if self.empty is None else preds["empty"]
        output = guidance(uncond, preds["cond"], self.target_guidance)
        ctx.state["guided"] = output, ctx.latents("cond")
        return output

    def on_latents(self, ctx: Context, latents: Tensor) -> Tensor:
        output, x = (part.float() for part in ctx.state["guided"])
        ctx.results[SOURCE] = self.trajectory[ctx.steps - 1 - ctx.step].to(x).expand_as(x)
        return ddim_step(ctx, output, x)


@dataclass(frozen=True)
class Inversion(Method):
    """DDIM inversion, and from its noise the target's prompt: no control at all.

    The source's prompt is inverted without guidance. `blend`: see `Controlled`.
    """

    steps: int = 50
    target_guidance: float = 7.5
    blend: bool = False
    citation: str = field(default="Song et al., Denoising Diffusion Implicit Models (arXiv 2010.02502)", init=False)

    inverts: ClassVar[bool] = True

    def begin(
        self, pipe: Any, clean: Tensor, source: PromptObjects, call: Mapping[str, Any], random: Any, level: Level
    ) -> tuple[Tensor, Any]:
        """The inverted noise, and the trajectory that led there: latents [steps + 1, images, C, h, w]."""
        trajectory = invert(pipe, clean, source[0], (call["height"], call["width"]), self.steps, call)
        return trajectory[-1], trajectory

    def parts(
        self,
        source: PromptObjects,
        target: PromptObjects,
        masks: Tensor,
        clean: Tensor,
        trajectory: Any = None,
        negative: str | None = None,
    ) -> list[Intervention]:
        return [*self.control(source, target, trajectory), *([Blend(masks)] if self.blend else [])]

    def control(self, source: PromptObjects, target: PromptObjects, trajectory: Any) -> list[Intervention]:
        return [ReplayInversion(trajectory, self.target_guidance)]
