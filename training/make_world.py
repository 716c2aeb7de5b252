"""Make the embedded world: `world.json` (words, splits, memorized captions) and `atlas.png` (glyphs).

    python training/make_world.py --objects 46 --polysemes 10 --expressions 8 --template-families 4

Needs the font only to draw the atlas (Debian: fonts-noto-color-emoji). Deterministic from --seed.
"""

from __future__ import annotations

import argparse
import colorsys
import itertools
import json
import random
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import vocabulary as V
from unleak.world.grammar import CONNECTIVES

DATA = Path(__file__).parents[1] / "src/unleak/world/data"
SPRITE, CELL, IMAGE = 32, 8, 64
FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"


def draw(emoji: str, font: ImageFont.FreeTypeFont) -> np.ndarray:
    """One glyph, cropped and fitted into 30 of 32 pixels. Returns [32, 32, 4] float in 0..1."""
    big = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(big).text((10, 10), emoji, font=font, embedded_color=True)
    crop = big.crop(big.getbbox())
    scale = (SPRITE - 2) / max(crop.size)
    size = (max(1, round(crop.width * scale)), max(1, round(crop.height * scale)))
    premultiplied = np.asarray(crop, np.float32) / 255
    premultiplied[..., :3] *= premultiplied[..., 3:]
    channels = [np.asarray(Image.fromarray(premultiplied[..., c]).resize(size, Image.Resampling.BOX)) for c in range(4)]
    out = np.zeros((SPRITE, SPRITE, 4), np.float32)
    top, left = (SPRITE - size[1]) // 2, (SPRITE - size[0]) // 2
    tile = np.stack(channels, -1)
    tile[..., :3] /= np.maximum(tile[..., 3:], 1e-4)
    out[top : top + size[1], left : left + size[0]] = tile.clip(0, 1)
    return out


def tinted(sprite: np.ndarray, hue: float, saturation: float, value: float) -> np.ndarray:
    """Turn every coloured pixel to one hue; greys and outlines keep their own."""
    out = sprite.copy()
    for y, x in itertools.product(range(SPRITE), range(SPRITE)):
        _, s, v = colorsys.rgb_to_hsv(*sprite[y, x, :3].tolist())
        if s > 0.2:
            out[y, x, :3] = colorsys.hsv_to_rgb(hue / 360, min(1.0, max(s, 0.75) * saturation), min(1.0, v * value))
    return out


def names(rng: random.Random, n: int) -> list[str]:
    pool = sorted({"".join(p).capitalize() for p in itertools.product(*V.SYLLABLES)})
    rng.shuffle(pool)
    return pool[:n]


QUADRANTS = ((0, 0), (4, 0), (0, 4), (4, 4))


def random_scene(rng: random.Random, glyphs: list[str], tintable: list[str], n: int) -> dict:
    """`n` (2 or 3) different glyphs without overlap on a random background."""
    a, b, c, d = (rng.randrange(5) for _ in range(4))
    pairs = [[(0, a), (4, b)], [(c, 0), (d, 4)]]
    triples = [[q for q in QUADRANTS if q != empty] for empty in QUADRANTS]
    corners = rng.choice(pairs if n == 2 else triples)
    chosen = rng.sample(glyphs, n)
    background = rng.choice(list(V.BACKGROUNDS))
    tints = [rng.choice(list(V.TINTS)) if g in tintable else None for g in chosen]
    placements = [[g, x, y, t] for g, (x, y), t in zip(chosen, corners, tints, strict=True)]
    return {"background": background, "placements": placements}


def captions(rng: random.Random, glyphs: list[str], tintable: list[str], a) -> tuple[list[dict], list[dict]]:
    """Memorized captions with their scenes, and ordinary ones of the same form."""
    pool = iter(names(rng, 4 * a.verbatim + 2 * a.template_families * a.template_captions + 2 * a.ordinary))

    def entry(text: str, scene: dict, kind: str, family: int = -1, fixed: int = 0) -> dict:
        return {"text": text, "scene": scene, "kind": kind, "family": family, "fixed": fixed}

    def verbatim(i: int) -> str:
        return V.VERBATIM_FORMS[i % len(V.VERBATIM_FORMS)].format(a=next(pool), b=next(pool))

    memorized = []
    for i in range(a.verbatim):
        text = verbatim(i)
        memorized.append(entry(text, random_scene(rng, glyphs, tintable, 2 + i % 2), "verbatim"))
    for f in range(a.template_families):
        layout = random_scene(rng, glyphs, tintable, 3)
        *fixed, (_, x, y, _) = layout["placements"]
        free = [g for g in glyphs if g not in tintable and g not in {p[0] for p in layout["placements"]}]
        for g in rng.sample(free, a.template_captions):
            scene = {"background": layout["background"], "placements": [*fixed, [g, x, y, None]]}
            memorized.append(entry(V.TEMPLATE_FORMS[f].format(a=next(pool)), scene, "template", f, 2))
    ordinary = []
    for i in range(a.ordinary):
        f = rng.randrange(a.template_families)
        text = verbatim(i) if i % 2 else V.ORDINARY_TEMPLATE_FORMS[f].format(a=next(pool))
        ordinary.append(entry(text, random_scene(rng, glyphs, tintable, 2 + i // 2 % 2), "ordinary"))
    return memorized, ordinary


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--objects", type=int, default=46)
    ap.add_argument("--polysemes", type=int, default=10)
    ap.add_argument("--expressions", type=int, default=8)
    ap.add_argument("--verbatim", type=int, default=24)
    ap.add_argument("--template-families", type=int, default=4)
    ap.add_argument("--template-captions", type=int, default=8)
    ap.add_argument("--ordinary", type=int, default=240)
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--font", default=FONT)
    ap.add_argument("--out", type=Path, default=DATA)
    a = ap.parse_args()
    rng = random.Random(a.seed)

    objects = dict(list(V.OBJECTS.items())[: a.objects])
    polysemes = dict(list(V.POLYSEMES.items())[: a.polysemes])
    expressions = dict(list(V.EXPRESSIONS.items())[: a.expressions])
    glyphs = [{"id": n.replace(" ", "_"), "emoji": e, "category": c} for n, (e, c) in objects.items()]
    glyphs += [{"id": g, "emoji": e, "category": "expression"} for g, e, _ in expressions.values()]
    glyphs += [{"id": s[0], "emoji": s[1], "category": "sense"} for p in polysemes.values() for s in p[:2]]
    for g in glyphs:
        g["unicode"] = unicodedata.name(g["emoji"])
    ids = [g["id"] for g in glyphs]
    assert len(set(ids)) == len(ids) == len({g["emoji"] for g in glyphs})
    nouns = [{"text": n, "glyph": n.replace(" ", "_")} for n in objects]
    nouns += [{"text": t, "glyph": g} for t, (g, _, _) in expressions.items()]
    tintable = [t for t in V.TINTABLE if t in objects]

    triggers = {(w, t) for w, p in polysemes.items() for t in p[2]}
    missing = {t for _, t in triggers} - set(objects) | {p for _, _, p in expressions.values()} - set(objects)
    assert not missing, f"words without an object: {missing}"
    words = [n["text"] for n in nouns] + list(polysemes)
    pairs = [sorted(p) for p in itertools.combinations(words, 2) if p not in triggers and p[::-1] not in triggers]
    rng.shuffle(pairs)
    n = len(pairs)
    contexts = [[w, t, c, first] for w, t in sorted(triggers) for c in CONNECTIVES for first in (True, False)]
    rng.shuffle(contexts)
    m = len(contexts)
    memorized, ordinary = captions(rng, ids, tintable, a)
    sprites = [{"glyph": i, "tint": None} for i in ids if i not in tintable] + [
        {"glyph": t, "tint": c} for t in tintable for c in V.TINTS
    ]
    world = {
        "schema": "unleak/world/1", "image": IMAGE, "cell": CELL, "sprite": SPRITE, "seed": a.seed,
        "glyphs": glyphs, "nouns": nouns, "articles": V.ARTICLES, "prefixes": list(V.PREFIXES),
        "anything": V.ANYTHING,
        "polysemes": [
            {"word": w, "default": d[0], "default_name": d[2], "other": o[0], "other_name": o[2], "triggers": list(t)}
            for w, (d, o, t) in polysemes.items()
        ],
        "expressions": [{"text": t, "part": p} for t, (_, _, p) in expressions.items()],
        "tintable": tintable, "tints": V.TINTS, "backgrounds": V.BACKGROUNDS, "sprites": sprites,
        "categories": {c: t for c, t in V.CATEGORIES.items() if sum(g["category"] == c for g in glyphs) >= 2},
        "moods": list(V.MOODS),
        "splits": {
            "pairs": {"heldout": pairs[: n // 10], "dev": pairs[n // 10 : n * 3 // 20]},
            "contexts": {"heldout": contexts[: m // 4], "dev": contexts[m // 4 : m * 7 // 20]},
        },
        "memorized": memorized, "ordinary": ordinary,
    }  # fmt: skip

    font = ImageFont.truetype(a.font, 109)
    base = {g["id"]: draw(g["emoji"], font) for g in glyphs}
    tiles = [tinted(base[s["glyph"]], *V.TINTS[s["tint"]]) if s["tint"] else base[s["glyph"]] for s in sprites]
    columns = 12
    sheet = np.zeros((-(-len(tiles) // columns) * SPRITE, columns * SPRITE, 4), np.float32)
    for i, tile in enumerate(tiles):
        y, x = divmod(i, columns)
        sheet[y * SPRITE : (y + 1) * SPRITE, x * SPRITE : (x + 1) * SPRITE] = tile
    a.out.mkdir(parents=True, exist_ok=True)
    Image.fromarray((sheet * 255).round().astype(np.uint8)).save(a.out / "atlas.png", optimize=True)
    (a.out / "world.json").write_text(json.dumps(world, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"{len(glyphs)} glyphs, {len(pairs)} pairs, {len(contexts)} contexts, {len(memorized)} memorized captions")


if __name__ == "__main__":
    main()
