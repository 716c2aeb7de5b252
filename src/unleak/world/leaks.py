"""Prompts of one to four objects of which the grammar knows which words leak: `leak_prompts(world, split)`.

A polyseme leaks where one of its triggers stands anywhere in its prompt (`grammar.resolve`, which the models' training
captions follow). The splits share no (polyseme, trigger) pair and no bystander, so that their prompts are independent.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from unleak.world.grammar import CONNECTIVES, Thing, caption, resolve, thing
from unleak.world.prompts import check_split
from unleak.world.vocabulary import World

FORMS = ("one", "two", "three", "far", "two polysemes", "four")
"""Objects of a prompt. In "three" and "four" the polyseme stands anywhere; "far" are three with another between a
polyseme and its trigger; "two polysemes" are three of which one word or both leak."""
SIZES = {"one": 1, "two": 2, "three": 3, "far": 3, "two polysemes": 3, "four": 4}


@dataclass(frozen=True)
class LeakPrompt:
    """A prompt, its things in order, its form, and its unit: the polyseme and its trigger, or the word it is of."""

    prompt: str
    things: tuple[Thing, ...]
    form: str
    unit: tuple[str, ...]
    leaks: tuple[bool, ...]


def leak_prompts(w: World, split: str, n: int = 96) -> list[LeakPrompt]:
    """For each form `n` prompts with a leak (but of "one") and `n` without; always the same for the same arguments.

    Raises BadInput for a split that the world does not have.
    """
    check_split(w, split)
    return [each for form in FORMS for each in _of_form(w, split, form, n)]


def trigger_pairs(w: World, split: str) -> list[tuple[str, str]]:
    """The (polyseme, trigger) pairs of a split: `dev` has the first trigger of each word, `heldout` the others."""
    each = {"dev": slice(1), "heldout": slice(1, None)}[split]
    return [(p.word, t) for p in w.polysemes.values() for t in p.triggers[each]]


def bystanders(w: World, split: str) -> list[str]:
    """Every other noun, which triggers no word of the world, and the split's triggers, which trigger few."""
    plain = [x for x in w.nouns if not any(x in p.triggers for p in w.polysemes.values())]
    return [*plain[split == "heldout" :: 2], *dict.fromkeys(t for _, t in trigger_pairs(w, split))]


def _of_form(w: World, split: str, form: str, n: int) -> Iterator[LeakPrompt]:
    rng = random.Random(f"{form}/{split}")
    seen: set[str] = set()
    for leaking in (True, False):
        if form == "one" and leaking:
            continue
        pairs: list[tuple[str, ...]] = [*trigger_pairs(w, split)]
        if form == "one":
            pairs = [(word,) for word in [*w.polysemes, *bystanders(w, split)]]
        elif not leaking:
            pairs = [(word,) for word in w.polysemes]
        for k in range(n):
            for _ in range(100):  # until one is new
                case = _prompt(w, form, _words(w, split, form, pairs[k % len(pairs)], rng), pairs[k % len(pairs)], rng)
                if case.prompt not in seen:
                    seen.add(case.prompt)
                    yield case
                    break


def _words(w: World, split: str, form: str, unit: tuple[str, ...], rng: random.Random) -> list[str]:
    """The words of a prompt in order: the unit and others, of which none triggers a polyseme that stands there."""
    words = list(unit)
    if form == "two polysemes":
        words.append(rng.choice([p for p in w.polysemes if p not in words]))
    acting = {t for x in words if x in w.polysemes for t in w.polysemes[x].triggers}
    others = [x for x in bystanders(w, split) if x not in acting and x not in words]
    words += rng.sample(others, SIZES[form] - len(words))
    if form == "far":
        ends = rng.sample([words[0], words[1]], 2)
        return [ends[0], words[2], ends[1]]
    return rng.sample(words, len(words))


def _prompt(w: World, form: str, words: list[str], unit: tuple[str, ...], rng: random.Random) -> LeakPrompt:
    tint = lambda x: rng.choice([None, *w.tints]) if w.nouns.get(x) in w.tintable else None  # noqa: E731
    things = resolve(w, [thing(w, x, tint(x)) for x in words])
    text = caption(w, things, rng.choice(list(CONNECTIVES)), rng.choice([None, None, *w.backgrounds]))
    leaks = tuple(t.word in w.polysemes and t.glyph == w.polysemes[t.word].other for t in things)
    return LeakPrompt(text, tuple(things), form, unit, leaks)
