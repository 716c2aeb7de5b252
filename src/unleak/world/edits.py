"""Edits with known truth: scenes of one to three objects, some of which are to become others.

The structure is ALE-Bench's (arXiv 2412.04715): one, two or three edited objects x a change of colour, of the object,
or of both. Objects that are not edited are distractors in the background. Whatever a target brings (its glyph, its
colour) is nowhere in the source, so that it can be recognised wherever it appears.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from unleak.world.grammar import Thing, caption, scene, thing
from unleak.world.prompts import check_split
from unleak.world.vocabulary import Placement, Scene, World

KINDS = ("colour", "object", "colour+object")
COUNTS = (1, 2, 3)
MOST = 3  #: objects in a scene


@dataclass(frozen=True)
class EditCase:
    """What is to become of some objects of a scene; `edited` are their positions in it, in the order of the edits."""

    kind: str
    scene: Scene
    edited: tuple[int, ...]
    sources: tuple[Thing, ...]
    targets: tuple[Thing, ...]

    @property
    def places(self) -> tuple[Placement, ...]:
        """Where the edited objects stand."""
        return tuple(self.scene.placements[i] for i in self.edited)

    @property
    def distractors(self) -> tuple[Placement, ...]:
        """What must stay."""
        return tuple(p for i, p in enumerate(self.scene.placements) if i not in self.edited)

    def caption(self, world: World) -> str:
        """Of the edited objects only, as in ALE-Bench."""
        return caption(world, list(self.sources))

    def masks(self, world: World) -> np.ndarray:
        """Bool [K, H, W]: the square of latent cells that each edited object has to itself."""
        made = np.zeros((len(self.edited), world.image, world.image), bool)
        for mask, p in zip(made, self.places, strict=True):
            mask[p.y * world.cell :, p.x * world.cell :][: world.sprite, : world.sprite] = True
        return made


def edit_cases(w: World, split: str = "heldout", each: int = 68, seed: int = 0) -> list[EditCase]:
    """`each` different cases of every kind and count, one of each in turn; the same for the same arguments.

    Where objects become others, those that are edited (of a single one: with its company) hold a pair of the split
    before and after. There are too few tintable objects for that: their cases are the split's own by seed alone. No
    case has a pair of another split.
    """
    check_split(w, split)
    cells = [_cell(w, kind, count, split, each, seed) for count in COUNTS for kind in KINDS]
    return [case for turn in zip(*cells, strict=True) for case in turn]


def _cell(w: World, kind: str, count: int, split: str, each: int, seed: int) -> list[EditCase]:
    rng = random.Random(f"edits/{kind}/{count}/{split}/{seed}")
    found: dict[EditCase, None] = {}
    while len(found) < each:
        found.setdefault(_case(w, kind, count, split, rng))
    return list(found)


def _case(w: World, kind: str, count: int, split: str, rng: random.Random) -> EditCase:
    plain = [word for word in w.nouns if word not in w.expressions]
    tintable = [word for word in plain if w.nouns[word] in w.tintable]
    pool = tintable if kind != "object" else [word for word in plain if word not in tintable]
    while True:
        things = rng.randint(count, MOST)
        edited = tuple(sorted(rng.sample(range(things), count)))
        before = rng.sample(pool, count)
        after = before if kind == "colour" else rng.sample([word for word in pool if word not in before], count)
        others = rng.sample([word for word in plain if word not in (*before, *after)], things - count)
        words = [before[edited.index(i)] if i in edited else others.pop() for i in range(things)]
        sides = [words, [after[edited.index(i)] if i in edited else words[i] for i in range(things)]]
        named = [before, after] if count > 1 else sides
        allowed = all(not _pairs(w, side, other) for side in sides for other in w.pairs if other != split)
        if allowed and (kind != "object" or things == 1 or all(_pairs(w, side, split) for side in named)):
            return _coloured(w, kind, words, edited, after, rng)


def _pairs(w: World, words: Sequence[str], split: str) -> set[frozenset[str]]:
    """The pairs of a split among these words."""
    return {frozenset(pair) for pair in combinations(words, 2)} & w.pairs[split]


def _coloured(
    w: World, kind: str, words: Sequence[str], edited: tuple[int, ...], after: Sequence[str], rng: random.Random
) -> EditCase:
    """The case with its colours: those of the targets are nowhere in the source, nor is its background."""
    tints = rng.sample(w.tints, len(w.tints))
    new, old = tints[: len(edited)], tints[len(edited) :]
    tinted = [w.nouns[word] in w.tintable for word in words]
    things = [thing(w, word, rng.choice(old) if has else None) for word, has in zip(words, tinted, strict=True)]
    targets = [thing(w, word, new[i] if kind != "object" else None) for i, word in enumerate(after)]
    background = rng.choice([name for name in w.backgrounds if name not in new])
    shown = scene(w, things, "and", background, rng)
    return EditCase(kind, shown, edited, tuple(things[i] for i in edited), tuple(targets))
