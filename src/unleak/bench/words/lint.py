"""Lint on the embedded world: does the risk tell items that will leak from items that will not, and how fast?

An item will leak when it is a polyseme and one of its triggers stands in the prompt, which has one to four objects
(`unleak.world.leaks`). The others are polysemes without a trigger, the triggers themselves, plain and coloured nouns,
and expressions. The models are trained on one to three objects: with four the label is what the grammar says,
`leaks_drawn` how often the model does it, and `own_drawn` how often it does the contrary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from unleak.bench.rows import Row, auroc, mean, share
from unleak.bench.run import Run
from unleak.drawing.generate import generate
from unleak.judges.glyphs import glyph_judge
from unleak.words.lint.lint import CHUNK, Linter, PromptLint, scores
from unleak.words.lint.prompt_file import Line, line
from unleak.world import World
from unleak.world.leaks import FORMS, SIZES, LeakPrompt, leak_prompts

METHODS = DEFAULT = ("lint",)
MOST = 24  #: prompts of a form with a leak, and without
DRAWN = 12  #: prompts of a form that are drawn, with two seeds
TRAINED = 3  #: most objects in a caption that the models were trained on


class Labelled(NamedTuple):
    """A prompt with all its items, each marked as one that will leak or not."""

    line: Line
    of: LeakPrompt


def labelled(world: World, split: str, limit: int | None = None) -> list[Labelled]:
    """Prompts of a split, by form `limit` with a leak and `limit` without (default and most: `MOST`), mixed."""
    prompts = leak_prompts(world, split, min(limit or MOST, MOST))
    order = np.random.default_rng(0).permutation(len(prompts))
    return [_labelled(k, prompts[i]) for k, i in enumerate(order, 1)]


def _labelled(number: int, of: LeakPrompt) -> Labelled:
    leaks = [thing.phrase for thing, leaking in zip(of.things, of.leaks, strict=True) if leaking]
    return Labelled(line(number, of.prompt, [thing.phrase for thing in of.things], leaks), of)


def rows(run: Run, methods: Sequence[str]) -> list[Row]:
    """`figures` of the model's text encoders, then `drawn`."""
    prompts = labelled(run.world, run.split, run.limit)
    tick = run.ticking("lint", len(prompts))

    def compute() -> list[dict[str, object]]:
        measured = [*figures(Linter(run.pipe, **run.call), prompts, tick), *drawn(run, prompts)]
        return [row.to_dict() for row in measured]

    return [Row(**row) for row in run.part("lint", [[one.line.prompt for one in prompts]], compute, [Linter])]


def figures(linter: Linter, prompts: Sequence[Labelled], progress: Callable[[int], None] | None = None) -> list[Row]:
    """Over items, with intervals over units (the polyseme and its trigger, or the word that a prompt without a leak is
    of): `lint_auroc`; `lint_found` and `lint_false_alarms`, the shares of leaks and of other items with a risk of 0.5
    or more; then `lint_prompts_per_minute`, over chunks of prompts.
    """
    lints: list[PromptLint] = []
    speeds: list[float] = []
    for start in range(0, len(prompts), CHUNK):
        began = time.perf_counter()
        lints += linter.chunk([one.line for one in prompts[start : start + CHUNK]])
        speeds.append(60 * (len(lints) - start) / (time.perf_counter() - began))
        if progress:
            progress(len(lints) - start)
    out: list[Row] = []
    for subset, chosen in _subsets(prompts).items():
        pairs = [(prompts[i].of.unit, scores(lints[i], prompts[i].line), lints[i]) for i in chosen]
        groups = {unit: [p for u, each, _ in pairs if u == unit for p in each] for unit, _, _ in pairs}
        if any(leaks for group in groups.values() for _, leaks in group):
            out.append(auroc(list(groups.values()), "lint", subset, "lint_auroc"))
        for leaking, metric in ((True, "lint_found"), (False, "lint_false_alarms")):
            hits = [
                (unit, item.risk >= 0.5)
                for unit, each, lint in pairs
                for (_, leaks), item in zip(each, lint.items, strict=True)
                if leaks is leaking
            ]
            if hits and subset not in ("before", "after"):
                out.append(share([hit for _, hit in hits], "lint", subset, metric, [unit for unit, _ in hits]))
        out.append(Row.exact(len(chosen), "lint", subset, "lint_prompts", len(chosen)))
    return [*out, mean(speeds, "lint", "all", "lint_prompts_per_minute")]


def drawn(run: Run, prompts: Sequence[Labelled]) -> list[Row]:
    """Over images of prompts with a leak, the share in which the judge sees the word's other sense and not its own
    (`leaks_drawn`), and its own and not the other (`own_drawn`); the rest shows neither, or both. The first `DRAWN`
    prompts of each form, the first two seeds."""
    out = []
    for form in FORMS[1:]:
        chosen = [one.of for one in prompts if one.of.form == form and any(one.of.leaks)][:DRAWN]
        words = [run.world.polysemes[of.unit[0]] for of in chosen]
        images = generate(run.pipe, [of.prompt for of in chosen], run.seeds[:2], **run.call)
        seen = [
            [(r.count(word.other) > 0, r.count(word.default) > 0) for r in glyph_judge().read(each)]
            for word, each in zip(words, images, strict=True)
        ]
        for metric, senses in (("leaks_drawn", (True, False)), ("own_drawn", (False, True))):
            hits = [[one == senses for one in each] for each in seen]
            out.append(share(hits, "lint", form, metric, [of.unit for of in chosen]))
    return out


def _subsets(prompts: Sequence[Labelled]) -> dict[str, list[int]]:
    """Which prompts a row is over. A word before or after its trigger: against all prompts without a leak."""
    known = [i for i, one in enumerate(prompts) if SIZES[one.of.form] <= TRAINED]
    side = lambda first: [i for i in known if not any(prompts[i].of.leaks) or _first(prompts[i].of) is first]  # noqa: E731
    every = {"all": list(range(len(prompts))), "one to three": known, "before": side(True), "after": side(False)}
    return every | {form: [i for i, one in enumerate(prompts) if one.of.form == form] for form in FORMS}


def _first(of: LeakPrompt) -> bool:
    words = [thing.word for thing in of.things]
    return words.index(of.unit[0]) < words.index(of.unit[1])
