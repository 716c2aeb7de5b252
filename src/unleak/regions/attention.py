"""Masks from the model's own attention: where the words of an object are looked for in a given image.

The pipeline denoises the image's caption, but after each step it is given the true image at the next noise level,
``x' = sqrt(a') z0 + sqrt(1 - a') n``. The cross-attention columns of an object's words, averaged over sites, heads and
steps, say where the model sees it. No second model is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unleak.core.intervention import Intervention, Window
from unleak.core.scores import RunningMean
from unleak.core.session import attach
from unleak.errors import EmptyMask
from unleak.regions.images import Phrases, each_list, own_prompts, rows_of
from unleak.regions.ore import embed, reads_text
from unleak.regions.plan import named
from unleak.regions.schedule import alphas, variance_preserving

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context
    from unleak.text.spans import Span

SEEN = Window(0.6, 1.0)
"""When the image is clear enough to be recognised."""
THRESHOLD = 0.5
"""Where an object is, as a share of the range of its attention."""


@dataclass(frozen=True, eq=False)
class Recognise(Intervention):
    """Show the pipeline the images `clean` [images, C, h, w] at every noise level, and keep where `objects` are seen.

    `objects` are phrases of the prompt, or a list of them for each prompt of the call. Leaves the mean attention to
    each object's words, [K, h, w] on the latent grid for each prompt, in `run.results["seen"]`.
    """

    clean: Tensor
    objects: Phrases
    seed: int = 0
    uses_text = True

    def on_attention(self, ctx: Context, site: AttentionCall) -> None:
        if not reads_text(site) or ctx.fraction not in SEEN:
            return
        if "spans" not in ctx.state:
            objects = each_list(self.objects)
            prompts, plain = own_prompts(ctx, len(objects))
            ctx.state["spans"] = [one.slots.spans for one in embed(ctx, prompts, objects, "paper", "words", plain)]
            ctx.state["means"] = [RunningMean() for _ in objects]
        spans, means = ctx.state["spans"], ctx.state["means"]
        for mine, mean, rows in zip(spans, means, rows_of(ctx, len(spans)), strict=True):
            tokens = [token for span in mine for token in range(*span)]
            mean.add(site.name, site.columns(tokens, rows).mean(0))

    def on_latents(self, ctx: Context, latents: Tensor) -> Tensor:
        a = alphas(ctx.pipe.scheduler, ctx.step)[1]
        random = ctx.state.setdefault("random", torch.Generator("cpu").manual_seed(self.seed))
        n = torch.randn(1, *latents.shape[1:], generator=random).to(latents)
        if ctx.step == ctx.steps - 1:
            both = zip(ctx.state["means"], ctx.state["spans"], strict=True)
            ctx.run.results["seen"] = [_seen(means, spans, latents.shape[-2:]) for means, spans in both]
        return a**0.5 * self.clean.to(latents) + (1 - a) ** 0.5 * n


def _seen(means: RunningMean, spans: Sequence[Span], grid: Sequence[int]) -> Tensor:
    """Of one prompt: the mean over sites, [K, h, w]."""
    maps = []
    for name in means:
        column = means.mean(name).permute(2, 0, 1)  # [T, h, w]
        words = torch.stack([part.mean(0) for part in column.split([end - start for start, end in spans])])
        maps.append(F.interpolate(words[None].float(), size=tuple(grid), mode="bilinear", align_corners=False)[0])
    return torch.stack(maps).mean(0)


def attention_masks(
    pipe: Any,
    clean: Tensor,
    prompts: Sequence[str],
    objects: Sequence[Sequence[str]],
    size: tuple[int, int],
    steps: int = 10,
    seed: int = 0,
) -> list[Tensor]:
    """Where the objects of captions are in their images, as the model itself sees them; all in one call.

    Args:
        clean: the images' latents [images, C, h, w]. prompts: the caption of each.
        objects: of each image, as `Item.of` writes them, each in its caption; articles are not looked for.
        size: (height, width) of the images in pixels.
        steps: noise levels at which an image is shown, one denoiser row each.

    Returns:
        bool [K, H, W] for each image: each object where its attention is over half of its range; what two objects
        claim goes to the one whose own range it stands higher in.

    Raises:
        EmptyMask: the model sees an object nowhere, or everywhere alike.
    """
    words = tuple(named(*one) for one in zip(prompts, objects, strict=True))
    with variance_preserving(pipe, steps), attach(pipe, Recognise(clean, words, seed)) as run:
        pipe(
            prompt=list(prompts), height=size[0], width=size[1], num_inference_steps=steps, guidance_scale=1.0,
            generator=torch.Generator("cpu").manual_seed(seed), output_type="latent",
        )  # fmt: skip
    return [above(seen.cpu(), some, size) for seen, some in zip(run.results["seen"], objects, strict=True)]


def above(seen: Tensor, objects: Sequence[str], size: tuple[int, int]) -> Tensor:
    """Attention [K, h, w] as disjoint masks [K, H, W]. Raises EmptyMask."""
    low, high = seen.amin((1, 2), True), seen.amax((1, 2), True)
    if not (high > low).all():
        raise EmptyMask("the model attends to an object everywhere alike: give masks")
    level = (seen - low) / (high - low)
    owner = level.argmax(0)
    masks = [(owner == i) & (plane > THRESHOLD) for i, plane in enumerate(level)]
    for name, mask in zip(objects, masks, strict=True):
        if not mask.any():
            raise EmptyMask(f"the model does not tell where {name!r} is in the image: give a mask for it")
    return F.interpolate(torch.stack(masks)[None].float(), size=size, mode="nearest")[0] > 0.5
