"""Denoise a source and a target together, with the exact source as anchor: no inversion is needed.

Source: the consistency sampler of InfEdit (arXiv 2312.04965) as ALE (arXiv 2412.04715) uses it. Both branches start
from one noise and share every later one. With s and g the signal and noise level of this step (sqrt(a) and sqrt(1 - a)
of a cumulative alpha, 1 - sigma and sigma of a flow), s' and g' of the next, z and eps the clean image and the noise
that a branch predicts, z0 the true source and n fresh noise,

    D    = z(x_t) - z(x_s)                                      only the guided difference is carried over
    z_t  = z0 + D
    x_t' = s' z_t + g' (sqrt(1 - eta) d + sqrt(eta) n) + memory g' (eps(x_t) - eps(x_s)) - pull D
    x_s' = s' z0  + g' (sqrt(1 - eta) d + sqrt(eta) n)
    d    = eps(x_t) - eps(x_s) + (x_s - s z0) / g

The difference of clean images holds for every parametrisation, and for a terminal alpha of 0. `memory` is ours: 0 is
the above, which forgets the difference of the latents at every step; 1 takes Euler's step with it. On a flow that is
FlowEdit (arXiv 2412.08629): with Z - z0 = x_t - x_s, ``Z' - z0 = (sigma'/sigma) (Z - z0) + (1 - sigma'/sigma) D`` is
``Z' = Z + (sigma' - sigma) (v(x_t) - v(x_s))``. `pull` towards the source is FlowAlign's (arXiv 2505.23145).
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
from unleak.errors import BadInput, choose
from unleak.regions.methods.images import Phrases, Prompts, each_list, frozen, per_image
from unleak.regions.methods.joint import attends_jointly, base_rows
from unleak.regions.methods.ore import embed
from unleak.regions.methods.schedule import levels, prediction_kind
from unleak.text.prompt import each_prompt

if TYPE_CHECKING:
    from unleak.core.context import Context

SOURCE = "source_latents"
"""Where a method leaves the source's latents [images, C, h, w] at the target's noise level, in `ctx.results`."""
CONTRAST = ("negative", "source")
CONTRASTED = "target_source"
"""The rows of the target's latents that read the source's prompt."""


def ddcm_step(
    target: Prediction,
    source: Prediction,
    x_s: Tensor,
    z0: Tensor,
    n: Tensor,
    level: Level,
    after: Level,
    eta: float = 1.0,
    memory: float = 0.0,
    pull: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of the equations above: (z_t - pull D, x_t', x_s'). `level` is (s, g), `after` is (s', g')."""
    (s, g), (next_s, next_g) = level, after
    D = target.clean - source.clean
    noise = eta**0.5 * next_g * n
    if eta < 1:
        d = target.noise - source.noise + (x_s - s * z0) / g
        noise = noise + (1 - eta) ** 0.5 * next_g * d
    x_t = next_s * (z0 + D) + noise
    if memory or pull:
        x_t = x_t + memory * next_g * (target.noise - source.noise) - pull * D
    return z0 + (1 - pull) * D, x_t, next_s * z0 + noise


def guided(ctx: Context, preds: Mapping[str, Tensor], scale: float, branch: str = "") -> Tensor:
    """The guided prediction of a branch ("source_"); that of its conditional rows where the denoiser reads the scale
    itself and no row is unconditional."""
    uncond, cond = preds.get(f"{branch}uncond"), preds[f"{branch}cond"]
    return cond if uncond is None and ctx.distilled else guidance(uncond, cond, scale)


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
        eta: 1 is a fresh noise each step, 0 none. memory: 0 to 1, see above. pull: see above.
        contrast: the target is guided against the ``"negative"`` prompt, or against the ``"source"``'s prompt on its
            own latents, which costs a row and needs no unconditional ones (FlowAlign).
        plain: so many of the last steps go on from x_t by the scheduler, without the source (FlowEdit's n_min).
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
    memory: float = 0.0
    pull: float = 0.0
    contrast: str = "negative"
    plain: int = 0
    uses_text = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prompt", "objects"):
            object.__setattr__(self, name, frozen(getattr(self, name)))
        for name in ("eta", "memory", "pull"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise BadInput(f"{name}={getattr(self, name)}: give a number from 0 to 1")
        choose("contrast", self.contrast, CONTRAST)
        if not isinstance(self.plain, int) or self.plain < 0:
            raise BadInput(f"plain={self.plain}: give a number of steps, 0 or more")
        check_seed(self.seed)

    def branches(self, ctx: Context) -> list[Branch]:
        """Rows of the source and of its followers: at first on the target's noise, then on latents of their own."""
        if "rows" not in ctx.state:
            ctx.state["rows"] = self._rows(ctx)
        text, pooled, empty, empty_pooled = ctx.state["rows"]
        branches = []
        for name in ("source", *self.followers):
            latents = ctx.state.get(name)
            scale = torch.tensor([self.source_guidance]) if ctx.distilled else None
            branches += [
                Branch(f"{name}_cond", "cond", text=text, pooled=pooled, latents=latents, guidance=scale),
                Branch(f"{name}_uncond", "uncond", text=empty, pooled=empty_pooled, latents=latents),
            ]
        if self.contrast == "source":
            branches.append(Branch(CONTRASTED, "cond", text=text, pooled=pooled))
        return branches

    def _rows(self, ctx: Context) -> tuple[Tensor | None, ...]:
        """Text rows and pooled vectors of the source's prompt and negative prompt (None: as the target's)."""
        prompts = each_prompt(self.prompt)
        if self.objects and attends_jointly(ctx.anatomy):
            rows, pooled = base_rows(ctx, prompts, each_list(self.objects))
        elif self.objects:
            each = embed(ctx, prompts, each_list(self.objects), self.base_index, self.find)
            vectors = [one.pooled for one in each if one.pooled is not None]
            rows, pooled = torch.stack([one.base for one in each]), torch.cat(vectors) if vectors else None
        else:
            rows, pooled, _ = ctx.encode(prompts)
        text, pooled = per_image(ctx, rows), None if pooled is None else per_image(ctx, pooled)
        empty = None if self.negative is None else ctx.encode([self.negative])
        return text, pooled, *((None, None) if empty is None else (empty.rows[0], empty.pooled))

    def on_prediction(self, ctx: Context, preds: Mapping[str, Tensor]) -> Tensor:
        """Guide every branch; the target's prediction is the step's own."""
        if self.contrast == "source":
            target = guidance(preds[CONTRASTED], preds["cond"], self.target_guidance)
        else:
            target = guided(ctx, preds, self.target_guidance)
        outputs = {"target": (target, ctx.latents("cond"))}
        for name in ("source", *self.followers):
            output = guided(ctx, preds, self.source_guidance, f"{name}_")
            outputs[name] = output, ctx.latents(f"{name}_cond")
        ctx.state["guided"] = outputs
        return target

    def on_latents(self, ctx: Context, latents: Tensor) -> Tensor | None:
        """x_t', or z_t after the last step; the scheduler's own result is used in the last `plain` steps alone."""
        schedule, last = ctx.pipe.scheduler, ctx.step == ctx.steps - 1
        level, after = levels(schedule, ctx.step)
        outputs, kind = ctx.state["guided"], prediction_kind(schedule)
        x_s = outputs["source"][1].float()
        z0, n = self.clean.to(x_s), self._noise(ctx, x_s)
        branch = {name: predicted(out.float(), x.float(), kind, level) for name, (out, x) in outputs.items()}
        for name in self.followers:
            z, x, _ = ddcm_step(branch[name], branch["source"], x_s, z0, n, level, after, self.eta)
            ctx.state[name], ctx.results[name] = x, z if last else x
        z_t, x_t, x_s = ddcm_step(
            branch["target"], branch["source"], x_s, z0, n, level, after, self.eta, self.memory, self.pull
        )
        ctx.state["source"], ctx.results[SOURCE] = x_s, z0.expand_as(x_s) if last else x_s
        if ctx.steps - ctx.step <= self.plain:
            return None
        return z_t if last else x_t

    def _noise(self, ctx: Context, like: Tensor) -> Tensor:
        if self.noise is not None:
            if len(self.noise) != ctx.steps:
                raise BadInput(f"noise for {len(self.noise)} steps does not fit a run of {ctx.steps}")
            return self.noise[ctx.step].to(like)
        random = ctx.state.setdefault("random", torch.Generator("cpu").manual_seed(self.seed))
        return torch.randn(like.shape, generator=random).to(like)
