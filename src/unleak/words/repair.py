"""`unleak.repair`: draw a prompt before and after a repair, at the same seeds, and let a judge compare.

Which items are repaired is decided by the judge: those that are missing, in the sense that is meant, from more
than half of the images. Without a judge every named item is repaired, and no rate is claimed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from unleak.core.session import attach
from unleak.errors import BadInput
from unleak.generate import check_prompt, generate, rehearse
from unleak.judges import Judge
from unleak.text.items import Item, find_all, parse_items
from unleak.text.match import Chars
from unleak.words.repairs import Patch

METHODS = ("patch",)


@dataclass
class ItemOutcome:
    """One item: its characters in the prompt, what is meant, and on how many seeds it is there."""

    text: str
    sense: str | None
    span: tuple[int, int]
    repaired: bool
    before: np.ndarray | None  #: [S] bool, None without a judge
    after: np.ndarray | None


@dataclass
class Repair:
    """Images before and after [S,H,W,3] uint8 at the same seeds, and what the judge says of each item."""

    prompt: str
    model: str
    method: str
    settings: dict[str, Any]
    items: list[ItemOutcome]
    seeds: list[int]
    before: np.ndarray
    after: np.ndarray
    judge: str | None
    log: Any = field(default=None, repr=False)

    @property
    def changed(self) -> bool:
        """Whether any item was repaired."""
        return any(i.repaired for i in self.items)


@dataclass(frozen=True)
class Plan:
    """Which items of the prompt there are, and which are repaired whatever the judge says (None: it decides)."""

    items: tuple[Item, ...]
    spans: list[Chars]
    forced: list[bool] | None
    options: dict[str, Any]

    def patch(self, target: Sequence[bool]) -> Patch:
        """The repair of the items that `target` marks; the others are its context."""
        broken = [i for i, t in zip(self.items, target, strict=True) if t]
        others = [i for i, t in zip(self.items, target, strict=True) if not t]
        return Patch(items=broken, others=others, **self.options)

    def trials(self) -> list[Patch]:
        """Repairs that must work before anything is drawn: the forced one, or that of each single item."""
        if self.forced is not None:
            return [self.patch(self.forced)]
        return [self.patch([i is item for i in self.items]) for item in self.items]


def plan(
    prompt: str,
    items: str | Iterable[str | Item],
    *,
    with_: str = "patch",
    only: str | Iterable[str | Item] | None = None,
    **options: Any,
) -> Plan:
    """Everything of a repair that can be checked without a pipeline; arguments are those of `repair`.

    Raises BadInput, ItemNotFound, AmbiguousItem: an item is not in the prompt, or is there twice, or overlaps
    another; `only` is none of them; an option of the repair is unknown.
    """
    if with_ not in METHODS:
        raise BadInput(f"no repair {with_!r}; choose from {METHODS}")
    check_prompt(prompt)
    named = parse_items(items)
    made = Plan(named, find_all(prompt, named), None if only is None else _among(named, parse_items(only)), options)
    made.trials()
    return made


def _among(named: Sequence[Item], only: Sequence[Item]) -> list[bool]:
    """Which of `named` are in `only`; an occurrence or a sense may be left out there."""
    hits = [
        [n.text == o.text and o.occurrence in (None, n.occurrence) and o.sense in (None, n.sense) for n in named]
        for o in only
    ]
    for o, row in zip(only, hits, strict=True):
        if sum(row) != 1:
            raise BadInput(f"only='{o}' must be one of the items {', '.join(map(repr, map(str, named)))}")
    return [any(column) for column in zip(*hits, strict=True)]


def repair(
    pipe: Any,
    prompt: str,
    items: str | Iterable[str | Item],
    *,
    with_: str = "patch",
    seeds: Sequence[int] = range(8),
    judge: Judge | None = None,
    only: str | Iterable[str | Item] | None = None,
    model: str = "",
    call: dict[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> Repair:
    """Draw `prompt` at `seeds`, repair what the judge misses, draw it again at the same seeds.

    Args:
        items: every item of the prompt, "mouse,laptop" or a list; "mouse=furry mouse" names the sense. An
            item without one is meant in the sense that the judge looks for, and is repaired by that name.
        with_: the repair, one of `METHODS`.
        only: of the items, repair these, whatever the judge says.
        call: arguments of the pipeline (steps, guidance, size).
        options: passed to the repair (`isolation`, `eos_pads`, ... of `Patch`).

    Raises BadInput, ItemNotFound, AmbiguousItem, PromptTruncated, SpanMismatch before anything is drawn.
    """
    todo = plan(prompt, items, with_=with_, only=only, **options)
    senses: Sequence[str | None] = judge.senses(todo.items) if judge else [i.sense for i in todo.items]
    meant = [s if s != i.text else None for i, s in zip(todo.items, senses, strict=True)]
    todo = replace(todo, items=tuple(replace(i, sense=s) for i, s in zip(todo.items, meant, strict=True)))
    named = todo.items
    seeds, call = list(seeds), dict(call or {})
    if judge is None and todo.forced is None:
        todo = replace(todo, forced=[True] * len(named))
    for trial in todo.trials():
        rehearse(pipe, prompt, trial, **call)

    before = generate(pipe, prompt, seeds, progress=progress, **call)[0]
    seen = judge.present(before, named) if judge else None
    target = todo.forced
    if target is None:
        assert seen is not None
        target = [bool(rate < 0.5) for rate in seen.mean(0)]

    after, again, log = before, seen, None
    if any(target):
        with attach(pipe, todo.patch(target)) as run:
            after = generate(pipe, prompt, seeds, progress=progress, **call)[0]
        again, log = (judge.present(after, named) if judge else None), run.log
    elif progress:
        progress(len(seeds))
    outcomes = [
        ItemOutcome(
            item.text, sense, span, hit,
            None if seen is None else seen[:, k], None if again is None else again[:, k],
        )
        for k, (item, sense, span, hit) in enumerate(zip(named, senses, todo.spans, target, strict=True))
    ]  # fmt: skip
    settings = {"with": with_, **options, "call": call}
    return Repair(prompt, model, with_, settings, outcomes, seeds, before, after, judge.name if judge else None, log)
