"""DDIM inversion: the noise from which deterministic sampling returns to an image, as nearly as its steps allow.

Source: Song et al. (arXiv 2010.02502), run backwards as Dhariwal and Nichol (arXiv 2105.05233) do. From the clean end,
with a the cumulative alpha of the present noise level and a' of the next higher one,

    z' = sqrt(a') (z - sqrt(1 - a) eps) / sqrt(a) + sqrt(1 - a') eps,

where eps is predicted at z with the timestep of z': the approximation that fewer and larger steps make worse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unleak.core.anatomy import Anatomy
from unleak.core.intervention import Intervention
from unleak.core.session import attach
from unleak.errors import UnsupportedModel
from unleak.regions.ddcm import read
from unleak.regions.schedule import variance_preserving

if TYPE_CHECKING:
    from unleak.core.context import Context


@dataclass(frozen=True)
class _Climb(Intervention):
    """Carry out the equation while the pipeline walks up the timesteps; `first` is a of the clean image."""

    first: float

    def on_prediction(self, ctx: Context, preds: Mapping[str, Tensor]) -> None:
        schedule, z = ctx.pipe.scheduler, ctx.latents("cond").float()
        after = float(schedule.alphas_cumprod[int(ctx.timestep)])
        ctx.state["step"] = z, read(preds["cond"].float(), z, after, schedule.config.prediction_type).noise, after

    def on_latents(self, ctx: Context, latents: Tensor) -> Tensor:
        (z, eps, after), a = ctx.state["step"], ctx.state.get("a", self.first)
        ctx.state["a"] = after
        z = after**0.5 * (z - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - after) ** 0.5 * eps
        ctx.run.results.setdefault("trajectory", []).append(z)
        return z


def invert(pipe: Any, clean: Tensor, prompt: str, size: tuple[int, int], steps: int = 50) -> Tensor:
    """Latents of an image at every noise level, [steps + 1, 1, C, h, w]: first the clean ones, last the noise.

    Args:
        clean: the image's latents [1, C, h, w]. prompt: its caption; guidance is off.
        size: (height, width) of the image in pixels.

    Raises UnsupportedModel: the pipeline has no noise schedule that can be walked backwards.
    """
    from diffusers import DDIMInverseScheduler

    with variance_preserving(pipe, steps):
        own = pipe.scheduler
        if own.config.get("timestep_spacing", "leading") not in ("leading", "trailing"):
            raise UnsupportedModel(f"timesteps spaced {own.config.timestep_spacing!r} cannot be walked backwards")
        first = float(getattr(own, "final_alpha_cumprod", 1.0))
        dtype = next(Anatomy.of(pipe).denoiser.parameters()).dtype
        pipe.scheduler = DDIMInverseScheduler.from_config(own.config)
        with attach(pipe, _Climb(first)) as run:
            pipe(
                prompt=prompt, latents=clean.to(dtype), num_inference_steps=steps,
                height=size[0], width=size[1], guidance_scale=1.0, output_type="latent",
            )  # fmt: skip
    return torch.stack([clean.to(run.results["trajectory"][0]), *run.results["trajectory"]])
