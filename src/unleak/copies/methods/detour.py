"""Detour: follow another text for as long as the prompt leads to the copy, and the prompt once it does not.

A memorized prompt leads every seed to one picture x*, which its first prediction already shows. What stands where is
decided early in the trajectory, what it is later. So with the prediction a for another text, c for the prompt, u for
none, and x(c) the clean image that c stands for, each flagged image follows at each step

    e_hat = u + w (a - u)   while cos(x(c), x*) >= near,     u + w (c - u)   otherwise.

Once another layout has taken hold the prompt has to make do with it, and its objects return without the picture that
they come from; where the prompt leads back to it, the other text takes over again. Ours. It closes the loop of delayed
guidance (attraction basins, CVPR 2025), which has one fixed step of transition and follows nothing before it: left
alone, a model draws what it has seen most, and that may be another training image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unleak.copies.methods.gate import Gated, sign_at_step
from unleak.core.predictions import guidance
from unleak.core.rows import Branch
from unleak.errors import BadInput

if TYPE_CHECKING:
    from unleak.core.context import Context

OTHER = "detour"
"""The label of extra rows that read the other text."""


@dataclass(frozen=True)
class Detour(Gated):
    """Keep images from the picture that their prompt leads to; 1.5 times the rows of guidance while it does.

    Attributes:
        text: what is followed instead: anything that leaves the layout open, in the style that you want. The default
            is no caption that an embedded model was trained on.
        near: cosine -1 to 1 of clean latents, from which on the prompt leads to the copy.
        scale: w; default: the pipeline's. Without guidance, or where it is distilled, the denoiser's own is kept.
        gate: see `Gated`. Without one every prompt is led away from its own first prediction.

    `run.results["detour"]` has the cosines of the images that are acted on, a list for each step.
    """

    text: str = "a painting"
    near: float = 0.5
    scale: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1 <= self.near <= 1:
            raise BadInput(f"near is a cosine, -1 to 1, not {self.near}")

    def branches(self, ctx: Context) -> Sequence[Branch] | None:
        """Rows of the other text for the images that followed it at the step before."""
        away: tuple[int, ...] = ctx.state.get("away", ())
        return [self._rows(ctx, away)] if away else None

    def on_prediction(self, ctx: Context, preds: Mapping[str, Tensor]) -> Any:
        cond = preds["cond"]
        chosen = self.decide(ctx, preds)
        if chosen == ():
            return None
        here = tuple(range(len(cond))) if chosen is None else chosen
        leads = [1.0] * len(here)  # the first prediction is x* itself
        if (copy := ctx.state.get("copy")) is None:
            ctx.state["first"] = here, cond
        else:
            leads = torch.cosine_similarity(_pictures(ctx, cond, here), copy).tolist()
        ctx.results.setdefault(OTHER, []).append(leads)
        away = [i for i, cosine in zip(here, leads, strict=True) if cosine >= self.near]
        followed = self._others(ctx, preds, away)

        target = torch.stack([followed.get(i, cond[i]) for i in here])
        if "uncond" in preds and (self.scale is not None or ctx.rows.repeat):
            return self.guided(ctx, preds, lambda pair, w: guidance(pair.uncond, target, w), self.scale, like=target)
        whole = cond.clone()
        whole[list(here)] = target
        if "uncond" not in preds and ctx.pipeline_combined is not None:  # e_hat itself, of one row, at any scale
            return sign_at_step(ctx) * whole
        return self.instead(ctx, preds, whole)

    def on_latents(self, ctx: Context, latents: Tensor) -> None:
        """x*, once the first step has shown what the scheduler makes of a prediction."""
        if (first := ctx.state.pop("first", None)) is not None:
            ctx.state.setdefault("copy", _pictures(ctx, first[1], first[0]))

    def _others(self, ctx: Context, preds: Mapping[str, Tensor], away: list[int]) -> dict[int, Tensor]:
        """Predictions for the other text by image; those that were not asked for in this call cost another one."""
        predictions = dict(zip(ctx.state.get("away", ()), preds.get(OTHER, ()), strict=True))
        if new := tuple(i for i in away if i not in predictions):
            predictions |= dict(zip(new, ctx.predict([self._rows(ctx, new)])[OTHER], strict=True))
        ctx.state["away"] = tuple(away)
        return {i: predictions[i] for i in away}

    def _rows(self, ctx: Context, images: tuple[int, ...]) -> Branch:
        text = ctx.encode([self.text])
        return Branch(OTHER, "cond", images, text.rows[0], text.pooled, text.mask)


def _pictures(ctx: Context, cond: Tensor, images: Sequence[int]) -> Tensor:
    """x(c) of some images, [n, numbers]."""
    return ctx.clean_latents(cond)[list(images)].flatten(1).float()
