"""Masks from the model itself: where it looks for an object's words, and where they help it to predict the image.

Attention to a word spreads over things that the caption does not name, for want of a better word; there the word does
not help. What helps is grainy where attention is smooth. So both are asked, each brought to 0..1,

    level_k = sqrt(attention_k * evidence_k),

and an object is where its level is over `THRESHOLD` of its range. No second model is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unleak.engine.session import attach
from unleak.errors import EmptyMask
from unleak.regions.masks.attention import Recognise
from unleak.regions.masks.evidence import Evidence
from unleak.regions.methods.schedule import variance_preserving
from unleak.regions.plan import named

FROM = ("own", "attention")
THRESHOLD = {"own": 0.35, "attention": 0.5}
"""Where an object is, as a share of the range of its level."""


def own_masks(
    pipe: Any,
    clean: Tensor,
    prompts: Sequence[str],
    objects: Sequence[Sequence[str]],
    size: tuple[int, int],
    steps: int = 20,
    seed: int = 0,
    by: str = "own",
) -> list[Tensor]:
    """Where the objects of captions are in their images, as the model itself sees them; all in one call.

    Args:
        clean: the images' latents [images, C, h, w]. prompts: the caption of each.
        objects: of each image, as `Item.of` writes them, each in its caption; articles are not looked for.
        size: (height, width) of the images in pixels.
        steps: noise levels at which an image is shown, one denoiser row each, and for 9 of 20 one more for each object.
        by: ``"own"``: attention and evidence. ``"attention"`` alone.

    Returns:
        bool [K, H, W] for each image; what two objects claim goes to the one whose own range it stands higher in.

    Raises:
        EmptyMask: the model sees an object nowhere, or everywhere alike.
    """
    words = tuple(named(*one) for one in zip(prompts, objects, strict=True))
    parts = [Recognise(clean, words, seed), *([Evidence(clean, words)] if by == "own" else [])]
    with variance_preserving(pipe, steps), attach(pipe, *parts) as run:
        pipe(
            prompt=list(prompts), height=size[0], width=size[1], num_inference_steps=steps, guidance_scale=1.0,
            generator=torch.Generator("cpu").manual_seed(seed), output_type="latent",
        )  # fmt: skip
    evidence = run.results.get("evidence", [None] * len(words))
    levels = [level(seen, told) for seen, told in zip(run.results["seen"], evidence, strict=True)]
    return [above(one.cpu(), some, size, THRESHOLD[by]) for one, some in zip(levels, objects, strict=True)]


def level(attention: Tensor, evidence: Tensor | None) -> Tensor:
    """The equation above, [K, h, w]; without evidence the attention."""
    if evidence is None:
        return attention
    return (unit(attention) * unit(smooth(evidence.to(attention)).clamp_min(0))).sqrt()


def unit(maps: Tensor) -> Tensor:
    """Each of [K, h, w] from 0 to 1; 0 where it is everywhere alike."""
    low, high = maps.amin((1, 2), True), maps.amax((1, 2), True)
    return (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny)


def smooth(maps: Tensor) -> Tensor:
    """[K, h, w], the mean over squares of an eighth of the grid, 3 cells at the least; edges count what is there."""
    side = max(3, min(maps.shape[1:]) // 8 // 2 * 2 + 1)
    found: Tensor = F.avg_pool2d(maps[None], side, 1, side // 2, count_include_pad=False)[0]
    return found


def above(levels: Tensor, objects: Sequence[str], size: tuple[int, int], threshold: float) -> Tensor:
    """Levels [K, h, w] as disjoint masks [K, H, W]. Raises EmptyMask."""
    if not (levels.amax((1, 2)) > levels.amin((1, 2))).all():
        raise EmptyMask("the model sees an object everywhere alike: give masks")
    levels = unit(levels)
    owner = levels.argmax(0)
    masks = [(owner == i) & (plane > threshold) for i, plane in enumerate(levels)]
    for name, mask in zip(objects, masks, strict=True):
        if not mask.any():
            raise EmptyMask(f"the model does not tell where {name!r} is in the image: give a mask for it")
    return F.interpolate(torch.stack(masks)[None].float(), size=size, mode="nearest")[0] > 0.5
