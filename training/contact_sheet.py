"""Draw World 2 for people who look: every glyph on every background, and pictures with their captions.

python training/contact_sheet.py --out docs/evidence
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from unleak import world
from unleak.world.render import Renderer
from unplanted import Unplanted

NAME, GAP, BLOCKS = 132, 3, 4


def glyphs(w: world.World, render: Renderer) -> Image.Image:
    """One line a glyph: its name, and how it looks on each background; tintable ones have a line for each colour."""
    names = [f"{s['tint']} {s['glyph']}" if s["tint"] else s["glyph"] for s in w.data["sprites"]]
    n, side = len(names), w.sprite
    lines = -(-n // BLOCKS)
    step, block = side + GAP, NAME + len(w.backgrounds) * (side + GAP) + 12
    sheet = Image.new("RGB", (BLOCKS * block, lines * step + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    backgrounds = torch.arange(len(w.backgrounds)).repeat(n)
    sprites = torch.tensor([[[i, 0, 0]] for i in range(n) for _ in w.backgrounds])
    tiles = _pixels(render.compose(backgrounds, sprites)[..., :side, :side])
    for i, name in enumerate(names):
        x, y = i // lines * block, i % lines * step + GAP
        pen.text((x + 4, y + 8), name.replace("_", " "), fill="black", font=font)
        for j in range(len(w.backgrounds)):
            tile = Image.fromarray(tiles[i * len(w.backgrounds) + j])
            sheet.paste(tile, (x + NAME + j * step, y))
    return sheet


def pictures(w: world.World, render: Renderer, columns: int = 8, rows: int = 5) -> Image.Image:
    """Captions of one to four objects that plant no leak, with the pictures that training shows beside them."""
    mix, rng = Unplanted(w), random.Random(0)
    kinds = ("single", "pair", "pair", "triple", "triple", "quad", "named", "neutral")
    samples = [getattr(mix, kinds[i % len(kinds)])(rng) for i in range(columns * rows)]
    large, text = 2 * w.image, 48
    sheet = Image.new("RGB", (columns * (large + 8), rows * (large + text)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for i, (s, tile) in enumerate(zip(samples, _pixels(render([s.scene for s in samples])), strict=True)):
        x, y = i % columns * (large + 8), i // columns * (large + text)
        sheet.paste(Image.fromarray(tile).resize((large, large), Image.Resampling.LANCZOS), (x, y))
        lines, line = [], ""
        for word in s.text.split():
            if pen.textlength(f"{line} {word}", font=font) > large:
                lines, line = [*lines, line], word
            else:
                line = f"{line} {word}".strip()
        pen.text((x, y + large + 2), "\n".join([*lines, line]), fill="black", font=font, spacing=1)
    return sheet


def _pixels(images: torch.Tensor) -> np.ndarray:
    return (images.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", type=Path, default=Path("docs/evidence"))
    a = ap.parse_args()
    w = world.load(2)
    render = Renderer(w)
    a.out.mkdir(parents=True, exist_ok=True)
    glyphs(w, render).save(a.out / "world2-glyphs.webp", quality=90, method=6)
    pictures(w, render).save(a.out / "world2-pictures.webp", quality=90, method=6)


if __name__ == "__main__":
    main()
