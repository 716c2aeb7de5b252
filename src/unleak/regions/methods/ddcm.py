"""Denoise a source and a target together, with the exact source as anchor: no inversion is needed.

Source: the consistency sampler of InfEdit (arXiv 2312.04965) as ALE (arXiv 2412.04715) uses it. Both branches start
from one noise and share every later one. With a the cumulative alpha of this timestep, a' of the next, z the clean
image that a branch predicts, z0 the true source and n fresh noise,

    z_t  = z0 + (z(x_t) - z(x_s))                                    only the guided difference is carried over
    x_t' = sqrt(a') z_t + sqrt((1 - eta)(1 - a')) d + sqrt(eta (1 - a')) n
    x_s' = sqrt(a') z0  + sqrt((1 - eta)(1 - a')) d + sqrt(eta (1 - a')) n
    d    = eps(x_t) - eps(x_s) + (x_s - sqrt(a) z0) / sqrt(1 - a)

The difference of clean images holds for every parametrisation, and for a terminal alpha of 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unleak.core.intervention import Intervention
from unleak.core.predictions import Level, Prediction, guidance, predicted
from unleak.core.rows import Branch
from unleak.drawing.generate import check_seed
from unleak.errors import BadInput
from unleak.regions.methods.images import Phrases, Prompts, each_list, frozen, per_image
from unleak.regions.methods.ore import embed
from unleak.regions.methods.schedule import alphas
from unleak.text.prompt import each_prompt

if TYPE_CHECKING:
    from unleak.core.context import Context

SOURCE = "source_latents"
"""Where a method leaves the source's latents [images, C, h, w] at the target's noise level, in `ctx.results`."""


def ddcm_step(
    target: Prediction, source: Prediction, x_s: Tensor, z0: Tensor, n: Tensor, a: float, next_a: float, eta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of the equations above: (z_t, x_t', x_s'). `next_a` is a'."""
    z_t = z0 + (target.clean - source.clean)
    noise = (eta * (1 - next_a)) ** 0.5 * n
    if eta < 1:
        d = target.noise - source.noise + (x_s - a**0.5 * z0) / (1 - a) ** 0.5
        noise = noise + ((1 - eta) * (1 - next_a)) ** 0.5 * d
    return z_t, next_a**0.5 * z_t + noise, next_a**0.5 * z0 + noise


@dataclass(frozen=True, eq=False)
class DDCM(Intervention):
    """Add the source's rows to each denoiser call and step both branches as above; the last step leaves z_t.

    The pipeline is called with the target's prompt; its scheduler gives the timesteps and alphas. After each step
    `ctx.results[SOURCE]` holds the source's latents, at last the clean ones.

    Attributes:
        clean: z0, the source's latents as the denoiser knows them, [1 or images, C, h, w].
        prompt: of the source; or one for each prompt of the call.
        objects: phrases of that prompt with rows of their own (`ore.ORE`), or a list of them for each; none leaves its
            rows as they are.
        source_guidance, target_guidance: scales of the two branches; the pipeline's own is not used.
        negative: of the source, where it differs from the target's.
        eta: 1 is a fresh noise each step, 0 none.
        noise: n of every step, [steps, 1 or images, C, h, w]; else drawn from `seed`.
        base_index, find: see `ore.ORE`.
        followers: names of further branches ("layout") that read the source's prompt at its guidance, start from the
            same noise and carry their own difference from the source. Their latents are left under their names.
    """

    clean: Tensor
    prompt: Prompts
    objects: Phrases = ()
    source_guidance: float = 1.0
    target_guidance: float = 2.0
    negative: str | None = None
    eta: float = 1.0
    noise: Tensor | None = None
    seed: int = 0
    base_index: str = "paper"
    find: str = "words"
    followers: tuple[str, ...] = ()
    uses_text = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prompt", "objects"):
            object.__setattr__(self, name, frozen(getattr(self, name)))
        if not 0.0 <= self.eta <= 1.0:
            raise BadInput(f"eta={self.eta}: give a number from 0 to 1")
        check_seed(self.seed)

    def branches(self, ctx: Context) -> list[Branch]:
        """Rows of the source and of its followers: at first on the target's noise, then on latents of their own."""
        if "rows" not in ctx.state:
            ctx.state["rows"] = self._rows(ctx)
        text, pooled, empty, empty_pooled = ctx.state["rows"]
        branches = []
        for name in ("source", *self.followers):
            latents = {"sample": ctx.state[name]} if name in ctx.state else {}
            branches += [
                Branch(f"{name}_cond", like="cond", text=text, pooled=pooled, replace=latents),
                Branch(f"{name}_uncond", like="uncond", text=empty, pooled=empty_pooled, replace=latents),
            ]
        return branches

    def _rows(self, ctx: Context) -> tuple[Tensor | None, ...]:
        """Text rows and pooled vectors of the source's prompt and negative prompt (None: as the target's)."""
        prompts = each_prompt(self.prompt)
        objects = each_list(self.objects) if self.objects else ((),) * len(prompts)
        each = embed(ctx, prompts, objects, self.base_index, self.find)
        vectors = [one.pooled for one in each if one.pooled is not None]
        text = per_image(ctx, torch.stack([one.base for one in each]))
        pooled = per_image(ctx, torch.cat(vectors)) if vectors else None
        empty = None if self.negative is None else ctx.encode([self.negative])
        return text, pooled, *((None, None) if empty is None else (empty.rows[0], empty.pooled))

    def on_prediction(self, ctx: Context, preds: Mapping[str, Tensor]) -> Tensor:
        """Guide every branch; the target's prediction is the step's own."""
        target = guidance(preds.get("uncond"), preds["cond"], self.target_guidance)
        guided = {"target": (target, ctx.latents("cond"))}
        for name in ("source", *self.followers):
            output = guidance(preds.get(f"{name}_uncond"), preds[f"{name}_cond"], self.source_guidance)
            guided[name] = output, ctx.latents(f"{name}_cond")
        ctx.state["guided"] = guided
        return target

    def on_latents(self, ctx: Context, latents: Tensor) -> Tensor:
        """x_t', or z_t after the last step; the scheduler's own result is not used."""
        schedule, last = ctx.pipe.scheduler, ctx.step == ctx.steps - 1
        a, next_a = alphas(schedule, ctx.step)
        guided, level, kind = ctx.state["guided"], Level.of(a), schedule.config.prediction_type
        x_s = guided["source"][1].float()
        z0, n = self.clean.to(x_s), self._noise(ctx, x_s)
        branch = {name: predicted(out.float(), x.float(), kind, level) for name, (out, x) in guided.items()}
        for name in self.followers:
            z, x, _ = ddcm_step(branch[name], branch["source"], x_s, z0, n, a, next_a, self.eta)
            ctx.state[name], ctx.results[name] = x, z if last else x
        z_t, x_t, x_s = ddcm_step(branch["target"], branch["source"], x_s, z0, n, a, next_a, self.eta)
        ctx.state["source"], ctx.results[SOURCE] = x_s, z0.expand_as(x_s) if last else x_s
        return z_t if last else x_t

    def _noise(self, ctx: Context, like: Tensor) -> Tensor:
        if self.noise is not None:
            if len(self.noise) != ctx.steps:
                raise BadInput(f"noise for {len(self.noise)} steps does not fit a run of {ctx.steps}")
            return self.noise[ctx.step].to(like)
        random = ctx.state.setdefault("random", torch.Generator("cpu").manual_seed(self.seed))
        return torch.randn(like.shape, generator=random).to(like)
