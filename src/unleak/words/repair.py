"""`unleak.repair`: draw a prompt before and after a repair, at the same seeds, and let a judge compare.

Which items are repaired is decided by the judge: those that are missing, in the sense that is meant, from more
than half of the images. Without a judge every named item is repaired, and no rate is claimed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unleak.core.session import attach
from unleak.errors import BadInput
from unleak.generate import check_prompt, generate
from unleak.judges import Judge
from unleak.text.items import Item, find_all, parse_items
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


def chosen(prompt: str, items: str | Iterable[str | Item]) -> tuple[Item, ...]:
    """The items, checked against the prompt: each is there, once or by its number, and none overlap."""
    check_prompt(prompt)
    named = parse_items(items)
    find_all(prompt, named)
    return named


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
        items: every item of the prompt, "mouse,laptop" or a list; "mouse=furry mouse" names the sense.
        with_: the repair, one of `METHODS`.
        only: repair these items, whatever the judge says.
        call: arguments of the pipeline (steps, guidance, size).
        options: passed to the repair (`isolation`, `eos_pads`, ... of `Patch`).

    Raises BadInput, ItemNotFound, AmbiguousItem, PromptTruncated before anything is drawn.
    """
    if with_ not in METHODS:
        raise BadInput(f"no repair {with_!r}; choose from {METHODS}")
    named = chosen(prompt, items)
    forced = chosen(prompt, only) if only is not None else None
    spans = find_all(prompt, named)
    senses: Sequence[str | None] = judge.senses(named) if judge else [i.sense for i in named]
    seeds, call = list(seeds), dict(call or {})

    before = generate(pipe, prompt, seeds, progress=progress, **call)[0]
    seen = judge.present(before, named) if judge else None
    if forced is not None:
        texts = {str(i) for i in forced} | {i.text for i in forced}
        target = [str(i) in texts or i.text in texts for i in named]
    elif seen is not None:
        target = [bool(rate < 0.5) for rate in seen.mean(0)]
    else:
        target = [True] * len(named)

    after, again, log = before, seen, None
    if any(target):
        broken = [i for i, t in zip(named, target, strict=True) if t]
        others = [i for i, t in zip(named, target, strict=True) if not t]
        with attach(pipe, Patch(items=broken, others=others, **options)) as run:
            after = generate(pipe, prompt, seeds, progress=progress, **call)[0]
        again, log = (judge.present(after, named) if judge else None), getattr(run, "log", None)
    elif progress:
        progress(len(seeds))
    outcomes = [
        ItemOutcome(
            item.text, sense, span, hit,
            None if seen is None else seen[:, k], None if again is None else again[:, k],
        )
        for k, (item, sense, span, hit) in enumerate(zip(named, senses, spans, target, strict=True))
    ]  # fmt: skip
    settings = {"with": with_, **options, "call": call}
    return Repair(prompt, model, with_, settings, outcomes, seeds, before, after, judge.name if judge else None, log)
