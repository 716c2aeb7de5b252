"""GUARD: follow the prompt with its attention spikes attenuated, and be pushed away from the prompt as it is.

Zhao, Triantafillou, Triantafillou, "You Don't Need All That Attention", ICML 2026, arXiv 2603.00133. One denoiser
call per step on three groups of rows, with no prompt (u), the prompt attenuated (p) and the clean prompt (n):

    v_p = e_p - e_u;   v_n = e_n - e_u
    e_hat = e_u + w(i) v_p - rho(i) v_n,    w(i) = w s_p(i/T),   rho(i) = rho s_n(i/T),   s_n(x) = cos(pi/2 x)

The attenuation is that of `attenuate.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from unleak.copies.detect.guided import Guided
from unleak.copies.methods.attenuate import ATTENUATED, EARLY, Attenuation
from unleak.copies.methods.gate import Gated
from unleak.copies.methods.schedules import SCHEDULES
from unleak.core.edits import KeyScale
from unleak.core.intervention import SiteFilter
from unleak.core.rows import Branch
from unleak.errors import BadInput, choose

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context

CLEAN = "clean"
"""The label of rows that read the prompt as it is, in a call that has none of the pipeline's own."""


def orthogonal(v_p: Tensor, v_n: Tensor, above: float = 0.9, clip: float = 2.0, eps: float = 1e-8) -> Tensor:
    """Take the direction of v_n out of v_p [N, ...] where they point the same way; per image, in fp32.

    ``v_p - clip(<v_p, v_n> / (|v_n|^2 + eps)) v_n`` where ``cos(v_p, v_n) > above``, else v_p as it is.
    """
    p, n = v_p.flatten(1).float(), v_n.flatten(1).float()
    dot, p2, n2 = (p * n).sum(1), (p * p).sum(1) + eps, (n * n).sum(1) + eps
    share = torch.where(dot / (p2.sqrt() * n2.sqrt()) > above, (dot / n2).clamp(-clip, clip), 0.0)
    return (v_p - share.reshape(-1, *[1] * (v_p.ndim - 1)) * v_n).to(v_p.dtype)


@dataclass(frozen=True)
class Guard(Gated):
    """GUARD on the images that its gate chooses, or on all; 1.5 times the rows of guidance for these.

    Attributes:
        tau, alpha, statistic, precision, schedule: of the attenuation, see `Attenuate`.
        rho: peak of the repulsion, on the scale of guidance w (the published 2.0 is for 7.5); 0: attenuation only.
        repulsion_schedule: s_n, one of `SCHEDULES`; "cosine" as published, "sine" as the release's function defaults.
        attraction_schedule: s_p, likewise; "constant" as published, "cosine" as the release's function defaults.
        source: whose attention tells the spikes: the "attenuated" rows' own, as the released code has it, or
            the "clean" rows', as the paper has it.
        orthogonalize: take v_n out of v_p (`orthogonal`, with `ortho_above`, `ortho_clip`, `ortho_eps`). The
            released code does, against its own call; it takes the prompt's direction away where attenuation is mild.
        scale: w; default: the pipeline's `guidance_scale`.
        gate: see `Gated`.

    `Guard.official()` has the released code's values where the defaults depart from them: statistics in the model's
    precision, orthogonalisation, and the first transformer block of every site alone.
    """

    tau: float = 0.1
    alpha: float = 0.3
    statistic: str = "logit"
    precision: str = "float32"
    schedule: str = "constant"
    rho: float = 2.0
    repulsion_schedule: str = "cosine"
    attraction_schedule: str = "constant"
    source: str = "attenuated"
    orthogonalize: bool = False
    ortho_above: float = 0.9
    ortho_clip: float = 2.0
    ortho_eps: float = 1e-8
    scale: float | None = None
    sites: SiteFilter = field(default=EARLY, kw_only=True)
    uses_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.attenuation
        if not (math.isfinite(self.rho) and self.rho >= 0):
            raise BadInput(f"the repulsion rho must be a number of 0 or more, not {self.rho}")
        choose("repulsion_schedule", self.repulsion_schedule, SCHEDULES)
        choose("attraction_schedule", self.attraction_schedule, SCHEDULES)
        choose("source", self.source, (ATTENUATED, CLEAN))

    @classmethod
    def official(cls, **changes: Any) -> Guard:
        """The released code, with each of its departures from the paper."""
        return cls(**{**OFFICIAL, **changes})

    def combine(self, pred_cond: Tensor, pred_uncond: Tensor, pred_attenuated: Tensor, scale: float,
                progress: float) -> Tensor:  # fmt: skip
        """``e_u + w(i) v_p - rho(i) v_n`` of predictions [N, ...] at scale w; `progress` is i/T."""
        v_p, v_n = pred_attenuated - pred_uncond, pred_cond - pred_uncond
        if self.orthogonalize:
            v_p = orthogonal(v_p, v_n, self.ortho_above, self.ortho_clip, self.ortho_eps)
        w = scale * SCHEDULES[self.attraction_schedule](progress)
        rho = self.rho * SCHEDULES[self.repulsion_schedule](progress)
        return pred_uncond + w * v_p - rho * v_n

    @property
    def attenuation(self) -> Attenuation:
        return Attenuation(self.tau, self.alpha, self.statistic, self.precision, self.schedule)

    @property
    def _off(self) -> bool:
        """It is guidance, and nothing else."""
        return self.attenuation.off and self.rho == 0 and self.attraction_schedule == "constant"

    def branches(self, ctx: Context) -> Sequence[Branch] | None:
        """Attenuated rows for the images that are acted on."""
        chosen = self.chosen(ctx)
        if chosen == () or self._off:
            return None
        return self._alone(ctx, chosen) if ctx.rows.repeat else [Branch(ATTENUATED, images=chosen)]

    def _alone(self, ctx: Context, images: tuple[int, ...] | None) -> list[Branch]:
        """The branches of calls that have no rows of the pipeline's own; of calls of one branch the clean rows', which
        tell the spikes, comes first."""
        labels = (ATTENUATED, CLEAN) if self.source == CLEAN else (ATTENUATED,)
        return [Branch(label, images=images) for label in (reversed(labels) if ctx.rows.repeat else labels)]

    def on_attention(self, ctx: Context, site: AttentionCall) -> KeyScale | None:
        """``S' = alpha(i) S`` in the attenuated rows, on their own spikes or on those of the clean rows."""
        labels, attenuation = site.rows.labels, self.attenuation
        rows = [i for i, label in enumerate(labels) if label == ATTENUATED]
        if not attenuation.acts_at(site) or not {ATTENUATED, CLEAN} & {*labels}:
            return None
        if self.source == ATTENUATED:
            return attenuation.scale(ctx, site, rows, attenuation.spikes(site, rows), self.window)
        spikes: dict[int, Tensor] = ctx.state.setdefault(f"spikes at {site.name}", {})
        if clean := site.rows.first(CLEAN if CLEAN in labels else "cond"):  # else they ran in the call before
            images = [site.rows.images[i] for i in clean]
            spikes.update(zip(images, attenuation.spikes(site, clean), strict=True))
        is_spike = [spikes[site.rows.images[i]] for i in rows]
        return attenuation.scale(ctx, site, rows, torch.stack(is_spike), self.window) if rows else None

    def on_prediction(self, ctx: Context, preds: Mapping[str, Tensor]) -> Tensor | None:
        """`combine` for the chosen images, plain guidance for the others."""
        if self._off:
            return None
        first, chosen = self.undecided(ctx), self.decide(ctx, preds)

        progress = ctx.step / ctx.steps

        def combine(pair: Guided, scale: float) -> Tensor:
            # the call in which the gate decides had no attenuated rows yet
            attenuated = self.attenuation.predict(ctx, self._alone(ctx, chosen)) if first else preds[ATTENUATED]
            self.attenuation.check(ctx)
            return self.combine(pair.cond, pair.uncond, pair.of(attenuated), scale, progress)

        rho = self.rho * SCHEDULES[self.repulsion_schedule](progress)
        return self.guided(ctx, preds, combine, self.scale, lambda w: w - rho)


OFFICIAL: dict[str, Any] = {
    "precision": "model",
    "orthogonalize": True,
    "sites": SiteFilter(
        (
            "down_blocks.[012].attentions.[01].transformer_blocks.0.attn2",
            "mid_block.attentions.0.transformer_blocks.0.attn2",
        )
    ),
}
"""Where the released code departs from the defaults; the sites are its "early" group."""
