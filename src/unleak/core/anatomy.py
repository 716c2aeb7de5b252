"""Where the parts of a pipeline are: denoiser, text encoders, attention sites, latent grid.

Parts are found by what they can do, never by the class of model they belong to.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
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
        denoisers = {name: part for name, part in parts.items() if _is_denoiser(part)}
        if len(denoisers) != 1:
            raise UnsupportedModel(
                f"{type(pipe).__name__} has {len(denoisers)} text-conditioned denoisers {sorted(denoisers)}; "
                "unleak needs a diffusers pipeline with exactly one"
            )
        (name, denoiser), *_ = denoisers.items()
        return cls(pipe, name, denoiser, tuple(text_encoders(parts)), tuple(attention_sites(denoiser)))


def attention_sites(denoiser: nn.Module) -> list[Site]:
    """Every attention module of a denoiser in the order of its modules, by path (as if never compiled)."""
    named = eager(denoiser).named_modules()
    return [Site(name.replace("_orig_mod.", ""), module) for name, module in named if _is_attention(module)]


def eager(module: nn.Module) -> nn.Module:
    """The module inside a `torch.compile` wrapper, or the module itself."""
    return getattr(module, "_orig_mod", module)


def _is_attention(module: nn.Module) -> bool:
    has_query = hasattr(module, "to_q") or hasattr(module, "to_qkv")
    return hasattr(module, "set_processor") and has_query


def _is_denoiser(part: Any) -> bool:
    """A module called with a timestep and text rows that has attention; a controlnet only assists one."""
    if not isinstance(part, nn.Module):
        return False
    accepts = set(inspect.signature(eager(part).forward).parameters)
    return (
        {"timestep", "encoder_hidden_states"} <= accepts
        and "controlnet_cond" not in accepts
        and any(_is_attention(module) for module in part.modules())
    )


class Grid:
    """Latent height and width, and the height and width that n image tokens of a site stand for.

    Spatial latents [B, C, H, W] are halved (or patched) by integer factors; packed latents [B, N, C] take
    their grid from the position table of the call, or from the image's height and width in pixels.
    """

    def __init__(self, latents: Tensor, inputs: Mapping[str, Any], pixels: tuple[int | None, int | None]) -> None:
        self.packed = latents.ndim == 3
        self.size = _packed_size(latents.shape[1], inputs, pixels) if self.packed else tuple(latents.shape[-2:])

    def of(self, tokens: int) -> tuple[int, int] | None:
        """(height, width) of a site with this many image tokens, or None where they are no image."""
        if self.size is None:
            return None
        height, width = self.size
        for factor in [1] if self.packed else range(1, max(height, width) + 1):
            size = math.ceil(height / factor), math.ceil(width / factor)
            if size[0] * size[1] == tokens:
                return size
        return None


def _packed_size(
    tokens: int, inputs: Mapping[str, Any], pixels: tuple[int | None, int | None]
) -> tuple[int, int] | None:
    tables = (v for v in inputs.values() if isinstance(v, Tensor) and v.ndim in (2, 3) and v.shape[-2] == tokens)
    for table in tables:
        if table.shape[-1] > 4:
            continue
        columns = table.reshape(-1, tokens, table.shape[-1])[0].unbind(-1)
        counts = [int(torch.unique(column).numel()) for column in columns]
        height, width = counts[-2], counts[-1]
        if height * width == tokens:
            return height, width
    if all(pixels):
        rows = round(math.sqrt(tokens * pixels[0] / pixels[1]))  # type: ignore[operator]
        if rows and tokens % rows == 0:
            return rows, tokens // rows
    return None
