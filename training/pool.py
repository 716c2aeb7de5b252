"""A fixed set of samples that several trainings share: captions, latents and text rows, made once and kept in a folder.

Samples are made in chunks when they are first needed, and each chunk is written at once, so that a killed run has lost
little. Sample `i` depends on the set's seed and `i` alone. Training seeds differ in their first weights, their noise
and the order of their samples, not in the set.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from common import autocast, rng
from mixture import Mixture
from unleak.world.render import Renderer

CHUNK = 4000


class Pool:
    """`batch(step, size)` gives latents [B, C, h, w] and rows [B, L, d].

    The first epoch goes through the chunks in turn, so that training can begin before all are made; later ones are
    shuffled as a whole.
    """

    def __init__(
        self, vae: AutoencoderKL, encode: Callable[[list[str]], Tensor], mix: Mixture, folder: Path, name: str,
        n: int, order: int, seed: int = 0,
    ):  # fmt: skip
        """`name` says which rows: latents are shared by all of them. `order` seeds the order of the samples."""
        self.vae, self.encode, self.mix, self.folder, self.name = vae, encode, mix, folder, name
        self.n, self.order, self.seed = n, order, seed
        self.dev = vae.device
        self.chunk = min(CHUNK, n)
        assert n % self.chunk == 0, f"the number of samples is a multiple of {self.chunk}"
        self.render = Renderer(mix.world, self.dev)
        self.empty = encode([""])[0]
        c, size = vae.config.latent_channels, mix.world.image >> (len(vae.config.block_out_channels) - 1)
        self.latents = torch.empty(n, c, size, size, dtype=torch.float16)
        self.rows = torch.empty(n, *self.empty.shape, dtype=torch.float16)
        self.ready: set[int] = set()
        self.permuted: dict[int, Tensor] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        at = torch.arange(step * size, (step + 1) * size)
        index = torch.stack([self._order(int(i) // self.n)[i % self.n] for i in at])
        for k in sorted({int(i) // self.chunk for i in index} - self.ready):
            self._fill(k)
        return self.latents[index].float().to(self.dev), self.rows[index].float().to(self.dev)

    def _order(self, epoch: int) -> Tensor:
        """The order [n] of the samples in an epoch."""
        if epoch not in self.permuted:
            g = torch.Generator().manual_seed(self.order * 1009 + epoch)
            if epoch:
                order = torch.randperm(self.n, generator=g)
            else:
                starts = range(0, self.n, self.chunk)
                order = torch.cat([start + torch.randperm(self.chunk, generator=g) for start in starts])
            self.permuted = {epoch - 1: self.permuted.get(epoch - 1, order), epoch: order}
        return self.permuted[epoch]

    @torch.no_grad()
    def _fill(self, k: int) -> None:
        part = slice(k * self.chunk, (k + 1) * self.chunk)
        samples = [self.mix.draw(rng(self.seed, i)) for i in range(part.start, part.stop)]

        def kept(name: str, make: Callable[[slice], Tensor], size: int = 100) -> Tensor:
            file = self.folder / f"{name}-{k:03d}.safetensors"
            if not file.exists():
                starts = range(0, self.chunk, size)
                made = torch.cat([make(slice(i, i + size)).half().cpu() for i in starts])
                half = file.with_suffix(".part")
                save_file({"x": made.contiguous()}, half)
                half.replace(file)
            return load_file(file)["x"]

        def latents(s: slice) -> Tensor:
            images = self.render([x.scene for x in samples[s]]) * 2 - 1
            with autocast(self.dev):
                return self.vae.encode(images.contiguous(memory_format=torch.channels_last)).latent_dist.mean

        self.latents[part] = kept("latents", latents)
        self.rows[part] = kept(f"rows-{self.name}", lambda s: self.encode([x.text for x in samples[s]]))
        self.ready.add(k)
