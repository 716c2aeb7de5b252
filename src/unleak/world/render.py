"""Compose scenes into images, in torch, on any device: the same pixels for training, judging and tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from unleak.world.vocabulary import Scene, World


class Renderer:
    """Draws batches of scenes as [B, 3, 64, 64] float32 in 0..1 by alpha compositing of atlas sprites."""

    def __init__(self, world: World, device: str | torch.device = "cpu"):
        self.world = world
        self.device = torch.device(device)
        self.atlas = torch.from_numpy(world.atlas).to(self.device).flatten(0, 2)  # [sprites*32*32, 4]
        colours = torch.tensor(list(world.backgrounds.values()), dtype=torch.float32)
        self.colours = (colours / 255).to(self.device)  # [backgrounds, 3]
        self.background_index = {b: i for i, b in enumerate(world.backgrounds)}

    def indices(self, scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
        """Scenes as integers: backgrounds [B] and sprites [B, K, 3] = (sprite, x, y) in pixels, -1 = none."""
        k = max([len(s.placements) for s in scenes] + [1])
        sprites = torch.full((len(scenes), k, 3), -1, dtype=torch.long)
        for b, s in enumerate(scenes):
            for i, p in enumerate(s.placements):
                row = self.world.sprite_index(p.glyph, p.tint)
                sprites[b, i] = torch.tensor([row, p.x * self.world.cell, p.y * self.world.cell])
        backgrounds = torch.tensor([self.background_index[s.background] for s in scenes])
        return backgrounds.to(self.device), sprites.to(self.device)

    def compose(self, backgrounds: Tensor, sprites: Tensor) -> Tensor:
        """`indices(...)` -> images [B, 3, H, W] in 0..1; later sprites lie over earlier ones."""
        size, side = self.world.image, self.world.sprite
        axis = torch.arange(size, device=self.device)
        image = self.colours[backgrounds][:, None, None, :].expand(-1, size, size, -1)
        for row, x, y in (s.unbind(-1) for s in sprites.unbind(1)):
            u, v = axis[None] - x[:, None], axis[None] - y[:, None]  # [B, size] sprite coordinates
            inside = ((v >= 0) & (v < side))[:, :, None] & ((u >= 0) & (u < side))[:, None, :]
            inside &= (row >= 0)[:, None, None]
            at = (row.clamp(min=0)[:, None, None] * side + v.clamp(0, side - 1)[:, :, None]) * side
            rgba = self.atlas[at + u.clamp(0, side - 1)[:, None, :]]
            alpha = rgba[..., 3:] * inside[..., None]
            image = image * (1 - alpha) + rgba[..., :3] * alpha
        return image.permute(0, 3, 1, 2).contiguous()

    def __call__(self, scenes: Sequence[Scene]) -> Tensor:
        return self.compose(*self.indices(scenes))

    def pictures(self, scenes: Sequence[Scene]) -> np.ndarray:
        """The scenes as pictures are kept: [B, H, W, 3] uint8."""
        images: np.ndarray = self(scenes).permute(0, 2, 3, 1).cpu().numpy()
        return (images * 255).round().astype(np.uint8)
