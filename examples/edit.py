"""Two objects of a picture become others, by ALE and by published editors with the same masks and the same blending.

    python examples/edit.py --out edit-demo

The targets are words of which one changes what the other means: "a mouse" alone is the animal, beside "a laptop" it is
the device. Uses the embedded model `emoji-sd`, a real `StableDiffusionPipeline`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image
from rich.console import Console

import unleak
from unleak.files.atomic import write_atomic
from unleak.judges.glyphs import glyph_judge
from unleak.models import edit_settings, load
from unleak.regions.presets import recommended
from unleak.report.edit import views
from unleak.report.pictures import contact_sheet, png
from unleak.text.items import Item
from unleak.world import load as load_world
from unleak.world.edits import EditCase
from unleak.world.grammar import thing
from unleak.world.render import Renderer
from unleak.world.vocabulary import Placement, Scene

#: what stands where, in latent cells, and what it becomes; the car stays
EDITS = (("dog", (0, 0), "mouse"), ("tree", (4, 4), "laptop"))
KEPT = Placement("car", 4, 0, "red")
OTHERS = {"Prompt-to-Prompt": "p2p", "MasaCtrl": "masactrl", "InfEdit": "infedit"}


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--out", type=Path, default=Path("edit-demo"))
    a = ap.parse_args()
    world, pipe, judge, out = load_world(), load("emoji-sd"), glyph_judge(), Console()
    sources = [thing(world, word) for word, *_ in EDITS]
    places = [Placement(s.glyph, x, y) for s, (_, (x, y), _) in zip(sources, EDITS, strict=True)]
    targets = [thing(world, word) for *_, word in EDITS]
    scene = Scene("blue", (*places, KEPT))
    case = EditCase("sense", scene, tuple(range(len(EDITS))), tuple(sources), tuple(targets))
    picture = Image.fromarray(Renderer(world).pictures([scene])[0])
    edits = [
        unleak.Edit(f"a {source.word}", f"a {target.word}", mask)
        for source, target, mask in zip(sources, targets, case.masks(world), strict=True)
    ]

    def edited(preset: str, **options: bool) -> unleak.Edited:
        own = recommended(preset, edit_settings("emoji-sd"))
        return unleak.edit(
            pipe, picture, edits, preset=preset, seed=a.seed, judge=judge, model="emoji-sd", **own, **options
        )

    result, items = edited("ale"), [Item(target.word) for target in targets]
    results = {"unleak.edit": result, **{f"{name}, blended": edited(one, blend=True) for name, one in OTHERS.items()}}
    for name, one in results.items():
        there = judge.present(one.image[None], items)[0]
        answers = [f"{sense}: {'yes' if y else 'no'}" for sense, y in zip(judge.senses(items), there, strict=True)]
        out.print(f"{name}: {', '.join(answers)}")
    result.save(f"{a.out}/")
    shown = [(title, [image]) for title, image in views(result)[:2]]
    shown += [(name, [one.image]) for name, one in results.items()]
    write_atomic(a.out / "compared.png", png(contact_sheet(shown, side=192, across=3)))
    out.print(a.out / "index.html")


if __name__ == "__main__":
    main()
