"""Null-text inversion: unconditional rows for each step, under which guidance leads back to the image.

Source: Mokady et al., Null-text Inversion (arXiv 2211.09794). Guidance leaves the trajectory z* that inversion took
without it. From the noise downwards, at step i of N, with x(z, e) the guided DDIM step from z under unconditional rows
e,

    minimise ||x(z_i, e) - z*_(i+1)||^2 over e, at most `iterations` steps of Adam,     z_(i+1) = x(z_i, e),

where e begins as the step before left it. Learning rate and tolerance change over the run as published for 50 steps:
0.01 (1 - i / 2N), and 1e-5 + 1e-3 i / N, below which a step is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from unleak.core.anatomy import Anatomy
from unleak.core.intervention import Intervention
from unleak.core.predictions import Level, guidance
from unleak.core.rows import Branch
from unleak.engine.session import attach
from unleak.errors import BadInput, NotFinite
from unleak.regions.method import PromptObjects
from unleak.regions.methods.direct import DirectInversion
from unleak.regions.methods.images import Prompts
from unleak.regions.methods.inversion import ReplayInversion, ddim_step, invert
from unleak.regions.methods.schedule import followed
from unleak.text.prompt import each_prompt

if TYPE_CHECKING:
    from unleak.core.context import Context

RATE, TOLERANCE, SLACK = 0.01, 1e-5, 1e-3


class NullText(NamedTuple):
    """The optimised rows [steps, L, D]; the latents [steps + 1, 1, C, h, w] that they lead along, the clean ones first
    and exact; and the loss at the end of each step."""

    empty: Tensor
    latents: Tensor
    losses: list[float]


@dataclass(frozen=True, eq=False)
class _Optimise(Intervention):
    """Draws the source along `trajectory` and leaves rows, latents and losses of each step in `ctx.results`."""

    trajectory: Tensor
    guidance: float
    iterations: int
    uses_text = True

    def on_prediction(self, ctx: Context, preds: Mapping[str, Tensor]) -> Tensor:
        x, cond, part = ctx.latents("cond").float(), preds["cond"].float(), ctx.step / ctx.steps
        goal = self.trajectory[ctx.steps - 1 - ctx.step].to(x)
        if "rows" not in ctx.state:
            assert ctx.encoded.uncond is not None
            ctx.state["rows"] = ctx.encoded.uncond[0].float()
        with torch.enable_grad():
            rows = ctx.state["rows"].clone().requires_grad_()
            optimiser = torch.optim.Adam([rows], lr=RATE * (1 - part / 2))
            for k in range(self.iterations + 1):
                output = guidance(self._uncond(ctx, rows), cond, self.guidance)
                loss = F.mse_loss(ddim_step(ctx, output, x), goal)
                if k == self.iterations or loss < TOLERANCE + SLACK * part:
                    break
                (rows.grad,) = torch.autograd.grad(loss, [rows])
                optimiser.step()
        if not torch.isfinite(rows).all():
            raise NotFinite("the optimised rows hold NaN or infinity; run the model in a wider dtype")
        ctx.state["rows"], output = rows.detach(), output.detach()
        ctx.state["next"] = ddim_step(ctx, output, x)
        for name, value in (("rows", rows.detach()), ("latents", x), ("losses", float(loss.detach()))):
            ctx.results.setdefault(name, []).append(value)
        return output.to(preds["cond"])

    def _uncond(self, ctx: Context, rows: Tensor) -> Tensor:
        return ctx.predict([Branch("empty", like="uncond", text=rows)])["empty"].float()

    def on_latents(self, ctx: Context, latents: Tensor) -> Tensor:
        x: Tensor = ctx.state["next"]
        return x


def null_text(
    pipe: Any, trajectory: Tensor, prompt: Prompts, size: tuple[int, int], guidance: float = 7.5, iterations: int = 10
) -> NullText:
    """Unconditional rows for each step under which the guided prompt draws the image again.

    Args:
        trajectory: as `inversion.invert` gives it, [steps + 1, 1, C, h, w]. prompt: what was inverted.
        size: (height, width) of the image in pixels.
        iterations: at most, for each step; each is a forward and a backward pass of one denoiser row. With 0 the
            rows are the empty prompt's.

    Raises:
        BadInput: a negative number of iterations, or guidance 1, which reads no unconditional rows.
        NotFinite: the optimisation diverged.
    """
    if iterations < 0 or guidance == 1.0:
        raise BadInput(f"iterations={iterations}, guidance={guidance}: give 0 or more, and a guidance other than 1")
    steps = len(trajectory) - 1
    dtype = next(Anatomy.of(pipe).denoiser.parameters()).dtype
    with followed(pipe, steps), attach(pipe, _Optimise(trajectory, guidance, iterations)) as run:
        pipe(
            prompt=[*each_prompt(prompt)], latents=trajectory[-1].to(dtype), num_inference_steps=steps, height=size[0],
            width=size[1], guidance_scale=2.0, output_type="latent",
        )  # fmt: skip
    rows, latents, losses = (run.results[name] for name in ("rows", "latents", "losses"))
    return NullText(torch.stack(rows), torch.stack([trajectory[0], *reversed(latents)]), losses)


@dataclass(frozen=True)
class NullTextInversion(DirectInversion):
    """Null-text inversion with Prompt-to-Prompt. `iterations`: of the optimisation, at most, for each step."""

    iterations: int = 10
    citation: str = field(default="Mokady et al., Null-text Inversion (arXiv 2211.09794)", init=False)

    together: ClassVar[bool] = False

    def begin(
        self, pipe: Any, clean: Tensor, source: PromptObjects, call: Mapping[str, Any], random: Any, level: Level
    ) -> tuple[Tensor, Any]:
        """The inverted noise, and the optimised rows with the latents that they lead along."""
        size = call["height"], call["width"]
        trajectory = invert(pipe, clean, source[0], size, self.steps, call)
        return trajectory[-1], null_text(pipe, trajectory, source[0], size, self.target_guidance, self.iterations)

    def control(self, source: PromptObjects, target: PromptObjects, trajectory: NullText) -> list[Intervention]:
        return [
            ReplayInversion(trajectory.latents, self.target_guidance, source[0], trajectory.empty),
            self.injection(source, target),
        ]
