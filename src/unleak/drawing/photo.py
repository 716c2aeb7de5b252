"""A photo for a pipeline: read, brought to a size the model draws, and into its latents and back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from unleak.drawing.generate import image_size
from unleak.errors import BadInput, NotFinite, UnsupportedModel

MOST_PIXELS = 100_000_000


def read(image: Any) -> Image.Image:
    """An RGB picture from a file, a PIL image or an array [H, W], [H, W, 3 or 4] (uint8, uint16 or 0..1 floats).

    Orientation tags are followed, transparent pixels are laid on white, 16 bits are reduced to 8.

    Raises BadInput: it is no picture, is truncated, holds NaN or has more than `MOST_PIXELS` pixels.
    """
    if isinstance(image, str | Path):
        return _opened(Path(image))
    if isinstance(image, Image.Image):
        return _rgb(image)
    array = np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image)
    if array.ndim not in (2, 3) or not array.size or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise BadInput(f"an image array is [height, width] or [height, width, 3], not {array.shape}")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise BadInput("an image of floats holds numbers from 0 to 1")
        array = (array * 255).round().astype(np.uint8)
    elif array.dtype == np.uint16:
        array = (array // 257).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise BadInput(f"an image array holds uint8, uint16 or floats from 0 to 1, not {array.dtype}")
    return _rgb(Image.fromarray(array.squeeze(2) if array.shape[2:] == (1,) else array))


def _opened(file: Path) -> Image.Image:
    try:
        with Image.open(file) as opened:
            _check_pixels(opened.size)
            return _rgb(opened)
    except BadInput:
        raise
    except UnidentifiedImageError:
        raise BadInput(f"{str(file)!r} is no picture that can be read: give a PNG or JPEG") from None
    except Image.DecompressionBombError as e:
        raise BadInput(f"{str(file)!r} is too large: {e}") from e
    except (OSError, ValueError, SyntaxError) as e:
        raise BadInput(f"cannot read the image {str(file)!r}: {e}") from e


def _rgb(image: Image.Image) -> Image.Image:
    _check_pixels(image.size)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        deep = np.asarray(image, dtype=np.float64)
        top = 65535.0 if deep.max() > 255 else 255.0
        image = Image.fromarray((deep.clip(0, top) / top * 255).round().astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _check_pixels(size: tuple[int, int]) -> None:
    if math.prod(size) > MOST_PIXELS:
        raise BadInput(f"the image has {size[0]}x{size[1]} pixels; no model draws as many, make it smaller first")


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
