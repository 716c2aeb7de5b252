"""A photo for a pipeline: brought to a size the model draws, and into its latents and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unleak.drawing.generate import image_size
from unleak.errors import BadInput, NotFinite, UnsupportedModel


def working_size(pipe: Any, image: Image.Image, size: tuple[int, int] | None = None) -> tuple[int, int]:
    """(height, width) at which to edit: as `size` says, or the image's proportions at the model's own area.

    Both are multiples of the autoencoder's step. Raises BadInput where `size` is not, or the image is too narrow.
    """
    step = int(pipe.vae_scale_factor)
    if size is not None:
        if any(side % step or side <= 0 for side in size):
            raise BadInput(f"size {size[0]}x{size[1]}: this pipeline draws multiples of {step}")
        return size
    own = image_size(pipe, {})
    if own is None:
        raise BadInput(f"{type(pipe).__name__} tells no size of its own: give size=(height, width)")
    scale = math.sqrt(math.prod(own) / (image.height * image.width))
    height, width = (round(side * scale / step) * step for side in (image.height, image.width))
    if min(height, width) < 2 * step:
        raise BadInput(f"the image is {image.width}x{image.height}: too narrow for a model of {own[1]}x{own[0]}")
    return height, width


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture at (height, width); itself where it has that size."""
    height, width = size
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)


@torch.no_grad()
def to_latents(pipe: Any, image: Image.Image | np.ndarray, sample: torch.Generator | None = None) -> Tensor:
    """Latents [1, C, h, w] of a picture or an array [H, W, 3] of 0 to 255, as the denoiser knows them.

    They are the mode of the autoencoder's posterior, or a sample of it; half precision is widened where it overflows.

    Raises UnsupportedModel where the pipeline has no autoencoder, NotFinite where it overflows.
    """
    vae = getattr(pipe, "vae", None)
    if vae is None or not hasattr(vae, "encode"):
        raise UnsupportedModel(f"{type(pipe).__name__} has no autoencoder that encodes images")
    config, own = vae.config, vae.dtype
    pixels = torch.from_numpy(np.asarray(image).astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    wide = own == torch.float16 and getattr(config, "force_upcast", False)
    try:
        if wide:
            vae.to(torch.float32)
        posterior = vae.encode(pixels.to(pipe._execution_device, vae.dtype)).latent_dist
    finally:
        if wide:
            vae.to(own)
    z = posterior.mode() if sample is None else posterior.sample(sample)
    if not torch.isfinite(z).all():
        raise NotFinite("the autoencoder gave NaN latents; load the pipeline in a wider dtype")
    return (z.float() - (config.get("shift_factor") or 0.0)) * config.scaling_factor


@torch.no_grad()
def to_pixels(pipe: Any, latents: Tensor) -> np.ndarray:
    """Images [N, H, W, 3] uint8 of latents as the denoiser knows them."""
    config = pipe.vae.config
    z = latents / config.scaling_factor + (config.get("shift_factor") or 0.0)
    pixels = pipe.vae.decode(z.to(pipe._execution_device, pipe.vae.dtype), return_dict=False)[0]
    return ((pixels.float().cpu() / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
