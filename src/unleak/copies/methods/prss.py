"""PRSS (Chen et al., CVPR 2025): a paraphrase that is memorized less, anchored at the prompt while it still is.

Search (SS): of the prompt and its paraphrases take the first whose magnitude ||eps(z_T, c) - eps(z_T, c_u)|| is at
most `quiet`, else the least. Then, per step and image, with e_mod its prediction and mag = ||e_mod - e_u||,

    mag <= loud:  e_u + w (e_mod - e_u)
    mag >  loud:  e_orig + s (e_mod - e_orig) + (w - s)(e_mod - e_u),   s = min(w (mag - a)/(full - a), w),
                  a = (w loud - full)/(w - 1)

At mag = loud, s = 1 and both are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unleak.copies.detect.detect import magnitude
from unleak.copies.detect.guided import Guided, guidance_pair, no_guidance
from unleak.copies.methods.gate import Gated
from unleak.core.predictions import guidance
from unleak.core.rows import Branch
from unleak.errors import BadInput, UnsupportedModel

if TYPE_CHECKING:
    from unleak.core.context import Context
    from unleak.text.call import TextCall

MODIFIED = "modified"


def anchored(original: Tensor, modified: Tensor, uncond: Tensor, w: float, loud: float, full: float) -> Tensor:
    """The rule above for predictions [N, ...]. Raises BadInput where it divides by zero."""
    if w == 1 or loud == full:
        raise BadInput(f"PRSS is not defined for a scale of guidance of 1, nor where loud and full are both {loud}")
    mag = magnitude(modified, uncond).reshape(-1, *[1] * (uncond.ndim - 1)).to(uncond)
    a = (w * loud - full) / (w - 1)
    s = ((mag - a) / (full - a) * w).clamp(max=w)
    plain = guidance(uncond, modified, w)
    return torch.where(mag > loud, original + s * (modified - original) + (w - s) * (modified - uncond), plain)


@dataclass(frozen=True)
class PRSS(Gated):
    """Search among `paraphrases` of the prompt, then re-anchor; 1.5 times the rows of guidance.

    Attributes:
        paraphrases: other ways to say the prompt, up to 25, for calls with one prompt; without any the prompt
            stands for itself.
        quiet: magnitude at which the search stops (released: 1).
        loud, full: magnitudes where anchoring begins (3) and is complete (5). All are per image here; the
            released code takes them over a whole batch.
    """

    paraphrases: tuple[str, ...] = ()
    quiet: float = 1.0
    loud: float = 3.0
    full: float = 5.0
    scale: float | None = None

    def on_text(self, ctx: Context, call: TextCall) -> Any:
        if self.paraphrases and len(set(call.prompts)) > 1:
            raise BadInput("paraphrases are of one prompt: call the pipeline with one prompt at a time")
        if self.paraphrases:
            ctx.state["texts"] = [call.rerun(text)[0][0] for text in self.paraphrases]
        ctx.state["own"] = call.output[0]

    def branches(self, ctx: Context) -> Sequence[Branch] | None:
        chosen = self.chosen(ctx)
        if "modified" not in ctx.state or chosen == ():
            return None
        return [Branch(MODIFIED, images=chosen, text=ctx.state["modified"])]

    def on_prediction(self, ctx: Context, preds: Mapping[str, Tensor]) -> Tensor | None:
        if (pair := guidance_pair(ctx, preds)) is None:
            raise no_guidance()
        chosen = self.decide(ctx, preds)
        if chosen == ():
            return None
        here = list(range(len(pair.cond))) if chosen is None else list(chosen)
        modified = pair.at(here).of(preds[MODIFIED]) if MODIFIED in preds else None
        if modified is None and self.paraphrases:
            modified = self._search(ctx, pair.at(here), tuple(here))

        def change(pair: Guided, w: float) -> Tensor:
            text = pair.cond if modified is None else modified
            return anchored(pair.cond, text, pair.uncond, w, self.loud, self.full)

        return self.guided(ctx, preds, change, self.scale)

    def _search(self, ctx: Context, pair: Guided, images: tuple[int, ...]) -> Tensor:
        """Choose one text for all images by their mean magnitude; its predictions [images, ...]."""
        own = ctx.encoded.cond
        assert own is not None
        if own.shape[1:] != ctx.state["own"].shape[1:] or not torch.equal(own[0], ctx.state["own"][0].to(own)):
            raise UnsupportedModel("paraphrases need a pipeline whose text rows are its encoder's last layer")
        best, least, prediction = own[0], float(magnitude(pair.cond, pair.uncond).mean()), pair.cond
        for text in ctx.state["texts"]:
            if least <= self.quiet:
                break
            candidate = pair.of(ctx.predict([Branch(MODIFIED, images=images, text=text)])[MODIFIED])
            mag = float(magnitude(candidate, pair.uncond).mean())
            if mag < least:
                best, least, prediction = text, mag, candidate
        ctx.state["modified"] = best
        return prediction
