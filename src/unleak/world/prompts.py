"""Prompts with known truth for measuring: pairs and contexts that training never showed.

`prompts(world, kind, split, n)` draws a fixed random set per kind and split. Splits: `dev` (for tuning) and
`heldout` (for reporting). A single object has nothing to hold out; its prompts are the same grammar's.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from unleak.errors import BadInput
from unleak.world.grammar import CONNECTIVES, Thing, caption, resolve, thing
from unleak.world.vocabulary import World


@dataclass(frozen=True)
class Case:
    """A prompt and what its picture is judged by: `wanted` things must be there, `absent` glyphs must not."""

    prompt: str
    things: tuple[Thing, ...]
    kind: str
    wanted: tuple[Thing, ...]
    absent: tuple[str, ...] = ()
    polyseme: str | None = None
    first: bool = True  #: the polyseme stands before its context
    trigger: str | None = None
    background: str | None = None


def _case(w: World, kind: str, words: list[str], rng: random.Random, *, tint: bool = False, link: str | None = None,
          judged_words: tuple[str, ...] | None = None, **more: Any) -> Case:  # fmt: skip
    colour = lambda x: rng.choice(w.tints) if tint and w.nouns.get(x) in w.tintable else None  # noqa: E731
    things = resolve(w, [thing(w, x, colour(x)) for x in words])
    link = link or rng.choice(list(CONNECTIVES))
    background = rng.choice([None, *w.backgrounds])
    judged = tuple(t for t in things if judged_words is None or t.word in judged_words)
    return Case(caption(w, things, link, background), tuple(things), kind, judged, background=background, **more)


def _pairs(w: World, split: str) -> list[list[str]]:
    return sorted(sorted(p) for p in w.pairs[split])


def single(w: World, split: str, rng: random.Random) -> Case:
    return _case(w, "single", [rng.choice(list(w.nouns))], rng, tint=True)


def pair(w: World, split: str, rng: random.Random) -> Case:
    words = rng.choice(_pairs(w, split))
    rng.shuffle(words)
    return _case(w, "pair", words, rng, tint=rng.random() < 0.5)


def triple(w: World, split: str, rng: random.Random) -> Case:
    """A held-out pair and any third object that neither triggers."""
    while True:
        words = [*rng.choice(_pairs(w, split)), rng.choice(list(w.nouns))]
        trig = {t for x in words if x in w.polysemes for t in w.polysemes[x].triggers}
        if len(set(words)) == 3 and not trig & set(words):
            rng.shuffle(words)
            return _case(w, "triple", words, rng)


def colour(w: World, split: str, rng: random.Random) -> Case:
    """Two coloured objects in different colours; the pair is held out."""
    both = [p for p in _pairs(w, split) if all(w.nouns.get(x) in w.tintable for x in p)]
    if not both:
        raise BadInput(f"the {split} split has no pair of tintable objects; remake the world")
    while True:
        words = list(rng.choice(both))
        rng.shuffle(words)
        case = _case(w, "colour", words, rng, tint=True)
        if case.things[0].tint != case.things[1].tint:
            return case


def expression(w: World, split: str, rng: random.Random) -> Case:
    """An expression in a held-out context; the object that a part of it names must stay away."""
    candidates = [p for p in _pairs(w, split) if any(x in w.expressions for x in p)]
    while True:
        words = list(rng.choice(candidates))
        named = tuple(x for x in words if x in w.expressions)
        parts = {w.expressions[x] for x in named}
        if not parts & set(words):
            rng.shuffle(words)
            return _case(w, "expression", words, rng, judged_words=named, absent=tuple(w.nouns[p] for p in parts))


def neutral(w: World, split: str, rng: random.Random) -> Case:
    """A polyseme alone or beside an object that triggers nothing: its default sense must appear."""
    p = rng.choice(list(w.polysemes.values()))
    neutral_words = [x for q in _pairs(w, split) if p.word in q for x in q if x != p.word and x not in w.polysemes]
    words = [p.word] if rng.random() < 0.25 or not neutral_words else [p.word, rng.choice(neutral_words)]
    first = rng.random() < 0.5
    words = words if first else words[::-1]
    return _case(w, "neutral", words, rng, judged_words=(p.word,), absent=(p.other,), polyseme=p.word, first=first)


def trigger(w: World, split: str, rng: random.Random) -> Case:
    """A polyseme in a held-out trigger context: the other sense appears, which is the leak."""
    return _context(w, rng.choice(sorted(w.contexts[split])), rng)


def _context(w: World, context: tuple[str, str, str, bool], rng: random.Random) -> Case:
    word, t, link, first = context
    p = w.polysemes[word]
    words = [word, t] if first else [t, word]
    return _case(w, "trigger", words, rng, link=link, judged_words=(word,), absent=(p.default,),
                 polyseme=word, first=first, trigger=t)  # fmt: skip


def contexts(w: World, split: str = "heldout", n: int | None = None) -> list[Case]:
    """One prompt for every trigger context of a split (word, trigger, connective, order), in an order drawn once.

    With `n` the first ones of that order.
    """
    check_split(w, split)
    rng = random.Random(f"contexts/{split}")
    every = sorted(w.contexts[split])
    rng.shuffle(every)
    return [_context(w, context, rng) for context in every[:n]]


KINDS: dict[str, Callable[[World, str, random.Random], Case]] = {
    "single": single, "pair": pair, "triple": triple, "colour": colour,
    "expression": expression, "neutral": neutral, "trigger": trigger,
}  # fmt: skip


def check_split(w: World, split: str) -> None:
    """Raises BadInput for a split that the world does not have."""
    if split not in w.pairs:
        raise BadInput(f"no split {split!r}; there are {sorted(w.pairs)}")


def prompts(w: World, kind: str, split: str = "heldout", n: int = 60, seed: int = 0) -> list[Case]:
    """Up to `n` different prompts of one kind, always the same for the same arguments."""
    check_split(w, split)
    rng = random.Random(f"{kind}/{split}/{seed}")
    cases: dict[str, Case] = {}
    for _ in range(50 * n):
        case = KINDS[kind](w, split, rng)
        cases.setdefault(case.prompt, case)
        if len(cases) == n:
            break
    return list(cases.values())
