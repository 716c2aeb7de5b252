"""Prompt-to-Prompt's local blend: only where the chosen words are seen may the target differ from the source.

Source: Hertz et al. (arXiv 2208.01626) and their release. Cross-attention to the words, averaged over heads and over
sites of a quarter of the latent side and summed over steps, is max-pooled 3 x 3, resized and divided by its largest
value; over the threshold in source or target it is the mask of ``x <- x_source + mask (x - x_source)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from unleak.core.intervention import Intervention
from unleak.errors import BadInput, ItemNotFound, NoSite
from unleak.regions.methods import alignment
from unleak.regions.methods.ddcm import SOURCE
from unleak.regions.methods.ore import reads_text
from unleak.regions.methods.sides import sides
from unleak.text.positions import first_encoder

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context
    from unleak.text.call import TextCall

REDUCTION = 4
"""Latent cells along a side of one cell of the maps: 16 x 16 maps of 64 x 64 latents, at any proportions."""


@dataclass(frozen=True)
class LocalBlend(Intervention):
    """Stands after `P2P`; it sees the target's own maps, before they are edited.

    Attributes:
        prompts: the source's and every target's.
        words: for each prompt, the words that may change.
        without: for each prompt, words that must not change, without the pooling; or empty.
        threshold: of the mask, as a share of the largest attention.
        start: share of the steps that are not blended.
    """

    prompts: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    without: tuple[tuple[str, ...], ...] = ()
    threshold: float = 0.3
    start: float = 0.2
    uses_text = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("words", "without"):
            object.__setattr__(self, name, tuple(tuple(some) for some in getattr(self, name)))
        if len(self.words) != len(self.prompts) or len(self.without) not in (0, len(self.prompts)):
            raise BadInput(f"{len(self.prompts)} prompts need as many lists of words")
        if not (0 < self.threshold < 1 and 0 <= self.start <= 1):
            raise BadInput(f"threshold={self.threshold}, start={self.start}: give shares from 0 to 1")

    def on_attention(self, ctx: Context, site: AttentionCall) -> None:
        if not reads_text(site) or ctx.grid is None or ctx.grid.size is None:
            return
        if site.grid != tuple(math.ceil(side / REDUCTION) for side in ctx.grid.size):
            return
        if "tokens" not in ctx.state:
            encoder = first_encoder(ctx.encoded)
            ctx.state["tokens"] = [self._tokens(encoder, some) for some in (self.words, self.without) if some]
        side = sides(ctx, "cond", len(self.prompts) - 1)
        for which, tokens in zip(("words", "without"), ctx.state["tokens"], strict=False):
            seen = [
                torch.stack([_seen(site, source, tokens[0]), _seen(site, target, tokens[prompt + 1])])
                for (target, source), prompt in zip(
                    site.rows.pairs(side.targets, side.sources), side.prompts, strict=True
                )
            ]
            if seen:
                total = torch.stack(seen)  # [target rows, 2, h, w]
                ctx.state[f"seen {which}"] = ctx.state.get(f"seen {which}", 0.0) + total
                ctx.state["images"] = [site.rows.images[target] for target in side.targets]

    def _tokens(self, encoder: TextCall, words: tuple[tuple[str, ...], ...]) -> list[list[int]]:
        found = []
        for tokens, some in zip(alignment.cut(encoder.tokenizer, self.prompts, encoder.length), words, strict=True):
            for word in some:
                if not alignment.positions(tokens, word):
                    raise ItemNotFound(f"{tokens.text!r} has no word {word!r}")
            found.append([at for word in some for at in alignment.positions(tokens, word)])
        return found

    def on_latents(self, ctx: Context, latents: Tensor) -> Tensor | None:
        if "seen words" not in ctx.state:
            raise NoSite(f"no cross-attention site has a {REDUCTION}th of the latent side, so no word was seen")
        if ctx.step < int(self.start * ctx.steps):
            return None
        mask = self._mask(ctx.state["seen words"], latents, pool=True)
        if "seen without" in ctx.state:
            mask = mask & ~self._mask(ctx.state["seen without"], latents, pool=False)
        images = ctx.state["images"]
        others = [i for i in range(len(latents)) if i not in images]
        source = ctx.results[SOURCE].to(latents) if SOURCE in ctx.results else latents[others]
        out = latents.clone()
        for i, (image, where) in enumerate(zip(images, mask, strict=True)):
            out[image] = torch.where(where, latents[image], source[i % len(source)])
        return out

    def _mask(self, seen: Tensor, latents: Tensor, pool: bool) -> Tensor:
        """Where either side sees the words: bool [target rows, 1, h, w]."""
        level = F.max_pool2d(seen, 3, 1, 1) if pool else seen
        level = F.interpolate(level, size=latents.shape[-2:], mode="nearest")
        return (level > self.threshold * level.amax((2, 3), keepdim=True)).any(1, keepdim=True)


def _seen(site: AttentionCall, row: int, tokens: list[int]) -> Tensor:
    """Attention of one row's cells to these tokens, [h, w]."""
    return site.columns(tokens, rows=(row,))[0].sum(-1)
