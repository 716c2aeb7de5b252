"""Which tokens of an item carry it, found by drawing from each alone.

Source: Follow the Flow (arXiv 2504.01137). A token of an item is *representative* if its contextual row alone,
with pad rows elsewhere, shows the item. Any other is redundant: its row may be replaced by a pad row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from typing import Any, ClassVar

import numpy as np

from unleak.core.anatomy import Anatomy
from unleak.core.result import Result
from unleak.drawing.generate import Seeds, parse_seeds
from unleak.errors import BadInput, UnsupportedModel, choose
from unleak.judges import Judge
from unleak.stats.rate import Rate
from unleak.text.encode import TextEncoder
from unleak.text.items import Item, find_all, parse_items
from unleak.text.match import Chars
from unleak.text.prompt import check_prompt, each_prompt
from unleak.text.subsets import Subset, cut_item
from unleak.words.methods.probe import probe
from unleak.words.methods.prune import Prune
from unleak.words.tokens.reading import rows_read

RATE = 0.5  #: of the seeds: from here on a token that shows its item is representative
FEWEST = 4  #: seeds that such a rate needs

#: views of the prompt beside single tokens; "nothing" is the judge's control
VIEWS = {
    "nothing": Subset.nothing(),
    "words": Subset.tokens(),
    "EOS and pads": Subset.of(kinds=("eos", "pads")),
    "everything": Subset.everything(),
}


@dataclass(frozen=True)
class Token:
    """One token of an item: its text, its characters in the prompt, and the name of its view (None: not drawn)."""

    text: str
    chars: Chars
    view: str | None


@dataclass(frozen=True)
class ItemTokens:
    """An item, its characters in the prompt, what the judge looks for, its tokens; if several, their common view."""

    item: Item
    span: Chars
    sense: str | None
    view: str | None
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class TokenPlan:
    """Which subsets of the prompt are drawn, by name; `encoder` is the one whose tokens are counted."""

    prompt: str
    encoder: str
    items: tuple[ItemTokens, ...]
    subsets: dict[str, Subset]

    @property
    def named(self) -> list[Item]:
        return [one.item for one in self.items]


@dataclass(repr=False, eq=False)
class TokenStudy(Result):
    """What each token draws: per view images [S,H,W,3] and, with a judge, which items it saw [S, items]."""

    verb: ClassVar[str] = "tokens"
    plan: TokenPlan
    seeds: list[int]
    settings: dict[str, Any]
    model: str
    judge: str | None
    images: dict[str, np.ndarray]
    seen: dict[str, np.ndarray] | None

    def hits(self, i: int, view: str | None) -> np.ndarray | None:
        """[S] of bool: item i is in the view's images; None without a judge, or where nothing was drawn."""
        return None if self.seen is None or view is None else self.seen[view][:, i]

    def representative(self, i: int, k: int) -> bool | None:
        """Does token k of item i carry it alone? None without a judge; False where it was not drawn."""
        if self.seen is None:
            return None
        hits = self.hits(i, self.plan.items[i].tokens[k].view)
        return hits is not None and bool(hits.mean() >= RATE)

    def redundant(self, i: int) -> list[int]:
        """Tokens of item i that may go: the others of an item that has a representative token."""
        carries = [self.representative(i, k) for k in range(len(self.plan.items[i].tokens))]
        return [k for k, yes in enumerate(carries) if yes is False] if any(carries) else []

    def carriers(self) -> Subset:
        """Every representative token; see `Patch`."""
        every = [(i, k) for i, item in enumerate(self.plan.items) for k in range(len(item.tokens))]
        carriers = [(self.plan.items[i].item, k) for i, k in every if self.representative(i, k)]
        return reduce(or_, (Subset.token(item, k, self.plan.encoder) for item, k in carriers), Subset.nothing())

    def prune(self) -> Prune | None:
        """The repair that drops every redundant token; None if there is none."""
        gone = [
            Subset.token(item.item, k, self.plan.encoder)
            for i, item in enumerate(self.plan.items)
            for k in self.redundant(i)
        ]
        return Prune(reduce(or_, gone)) if gone else None

    def rate(self, i: int, view: str | None) -> dict[str, Any] | None:
        """On how many seeds item i is in a view, with its Wilson interval; None where nothing was judged."""
        hits = self.hits(i, view)
        if hits is None:
            return None
        rate = Rate.of(hits)
        return {"present": rate.k, "seeds": rate.n, "rate": rate.value, "low": rate.low, "high": rate.high}

    def lines(self) -> list[str]:
        who = f"judge {self.judge}" if self.judge else "no judge, so no token is called representative"
        lines = [self.plan.prompt, f"  tokens of {self.plan.encoder}; {who}; seeds {', '.join(map(str, self.seeds))}"]
        for i, item in enumerate(self.plan.items):
            lines.append(
                f"  {item.item.text}" + (f" ({item.sense})" if item.sense not in (None, item.item.text) else "")
            )
            for k, token in enumerate(item.tokens):
                rate, redundant = self.rate(i, token.view), k in self.redundant(i)
                counts = f"{rate['present']}/{rate['seeds']}" if rate else "not judged" if token.view else "not drawn"
                kind = "representative" if self.representative(i, k) else "redundant" if redundant else ""
                lines.append(f"      {token.text:<14} {counts:<11} {kind}".rstrip())
        return lines

    def views(self) -> dict[str, np.ndarray]:
        return self.images

    def data(self) -> dict[str, Any]:
        items = [
            {
                "text": item.item.text, "occurrence": item.item.occurrence, "sense": item.sense,
                "span": list(item.span), "whole": self.rate(i, item.view), "nothing": self.rate(i, "nothing"),
                "view": item.view, "redundant": self.redundant(i),
                "tokens": [
                    {"text": t.text, "span": list(t.chars), "view": t.view, "shows": self.rate(i, t.view),
                     "representative": self.representative(i, k)}
                    for k, t in enumerate(item.tokens)
                ],
            }
            for i, item in enumerate(self.plan.items)
        ]  # fmt: skip
        return {
            "prompt": self.plan.prompt, "model": self.model, "encoder": self.plan.encoder, "settings": self.settings,
            "judge": self.judge, "seeds": self.seeds, "items": items, "images": self.file_names(),
        }  # fmt: skip


def check(prompt: str, items: str | Iterable[str | Item]) -> tuple[tuple[Item, ...], list[Chars]]:
    """The items and where they are: what of a prompt can be checked without a pipeline. Errors as for `tokens`."""
    check_prompt(prompt)
    named = parse_items(items)
    spans = find_all(prompt, named)
    for item in named:
        if item.text == prompt.strip():
            raise BadInput(f"the item {item.text!r} is the whole prompt, so it has no context: write a sentence.")
    return named, spans


def plan(
    pipe: Any,
    prompt: str,
    items: str | Iterable[str | Item],
    *,
    encoder: str | None = None,
    last_only: bool = False,
    labels_only: bool = False,
    call: dict[str, Any] | None = None,
) -> TokenPlan:
    """The subsets that `tokens` will draw; arguments and errors are those of `tokens`."""
    named, spans = check(prompt, items)
    every = Anatomy.of(pipe).encoders
    readers = [c for c in every if c.name in rows_read(pipe, [prompt], **(call or {}))]
    if not readers:
        raise UnsupportedModel(
            f"{type(pipe).__name__} gives the denoiser no rows of a text encoder, so none can be left"
        )
    if encoder is not None:
        choose("encoder whose rows the denoiser reads", encoder, [c.name for c in readers])
    cuts = {c.name: [cut_item(c, prompt, item) for item in named] for c in readers}
    finest = max(cuts, key=lambda name: sum(map(len, cuts[name])))
    counted = next(c for c in readers if c.name == (encoder or finest))
    if last_only and not causal(pipe, counted.name):
        raise BadInput(f"{counted.name} looks both ways, so any token may carry an item: probe them all.")
    subsets = {"nothing": VIEWS["nothing"]} if labels_only else dict(VIEWS)
    of_items = []
    for i, (item, span, cut) in enumerate(zip(named, spans, cuts[counted.name], strict=True)):
        bare = replace(item, sense=None)
        whole = f"item {i}" if len(cut) > 1 and not labels_only else None
        if whole:
            subsets[whole] = Subset.of(bare)
        first = len(cut) - 1 if last_only else 0
        of_item = []
        for k, at in enumerate(cut):
            view = None if k < first or (labels_only and len(cut) == 1) else f"item {i} token {k}"
            if view:
                subsets[view] = Subset.token(bare, k, counted.name)
            chars = (min(at), max(at) + 1) if at else (span[0], span[0])
            of_item.append(Token(prompt[slice(*chars)] or "▁", chars, view))
        of_items.append(ItemTokens(item, span, item.sense, whole, tuple(of_item)))
    return TokenPlan(prompt, counted.name, tuple(of_items), subsets)


def tokens(
    pipe: Any,
    prompt: str,
    items: str | Iterable[str | Item],
    *,
    judge: Judge | None = None,
    seeds: Seeds = 4,
    pad: str = "empty",
    pooled: str = "pad",
    bank: Iterable[str] = (),
    encoder: str | None = None,
    last_only: bool = False,
    labels_only: bool = False,
    model: str = "",
    call: dict[str, Any] | None = None,
    batch: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> TokenStudy:
    """Draw from each token of the items alone, from items of several tokens, and from the `VIEWS`; let a judge look.

    Args:
        items: "hot dog,laptop" or a list. judge: without one, nothing is called representative.
        seeds: at least `FEWEST` with a judge.
        pad, pooled, bank: as in `Keep`.
        encoder: whose tokens are counted; default: of those whose rows the denoiser reads, the one that cuts
            the items most finely.
        last_only: of each item draw only the last token, which is where a causal encoder gathers the item.
        labels_only: draw nothing but the control and the tokens of items that have several.
        call: arguments of the pipeline. batch, progress: as in `probe`.

    Raises BadInput, ItemNotFound, AmbiguousItem, PromptTruncated before anything is drawn: also for an item that
    is the whole prompt, and for one that the judge cannot read.
    """
    numbers = parse_seeds(seeds)
    if judge is not None and len(numbers) < FEWEST:
        raise BadInput(f"{len(numbers)} seeds cannot say which tokens are representative: give at least {FEWEST}.")
    todo = plan(pipe, prompt, items, encoder=encoder, last_only=last_only, labels_only=labels_only, call=call)
    named = todo.named
    if judge is not None:
        looked_for = judge.senses(named)
        todo = replace(todo, items=tuple(replace(i, sense=s) for i, s in zip(todo.items, looked_for, strict=True)))
    options = {"pad": pad, "pooled": pooled, "bank": each_prompt(bank)}
    images = probe(
        pipe, prompt, todo.subsets, seeds=numbers, call=call, batch=batch, progress=progress,
        pad=pad, pooled=pooled, bank=bank,
    )  # fmt: skip
    present = {name: judge.present(drawn, named) for name, drawn in images.items()} if judge is not None else None
    settings = {**options, "last_only": last_only, "call": dict(call or {})}
    return TokenStudy(todo, numbers, settings, model, judge.name if judge else None, images, present)


def causal(pipe: Any, encoder: str) -> bool:
    """Does meaning flow left to right only in this encoder of the pipeline?"""
    part = next(e for e in Anatomy.of(pipe).encoders if e.name == encoder)
    return TextEncoder(part.module, part.tokenizer, length=16, name=encoder).causal
