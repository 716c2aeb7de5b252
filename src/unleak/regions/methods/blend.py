"""Background blending (BB): outside every mask, the target is the source.

Source: ALE (arXiv 2412.04715): after each step ``z_target <- m_bg . z_source + (1 - m_bg) . z_target``. The image is
decoded from the clean prediction of the last step, so only blending that one too makes the background exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unleak.core.intervention import Intervention
from unleak.drawing.photo import as_latents
from unleak.errors import BadInput, UnsupportedModel, choose
from unleak.regions.masks.masks import FOREGROUND, as_stack, foreground
from unleak.regions.methods.ddcm import SOURCE
from unleak.regions.methods.images import each_stack, per_image

if TYPE_CHECKING:
    from unleak.core.context import Context


@dataclass(frozen=True, eq=False)
class Blend(Intervention):
    """Stands after the method that tracks the source (`DDCM`), whose latents it copies.

    Attributes:
        masks: bool [K, H, W] over the image, any size, or [prompts, K, H, W], for each prompt of the call: what may
            change.
        foreground: ``"single"``: their union on the latent grid. ``"multiscale"``: also where coarser grids
            touch it (the release).
        first_step: blend after the first step as well.
        final: blend the clean latents of the last step, so that the background is exactly the source's.
        feather: width of a soft edge inside the masks, as a fraction of the image's height.
    """

    masks: Tensor
    foreground: str = "single"
    first_step: bool = True
    final: bool = True
    feather: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "masks", as_stack(self.masks))
        choose("foreground", self.foreground, FOREGROUND)

    def on_latents(self, ctx: Context, latents: Tensor) -> Tensor | None:
        if SOURCE not in ctx.results:
            raise BadInput("nothing follows the source: name DDCM before Blend")
        last = ctx.step == ctx.steps - 1
        if (ctx.step == 0 and not self.first_step and not last) or (last and not self.final):
            return None
        if "m" not in ctx.state:
            grid = latent_grid(ctx, latents)
            planes = [foreground(masks, grid, self.foreground, self.feather) for masks in each_stack(self.masks)]
            channels = latents[0].numel() // math.prod(grid)
            m = as_latents(ctx.pipe, torch.stack(planes)[:, None].expand(-1, channels, -1, -1))
            ctx.state["m"] = per_image(ctx, m)  # 1 - m_bg, [1 or images, ...]
        m, z_source = ctx.state["m"].to(latents), ctx.results[SOURCE].to(latents)
        mixed = m * latents + (1 - m) * z_source
        return torch.where(m == 0, z_source, torch.where(m == 1, latents, mixed))


def latent_grid(ctx: Context, latents: Tensor) -> tuple[int, int]:
    """(height, width) of the latents in cells of the autoencoder.

    Packed latents hold h w cells of the autoencoder, in the proportions of the image.

    Raises UnsupportedModel: the latents are packed, and the size of the image is not known or does not fit.
    """
    if latents.ndim == 4:
        return latents.shape[-2], latents.shape[-1]
    height, width = ctx.pixels
    if height is None or width is None:
        raise UnsupportedModel("packed latents do not tell their height and width: give the pipeline height and width")
    cells = latents[0].numel() / ctx.pipe.vae.config.latent_channels
    h = round(math.sqrt(cells * height / width))
    if h == 0 or h * (w := round(cells / h)) != cells:
        raise UnsupportedModel(f"packed latents {list(latents.shape[1:])} are no picture of {height}x{width} pixels")
    return h, w
