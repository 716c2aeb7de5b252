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
from unleak.regions.ore import embed, one_prompt, reads_text
from unleak.regions.plan import named
from unleak.regions.schedule import alphas, variance_preserving

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context

SEEN = Window(0.6, 1.0)
"""When the image is clear enough to be recognised."""
THRESHOLD = 0.5
"""Where an object is, as a share of the range of its attention."""


@dataclass(frozen=True, eq=False)
class Recognise(Intervention):
    """Show the pipeline the image `clean` [1, C, h, w] at every noise level, and keep where `objects` are seen.

    Leaves the mean attention to each object's words, [K, h, w] on the latent grid, in `run.results["seen"]`.
    """

    clean: Tensor
    objects: tuple[str, ...]
    seed: int = 0
    uses_text = True

    def on_attention(self, ctx: Context, site: AttentionCall) -> None:
        if not reads_text(site) or ctx.fraction not in SEEN:
            return
        if "spans" not in ctx.state:
            prompt, plain = one_prompt(ctx)
            ctx.state["spans"] = embed(ctx, prompt, self.objects, "paper", "words", plain).slots.spans
            ctx.state["means"] = RunningMean()
        tokens = [token for span in ctx.state["spans"] for token in range(*span)]
        ctx.state["means"].add(site.name, site.columns(tokens).mean(0))

    def on_latents(self, ctx: Context, latents: Tensor) -> Tensor:
        a = alphas(ctx.pipe.scheduler, ctx.step)[1]
        random = ctx.state.setdefault("random", torch.Generator("cpu").manual_seed(self.seed))
        n = torch.randn(latents.shape, generator=random).to(latents)
        if ctx.step == ctx.steps - 1:
            ctx.run.results["seen"] = self._seen(ctx, latents.shape[-2:])
        return a**0.5 * self.clean.to(latents) + (1 - a) ** 0.5 * n

    def _seen(self, ctx: Context, grid: Sequence[int]) -> Tensor:
        means, sizes = ctx.state["means"], [end - start for start, end in ctx.state["spans"]]
        maps = []
        for name in means:
            column = means.mean(name).permute(2, 0, 1)  # [T, h, w]
            words = torch.stack([part.mean(0) for part in column.split(sizes)])
            maps.append(F.interpolate(words[None].float(), size=tuple(grid), mode="bilinear", align_corners=False)[0])
        return torch.stack(maps).mean(0)


def attention_masks(
    pipe: Any, clean: Tensor, prompt: str, objects: Sequence[str], size: tuple[int, int], steps: int = 10, seed: int = 0
) -> Tensor:
    """Where a caption's objects are in an image, as the model itself sees it.

    Args:
        clean: the image's latents [1, C, h, w].
        prompt: the caption. objects: as `Item.of` writes them, each in the caption; articles are not looked for.
        size: (height, width) of the image in pixels.
        steps: noise levels at which the image is shown, one denoiser row each.

    Returns:
        bool [K, H, W]: each object where its attention is over half of its range; what two objects claim goes to
        the one whose own range it stands higher in.

    Raises:
        EmptyMask: the model sees an object nowhere, or everywhere alike.
    """
    with variance_preserving(pipe, steps), attach(pipe, Recognise(clean, named(prompt, objects), seed)) as run:
        pipe(
            prompt=prompt, height=size[0], width=size[1], num_inference_steps=steps, guidance_scale=1.0,
            generator=torch.Generator("cpu").manual_seed(seed), output_type="latent",
        )  # fmt: skip
    return above(run.results["seen"].cpu(), objects, size)


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
