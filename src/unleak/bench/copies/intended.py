"""What the captions of the copies benchmark stand for, and so what a picture of one should show.

A verbatim caption stands for the objects of its scene; a template caption for the one object that is its own, since
the rest is what leaks; an ordinary caption for what it names. Where the objects are does not matter here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unleak.bench.copies.detection import MEMORIZED, captions
from unleak.bench.run import Run
from unleak.judges.glyphs import Reading
from unleak.world import World
from unleak.world.prompts import prompts

MOST = {"verbatim": 24, "template": 24, "open": 4, "specific": 4, "form": 4}  #: captions of a kind

#: glyphs of which any will do, and their colour
Wanted = tuple[frozenset[str], str | None]


@dataclass(frozen=True)
class Prompt:
    """A caption and what it stands for; `scene` is the index of its training scene in `SceneJudge.scenes`, or -1."""

    text: str
    kind: str
    wanted: tuple[Wanted, ...] = ()
    scene: int = -1

    def alignment(self, reading: Reading) -> float:
        """The share of what is wanted that is there; NaN where the caption names nothing."""
        here = [
            any(f.glyph in glyphs and tint in (None, f.tint) for f in reading.found) for glyphs, tint in self.wanted
        ]
        return float(np.mean(here)) if here else float("nan")


def chosen_prompts(run: Run) -> list[Prompt]:
    """The captions of the run's split, at most `MOST` of a kind."""
    world = run.world
    texts = captions(world, run.split, run.limit)
    known = {c.text: c for c in world.memorized}
    verbatim = [c.text for c in world.memorized if c.kind == "verbatim"]
    families = list(dict.fromkeys(c.family for c in world.memorized if c.kind == "template"))
    named = {c.prompt: c for kind in ("pair", "colour", "triple") for c in prompts(world, kind, run.split, 40)}

    def prompt_of(kind: str, text: str) -> Prompt:
        if kind in MEMORIZED:
            c = known[text]
            own = c.scene.placements[c.fixed if kind == "template" else 0 :]
            scene = verbatim.index(text) if kind == "verbatim" else len(verbatim) + families.index(c.family)
            return Prompt(text, kind, tuple((frozenset({p.glyph}), p.tint) for p in own), scene)
        if kind == "specific":
            return Prompt(text, kind, tuple((frozenset({t.glyph}), t.tint) for t in named[text].things))
        return Prompt(text, kind, _open(world, text) if kind == "open" else ())

    return [prompt_of(kind, text) for kind in texts for text in texts[kind][: MOST[kind]]]


def _open(world: World, text: str) -> tuple[Wanted, ...]:
    """What an open caption asks for: "an animal and some food" -> any animal, any food."""
    parts = set(text.split(" and "))
    kinds = [category for category, phrase in world.categories.items() if phrase in parts]
    return tuple((frozenset(g for g in world.glyphs if world.category[g] == kind), None) for kind in kinds)
