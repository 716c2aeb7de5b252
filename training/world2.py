"""Make World 2: `world2.json` (words, splits, memorized captions) and `atlas2.png` (glyphs) of `unleak.world`.

    python training/world2.py                       # Noto Color Emoji (Debian: fonts-noto-color-emoji)
    python training/world2.py --icons DIR --atlas-only --out runs/twemoji    # the same glyphs of another font

A hundred glyphs, 16 polysemes, 10 expressions. Every glyph has a dark contour, so that white ones show on white. All
splits come from one seed (`splits`): they are the units of `docs/evidence/plan.md`.
"""

from __future__ import annotations

import argparse
import colorsys
import io
import itertools
import json
import random
import subprocess
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

import vocabulary as V
from make_world import DATA, FONT, captions
from unleak.world.grammar import CONNECTIVES

SPRITE, CELL, IMAGE = 32, 8, 64
LARGE = 128  # glyphs are outlined at this size, then made small
CONTOUR, INK = 4, (38, 36, 44)  # its width at that size, and its colour
COLUMNS = 12

# word -> (default sense: glyph id, emoji, name), (other sense: ...), triggers of the other sense, and kin: words that
# are close to one sense or the other, and so are no neutral company
POLYSEMES = {
    "mouse": (("mouse", "🐭", "furry mouse"), ("computer_mouse", "🖱", "computer mouse"),
              ("laptop", "keyboard"), ("cat", "cheese", "battery", "horse", "dog", "bear")),
    "bat": (("bat", "🦇", "vampire bat"), ("table_tennis_bat", "🏓", "ping pong bat"),
            ("baseball", "helmet", "football"), ("ball", "glove", "medal", "moon", "mouse", "cricket")),
    "bow": (("ribbon", "🎀", "ribbon bow"), ("bow_and_arrow", "🏹", "archery bow"),
            ("target", "shield"), ("violin", "helmet", "shirt", "guitar", "boat")),
    "glasses": (("glasses", "👓", "reading glasses"), ("clinking_glasses", "🥂", "champagne glasses"),
                ("bottle", "cheese"), ("book", "cup", "dish", "barrel", "cake", "ice")),
    "palm": (("palm_tree", "🌴", "palm tree"), ("raised_hand", "✋", "open palm"),
             ("ring", "glove"), ("tree", "cactus", "banana", "plant", "Christmas tree")),
    "chicken": (("chicken", "🐔", "live chicken"), ("poultry_leg", "🍗", "fried chicken"),
                ("fries", "burger", "cheese"), ("dog", "cat", "horse", "hot dog", "dish", "ice cream", "carrot")),
    "cup": (("hot_beverage", "☕", "coffee cup"), ("trophy", "🏆", "trophy cup"),
            ("medal", "football", "baseball"), ("bottle", "ice", "cake", "glasses", "dish", "helmet", "ball")),
    "bolt": (("high_voltage", "⚡", "lightning bolt"), ("nut_and_bolt", "🔩", "metal bolt"),
             ("wrench", "hammer"), ("battery", "fire", "barrel", "key", "needle", "plant")),
    "key": (("key", "🔑", "door key"), ("musical_keyboard", "🎹", "piano key"),
            ("guitar", "violin", "drum"), ("keyboard", "house", "car", "note", "bolt", "laptop")),
    "note": (("memo", "📝", "paper note"), ("musical_note", "🎵", "musical note"),
             ("guitar", "violin", "drum"), ("book", "laptop", "keyboard", "key")),
    "cricket": (("cricket", "🦗", "chirping cricket"), ("cricket_game", "🏏", "cricket game"),
                ("football", "helmet", "baseball"), ("ball", "butterfly", "medal", "bat", "glove")),
    "diamond": (("gem_stone", "💎", "sparkling diamond"), ("diamond_suit", "♦", "diamond card"),
                ("spade", "joker"), ("ring", "heart", "ice", "crystal ball", "baseball")),
    "dish": (("pot_of_food", "🍲", "cooked dish"), ("satellite_antenna", "📡", "satellite dish"),
             ("satellite", "rocket"), ("burger", "fries", "cheese", "cup", "chicken", "soap", "glasses", "carrot")),
    "needle": (("sewing_needle", "🪡", "sewing needle"), ("syringe", "💉", "syringe needle"),
               ("pill", "stethoscope"), ("shirt", "cactus", "tooth", "brush", "bolt")),
    "brush": (("paintbrush", "🖌", "paint brush"), ("toothbrush", "🪥", "tooth brush"),
              ("tooth", "soap"), ("bottle", "needle")),
    "plant": (("potted_plant", "🪴", "potted plant"), ("factory", "🏭", "power plant"),
              ("battery", "barrel"), ("tree", "cactus", "tulip", "mushroom", "palm", "carrot", "bolt",
                                      "Christmas tree")),
}  # fmt: skip

# name -> (emoji, category)
OBJECTS = {
    # triggers
    "laptop": ("💻", "thing"), "keyboard": ("⌨", "thing"), "baseball": ("⚾", "thing"), "football": ("⚽", "thing"),
    "helmet": ("🪖", "thing"), "target": ("🎯", "thing"), "shield": ("🛡", "thing"), "bottle": ("🍾", "thing"),
    "cheese": ("🧀", "food"), "ring": ("💍", "thing"), "glove": ("🧤", "thing"), "fries": ("🍟", "food"),
    "burger": ("🍔", "food"), "medal": ("🏅", "thing"), "wrench": ("🔧", "tool"), "hammer": ("🔨", "tool"),
    "guitar": ("🎸", "instrument"), "violin": ("🎻", "instrument"), "drum": ("🥁", "instrument"),
    "spade": ("♠", "thing"), "joker": ("🃏", "thing"), "satellite": ("🛰", "vehicle"), "rocket": ("🚀", "vehicle"),
    "pill": ("💊", "thing"), "stethoscope": ("🩺", "tool"), "tooth": ("🦷", "thing"), "soap": ("🧼", "thing"),
    "battery": ("🔋", "thing"), "barrel": ("🛢", "thing"),
    # parts of the expressions
    "dog": ("🐶", "animal"), "fire": ("🔥", "thing"), "bear": ("🐻", "animal"), "statue": ("🗿", "thing"),
    "mountain": ("⛰", "thing"), "tree": ("🌲", "plant"), "ice": ("🧊", "thing"), "cake": ("🍰", "food"),
    "ball": ("🏀", "thing"),
    # tintable
    "car": ("🚗", "vehicle"), "balloon": ("🎈", "thing"), "heart": ("❤", "thing"), "book": ("📕", "thing"),
    "shirt": ("👕", "thing"), "tulip": ("🌷", "plant"), "butterfly": ("🦋", "animal"), "umbrella": ("☂", "thing"),
    # neutral company
    "cat": ("🐱", "animal"), "banana": ("🍌", "food"), "house": ("🏠", "thing"), "moon": ("🌙", "thing"),
    "clock": ("⏰", "thing"), "cactus": ("🌵", "plant"), "mushroom": ("🍄", "plant"), "strawberry": ("🍓", "food"),
    "train": ("🚂", "vehicle"), "boat": ("⛵", "vehicle"), "horse": ("🐴", "animal"), "carrot": ("🥕", "food"),
}  # fmt: skip
assert all(t in OBJECTS for t in V.TINTABLE)

ARTICLES = {**V.ARTICLES, **dict.fromkeys(("soap",), "")}


def from_font(font: Path):
    """emoji -> its picture, RGBA."""
    face = ImageFont.truetype(font, 109)

    def picture(emoji: str) -> Image.Image:
        big = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
        ImageDraw.Draw(big).text((10, 10), emoji, font=face, embedded_color=True)
        return big

    return picture


def from_icons(folder: Path, names: Path):
    """emoji -> its picture, of an unpacked `@iconify-json` package of the npm registry; needs `rsvg-convert`.

    `names` is a package that says how icons of a code point are called.
    """
    icons = json.loads((folder / "icons.json").read_text("utf-8"))
    chars = json.loads((names / "chars.json").read_text("utf-8"))

    def picture(emoji: str) -> Image.Image:
        code = f"{ord(emoji):x}"
        icon = icons["icons"][chars.get(code) or chars[code + "-fe0f"]]
        width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
        svg = (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
               f'viewBox="0 0 {width} {height}">{icon["body"]}</svg>')  # fmt: skip
        done = subprocess.run(
            ["rsvg-convert", "-w", "160", "-h", "160"], input=svg.encode(), capture_output=True, check=True
        )
        return Image.open(io.BytesIO(done.stdout)).convert("RGBA")

    return picture


def sprite(picture: Image.Image) -> np.ndarray:
    """A glyph with a dark contour, fitted into the sprite: [32, 32, 4] float in 0..1, alpha not premultiplied."""
    crop = picture.crop(picture.getbbox())
    scale = (LARGE - 2 * CONTOUR - 2) / max(crop.size)
    size = [max(1, round(x * scale)) for x in crop.size]
    glyph = _resize(np.asarray(crop, np.float32) / 255, size)
    large = np.zeros((LARGE, LARGE, 4), np.float32)
    top, left = (LARGE - size[1]) // 2, (LARGE - size[0]) // 2
    large[top : top + size[1], left : left + size[0]] = glyph
    mask = Image.fromarray((large[..., 3] * 255).round().astype(np.uint8))
    wide = np.asarray(
        mask.filter(ImageFilter.MaxFilter(2 * CONTOUR + 1)).filter(ImageFilter.GaussianBlur(1)), np.float32
    )
    ink = np.concatenate([np.broadcast_to(np.float32(INK) / 255, (LARGE, LARGE, 3)), wide[..., None] / 255 * 0.9], -1)
    alpha = large[..., 3:] + ink[..., 3:] * (1 - large[..., 3:])
    colour = large[..., :3] * large[..., 3:] + ink[..., :3] * ink[..., 3:] * (1 - large[..., 3:])
    both = np.concatenate([colour / np.maximum(alpha, 1e-4), alpha], -1)
    return _resize(both, (SPRITE, SPRITE))


def _resize(tile: np.ndarray, size) -> np.ndarray:
    """[H, W, 4] in 0..1 to `size` (width, height) by box averages of the premultiplied colours."""
    tile = tile.copy()
    tile[..., :3] *= tile[..., 3:]
    channels = [np.asarray(Image.fromarray(tile[..., c]).resize(size, Image.Resampling.BOX)) for c in range(4)]
    out = np.stack(channels, -1)
    out[..., :3] /= np.maximum(out[..., 3:], 1e-4)
    return out.clip(0, 1)


def tinted(tile: np.ndarray, hue: float, saturation: float, value: float) -> np.ndarray:
    """Turn the glyph's main colour to a hue; other colours, greys and the contour stay."""
    hsv = np.array([colorsys.rgb_to_hsv(*p) for p in tile[..., :3].reshape(-1, 3).tolist()]).reshape(*tile.shape[:2], 3)
    coloured = (hsv[..., 1] > 0.1) & (hsv[..., 2] > 0.25) & (tile[..., 3] > 0.3)
    weight = (hsv[..., 1] * hsv[..., 2])[coloured]
    angle = hsv[..., 0][coloured] * 2 * np.pi
    main = np.arctan2((weight * np.sin(angle)).sum(), (weight * np.cos(angle)).sum()) / (2 * np.pi)
    apart = np.abs((hsv[..., 0] - main + 0.5) % 1 - 0.5)
    out = tile.copy()
    for y, x in zip(*np.nonzero(coloured & (apart < 0.2)), strict=True):
        s, v = hsv[y, x, 1:]
        out[y, x, :3] = colorsys.hsv_to_rgb(hue / 360, min(1.0, max(s, 0.75) * saturation), min(1.0, v * value))
    return out


def atlas(sprites: list[dict], emoji: dict[str, str], picture) -> Image.Image:
    """The sprites in rows of `COLUMNS`."""
    base = {g: sprite(picture(e)) for g, e in emoji.items()}
    tiles = [tinted(base[s["glyph"]], *V.TINTS[s["tint"]]) if s["tint"] else base[s["glyph"]] for s in sprites]
    sheet = np.zeros((-(-len(tiles) // COLUMNS) * SPRITE, COLUMNS * SPRITE, 4), np.float32)
    for i, tile in enumerate(tiles):
        y, x = divmod(i, COLUMNS)
        sheet[y * SPRITE : (y + 1) * SPRITE, x * SPRITE : (x + 1) * SPRITE] = tile
    return Image.fromarray((sheet * 255).round().astype(np.uint8))


def splits(nouns: list[str], seed: int) -> dict:
    """What training never shows, and which development may use.

    pairs     pairs of words without a polyseme-trigger pair; of the 28 of tintable nouns 20 are held out
    contexts  polyseme, trigger, connective and which comes first: for the model with planted leaks, which sees the
              others; three objects it sees with the triggers of `dev` alone
    tinted    the pairs of tintable nouns; the 8 of development stand in training captions, each noun in two
    triggers  polyseme and trigger: `dev` has the first trigger of each word, `heldout` the others
    neutral   polyseme and a neutral noun that never stands beside it in training either, as many as triggers: what a
              trigger is compared with
    families  template families;  verbatim  captions by their index
    """
    rng = random.Random(f"world2/{seed}")
    triggers = {(w, t) for w, p in POLYSEMES.items() for t in p[2]}
    ring = rng.sample(V.TINTABLE, len(V.TINTABLE))
    seen = {frozenset(p) for p in zip(ring, [*ring[1:], ring[0]], strict=True)}
    tinted = sorted(sorted(p) for p in itertools.combinations(V.TINTABLE, 2) if frozenset(p) not in seen)
    neutral: dict[str, list[list[str]]] = {"dev": [], "heldout": []}
    for word, (_, _, own, kin) in POLYSEMES.items():
        free = [x for x in nouns if x not in own and x not in kin and x not in POLYSEMES and x not in V.TINTABLE]
        chosen = rng.sample(free, len(own))
        neutral["dev"] += [[word, chosen[0]]]
        neutral["heldout"] += [[word, x] for x in chosen[1:]]
    kept = {frozenset(p) for p in [*triggers, *neutral["dev"], *neutral["heldout"]]}
    rest = [sorted(p) for p in itertools.combinations([*nouns, *POLYSEMES], 2)
            if frozenset(p) not in kept and not set(p) <= set(V.TINTABLE)]  # fmt: skip
    rng.shuffle(rest)
    n = len(rest)
    families, verbatim = rng.sample(range(8), 8), rng.sample(range(48), 48)
    contexts = [[w, t, c, first] for w, t in sorted(triggers) for c in CONNECTIVES for first in (True, False)]
    random.Random(f"world2/contexts/{seed}").shuffle(contexts)
    m = len(contexts)
    part = lambda x: {"dev": sorted(x[: len(x) // 2]), "heldout": sorted(x[len(x) // 2 :])}  # noqa: E731
    return {
        "pairs": {"heldout": rest[: n // 10] + tinted, "dev": rest[n // 10 : n * 3 // 20]},
        "contexts": {"heldout": contexts[: m // 4], "dev": contexts[m // 4 : m * 7 // 20]},
        "tinted": {"dev": sorted(sorted(p) for p in seen), "heldout": tinted},
        "triggers": {"dev": [[w, p[2][0]] for w, p in POLYSEMES.items()],
                     "heldout": [[w, t] for w, p in POLYSEMES.items() for t in p[2][1:]]},
        "neutral": neutral, "families": part(families), "verbatim": part(verbatim),
    }  # fmt: skip


def make(seed: int) -> dict:
    """The data of the world; see `unleak.world.World`."""
    rng = random.Random(seed)
    glyphs = [{"id": n, "emoji": e, "category": c} for n, (e, c) in OBJECTS.items()]
    glyphs += [{"id": g, "emoji": e, "category": "expression"} for g, e, _ in V.EXPRESSIONS.values()]
    glyphs += [{"id": s[0], "emoji": s[1], "category": "sense"} for p in POLYSEMES.values() for s in p[:2]]
    for g in glyphs:
        g["unicode"] = unicodedata.name(g["emoji"])
    ids = [g["id"] for g in glyphs]
    assert len(set(ids)) == len(ids) == len({g["emoji"] for g in glyphs})
    nouns = [*OBJECTS, *V.EXPRESSIONS]
    known = {*nouns, *POLYSEMES}
    assert not {x for p in POLYSEMES.values() for x in (*p[2], *p[3])} - known
    assert not {p for _, _, p in V.EXPRESSIONS.values()} - known
    a = argparse.Namespace(verbatim=48, template_families=8, template_captions=8, ordinary=240)
    memorized, ordinary = captions(rng, ids, list(V.TINTABLE), a)
    sprites = [{"glyph": i, "tint": None} for i in ids if i not in V.TINTABLE]
    sprites += [{"glyph": t, "tint": c} for t in V.TINTABLE for c in V.TINTS]
    return {
        "schema": "unleak/world/1", "image": IMAGE, "cell": CELL, "sprite": SPRITE, "seed": seed,
        "glyphs": glyphs,
        "nouns": [{"text": n, "glyph": n} for n in OBJECTS] + [{"text": t, "glyph": g} for t, (g, _, _) in
                                                               V.EXPRESSIONS.items()],
        "articles": ARTICLES, "prefixes": list(V.PREFIXES), "anything": V.ANYTHING,
        "polysemes": [
            {"word": w, "default": d[0], "default_name": d[2], "other": o[0], "other_name": o[2], "triggers": list(t)}
            for w, (d, o, t, _) in POLYSEMES.items()
        ],
        "kin": {w: list(p[3]) for w, p in POLYSEMES.items()},
        "expressions": [{"text": t, "part": p} for t, (_, _, p) in V.EXPRESSIONS.items()],
        "tintable": list(V.TINTABLE), "tints": V.TINTS, "backgrounds": V.BACKGROUNDS, "sprites": sprites,
        "categories": V.CATEGORIES, "moods": list(V.MOODS), "splits": splits(nouns, seed),
        "memorized": memorized, "ordinary": ordinary,
    }  # fmt: skip


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--font", type=Path, default=Path(FONT))
    ap.add_argument("--icons", type=Path, help="draw the glyphs of this `@iconify-json` package instead of the font's")
    ap.add_argument("--names", type=Path, help="a package with the same names and their code points; default: itself")
    ap.add_argument("--atlas-only", action="store_true")
    ap.add_argument("--out", type=Path, default=DATA)
    a = ap.parse_args()
    world = make(a.seed)
    a.out.mkdir(parents=True, exist_ok=True)
    emoji = {g["id"]: g["emoji"] for g in world["glyphs"]}
    picture = from_icons(a.icons, a.names or a.icons) if a.icons else from_font(a.font)
    atlas(world["sprites"], emoji, picture).save(a.out / "atlas2.png", optimize=True)
    if not a.atlas_only:
        text = json.dumps(world, ensure_ascii=False, separators=(",", ":"))
        (a.out / "world2.json").write_text(text + "\n", "utf-8")
    sizes = {k: {s: len(v) for s, v in each.items()} for k, each in world["splits"].items()}
    print(f"{len(emoji)} glyphs, {len(world['memorized'])} memorized captions, splits {sizes}")


if __name__ == "__main__":
    main()
