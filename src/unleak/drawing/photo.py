"""A photo for a pipeline: brought to a size the model draws, and into its latents and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unleak.core.anatomy import Anatomy
from unleak.drawing.generate import image_size
from unleak.errors import BadInput, NotFinite, UnsupportedModel


def step_of(pipe: Any) -> int:
    """Of how many pixels height and width are multiples: a cell of the latents, or of what attends as one.

    Raises UnsupportedModel: the pipeline does not tell.
    """
    processor = getattr(pipe, "image_processor", None)
    step = getattr(pipe if processor is None else processor.config, "vae_scale_factor", None)
    if step is None:
        raise UnsupportedModel(
            f"{type(pipe).__name__} does not tell how many pixels a cell of its latents has (`vae_scale_factor`), so "
            "no photo can be brought into its latents"
        )
    denoiser: Any = Anatomy.of(pipe).denoiser
    patch = denoiser.config.get("patch_size")
    return int(step) * (patch if isinstance(patch, int) else 1)


def working_size(
    pipe: Any, image: Image.Image, size: tuple[int, int] | None = None, call: Mapping[str, Any] | None = None
) -> tuple[int, int]:
    """(height, width) at which to edit: as `size` says, or the image's proportions at the model's own area.

    Both are multiples of `step_of` the pipeline. `call`: its arguments, which may tell the area.
    Raises BadInput where `size` is none, or the image is too narrow.
    """
    step = step_of(pipe)
    if size is not None:
        if any(side % step or side <= 0 for side in size):
            raise BadInput(f"size {size[0]}x{size[1]}: this pipeline draws multiples of {step}")
        return size
    own = image_size(pipe, call or {})
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

    Raises UnsupportedModel where the pipeline has no autoencoder, or one of videos, NotFinite where it overflows.
    """
    vae = getattr(pipe, "vae", None)
    if vae is None or not hasattr(vae, "encode") or vae.config.get("scaling_factor") is None:
        raise UnsupportedModel(f"{type(pipe).__name__} has no autoencoder that encodes single images")
    config, own = vae.config, vae.dtype
    pixels = torch.from_numpy(np.asarray(image).astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    wide = own == torch.float16 and getattr(config, "force_upcast", False)
    try:
        if wide:
            vae.to(torch.float32)
        encoded = vae.encode(pixels.to(pipe._execution_device, vae.dtype))
    except ValueError as e:
        raise UnsupportedModel(f"the autoencoder of {type(pipe).__name__} encodes no single images: {e}") from e
    finally:
        if wide:
            vae.to(own)
    if (posterior := getattr(encoded, "latent_dist", None)) is None:  # an autoencoder without noise
        z = encoded[0]
    else:
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


def as_latents(pipe: Any, z: Tensor) -> Tensor:
    """Cells [n, C, h, w] as the pipeline gives latents to its denoiser: as they are, or packed, [n, N, c].

    Raises UnsupportedModel: its denoiser reads tokens, and how cells become tokens is not known.
    """
    pack = getattr(pipe, "_pack_latents", None)
    if pack is None:
        return z
    try:
        packed: Tensor = pack(z, *z.shape)
    except (TypeError, ValueError, RuntimeError) as e:
        raise UnsupportedModel(f"{type(pipe).__name__} packs latents in a way that edits do not know: {e}") from e
    return packed


def as_cells(pipe: Any, latents: Tensor, grid: Sequence[int]) -> Tensor:
    """Latents of the denoiser as cells [n, C, h, w], `grid` being (h, w); undoes `as_latents`.

    Raises UnsupportedModel: as there.
    """
    if latents.ndim == 4:
        return latents
    h, w = grid
    where = as_latents(pipe, torch.arange(latents[0].numel(), dtype=torch.float64).reshape(1, -1, h, w))
    if where.shape[1:] != latents.shape[1:]:
        raise UnsupportedModel(
            f"{type(pipe).__name__} packs {h}x{w} cells to {list(where.shape[1:])}, and its latents are "
            f"{list(latents.shape[1:])}"
        )
    cells = torch.empty_like(latents).flatten(1)
    cells[:, where.flatten().long()] = latents.flatten(1)
    return cells.reshape(len(latents), -1, h, w)
