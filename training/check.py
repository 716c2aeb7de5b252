"""How well a model of World 2 draws what training never pairs: single objects and pairs of the development split.

    python training/check.py -m runs/natural-0/pipeline --judge runs/judge-a/glyphs.safetensors

No polyseme, no unit that a table reports: this decides how long a model is trained, and whether it is too weak to ask.
A picture is right if it has exactly the objects that the caption names, in their colours, on its background. The units
are nouns and pairs of nouns.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from PIL import Image

from unleak import models, world
from unleak.drawing.generate import generate
from unleak.judges.glyphs import Reading, judge_of
from unleak.stats.intervals import share
from unleak.world.grammar import CONNECTIVES, Thing, caption, thing


def cases(w: world.World, kind: str, n: int) -> list[tuple[str, list[Thing], str | None]]:
    """`n` captions with their things and background, of nouns ("single") or development pairs ("pair")."""
    rng = random.Random(f"check/{kind}")
    plain = set(w.nouns)
    pairs = sorted(sorted(p) for p in w.pairs["dev"] if p <= plain)
    units = [[x] for x in sorted(plain)] if kind == "single" else pairs
    out = []
    for words in rng.sample(units, min(n, len(units))):
        rng.shuffle(words)
        tinted = [rng.choice([None, *w.tints]) if w.nouns[x] in w.tintable else None for x in words]
        things = [thing(w, x, t) for x, t in zip(words, tinted, strict=True)]
        background = rng.choice([None, *w.backgrounds])
        out.append((caption(w, things, rng.choice(list(CONNECTIVES)), background), things, background))
    return out


def right(things: list[Thing], background: str | None, seen: Reading) -> bool:
    """Exactly these things, in their colours, on this background."""
    exact = len(seen.found) == len(things) and all(seen.count(t.glyph, t.tint) == 1 for t in things)
    return exact and background in (None, seen.background)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("-m", dest="model", type=Path, required=True)
    ap.add_argument("--judge", type=Path, required=True)
    ap.add_argument("-n", type=int, default=100, help="captions of each kind")
    ap.add_argument("--sheet", type=Path, help="save the pictures of the pairs here")
    a = ap.parse_args()
    w = world.load(2)
    judge = judge_of(w, a.judge.read_bytes())
    pipe, call = models.load(a.model), models.settings(a.model)
    for kind in ("single", "pair"):
        some = cases(w, kind, a.n)
        images = generate(pipe, [text for text, _, _ in some], [0], **call)[:, 0]
        seen = judge.read(images)
        hits = [right(things, background, r) for (_, things, background), r in zip(some, seen, strict=True)]
        there = [all(r.count(t.glyph) for t in things) for (_, things, _), r in zip(some, seen, strict=True)]
        for name, values in (("right", hits), ("lenient", there)):
            f = share(values)
            print(f"{kind} {name} {f.value:.1%} ({f.low:.1%} to {f.high:.1%}), {len(values)} units")
        if kind == "pair" and a.sheet:
            side, columns = w.image, 10
            sheet = Image.new("RGB", (columns * side, -(-len(images) // columns) * side))
            for i, image in enumerate(images):
                sheet.paste(Image.fromarray(image), (i % columns * side, i // columns * side))
            sheet.save(a.sheet)


if __name__ == "__main__":
    main()
