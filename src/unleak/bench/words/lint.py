"""Lint on the embedded world: does the risk tell items that will leak from items that will not, and how fast?

An item will leak when it is a polyseme beside one of its triggers. The others are polysemes in neutral contexts or
alone, the triggers themselves, plain nouns, coloured ones, and expressions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from unleak.bench.rows import Row, auroc, mean
from unleak.bench.run import Run
from unleak.words.lint.lint import CHUNK, Linter, PromptLint, scores
from unleak.words.lint.prompt_file import Line, line
from unleak.world import World
from unleak.world.prompts import Case, prompts

METHODS = DEFAULT = ("lint",)
#: kind of prompt -> how many
KINDS = {"trigger": 100, "neutral": 60, "pair": 60, "triple": 60, "expression": 60, "colour": 40}


def labelled(world: World, split: str, limit: int | None = None) -> list[Line]:
    """Prompts of a split with all their items, each marked as one that will leak or not; kinds are mixed."""
    cases = [case for kind, n in KINDS.items() for case in prompts(world, kind, split, min(limit or n, n))]
    order = np.random.default_rng(0).permutation(len(cases))
    return [_line(k, cases[i]) for k, i in enumerate(order, 1)]


def _line(number: int, case: Case) -> Line:
    leaks = [thing.phrase for thing in case.things if case.trigger and thing.word == case.polyseme]
    return line(number, case.prompt, [thing.phrase for thing in case.things], leaks)


def rows(run: Run, methods: Sequence[str]) -> list[Row]:
    """`figures` of the model's text encoders; the denoiser is never called."""
    lines = labelled(run.world, run.split, run.limit)
    tick = run.ticking("lint", len(lines))
    compute = lambda: [r.to_dict() for r in figures(Linter(run.pipe, **run.call), lines, tick)]  # noqa: E731
    return [Row(**row) for row in run.part("lint", [[given.prompt for given in lines]], compute, [Linter])]


def figures(linter: Linter, lines: Sequence[Line], progress: Callable[[int], None] | None = None) -> list[Row]:
    """`lint_auroc` over items (all; leaks before and after their trigger) and `lint_prompts_per_minute`.

    Intervals are bootstraps, over prompts for the AUROC and over chunks of prompts for the speed.
    """
    lints: list[PromptLint] = []
    speeds: list[float] = []
    for start in range(0, len(lines), CHUNK):
        began = time.perf_counter()
        lints += linter.chunk(lines[start : start + CHUNK])
        speeds.append(60 * (len(lints) - start) / (time.perf_counter() - began))
        if progress:
            progress(len(lints) - start)
    sides = {s: [_side(f, g, s) for f, g in zip(lints, lines, strict=True)] for s in ("all", "before", "after")}
    out = [
        auroc(pairs, "lint", subset, "lint_auroc")
        for subset, pairs in sides.items()
        if any(leaks for prompt in pairs for _, leaks in prompt)  # few prompts may hold no leak on one side
    ]
    return [*out, mean(speeds, "lint", "all", "lint_prompts_per_minute")]


def _side(result: PromptLint, given: Line, subset: str) -> list[tuple[float, bool]]:
    """The scores of a prompt; a subset keeps the leaks that stand before or after their trigger, and all others."""
    first = [at == min(given.spans) for at in given.spans]
    pairs = zip(scores(result, given), first, strict=True)
    return [pair for pair, is_first in pairs if not pair[1] or subset in ("all", "before" if is_first else "after")]
