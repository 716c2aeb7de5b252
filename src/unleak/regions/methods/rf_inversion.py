"""RF-Inversion: a flow is walked up to noise and down again, drawn to where it is to arrive.

Source: Rout et al., Semantic Image Inversion and Editing using Rectified Stochastic Differential Equations (arXiv
2410.10792). With v = dx/dsigma as the denoiser predicts it, n noise and z0 the source,

    up      x' = x + (sigma' - sigma) (v + gamma ((n - x) / (1 - sigma) - v))     with the empty prompt
    down    x' = x + (sigma' - sigma) (v + eta ((x - z0) / sigma - v))            with the target's; eta in early steps
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from unleak.core.anatomy import Anatomy
from unleak.core.intervention import CROSS, JOINT, Intervention
from unleak.core.predictions import Level
from unleak.engine.session import attach
from unleak.errors import BadInput
from unleak.regions.method import FLOW, PromptObjects
from unleak.regions.methods.ddcm import SOURCE, guided
from unleak.regions.methods.inversion import Inversion
from unleak.regions.methods.schedule import followed, levels, retimed

if TYPE_CHECKING:
    from unleak.core.context import Context


@dataclass(frozen=True, eq=False)
class ControlledFlow(Intervention):
    """Takes the step above, and leaves the latents of every step in `ctx.results["trajectory"]`.

    Attributes:
        goal: n on the way up, z0 on the way down, as latents of the denoiser. weight: gamma or eta.
        upwards: which way. until: the share of the steps, the first ones, in which it is drawn to the goal.
        scale: of guidance. source: the latents of the way up, [steps + 1, ...], left as the source's on the way down.
    """

    goal: Tensor
    weight: float
    upwards: bool = False
    until: float = 1.0
    scale: float = 1.0
    source: Tensor | None = None

    def on_prediction(self, ctx: Context, preds: Mapping[str, Tensor]) -> Tensor:
        v = guided(ctx, preds, self.scale)
        ctx.state["v"] = v, ctx.latents("cond")
        return v

    def on_latents(self, ctx: Context, latents: Tensor) -> Tensor:
        (signal, sigma), (_, after) = levels(ctx.pipe.scheduler, ctx.step)
        v, x = (part.float() for part in ctx.state["v"])
        goal = self.goal.to(x)
        if ctx.step < self.until * ctx.steps:
            towards = (goal - x) / signal if self.upwards else (x - goal) / sigma
            v = v + self.weight * (towards - v)
        x = x + (after - sigma) * v
        ctx.results.setdefault("trajectory", []).append(x)
        if self.source is not None:
            ctx.results[SOURCE] = self.source[ctx.steps - 1 - ctx.step].to(x)
        return x


@dataclass(frozen=True)
class RFInversion(Inversion):
    """RF-Inversion.

    Attributes:
        gamma: how strongly the way up is drawn to noise. eta: and the way down to the source, in the first `until` of
            the steps.
        blend: also blend the background with the same masks (`blend.Blend`), which the method itself does not.
    """

    steps: int = 28
    target_guidance: float = 3.5
    gamma: float = 0.5
    eta: float = 0.9
    until: float = 0.25
    citation: str = field(default="Rout et al., RF-Inversion (arXiv 2410.10792)", init=False)

    layouts: ClassVar[tuple[str, ...]] = (CROSS, JOINT)
    noise: ClassVar[tuple[str, ...]] = (FLOW,)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gamma", "eta", "until"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise BadInput(f"{name}={getattr(self, name)}: give a number from 0 to 1")

    def begin(
        self, pipe: Any, clean: Tensor, source: PromptObjects, call: Mapping[str, Any], random: Any, level: Level
    ) -> tuple[Tensor, Any]:
        """The inverted noise, and the latents that led there, [steps + 1, images, ...]."""
        n = torch.randn(1, *clean.shape[1:], generator=random)
        dtype = next(Anatomy.of(pipe).denoiser.parameters()).dtype
        unguided = {"guidance_scale": 1.0, "negative_prompt": None, "output_type": "latent"}
        with followed(pipe, self.steps):
            pipe.scheduler = retimed(pipe.scheduler, lambda sigmas: sigmas.flip(0))
            with attach(pipe, ControlledFlow(n, self.gamma, upwards=True)) as run:
                pipe(**{**call, **unguided, "prompt": [""] * len(clean), "latents": clean.to(dtype)})
        trajectory = torch.stack([clean.to(run.results["trajectory"][0]), *run.results["trajectory"]])
        return trajectory[-1], trajectory

    def control(self, source: PromptObjects, target: PromptObjects, trajectory: Any) -> list[Intervention]:
        return [
            ControlledFlow(trajectory[0], self.eta, until=self.until, scale=self.target_guidance, source=trajectory)
        ]
