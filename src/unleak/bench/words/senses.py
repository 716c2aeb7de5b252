"""`unleak bench senses`: does its company change the sense in which a word is drawn, and what does something about it?

For models of World 2 that were taught no leak: no caption of their training shows a word with two senses beside a
trigger of the other one. Every held-out pair of a word and a trigger has a pair of the same word and a neutral noun,
and the word stands alone as well. What a word does alone and in neutral company is what the model does anyway; what a
trigger does beyond that is the leak: ``shift`` is the rate of the other sense beside triggers minus that beside neutral
nouns, paired by word. Rates are over words, repairs over pairs; orders and seeds are repeats inside a unit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unleak.bench.results import Results
from unleak.bench.rows import SHARE, Row, paired_difference, share
from unleak.bench.run import Run, refuse_unknown
from unleak.bench.words import repairs
from unleak.bench.words.repairs import METHODS, OUTCOMES, REROLL
from unleak.bench.world import reconstructed
from unleak.errors import UnsupportedModel
from unleak.world import World
from unleak.world.grammar import caption, thing
from unleak.world.prompts import Case

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from unleak.bench.run import Asked

EDITION = 2
COMPANY = ("alone", "neutral", "trigger")
DEFAULT = ("none", "rewrite", "patch", "patch:item", "patch+sense", "contextless", "cutoff", "cutoff:strong",
           "structure", "tebopt", repairs.AUTO, REROLL)  # fmt: skip
RATES = {"default_sense": "intended", "other_sense": "other", "partner": "others", "right": "strict"}
"""Metric -> the outcome whose rate it is."""


def cases_of(world: World, split: str, company: str) -> list[Case]:
    """The prompts of one company: every word alone, or every pair of it in both orders.

    >>> from unleak.world import load
    >>> [case.prompt for case in cases_of(load(2), "heldout", "trigger")[:2]]
    ['a mouse and a keyboard', 'a keyboard and a mouse']
    """
    if company == "alone":
        return [_case(world, company, [word], word) for word in world.polysemes]
    pairs = {"trigger": world.triggers, "neutral": world.neutral}[company][split]
    return [_case(world, company, words, pair[0]) for pair in pairs for words in (list(pair), list(pair)[::-1])]


def _case(world: World, company: str, words: list[str], word: str) -> Case:
    things = tuple(thing(world, each) for each in words)
    return Case(caption(world, list(things)), things, company, things, (), word, words[0] == word)


def rates(method: str, company: str, cases: Sequence[Case], seen: np.ndarray) -> list[Row]:
    """`RATES` over the words, of outcomes [P, S, OUTCOMES]; of a word alone there is no partner."""
    words = [case.polyseme for case in cases]
    at = {metric: seen[..., OUTCOMES.index(outcome)] for metric, outcome in RATES.items()}
    return [
        share(at[metric], method, company, metric, words)
        for metric in RATES
        if (company, metric) != ("alone", "partner")
    ]


def by_word(method: str, company: str, cases: Sequence[Case], seen: np.ndarray) -> list[Row]:
    """The rate of the other sense of each word; its units are the pairs that it stands in."""
    other = seen[..., OUTCOMES.index("other")]
    rows = []
    for word in dict.fromkeys(case.polyseme for case in cases):
        at = [i for i, case in enumerate(cases) if case.polyseme == word]
        units = [repairs.unit(cases[i]) for i in at]
        rows.append(share(other[at], method, f"{company}: {word}", "other_sense", units))
    return rows


def shift(method: str, cases: dict[str, list[Case]], seen: dict[str, np.ndarray]) -> Row:
    """By how much more often the other sense is drawn beside a trigger than beside a neutral noun, over words."""
    words = [case.polyseme for case in cases["trigger"]]
    assert words == [case.polyseme for case in cases["neutral"]]  # the world pairs them
    other = {company: seen[company][..., OUTCOMES.index("other")] for company in ("trigger", "neutral")}
    return paired_difference(other["neutral"], other["trigger"], method, "trigger - neutral", "shift", SHARE, words)


def repaired(method: str, company: str, cases: Sequence[Case], before: np.ndarray, after: np.ndarray) -> list[Row]:
    """`mended`: of the pictures that were not right those that are; `harm`: of the right ones those that are not.

    Right is strict: exactly what was asked for, in number and sense. Over the pairs that have such pictures.
    """
    strict, units = OUTCOMES.index("strict"), [repairs.unit(case) for case in cases]
    rows = []
    for metric, chosen in (("mended", ~before[..., strict]), ("harm", before[..., strict])):
        became = after[..., strict] if metric == "mended" else ~after[..., strict]
        kept = [i for i in range(len(cases)) if chosen[i].any()]
        if kept:
            hits = [became[i][chosen[i]] for i in kept]
            rows.append(share(hits, method, company, metric, [units[i] for i in kept]))
    return rows


def rows(run: Run, methods: Sequence[str]) -> list[Row]:
    """Every method on every company, beside "none"; finished methods are reused."""
    cases = {company: cases_of(run.world, run.split, company)[: run.limit] for company in COMPANY}
    total = sum(map(len, cases.values())) * len(run.seeds)
    figures: list[Row] = []
    before: dict[str, np.ndarray] = {}
    for method in ["none", *(m for m in methods if m != "none")]:
        try:
            again = repairs.draws(run, cases["trigger"]) if method == REROLL else 1
            cost = repairs.costs(run, method, cases["trigger"], again)
        except UnsupportedModel as e:
            run.notes.append(f"{method}: {e}")
            continue
        if method == REROLL:
            run.notes.append(f"{REROLL}: each image is drawn {again} times, about what `unleak.repair` costs")
        seen = _seen(run, method, cases, again, run.ticking(method, total))
        before = before or seen
        for company in seen:
            figures += rates(method, company, cases[company], seen[company])
            if method == "none":
                figures += by_word(method, company, cases[company], seen[company])
            else:
                figures += repaired(method, company, cases[company], before[company], seen[company])
        figures += [shift(method, cases, seen), *cost]
    return figures


def _seen(
    run: Run, method: str, cases: dict[str, list[Case]], again: int, tick: Callable[[int], None]
) -> dict[str, np.ndarray]:
    """Outcomes [P, S, OUTCOMES] of each company. A word alone has no company that a repair could act on."""
    found = {}
    for company in COMPANY if method == "none" else COMPANY[1:]:

        def compute(some: list[Case] = cases[company]) -> list[Any]:
            drawn = repairs.outcomes(run.pipe, some, run.seeds, METHODS[method], run.call, tick, again, run.judge)
            listed: list[Any] = drawn.tolist()
            return listed

        inputs = [asdict(METHODS[method]), again, [case.prompt for case in cases[company]]]
        found[company] = np.array(run.part(f"senses-{method}-{company}", inputs, compute, METHODS[method].code), bool)
    return found


def check(split: str, methods: Sequence[str] | None) -> None:
    """Refuse a split or a method that does not exist. Raises BadInput."""
    refuse_unknown("senses", list(METHODS), split, methods, EDITION)


def run(pipe: Any, out: Path, *, model: str, methods: Sequence[str] | None = None, **asked: Unpack[Asked]) -> Results:
    """Measure the chosen methods (default: `DEFAULT`) on a model of World 2; finished parts are reused."""
    one = Run.of(pipe, out, model, EDITION, **asked)
    check(one.split, methods)
    results = Results("senses", model, one.seeds, one.split, {"name": one.judge.name}, notes=one.notes)
    results.rows += rows(one, DEFAULT if methods is None else methods)
    results.judge["accuracy"] = reconstructed(one.judge, one.world, pipe.vae)
    results.save(out)
    return results
