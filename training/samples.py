"""Sample `i` of the mixture as latents and text features, for the denoisers; cached in half precision."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from common import autocast, rng
from mixture import SHARES, Mixture
from unleak import world
from unleak.world.render import Renderer


class Samples:
    """Deterministic from the seed. `encode` turns captions into the tensors [B, ...] that the denoiser reads: the rows
    of a sequence encoder, and what else the model has."""

    def __init__(
        self,
        vae: AutoencoderKL,
        encode: Callable[[list[str]], tuple[Tensor, ...]],
        seed: int,
        cache: int,
        dev: torch.device,
        shares: dict[str, float] = SHARES,
        beside: float = 1.0,
        edition: int = 1,
    ):
        self.vae, self.encode, self.seed, self.n, self.dev = vae, encode, seed, cache, dev
        self.mix = Mixture(world.load(edition), shares, beside)
        self.render = Renderer(self.mix.world, dev)
        with torch.no_grad():
            self.empty = [x[0] for x in encode([""])]
        c, size = vae.config.latent_channels, self.mix.world.image // self.mix.world.cell
        shapes = [(c, size, size), *(x.shape for x in self.empty)]
        self.kept = [torch.empty(cache, *s, dtype=torch.float16, device=dev) for s in shapes]
        self.ready = torch.zeros(cache, dtype=torch.bool)

    @torch.no_grad()
    def batch(self, start: int, size: int) -> tuple[Tensor, ...]:
        """Latents [B, C, h, w], then the text features, of samples `start` to `start + size`."""
        at = torch.arange(start, start + size) % self.n
        todo = [int(i) for i in at if not self.ready[i]]
        if todo:
            samples = [self.mix.draw(rng(self.seed, i)) for i in todo]
            images = self.render([s.scene for s in samples]) * 2 - 1
            with autocast(self.dev):
                z = self.vae.encode(images.contiguous(memory_format=torch.channels_last)).latent_dist.mean
                made = (z, *self.encode([s.text for s in samples]))
            for kept, new in zip(self.kept, made, strict=True):
                kept[todo] = new.half()
            self.ready[todo] = True
        return tuple(kept[at].float() for kept in self.kept)
