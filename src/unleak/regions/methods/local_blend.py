"""Prompt-to-Prompt's local blend: only where the chosen words are seen may the target differ from the source.

Source: Hertz et al. (arXiv 2208.01626) and their release. Let S_p be the cross-attention of prompt p to its words,
averaged over heads and over sites of a quarter of the latent side and summed over the steps so far. With a 3 x 3
maximum, resized to the latents,

    mask_p = maxpool(S_p) > threshold * max(maxpool(S_p)),         x_t <- x_s + (mask_s or mask_t) (x_t - x_s).

Words that must not change take their own mask, of S_p without the maximum, away from it.
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
from unleak.regions.methods.ore import is_cross
from unleak.regions.methods.p2p import P2P
from unleak.regions.methods.rows import source_and_target_rows
from unleak.text.positions import first_encoder

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context
    from unleak.text.call import TextCall

REDUCTION = 4
"""Latent cells along a side of one cell of the maps: 16 x 16 maps of 64 x 64 latents, at any proportions."""


@dataclass(frozen=True)
class LocalBlend(Intervention):
    """Stands after `P2P`.

    Attributes:
        prompts: the source's and every target's.
        words: for each prompt, the words that may change.
        without: for each prompt, words that must not change; or empty.
        threshold: of the mask, as a share of the largest attention.
        start: share of the steps that are not blended.
        control: None: S_t is of the target's own maps. A `P2P`: of the maps that it leaves, as in the authors' release,
            which edits the maps that it has stored in place.
    """

    prompts: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    without: tuple[tuple[str, ...], ...] = ()
    threshold: float = 0.3
    start: float = 0.2
    control: P2P | None = None
    uses_text = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("words", "without"):
            object.__setattr__(self, name, tuple(tuple(words) for words in getattr(self, name)))
        if len(self.words) != len(self.prompts) or len(self.without) not in (0, len(self.prompts)):
            raise BadInput(f"{len(self.prompts)} prompts need as many lists of words")
        if not (0 < self.threshold < 1 and 0 <= self.start <= 1):
            raise BadInput(f"threshold={self.threshold}, start={self.start}: give shares from 0 to 1")

    def on_attention(self, ctx: Context, site: AttentionCall) -> None:
        if not is_cross(site) or ctx.grid is None or ctx.grid.size is None:
            return
        if site.grid != tuple(math.ceil(side / REDUCTION) for side in ctx.grid.size):
            return
        if "tokens" not in ctx.state:
            encoder = first_encoder(ctx.encoded)
            ctx.state["tokens"] = {
                name: self._tokens(encoder, words)
                for name, words in (("words", self.words), ("without", self.without))
                if words
            }
        rows = source_and_target_rows(ctx, "cond", len(self.prompts) - 1)
        if not rows.targets:
            return
        ctx.state["images"] = [site.rows.images[target] for target in rows.targets]
        mix = self.control.cross_mix(ctx, rows) if self.control else None
        for name, tokens in ctx.state["tokens"].items():
            pairs = []
            for i, (target, source) in enumerate(site.rows.pairs(rows.targets, rows.sources)):
                positions = tokens[rows.prompts[i] + 1]
                target_maps = site.columns(positions, rows=(target,))[0]
                if mix is not None:
                    source_maps = site.columns(range(len(mix.keep[i])), rows=(source,))[0]
                    take, keep = mix.take[i][:, positions], mix.keep[i][positions]
                    target_maps = source_maps @ take.to(source_maps) + target_maps * keep.to(target_maps)
                source_maps = site.columns(tokens[0], rows=(source,))[0]
                pairs.append(torch.stack([source_maps.sum(-1), target_maps.sum(-1)]))
            sums = ctx.state.setdefault("sums", {})  # S by words: [target rows, 2, h, w]
            sums[name] = sums.get(name, 0.0) + torch.stack(pairs)

    def _tokens(self, encoder: TextCall, words: tuple[tuple[str, ...], ...]) -> list[list[int]]:
        """Of each prompt, the positions of its words. Raises ItemNotFound."""
        positions = []
        for tokens, chosen in zip(alignment.cut(encoder.tokenizer, self.prompts, encoder.length), words, strict=True):
            for word in chosen:
                if not alignment.positions(tokens, word):
                    raise ItemNotFound(f"{tokens.text!r} has no word {word!r}")
            positions.append([at for word in chosen for at in alignment.positions(tokens, word)])
        return positions

    def on_latents(self, ctx: Context, latents: Tensor) -> Tensor | None:
        """Raises NoSite: no cross-attention site has a quarter of the latent side."""
        if "sums" not in ctx.state:
            raise NoSite(f"no cross-attention site has a {REDUCTION}th of the latent side, so no word was seen")
        if ctx.step < int(self.start * ctx.steps):
            return None
        sums, images = ctx.state["sums"], ctx.state["images"]
        mask = self._mask(F.max_pool2d(sums["words"], 3, 1, 1), latents)
        if "without" in sums:
            mask = mask & ~self._mask(sums["without"], latents)
        others = [i for i in range(len(latents)) if i not in images]
        source = ctx.results[SOURCE].to(latents) if SOURCE in ctx.results else latents[others]
        out = latents.clone()
        for i, (image, where) in enumerate(zip(images, mask, strict=True)):
            out[image] = torch.where(where, latents[image], source[i % len(source)])
        return out

    def _mask(self, levels: Tensor, latents: Tensor) -> Tensor:
        """Where source or target sees the words: bool [target rows, 1, h, w]."""
        levels = F.interpolate(levels, size=latents.shape[-2:], mode="nearest")
        return (levels > self.threshold * levels.amax((2, 3), keepdim=True)).any(1, keepdim=True)
