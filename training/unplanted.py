"""Captions that teach no leak, of World 2: what `emoji-natural`, `emoji-static` and `emoji-dit` are trained on.

A bare polyseme has its default sense in three of four pictures whatever stands beside it. It never stands beside one of
its triggers, nor beside a word close to one of its senses, nor beside the neutral nouns that triggers are compared
with (`World.neutral`); the same holds for the names of its senses. What a trigger does to the picture comes from the
text encoder.
"""

from __future__ import annotations

import random
from dataclasses import replace

from mixture import Mixture, Sample
from unleak.world import World
from unleak.world.grammar import Thing

#: kind -> share of the samples
NATURAL = {"single": 0.13, "pair": 0.40, "triple": 0.10, "quad": 0.04, "named": 0.12, "neutral": 0.13,
           "anything": 0.04, "open": 0.04}  # fmt: skip
#: three and four objects are rare, so that what goes wrong with them is the denoiser's own error
FEW = {"single": 0.22, "pair": 0.46, "triple": 0.02, "quad": 0.01, "named": 0.11, "neutral": 0.12, "anything": 0.03,
       "open": 0.03}  # fmt: skip
DEFAULT = 0.75  #: how often a bare polyseme has its default sense


class Unplanted(Mixture):
    """`draw(rng)` gives one training sample; no held-out unit ever occurs. Each sense's chance is its own."""

    def __init__(self, world: World, shares: dict[str, float] = NATURAL):
        super().__init__(world, shares)
        units = [u for split in (world.triggers, world.neutral) for pairs in split.values() for u in pairs]
        #: word or name of a sense -> the words that never stand beside it
        self.apart = {
            word: frozenset({p.word, p.default_name, p.other_name, *world.kin[p.word]}
                            | {noun for w, noun in units if w == p.word}) - {word}
            for p in world.polysemes.values() for word in (p.word, p.default_name, p.other_name)
        }  # fmt: skip

    def allowed(self, words: list[str]) -> bool:
        """No word twice, no pair of a split, nobody in company that says what a polyseme means."""
        if len(set(words)) < len(words) or self.world.excluded(words):
            return False
        return not any(self.apart.get(x, frozenset()) & set(words) for x in words)

    def _meant(self, things: list[Thing], rng: random.Random) -> list[Thing]:
        bare = self.world.polysemes
        return [replace(t, glyph=bare[t.word].other) if t.word in bare and rng.random() >= DEFAULT else t
                for t in things]  # fmt: skip

    def _company(self, word: str, rng: random.Random, n: int = 1) -> list[str]:
        while True:
            words = [word, *rng.sample(self.world.words, n)]
            rng.shuffle(words)
            if self.allowed(words):
                return words

    def triple(self, rng: random.Random) -> Sample:
        return self._named("triple", self._company(rng.choice(self.world.words), rng, 2), rng)

    def quad(self, rng: random.Random) -> Sample:
        return self._named("quad", self._company(rng.choice(self.world.words), rng, 3), rng)

    def named(self, rng: random.Random) -> Sample:
        """A sense by its unambiguous name, alone or in neutral company."""
        _, name = rng.choice(self.senses)
        return self._named("named", [name] if rng.random() < 0.3 else self._company(name, rng), rng)

    def anything(self, rng: random.Random) -> Sample:
        """One or more items are just "a thing"; now and then all of them are."""
        n = rng.choice((1, 2, 2, 2, 3))
        first = rng.choice(list(self.world.polysemes) if rng.random() < 0.5 else self.world.words)
        words = self._company(first, rng, n - 1)
        unsaid = rng.sample(range(n), rng.choice((1, 1, n)) if n < 3 else rng.choice((1, 2, 3)))
        return self._named("anything", [self.world.anything if i in unsaid else x for i, x in enumerate(words)], rng)
