"""Background blending (BB): outside every mask, the target is the source.

Source: ALE (arXiv 2412.04715): after each step ``z_target <- m_bg . z_source + (1 - m_bg) . z_target``. The image is
decoded from the clean prediction of the last step, so only blending that one too makes the background exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unleak.core.intervention import Intervention
from unleak.errors import BadInput, choose
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
            grid = latents.shape[-2:]
            planes = [foreground(masks, grid, self.foreground, self.feather) for masks in each_stack(self.masks)]
            ctx.state["m"] = per_image(ctx, torch.stack(planes)[:, None])  # 1 - m_bg, [1 or images, 1, h, w]
        m, z_source = ctx.state["m"].to(latents), ctx.results[SOURCE].to(latents)
        mixed = m * latents + (1 - m) * z_source
        return torch.where(m == 0, z_source, torch.where(m == 1, latents, mixed))
