"""Train the autoencoder of the embedded models: 64x64 images <-> latents of a few channels, 8x8 with four levels.

    python training/train_autoencoder.py --steps 6000 --out runs/vae
    python training/train_autoencoder.py --world 2 --from src/unleak/models/emoji-sd/vae --steps 800 --out runs/vae2
    python training/train_autoencoder.py --world 2 --from runs/vae2/vae --decoder-only --out runs/vae2-sharp

Latents are normalised per channel while training and disturbed by a little noise, so that the decoder forgives
small errors of the denoiser; the normalisation is folded into the weights at the end, so the shipped
`AutoencoderKL` has unit latents and `scaling_factor` 1. With --decoder-only the encoder stays bitwise what it is, so
that denoisers of its latents go on.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from common import Log, Run, adamw, arguments, autocast, cosine, device, generator
from unleak import world
from unleak.world.render import Renderer


def build(channels: tuple[int, ...], latents: int) -> AutoencoderKL:
    n = len(channels)
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=latents, block_out_channels=channels, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * n, up_block_types=("UpDecoderBlock2D",) * n,
        norm_num_groups=8, sample_size=64, scaling_factor=1.0, force_upcast=False,
    )  # fmt: skip


class Trainee(nn.Module):
    """The autoencoder and the running statistics of its latents; with `frozen` its decoder alone."""

    def __init__(self, vae: AutoencoderKL, noise: float, frozen: bool = False):
        super().__init__()
        self.vae, self.noise, self.frozen = vae, noise, frozen
        if frozen:
            vae.encoder.requires_grad_(False)
            vae.quant_conv.requires_grad_(False)
        c = vae.config.latent_channels
        self.register_buffer("mean", torch.zeros(c))
        self.register_buffer("std", torch.ones(c))

    def forward(self, image: Tensor, noise: Tensor) -> Tensor:
        z = self.vae.quant_conv(self.vae.encoder(image))[:, : self.mean.numel()].float()
        if not self.frozen:
            mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3)) + 1e-4
            with torch.no_grad():
                self.mean.lerp_(mean, 0.01)
                self.std.lerp_(std, 0.01)
            z = (z - mean[:, None, None]) / std[:, None, None]
        z = z + self.noise * noise
        return self.vae.decoder(self.vae.post_quant_conv(z)).float()

    @torch.no_grad()
    def folded(self) -> AutoencoderKL:
        """Fold (z - mean) / std into the last convolution of the encoder; the posterior has no spread."""
        c, conv = self.mean.numel(), self.vae.quant_conv
        conv.weight[:c] /= self.std[:, None, None, None]
        conv.bias[:c] = (conv.bias[:c] - self.mean) / self.std
        conv.weight[c:] = 0
        conv.bias[c:] = -30.0
        return self.vae


def scenes(w: world.World, batch: int, g: torch.Generator, dev: torch.device) -> tuple[Tensor, Tensor]:
    """Random backgrounds [B] and sprites [B, 4, 3]; half of the images are full, half have one to three glyphs."""
    draw = lambda high, *shape: torch.randint(0, high, shape, generator=g, device=dev)  # noqa: E731
    sprites = torch.empty(batch, 4, 3, dtype=torch.long, device=dev)
    sprites[..., 0] = draw(len(w.atlas), batch, 4)
    quadrant = torch.tensor([[0, 0], [4, 0], [0, 4], [4, 4]], device=dev)
    place = quadrant.expand(batch, 4, 2).clone()
    pair = draw(2, batch, 1).bool().squeeze(1)  # side by side or one above the other, at free heights
    free = draw(5, batch, 2)
    horizontal = torch.stack([torch.stack([torch.zeros_like(free[:, 0]), free[:, 0]], -1),
                              torch.stack([torch.full_like(free[:, 0], 4), free[:, 1]], -1)], 1)  # fmt: skip
    two = torch.where(pair[:, None, None], horizontal, horizontal.flip(-1))
    kind = draw(4, batch)  # 0, 1: four glyphs; 2: three; 3: two or one
    place[kind == 3, :2] = two[kind == 3]
    sprites[..., 1:] = place * w.cell
    sprites[kind == 2, 3, 0] = -1
    sprites[kind == 3, 2:, 0] = -1
    alone = (kind == 3) & (draw(2, batch) == 0)
    sprites[alone, 1, 0] = -1
    return draw(len(w.backgrounds), batch), sprites


def main() -> None:
    ap = arguments(__doc__ or "", steps=3000, batch=16, lr=2e-3, out="runs/vae")
    ap.add_argument("--channels", type=int, nargs="+", default=(16, 32, 64, 128))
    ap.add_argument("--latents", type=int, default=6)
    ap.add_argument("--noise", type=float, default=0.1)
    ap.add_argument("--world", type=int, default=1)
    ap.add_argument("--from", dest="start", type=Path, help="an autoencoder to start from, in its own size")
    ap.add_argument("--decoder-only", action="store_true", help="latents stay as they are, pictures become sharper")
    ap.add_argument("--compile", action="store_true", help="torch.compile: needs a C++ compiler")
    a = ap.parse_args()
    torch.manual_seed(a.seed)
    dev, w = device(), world.load(a.world)
    render = Renderer(w, dev)
    vae = (
        AutoencoderKL.from_pretrained(a.start, torch_dtype=torch.float32)
        if a.start
        else build(tuple(a.channels), a.latents)
    )
    latents, size = vae.config.latent_channels, w.image >> (len(vae.config.block_out_channels) - 1)
    model = Trainee(vae, a.noise, a.decoder_only).to(dev, memory_format=torch.channels_last)
    run = Run(a, model, adamw(model, a.lr, 1e-4), 0.998)
    forward = torch.compile(model) if a.compile else model
    log = Log(a.steps, a.batch)
    while run.step < run.stop:
        g = generator(a.seed, run.step, dev)
        x = render.compose(*scenes(w, a.batch, g, dev)) * 2 - 1
        noise = torch.randn(a.batch, latents, size, size, generator=g, device=dev)
        with autocast(dev):
            y = forward(x.contiguous(memory_format=torch.channels_last), noise)
        edges = F.l1_loss(y.diff(dim=-1), x.diff(dim=-1)) + F.l1_loss(y.diff(dim=-2), x.diff(dim=-2))
        mse = F.mse_loss(y, x)
        loss = F.l1_loss(y, x) + 2 * mse + 0.5 * edges
        run.update(loss, a.lr * cosine(run.step, a.steps, 200))
        log(run.step, loss=loss.item(), psnr=10 * torch.log10(4 / mse).item())
    if run.paused():
        return
    model.load_state_dict(run.averaged())
    model.float().folded().eval().save_pretrained(a.out / "vae")


if __name__ == "__main__":
    main()
