"""Where the words of an object are looked for in a given image: the model's own attention.

The pipeline denoises the image's caption, but after each step it is given the true image at the next noise level,
``x' = s' z0 + g' n``. The columns of attention to an object's words, averaged over sites, heads and steps, say
where the model sees it. No second model is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from unleak.core.intervention import Intervention, Window
from unleak.core.scores import RunningMean
from unleak.drawing.photo import as_latents
from unleak.regions.methods.images import Phrases, each_list, own_prompts, rows_of
from unleak.regions.methods.schedule import levels
from unleak.regions.methods.slots import reads_text, text_rows

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context

ATTENTION = "object_attention"
"""Where the maps are left in `ctx.results`."""
RECOGNISABLE = Window(0.6, 1.0)
"""When the image is clear enough to be recognised."""


@dataclass(frozen=True, eq=False)
class NoisedSource(Intervention):
    """Show the pipeline the images `clean` [images, C, h, w] at every noise level, and keep where it sees `objects`.

    `objects` are phrases of the prompt, or a list of them for each prompt of the call. Leaves the mean attention to
    each object's words, [K, h, w] on the latent grid for each prompt, in `ctx.results[ATTENTION]`.
    """

    clean: Tensor
    objects: Phrases
    seed: int = 0
    uses_text = True

    def on_attention(self, ctx: Context, site: AttentionCall) -> None:
        if not reads_text(site) or ctx.fraction not in RECOGNISABLE:
            return
        if "words" not in ctx.state:
            each = each_list(self.objects)
            prompts, _ = own_prompts(ctx, len(each))
            words = [text_rows(ctx.encoded, prompt, some) for prompt, some in zip(prompts, each, strict=True)]
            ctx.state["words"], ctx.state["means"] = words, [RunningMean() for _ in each]
        each_words, means = ctx.state["words"], ctx.state["means"]
        for words, mean, rows in zip(each_words, means, rows_of(ctx, len(means)), strict=True):
            tokens = [token for own in words for token in own]
            mean.add(site.name, site.columns(tokens, rows).mean(0))

    def on_latents(self, ctx: Context, latents: Tensor) -> Tensor:
        """x' of the equation above."""
        s, g = levels(ctx.pipe.scheduler, ctx.step)[1]
        random = ctx.state.setdefault("random", torch.Generator("cpu").manual_seed(self.seed))
        n = torch.randn(1, *latents.shape[1:], generator=random).to(latents)
        if ctx.step == ctx.steps - 1:
            prompts = zip(ctx.state["means"], ctx.state["words"], strict=True)
            ctx.results[ATTENTION] = [_maps(mean, words, self.clean.shape[-2:]) for mean, words in prompts]
        return s * as_latents(ctx.pipe, self.clean).to(latents) + g * n


def _maps(means: RunningMean, words: Sequence[Sequence[int]], grid: Sequence[int]) -> Tensor:
    """Of one prompt: the attention to each object, the mean over its words and over sites, [K, h, w]."""
    by_site = []
    for site in means:
        tokens = means.mean(site).permute(2, 0, 1)  # [T, h, w]
        objects = torch.stack([own.mean(0) for own in tokens.split([len(own) for own in words])])
        resized = F.interpolate(objects[None].float(), size=tuple(grid), mode="bilinear", align_corners=False)
        by_site.append(resized[0])
    return torch.stack(by_site).mean(0)
