"""The flow half of `unleak bench words`: which pairs of items leave each other's rows alone. Nothing is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from unleak.bench.rows import Row, share
from unleak.bench.run import Run
from unleak.text.items import Item
from unleak.words.diagnosis.flow import Flow, flow
from unleak.world import World
from unleak.world.prompts import Case

T = TypeVar("T")
METHODS = DEFAULT = ("flow",)
#: kind of prompt -> how many
KINDS = {"pair": 120, "neutral": 60, "trigger": 100}


def rows(run: Run, methods: Sequence[str]) -> list[Row]:
    """Of prompts that name two items: `pairs_isolated`, no meaning flows either way; `pairs_leaking`, some leaks.

    The contexts of "pair" and "neutral" turn no word into another sense, those of "trigger" do.
    """
    figures: list[Row] = []
    for kind, n in KINDS.items():
        cases = [case for case in run.cases(kind, n) if len(case.things) == 2]
        if not cases:  # a --limit may leave a kind without pairs
            continue
        figures += measured(run, kind, cases, [case.prompt for case in cases], lambda case: flow_of(run, case))
    return figures


def measured(run: Run, kind: str, cases: Sequence[T], inputs: Any, flow_of: Callable[[T], Flow]) -> list[Row]:
    """`pairs_isolated` and `pairs_leaking` of some pairs, whose flow `flow_of` measures; `inputs` names them."""
    tick = run.ticking("flow", len(cases))

    def kinds() -> list[list[str]]:
        by_pair = []
        for case in cases:
            by_pair.append(_kinds(flow_of(case)))
            tick(1)
        return by_pair

    pairs = run.part(f"flow-{kind}", [inputs], kinds, [flow])
    return [
        share([set(pair) == {"none"} for pair in pairs], "flow", kind, "pairs_isolated"),
        share(["leak" in pair for pair in pairs], "flow", kind, "pairs_leaking"),
    ]


def flow_of(run: Run, case: Case) -> Flow:
    """The flow of a prompt of the world, whose words' senses are known."""
    items, senses = of_world(run.world, case)
    return flow(run.pipe, case.prompt, items, senses=senses, call=run.call)


def of_world(world: World, case: Case) -> tuple[list[Item], dict[str, list[str]]]:
    """The items of a prompt, a polyseme with the sense that it has alone, and the other senses of each."""
    known = {t.phrase: world.polysemes[t.word] for t in case.things if t.word in world.polysemes}
    items = [Item(t.phrase, sense=known[t.phrase].default_name if t.phrase in known else None) for t in case.things]
    return items, {phrase: [p.other_name] for phrase, p in known.items()}


def _kinds(between: Flow) -> list[str]:
    return [between.kind(i, j) for i, j in between.changes]
