"""GUARD: follow the prompt with its attention spikes attenuated, and be pushed away from the prompt as it is.

Zhao, Triantafillou, Triantafillou, "You Don't Need All That Attention", ICML 2026, arXiv 2603.00133. One denoiser
call per step on three groups of rows, with no prompt (u), the prompt attenuated (p) and the clean prompt (n):

    v_p = e_p - e_u;   v_n = e_n - e_u
    e_hat = e_u + w v_p - rho(i) v_n,    rho(i) = rho cos(pi/2 i/T)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unleak.copies.methods.attenuate import ATTENUATED, Attenuate
from unleak.core.intervention import SiteFilter
from unleak.core.rows import Branch, Rows
from unleak.errors import BadInput, choose

if TYPE_CHECKING:
    from unleak.core.context import Context

REPULSION: dict[str, Callable[[float], float]] = {
    "cosine": lambda p: math.cos(p * math.pi / 2),
    "linear": lambda p: 1 - p,
    "none": lambda p: 1.0,
}
"""Share of the repulsion as a function of i/T."""


def orthogonal(v_p: Tensor, v_n: Tensor, above: float = 0.9, clip: float = 2.0, eps: float = 1e-8) -> Tensor:
    """Take the direction of v_n out of v_p [N, ...] where they point the same way; per image, in fp32.

    ``v_p - clip(<v_p, v_n> / (|v_n|^2 + eps)) v_n`` where ``cos(v_p, v_n) > above``, else v_p as it is.
    """
    p, n = v_p.flatten(1).float(), v_n.flatten(1).float()
    dot, p2, n2 = (p * n).sum(1), (p * p).sum(1) + eps, (n * n).sum(1) + eps
    share = torch.where(dot / (p2.sqrt() * n2.sqrt()) > above, (dot / n2).clamp(-clip, clip), 0.0)
    return (v_p - share.reshape(-1, *[1] * (v_p.ndim - 1)) * v_n).to(v_p.dtype)


@dataclass(frozen=True)
class Guard(Attenuate):
    """GUARD on the images that its gate chooses, or on all; 1.5 times the rows of guidance for these.

    Attributes:
        tau, alpha, statistic, precision, schedule, gate: see `Attenuate`.
        rho: peak of the repulsion, on the scale of guidance w (the published 2.0 is for 7.5); 0: attenuation only.
        repulsion: its course over the steps, one of `REPULSION`.
        source: whose attention tells the spikes: the "attenuated" rows' own, as the released code has it, or
            the "clean" rows', as the paper has it.
        orthogonalize: take v_n out of v_p (`orthogonal`, with `ortho_above`, `ortho_clip`, `ortho_eps`). The
            released code does, against its own call; it takes the prompt's direction away where attenuation is mild.
        scale: w; default: the pipeline's `guidance_scale`.
    """

    tau: float = 0.1
    rho: float = 2.0
    repulsion: str = "cosine"
    source: str = "attenuated"
    orthogonalize: bool = False
    ortho_above: float = 0.9
    ortho_clip: float = 2.0
    ortho_eps: float = 1e-8
    scale: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.rho) and self.rho >= 0):
            raise BadInput(f"the repulsion rho must be a number of 0 or more, not {self.rho}")
        choose("repulsion", self.repulsion, REPULSION)
        choose("source", self.source, ("attenuated", "clean"))

    @classmethod
    def official(cls, **changes: Any) -> Guard:
        """The released code, with each of its departures from the paper."""
        return replace(cls(precision="model", orthogonalize=True, sites=OFFICIAL), **changes)

    def branches(self, ctx: Context) -> Sequence[Branch] | None:
        chosen = self.chosen(ctx)
        return None if chosen == () or self._idle else [Branch(ATTENUATED, images=chosen)]

    @property
    def _idle(self) -> bool:
        return self.off and self.rho == 0

    def attenuated(self, ctx: Context, rows: Rows) -> list[int]:
        """Only the extra rows."""
        return list(rows.of(ATTENUATED)) if ATTENUATED in rows.labels else []

    def extra(self, chosen: tuple[int, ...] | None) -> list[Branch]:
        clean = [Branch("clean", images=chosen)] if self.source == "clean" else []
        return [*super().extra(chosen), *clean]

    def sources(self, rows: Rows, attenuated: Sequence[int]) -> Sequence[int]:
        if self.source == "attenuated":
            return attenuated
        clean = {rows.images[i]: i for i, label in enumerate(rows.labels) if label in ("cond", "clean")}
        return [clean[rows.images[i]] for i in attenuated]

    def on_prediction(self, ctx: Context, preds: Mapping[str, Tensor]) -> Tensor | None:
        """``e_u + w v_p - rho(i) v_n`` for the chosen images, plain guidance for the others."""
        if self._idle:
            return None
        first = self.undecided(ctx)
        chosen = self.decide(ctx, preds)

        def change(cond: Tensor, uncond: Tensor, w: float) -> Tensor:
            attenuated = self.predicted(ctx, chosen or ()) if first else preds[ATTENUATED]
            self.check_sites(ctx)
            return self.combine(cond, uncond, attenuated, w, ctx.step / ctx.steps)

        return self.settled(ctx, preds, change, self.scale)

    def combine(self, cond: Tensor, uncond: Tensor, attenuated: Tensor, w: float, progress: float) -> Tensor:
        """``e_u + w v_p - rho(i) v_n`` of predictions [N, ...] at scale w; progress is i/T."""
        v_p, v_n = attenuated - uncond, cond - uncond
        if self.orthogonalize:
            v_p = orthogonal(v_p, v_n, self.ortho_above, self.ortho_clip, self.ortho_eps)
        return uncond + w * v_p - self.rho * REPULSION[self.repulsion](progress) * v_n


OFFICIAL = SiteFilter(
    (
        "down_blocks.[012].attentions.[01].transformer_blocks.0.attn2",
        "mid_block.attentions.0.transformer_blocks.0.attn2",
    )
)
"""The sites of the released code's "early" group."""
