"""Where the parts of a pipeline are: denoiser, text encoders, attention sites, latent grid.

Parts are found by what they can do, never by the class of model they belong to.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unleak.errors import UnsupportedModel
from unleak.text.encoders import Encoder, text_encoders


@dataclass(frozen=True, eq=False)
class Site:
    """One attention module of the denoiser. `name` is its path inside the denoiser."""

    name: str
    module: nn.Module


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The parts of one pipeline. `denoiser_name` is the pipeline's attribute ("unet", "transformer")."""

    pipe: Any
    denoiser_name: str
    denoiser: nn.Module
    encoders: tuple[Encoder, ...]
    sites: tuple[Site, ...]

    @classmethod
    def of(cls, pipe: Any) -> Anatomy:
        """Look a loaded pipeline over.

        Raises:
            UnsupportedModel: no denoiser with text conditioning and attention sites, or more than one.
        """
        parts: Mapping[str, Any] = getattr(pipe, "components", {})
        encoders = tuple(text_encoders(parts))
        reads_text = bool(encoders) or hasattr(pipe, "encode_prompt")
        denoisers = {name: part for name, part in parts.items() if reads_text and _is_denoiser(part)}
        if len(denoisers) != 1:
            raise UnsupportedModel(
                f"{type(pipe).__name__} has {len(denoisers)} text-conditioned denoisers {sorted(denoisers)}; "
                "unleak needs a diffusers pipeline with exactly one"
            )
        (name, denoiser), *_ = denoisers.items()
        return cls(pipe, name, denoiser, encoders, tuple(attention_sites(denoiser)))


def attention_sites(denoiser: nn.Module) -> list[Site]:
    """Every attention module of a denoiser in the order of its modules, by path (as if never compiled)."""
    named = eager(denoiser).named_modules()
    return [Site(name.replace("_orig_mod.", ""), module) for name, module in named if is_attention(module)]


def eager(module: nn.Module) -> nn.Module:
    """The module inside a `torch.compile` wrapper, or the module itself."""
    return getattr(module, "_orig_mod", module)


def is_attention(module: nn.Module) -> bool:
    """Whether it is one of diffusers' attention modules: what attends in it can be exchanged."""
    return hasattr(module, "set_processor")


def _is_denoiser(part: Any) -> bool:
    """A module with attention that is called with latents and more, and predicts one tensor.

    Autoencoders encode and decode, text and image encoders embed tokens or patches, and a ControlNet returns what it
    adds to several blocks.
    """
    if not isinstance(part, nn.Module) or not any(is_attention(module) for module in part.modules()):
        return False
    part = eager(part)
    is_autoencoder = hasattr(part, "encode") and hasattr(part, "decode")
    is_encoder = hasattr(part, "get_input_embeddings")
    takes_more = len(inspect.signature(part.forward).parameters) > 2
    return takes_more and not (is_autoencoder or is_encoder or _returns_several(part))


def _returns_several(part: nn.Module) -> bool:
    """Whether the declared output of a module is a record that begins with several tensors."""
    try:
        declared = typing.get_type_hints(type(part).forward).get("return")
        records = [kind for kind in (declared, *typing.get_args(declared)) if dataclasses.is_dataclass(kind)]
        first = [next(iter(typing.get_type_hints(kind).values()), None) for kind in records]
    except (NameError, TypeError):  # annotations that cannot be evaluated say nothing
        return False
    return any(typing.get_origin(kind) in (tuple, list) for kind in first)


class Grid:
    """Latent height and width of the picture, and the height and width that n cells of a site stand for.

    Spatial latents [B, C, H, W] are halved (or patched) by integer factors. Packed latents [B, N, C] take their grid
    from a position table of the call, from a shape among its arguments, or from the image's height and width in pixels.

    Args:
        latents: what the denoiser is given.
        inputs: its arguments by name.
        pixels: height and width of the image, or None.
        cells: how many of N packed tokens are the picture's, at the beginning (default: all). Those of reference
            images follow.
    """

    def __init__(
        self,
        latents: Tensor,
        inputs: Mapping[str, Any],
        pixels: tuple[int | None, int | None],
        cells: int | None = None,
    ) -> None:
        self.packed = latents.ndim == 3
        self.tokens = latents.shape[1] if self.packed else 0
        self.cells = cells or (latents.shape[1] if self.packed else math.prod(latents.shape[-2:]))
        size = _packed_size(self.cells, latents.shape[1], inputs, pixels) if self.packed else latents.shape[-2:]
        self.size = None if size is None else (int(size[0]), int(size[1]))

    def of(self, tokens: int) -> tuple[int, int] | None:
        """(height, width) of a site with this many image cells, or None where they are no image."""
        if self.size is None:
            return None
        height, width = self.size
        for factor in [1] if self.packed else range(1, max(height, width) + 1):
            size = math.ceil(height / factor), math.ceil(width / factor)
            if size[0] * size[1] == tokens:
                return size
        return None


def _packed_size(
    cells: int, tokens: int, inputs: Mapping[str, Any], pixels: tuple[int | None, int | None]
) -> tuple[int, int] | None:
    tables = (v for v in inputs.values() if isinstance(v, Tensor) and v.ndim in (2, 3) and v.shape[-2] == tokens)
    for table in tables:
        if table.shape[-1] > 4:
            continue
        columns = table.reshape(-1, tokens, table.shape[-1])[0, :cells].unbind(-1)
        counts = [int(torch.unique(column).numel()) for column in columns]
        for height, width in (counts[-2:], counts[1:3]):
            if height * width == cells:
                return height, width
    for shape in _shapes(list(inputs.values())):
        if shape[-2] * shape[-1] == cells:
            return shape[-2], shape[-1]
    if all(pixels):
        rows = round(math.sqrt(cells * pixels[0] / pixels[1]))  # type: ignore[operator]
        if rows and cells % rows == 0:
            return rows, cells // rows
    return None


def _shapes(value: Any) -> Iterator[tuple[int, ...]]:
    """Every tuple of two or three integers inside lists and tuples."""
    if isinstance(value, list | tuple):
        if len(value) in (2, 3) and all(isinstance(item, int) and not isinstance(item, bool) for item in value):
            yield tuple(value)
        else:
            for item in value:
                yield from _shapes(item)
