"""Prompt rows optimised before the first step until the prompt says less: Wen et al., ICLR 2024.

On the initial noise z_T, for the rows e of one prompt and its N images,

    minimise ||eps(z_T, e) - eps(z_T, c_u)||_2 / sqrt(N)  from e = c,  until it is at most `target`

with AdamW; the begin-of-text row gets no gradient. Everything is then sampled with e, from the same noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from unleak.copies.detect.guided import Guided, guidance_pair, no_guidance
from unleak.copies.methods.gate import Gated
from unleak.core.edits import Partition, Region
from unleak.core.intervention import CROSS
from unleak.core.rows import Branch
from unleak.errors import NotFinite, UnsupportedModel

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context

OPTIMISED = "optimised"


@dataclass(frozen=True)
class OptimiseRows(Gated):
    """Optimised rows instead of the prompt's, at every cross site; no more denoiser rows after the first step.

    Attributes:
        target: stop at this loss. The released 3 for a batch of N = 4 images is 1.5 here; a new model needs
            its own. The loss is divided by sqrt(N), so that the target does not depend on N.
        iterations: at most this many steps of AdamW, each a forward and a backward pass over the N images.
        lr, weight_decay: of AdamW; the released decay also shrinks the begin-of-text row.
    """

    layouts: ClassVar[tuple[str, ...]] = (CROSS,)
    target: float = 1.5
    iterations: int = 10
    lr: float = 0.05
    weight_decay: float = 0.01

    def on_attention(self, ctx: Context, site: AttentionCall) -> Partition | None:
        if site.kind == "joint":
            raise UnsupportedModel("optimised rows are read at cross sites; this model joins text and image")
        text = ctx.state.get("rows")
        rows = [i for i in site.rows.of("cond") if site.rows.images[i] in ctx.state.get("images", {})]
        if site.kind != "cross" or text is None or not rows:
            return None
        keys, values = site.encode(text)
        at = [ctx.state["images"][site.rows.images[i]] for i in rows]
        everywhere = ctx.state.setdefault("mask", torch.ones(1, 1, dtype=torch.bool, device=text.device))
        return Partition([Region(everywhere, keys=keys[at], values=values[at])], rows=rows)

    def on_prediction(self, ctx: Context, preds: Mapping[str, Tensor]) -> Any:
        if "rows" in ctx.state or not self.iterations:
            return None
        if (pair := guidance_pair(ctx, preds)) is None:
            raise no_guidance()
        cond, chosen = preds["cond"], self.decide(ctx, preds)
        images = range(len(cond)) if chosen is None else chosen
        groups = {prompt: list(own) for prompt, own in groupby(images, ctx.prompt_of)}
        new, rows = cond.clone(), []
        for prompt, own in groups.items():
            start = ctx.encoded.cond[ctx.encoded.images_of(prompt)][0]  # type: ignore[index]
            optimised = self._optimise(ctx, start, tuple(own), pair.at(own))
            new[own] = self._predict(ctx, optimised, tuple(own)).to(new)
            rows.append(optimised)
        ctx.state["rows"] = torch.stack(rows) if rows else None
        ctx.state["images"] = {image: k for k, own in enumerate(groups.values()) for image in own}
        return self.instead(ctx, preds, new) if rows else None

    def _optimise(self, ctx: Context, start: Tensor, images: tuple[int, ...], pair: Guided) -> Tensor:
        """The rows [L, D] of one prompt with a text-conditional noise of at most `target`, if they are found."""
        losses = ctx.results.setdefault("losses", {}).setdefault(ctx.generation, {}).setdefault(images, [])
        with torch.enable_grad():
            rows = start.detach().float().clone().requires_grad_()
            optimiser = torch.optim.AdamW([rows], lr=self.lr, weight_decay=self.weight_decay)
            for _ in range(self.iterations):
                direction = pair.of(self._predict(ctx, rows, images)) - pair.uncond
                loss = direction.float().norm() / len(images) ** 0.5
                losses.append(float(loss.detach()))
                if loss <= self.target:
                    break
                (rows.grad,) = torch.autograd.grad(loss, [rows])
                rows.grad[0] = 0
                optimiser.step()
        if not torch.isfinite(rows).all():
            raise NotFinite("the optimised rows hold NaN or infinity; lower lr, or run the model in a wider dtype")
        return rows.detach().to(start)

    def _predict(self, ctx: Context, rows: Tensor, images: tuple[int, ...]) -> Tensor:
        return ctx.predict([Branch(OPTIMISED, images=images, text=rows)])[OPTIMISED]
