"""Train the judge on renders and autoencoder reconstructions; chimeras, smears and ruined latents are "nothing".

    python training/train_judge.py --vae runs/vae/vae --steps 3000 --out runs/judge
    python training/train_judge.py --world 2 --vae runs/vae2/vae --reconstruct 0 --steps 5000 --out runs/judge-b \
        --fonts runs/twemoji/atlas2.png runs/fluent-emoji-flat/atlas2.png runs/openmoji/atlas2.png

The second one makes judge B: it learns from other fonts' glyphs and never sees an image of the autoencoder; its error
is measured on the world's own glyphs all the same.

Writes `glyphs.safetensors` (half precision) and prints the held-out error on renders and reconstructions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from common import Log, Run, adamw, arguments, autocast, cosine, device, generator
from train_autoencoder import scenes
from unleak import world
from unleak.judges.glyphs import GlyphNetwork
from unleak.world.render import Renderer
from unleak.world.vocabulary import tiles


class Views:
    """Batches of disturbed images with their truth; `reconstruct` of every batch goes through the autoencoder.

    With `fonts`, atlases of the same glyphs in other fonts, their glyphs are shown instead of the world's own, each a
    little turned, scaled, mirrored and coloured anew: a reader of those has to know a glyph that it never saw.
    """

    def __init__(self, w: world.World, vae: AutoencoderKL | None, dev: torch.device, fonts: Sequence[Path] = ()):
        self.w, self.vae, self.dev, self.render = w, vae, dev, Renderer(w, dev)
        sprites = w.data["sprites"]
        every = [tiles(Image.open(f), w.sprite, len(sprites)) for f in fonts] or [w.atlas]
        self.glyph = torch.tensor([w.index[s["glyph"]] for s in sprites], device=dev)
        self.tint = torch.tensor([w.tints.index(s["tint"]) if s["tint"] else -1 for s in sprites], device=dev)
        self.fonts = torch.stack([torch.from_numpy(t) for t in every]).to(dev)  # [fonts, sprites, 32, 32, 4]
        self.varied = bool(fonts)
        self.tiles = self.fonts[0]
        self.clean = self.tiles.flatten(0, 2)

    def another(self, g: torch.Generator) -> None:
        """Draw every sprite anew: in one of the fonts, turned, scaled, mirrored, coloured."""
        n = self.fonts.shape[1]
        draw = lambda low, high: low + (high - low) * torch.rand(n, generator=g, device=self.dev)  # noqa: E731
        chosen = self.fonts[
            torch.randint(0, len(self.fonts), (n,), generator=g, device=self.dev), torch.arange(n, device=self.dev)
        ]
        angle, scale = draw(-0.3, 0.3), draw(0.95, 1.25)
        mirror = torch.where(draw(0, 1) < 0.5, -1.0, 1.0)
        cos, sin, zero = scale * angle.cos(), scale * angle.sin(), torch.zeros_like(angle)
        affine = torch.stack(
            [torch.stack([mirror * cos, -sin, zero], -1), torch.stack([mirror * sin, cos, zero], -1)], 1
        )
        flat = torch.cat([chosen[..., :3] * chosen[..., 3:], chosen[..., 3:]], -1).permute(0, 3, 1, 2)
        flat = F.grid_sample(flat, F.affine_grid(affine, list(flat.shape), align_corners=False), align_corners=False)
        alpha = flat[:, 3:]
        colour = flat[:, :3] / alpha.clamp(min=1e-4)
        # a turn of the colours around grey; those of a tint say which one it is
        wide = draw(0, 1)
        turn = torch.where(wide < 0.25, draw(-3.1, 3.1), draw(-0.3, 0.3))
        turn = torch.where(self.tint >= 0, draw(-0.12, 0.12), turn)[:, None, None]
        grey = torch.full((3, 3), 1 / 3, device=self.dev)
        cross = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=self.dev) / 3**0.5
        rotate = turn.cos() * torch.eye(3, device=self.dev) + (1 - turn.cos()) * grey + turn.sin() * cross
        colour = torch.einsum("nij,njhw->nihw", rotate, colour)
        light = colour.mean(1, keepdim=True)
        colour = light.lerp(colour, draw(0.7, 1.3)[:, None, None, None]) * draw(0.8, 1.2)[:, None, None, None]
        self.tiles = torch.cat([colour.clamp(0, 1), alpha], 1).permute(0, 2, 3, 1).contiguous()
        self.clean = self.tiles.flatten(0, 2)

    def chimeras(self, g: torch.Generator, n: int) -> Tensor:
        """Sprites that are nothing: halves of two glyphs, even blends, single halves. [n*32*32, 4]"""
        a, b = (self.tiles[torch.randint(0, len(self.tiles), (n,), generator=g, device=self.dev)] for _ in range(2))
        kind = torch.randint(0, 4, (n, 1, 1, 1), generator=g, device=self.dev)
        ramp = torch.arange(self.w.sprite, device=self.dev) < self.w.sprite // 2
        side = torch.where(kind == 0, ramp[None, :, None, None], ramp[None, None, :, None])
        halves = torch.where(side, a, b)
        single = torch.where(side, a, torch.zeros_like(a))
        blend = 0.5 * (a + b)
        out = torch.where(kind < 2, halves, torch.where(kind == 2, blend, single))
        return out.flatten(0, 2)

    def __call__(self, batch: int, g: torch.Generator, disturb: bool = True, reconstruct: float = 0.5):
        """Images [B,3,64,64] in 0..1, glyph targets [B,5,5] (0 = nothing), tints [B,5,5] (-1 = none), backgrounds."""
        if self.varied:
            self.another(g)
        backgrounds, sprites = scenes(self.w, batch, g, self.dev)
        row, corner = sprites[..., 0].clone(), sprites[..., 1:] // self.w.cell
        atlas = self.clean
        fake = torch.zeros_like(row, dtype=torch.bool)
        if disturb:
            n = 64
            atlas = torch.cat([self.clean, self.chimeras(g, n)])
            fake = (torch.rand(row.shape, generator=g, device=self.dev) < 0.12) & (row >= 0)
            which = len(self.tiles) + torch.randint(0, n, row.shape, generator=g, device=self.dev)
            sprites[..., 0] = torch.where(fake, which, row)
            jitter = torch.randint(-2, 3, corner.shape, generator=g, device=self.dev)
            sprites[..., 1:] = (sprites[..., 1:] + jitter).clamp(0, self.w.image - self.w.sprite)
        self.render.atlas = atlas
        image = self.render.compose(backgrounds, sprites)
        self.render.atlas = self.clean
        through = torch.rand(batch, generator=g, device=self.dev) < reconstruct
        if self.vae is not None and through.any():
            with torch.no_grad(), autocast(self.dev):
                part = image[through].mul(2).sub(1).contiguous(memory_format=torch.channels_last)
                z = self.vae.encode(part).latent_dist.mean
                if disturb:
                    noise = torch.randn(z.shape, generator=g, device=self.dev)
                    amount = torch.rand(len(z), 1, 1, 1, generator=g, device=self.dev)
                    ruined = torch.rand(len(z), generator=g, device=self.dev) < 0.2
                    blended = ruined & (torch.rand(len(z), generator=g, device=self.dev) < 0.5)
                    level = torch.where((ruined & ~blended)[:, None, None, None], 0.7 + 0.6 * amount, 0.25 * amount)
                    z = torch.where(blended[:, None, None, None], 0.5 * (z + z.roll(1, 0)), z) + level * noise
                    fake[through.nonzero().squeeze(1)[ruined]] = True
                image[through] = self.vae.decode(z).sample.float().div(2).add(0.5).clamp(0, 1)
        if disturb:
            gain = 1 + 0.06 * torch.randn(batch, 3, 1, 1, generator=g, device=self.dev)
            noise = 0.04 * torch.rand(batch, 1, 1, 1, generator=g, device=self.dev)
            image = (image * gain + noise * torch.randn(image.shape, generator=g, device=self.dev)).clamp(0, 1)
            soft = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, 1)
            mix = 0.7 * torch.rand(batch, 1, 1, 1, generator=g, device=self.dev)
            image = image.lerp(soft, mix)
            smeared = torch.rand(batch, generator=g, device=self.dev) < 0.05
            wide = F.avg_pool2d(F.pad(image, (4, 4, 4, 4), mode="replicate"), 9, 1)
            image = torch.where(smeared[:, None, None, None], wide, image)
            fake |= smeared[:, None]
        real = (row >= 0) & ~fake
        b, k = real.nonzero(as_tuple=True)
        x, y = corner[b, k].unbind(-1)
        glyphs = torch.zeros(batch, 5, 5, dtype=torch.long, device=self.dev)
        tints = torch.full((batch, 5, 5), -1, device=self.dev)
        glyphs[b, y, x] = self.glyph[row[b, k]] + 1
        tints[b, y, x] = self.tint[row[b, k]]
        return image, glyphs, tints, backgrounds


@torch.no_grad()
def errors(model: GlyphNetwork, views: Views, reconstruct: float, n: int) -> dict[str, float]:
    """Share of images, glyphs and colours read right, on undisturbed images."""
    total = dict.fromkeys(("image", "glyph", "tint", "background"), 0.0)
    count = dict.fromkeys(total, 0)
    for i in range(-(-n // 100)):
        x, glyphs, tints, backgrounds = views(100, generator(987, i, views.dev), False, reconstruct)
        g, t, b = model(x)
        right = g.argmax(1) == glyphs
        at, coloured = glyphs > 0, tints >= 0
        tint_right = (t.argmax(1) == tints)[coloured]
        outcomes = {"image": right.flatten(1).all(1), "glyph": right[at], "tint": tint_right}
        for key, hits in {**outcomes, "background": b.argmax(1) == backgrounds}.items():
            total[key] += float(hits.sum())
            count[key] += hits.numel()
    return {k: round(total[k] / max(1, count[k]), 4) for k in total}


def main() -> None:
    ap = arguments(__doc__ or "", steps=2500, batch=32, lr=2e-3, out="runs/judge")
    ap.add_argument("--vae", type=Path)
    ap.add_argument("--world", type=int, default=1)
    ap.add_argument(
        "--fonts", type=Path, nargs="*", default=[], help="atlases to learn from instead of the world's own"
    )
    ap.add_argument("--check", type=int, default=2000, help="images to measure the error on")
    ap.add_argument("--reconstruct", type=float, default=0.6)
    a = ap.parse_args()
    torch.manual_seed(a.seed)
    dev, w = device(), world.load(a.world)
    vae = None
    if a.vae:
        vae = (
            AutoencoderKL.from_pretrained(a.vae).to(dev, memory_format=torch.channels_last).requires_grad_(False).eval()
        )
    views = Views(w, vae, dev, a.fonts)
    model = GlyphNetwork(len(w.glyphs), len(w.tints), len(w.backgrounds)).to(dev, memory_format=torch.channels_last)
    run = Run(a, model, adamw(model, a.lr, 0.01), 0.998)
    log = Log(a.steps, a.batch)
    weight = torch.ones(len(w.glyphs) + 1, device=dev)
    weight[0] = 0.3
    while run.step < run.stop:
        x, glyphs, tints, backgrounds = views(a.batch, generator(a.seed + 2, run.step, dev), True, a.reconstruct)
        with autocast(dev):
            g, t, b = model(x.contiguous(memory_format=torch.channels_last))
        seen = F.cross_entropy(g.float(), glyphs, weight)
        colour = F.cross_entropy(t.float(), tints, ignore_index=-1)
        loss = seen + 0.5 * colour + 0.3 * F.cross_entropy(b.float(), backgrounds)
        run.update(loss, a.lr * cosine(run.step, a.steps, 100))
        log(run.step, glyphs=seen.item(), colour=colour.item())
    if run.paused():
        return
    model.load_state_dict(run.averaged())
    model.float().eval()
    own = Views(w, vae, dev)
    if a.fonts:
        print("its fonts", errors(model, views, 0.0, a.check), flush=True)
    print("renders", errors(model, own, 0.0, a.check), flush=True)
    if vae is not None:
        print("reconstructions", errors(model, own, 1.0, a.check), flush=True)
    save_file(
        {k: v.half().contiguous() if v.is_floating_point() else v for k, v in model.state_dict().items()},
        a.out / "glyphs.safetensors",
    )


if __name__ == "__main__":
    main()
