"""Edits with known truth: scenes of one to three objects, some of which are to become others.

The structure is ALE-Bench's (arXiv 2412.04715): one, two or three edited objects x a change of colour, of the object,
or of both. Objects that are not edited are distractors in the background. Whatever a target brings (its glyph, its
colour) is nowhere in the source, so that it can be recognised wherever it appears.

A fourth kind, *sense*, is what the paper sets out from: two or three objects are edited, and one target is a word that
the encoder reads otherwise beside another target ("a mouse" beside "a laptop"), though it is meant by itself.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from unleak.world.grammar import Thing, caption, scene, thing
from unleak.world.prompts import check_split
from unleak.world.vocabulary import Placement, Scene, World

KINDS = ("colour", "object", "colour+object")
SENSE = "sense"
COUNTS = (1, 2, 3)
MOST = 3  #: objects in a scene


@dataclass(frozen=True)
class EditCase:
    """What is to become of some objects of a scene; `edited` are their positions in it, in the order of the edits.

    `misread` are the glyphs that targets turn into where an encoder lets another target decide what they mean.
    """

    kind: str
    scene: Scene
    edited: tuple[int, ...]
    sources: tuple[Thing, ...]
    targets: tuple[Thing, ...]
    misread: frozenset[str] = field(default=frozenset(), repr=False)

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
        masks = np.zeros((len(self.edited), world.image, world.image), bool)
        for mask, p in zip(masks, self.places, strict=True):
            mask[p.y * world.cell :, p.x * world.cell :][: world.sprite, : world.sprite] = True
        return masks


def edit_cases(w: World, split: str = "heldout", each: int = 68, seed: int = 0) -> list[EditCase]:
    """`each` different cases of every kind and count, one of each in turn; the same for the same arguments.

    Those of the kind "sense", which takes two objects at least, come last.

    Where objects become others, those that are edited (of a single one: with its neighbour in the prompt) hold a pair
    of the split before and after. There are too few tintable objects for that: their cases are the split's own by seed
    alone. No case has a pair of another split.
    """
    check_split(w, split)
    cells = [_cell(w, kind, count, split, each, seed) for count in COUNTS for kind in KINDS]
    sense_cells = [_cell(w, SENSE, count, split, each, seed) for count in COUNTS if count > 1]
    return [case for some in (cells, sense_cells) for turn in zip(*some, strict=True) for case in turn]


def _cell(w: World, kind: str, count: int, split: str, each: int, seed: int) -> list[EditCase]:
    rng = random.Random(f"edits/{kind}/{count}/{split}/{seed}")
    cases: dict[EditCase, None] = {}
    while len(cases) < each:
        cases.setdefault(_sense(w, count, split, rng) if kind == SENSE else _case(w, kind, count, split, rng))
    return list(cases)


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
        words = _standing(edited, before, others)
        sides = [words, [after[edited.index(i)] if i in edited else words[i] for i in range(things)]]
        named = [before, after] if count > 1 else sides
        allowed = all(not _pairs(w, side, other) for side in sides for other in w.pairs if other != split)
        if allowed and (kind != "object" or things == 1 or all(_pairs(w, side, split) for side in named)):
            return _coloured(w, kind, words, edited, after, rng)


def _sense(w: World, count: int, split: str, rng: random.Random) -> EditCase:
    """Objects without a colour become a polyseme, a trigger of its other sense (a context of the split), and others."""
    plain = [x for x in w.nouns if x not in w.expressions and w.nouns[x] not in w.tintable]
    word, trigger, _, first = rng.choice([c for c in sorted(w.contexts[split]) if c[2] == "and"])
    p = w.polysemes[word]
    while True:
        after = [word, trigger] if first else [trigger, word]
        glyphs = {p.default, p.other, w.nouns[trigger]}
        free = [x for x in plain if w.nouns[x] not in glyphs and x not in p.triggers]
        before = rng.sample(free, count)
        for other in rng.sample([x for x in free if x not in before], count - 2):
            after.insert(rng.randrange(3), other)
        if all(not _pairs(w, side, other) for side in (before, after) for other in w.pairs if other != split):
            break
    edited = tuple(sorted(rng.sample(range(rng.randint(count, MOST)), count)))
    things = max(count, edited[-1] + 1)
    others = rng.sample([x for x in free if x not in (*before, *after)], things - count)
    words = _standing(edited, before, others)
    return replace(_coloured(w, SENSE, words, edited, after, rng), misread=frozenset({p.other}))


def _standing(edited: tuple[int, ...], before: Sequence[str], others: list[str]) -> list[str]:
    """The words of a scene by their places: the edited ones at theirs, the others, last first, between them."""
    rest = reversed(others)
    return [before[edited.index(i)] if i in edited else next(rest) for i in range(len(before) + len(others))]


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
    targets = [thing(w, word, new[i] if "colour" in kind else None) for i, word in enumerate(after)]
    background = rng.choice([name for name in w.backgrounds if name not in new])
    shown = scene(w, things, "and", background, rng)
    return EditCase(kind, shown, edited, tuple(things[i] for i in edited), tuple(targets))
