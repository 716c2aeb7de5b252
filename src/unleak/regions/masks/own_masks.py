"""Masks from the model itself: where it looks for an object's words, and where they help it to predict the image.

Attention to a word spreads over things that the caption does not name, for want of a better word; there the word does
not help. What helps is grainy where attention is smooth. So both are asked, each brought to 0..1,

    level_k = sqrt(attention_k * gain_k),

and an object is where its level is over `THRESHOLD` of its range. No second model is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unleak.engine.session import attach
from unleak.errors import EmptyMask
from unleak.regions.masks.noised_source import ATTENTION, NoisedSource
from unleak.regions.masks.prediction_gain import GAIN, PredictionGain
from unleak.regions.methods.schedule import followed
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
    masks_from: str = "own",
    call: Mapping[str, Any] | None = None,
) -> list[Tensor]:
    """Where the objects of captions are in their images, as the model itself sees them; all in one call.

    Args:
        clean: the images' latents [images, C, h, w], not packed. prompts: the caption of each.
        objects: of each image, as `Item.of` writes them, each in its caption; articles are not looked for.
        size: (height, width) of the images in pixels. call: further arguments of the pipeline.
        steps: noise levels at which an image is shown, one denoiser row each, and for 9 of 20 one more for each object.
        masks_from: ``"own"``: attention and gain. ``"attention"`` alone.

    Returns:
        bool [K, H, W] for each image; what two objects claim goes to the one whose own range it stands higher in.

    Raises:
        EmptyMask: the model sees an object nowhere, or everywhere alike.
    """
    words = tuple(named(*one) for one in zip(prompts, objects, strict=True))
    gain = [PredictionGain(clean, words)] if masks_from == "own" else []
    unguided = {
        "num_inference_steps": steps, "height": size[0], "width": size[1], "guidance_scale": 1.0,
        "negative_prompt": None, "output_type": "latent",
    }  # fmt: skip
    random = torch.Generator("cpu").manual_seed(seed)
    with followed(pipe, steps), attach(pipe, NoisedSource(clean, words, seed), *gain) as run:
        pipe(**{**(call or {}), **unguided, "prompt": list(prompts), "generator": random})
    gains = run.results.get(GAIN, [None] * len(words))
    each = [levels(*maps) for maps in zip(run.results[ATTENTION], gains, strict=True)]
    return [as_masks(one.cpu(), names, size, THRESHOLD[masks_from]) for one, names in zip(each, objects, strict=True)]


def levels(attention: Tensor, gain: Tensor | None) -> Tensor:
    """The equation above, [K, h, w]; without a gain the attention."""
    if gain is None:
        return attention
    return (unit_range(attention) * unit_range(local_mean(gain.to(attention)).clamp_min(0))).sqrt()


def unit_range(maps: Tensor) -> Tensor:
    """Each of [K, h, w] from 0 to 1; 0 where it is everywhere alike."""
    low, high = maps.amin((1, 2), True), maps.amax((1, 2), True)
    return (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny)


def local_mean(maps: Tensor) -> Tensor:
    """[K, h, w], the mean over squares of an eighth of the grid, 3 cells at the least; edges count what is there."""
    side = max(3, min(maps.shape[1:]) // 8 // 2 * 2 + 1)
    means: Tensor = F.avg_pool2d(maps[None], side, 1, side // 2, count_include_pad=False)[0]
    return means


def as_masks(maps: Tensor, objects: Sequence[str], size: tuple[int, int], threshold: float) -> Tensor:
    """Levels [K, h, w] as disjoint masks [K, H, W]. Raises EmptyMask."""
    if not (maps.amax((1, 2)) > maps.amin((1, 2))).all():
        raise EmptyMask("the model sees an object everywhere alike: give masks")
    maps = unit_range(maps)
    owner = maps.argmax(0)
    masks = [(owner == i) & (level > threshold) for i, level in enumerate(maps)]
    for name, mask in zip(objects, masks, strict=True):
        if not mask.any():
            raise EmptyMask(f"the model does not tell where {name!r} is in the image: give a mask for it")
    return F.interpolate(torch.stack(masks)[None].float(), size=size, mode="nearest")[0] > 0.5
