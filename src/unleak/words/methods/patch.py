"""Repairs of leaks between words that act on text rows alone: one more encoding per item, no denoiser work.

Source: Follow the Flow (arXiv 2504.01137), patching an item with its uncontextualised rows:
``H~[span_P(A)] = H^Q[span_Q(A)]``, where P is the prompt and Q the item A without its context.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from unleak.core.intervention import ALL, Intervention, SiteFilter, Window
from unleak.errors import BadInput, SpanMismatch, choose
from unleak.text.items import Item, parse_items, written
from unleak.text.match import occurrences
from unleak.text.rows import UNEQUAL, Layer, align, each_layer, patch
from unleak.text.scene import Scene, View
from unleak.text.spans import Tokens
from unleak.text.subsets import Subset
from unleak.text.tail import IN_PLACE, POLICIES, aligned, between, check_policy

if TYPE_CHECKING:
    from unleak.core.context import Context
    from unleak.text.call import TextCall

ISOLATIONS = ("bare", "positioned", "masked-context", "substituted", "attn-mask")
POOLED = ("full", "item", "eos_pads")
ROWS = ("item", "context", "eos", "pads")
_WHOLE_RUN = Window()
_NO_ROWS = Subset.nothing()
_POOLED_FIELDS = ("pooler_output", "text_embeds")


@dataclass(frozen=True, init=False)
class Patch(Intervention):
    """Give items the rows they have without their context; every other row keeps its context.

    ``Patch("mouse")``, ``Patch("mouse", "bat")``, ``Patch("mouse#2", as_="furry mouse", others="laptop")``.
    Only rows of the positive prompt change, in every layer that the pipeline asks its encoders for.

    Attributes:
        items: the items to repair, as `Item.of` writes them, with their own modifiers ("yellow car").
        others: the further items of the prompt, where a policy below must know them.
        isolation: where an item's rows come from. ``"auto"``: ``"substituted"`` if more items than one are named,
            else ``"bare"``, which is the paper's. ``"bare"``: its phrase alone. ``"positioned"``: its phrase
            after fillers, so that its tokens keep their places. ``"masked-context"``: the prompt with the
            other items masked by the filler. ``"substituted"``: the prompt with the other items replaced by
            the substitute ("a mouse and a thing"). ``"attn-mask"``: the prompt, each named item attending to itself
            alone. An item that has a sense (``as_``) is named by it in all of these.
        eos_pads: the rows after the text in a causal encoder, one of `unleak.text.tail.POLICIES`; ``"keep"``
            leaves what leaked into them. ``"auto"``: ``"compose"`` if more items than one are named, else
            ``"keep"`` with a warning. Encoders that look both ways always keep theirs.
        rows: which rows change, to measure where a leak sits, some of ``"item"``; ``"context"``: the other
            items and the words between, where ``eos_pads`` rebuilds the sentence; ``"eos"``; ``"pads"``.
        pooled: ``"full"``: of the whole prompt. ``"item"``: of the repaired items alone (their mean).
            ``"eos_pads"``: by the policy ``eos_pads``, in a causal encoder.
        unequal: ``"error"``, or ``"right-align"`` where an item has more or fewer tokens alone than in the
            prompt (`unleak.text.rows.align`). A sense without the item's own words is right-aligned under ``"error"``,
            too. ``"representative"``: of the one item only its ``carriers`` are taken, pad rows for the rest;
            an encoder that cuts the words otherwise and has no tokens to match them right-aligns.
        carriers: the tokens that carry the item alone, named by the words it has there: ``Subset.token("standing
            zebra", 2)``, or what ``tokens(pipe, "a standing zebra", "standing zebra", ...).carriers()`` finds.
        article: of the bare phrase, see `unleak.text.phrases.phrase`.
        filler: text of one token that stands for a masked item.
        substitute: word that stands for a replaced item.

    Raises (when built, or when the pipeline encodes its prompt):
        ItemNotFound, AmbiguousItem, PromptTruncated, SpanMismatch, BadInput.
    """

    items: tuple[str, ...]
    others: tuple[str, ...] = ()
    isolation: str = "auto"
    eos_pads: str = "auto"
    rows: tuple[str, ...] = ROWS
    pooled: str = "full"
    unequal: str = "error"
    article: str = "auto"
    filler: str = ","
    substitute: str = "thing"
    carriers: Subset = _NO_ROWS

    def __init__(
        self,
        *item: str | Item | Iterable[str | Item],
        items: Iterable[str | Item] = (),
        as_: str | None = None,
        others: str | Item | Iterable[str | Item] = (),
        isolation: str = "auto",
        eos_pads: str = "auto",
        rows: Iterable[str] = ROWS,
        pooled: str = "full",
        unequal: str = "error",
        article: str = "auto",
        filler: str = ",",
        substitute: str = "thing",
        carriers: Subset | Mapping[str, Any] = _NO_ROWS,
        window: Window = _WHOLE_RUN,
        sites: SiteFilter = ALL,
    ) -> None:
        named = [one for given in (*item, tuple(items)) for one in (parse_items(given) if given else ())]
        if not named:
            raise BadInput("Patch repairs at least one item: Patch('mouse').")
        if as_ is not None and len(named) != 1:
            raise BadInput("as_ names the sense of one item; for several write 'mouse=furry mouse' for each.")
        if as_ is not None:
            named = [Item(named[0].text, named[0].occurrence, as_)]
        beside = parse_items(others) if others else ()
        if isolation in ("masked-context", "substituted") and len(named) + len(beside) < 2:
            raise BadInput(f"{isolation=} must know the other items: others=('laptop',).")
        if eos_pads != "auto":
            check_policy(eos_pads, named, beside)
        carriers = Subset(**carriers) if isinstance(carriers, Mapping) else carriers
        if not isinstance(carriers, Subset):
            raise BadInput(f"carriers={carriers!r}: give a Subset, such as Subset.token('standing zebra', 2).")
        if (unequal == "representative") != bool(carriers.pieces) or (carriers.pieces and len(named) != 1):
            raise BadInput("unequal='representative' patches one item by its `carriers`, and only it has them.")
        values = {
            "items": written(named),
            "others": written(beside) if beside else (),
            "isolation": choose("isolation", isolation, ("auto", *ISOLATIONS)),
            "eos_pads": eos_pads,
            "rows": tuple(choose("rows", r, ROWS) for r in rows),
            "pooled": choose("pooled", pooled, POOLED),
            "unequal": choose("unequal", unequal, UNEQUAL),
            "article": article,
            "filler": filler,
            "substitute": substitute,
            "carriers": carriers,
            "window": window,
            "sites": sites,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    def on_text(self, ctx: Context, call: TextCall) -> Any:
        """``H~[span_P(A)] = H^Q[span_Q(A)]`` for each item A; then EOS and pads; then the pooled vector."""
        others = parse_items(self.others) if self.others else ()
        scene = Scene(call, parse_items(self.items), others, self.article, self.filler, self.substitute)
        if "auto" in (self.isolation, self.eos_pads):
            return self._decided(scene).on_text(ctx, call)
        closes = self.eos_pads != "keep" and scene.causal
        moved = [*(scene.items if "item" in self.rows else ()),
                 *(scene.others if closes and "context" in self.rows else ())]  # fmt: skip
        moves = [[self._move(ctx, scene, b, i) for i in moved] for b in range(len(call.prompts))]
        output = each_layer(lambda layer: self._rows(scene, moves, layer), call.output)
        pooled = {name: self._pooled(scene, name) for name in _POOLED_FIELDS if output.get(name) is not None}
        return type(output)(**{**output, **pooled})

    def _decided(self, scene: Scene) -> Patch:
        """This patch with "auto" settled for one encoder."""
        several = len(scene.named) > 1
        if scene.causal and not several and self.eos_pads == "auto":
            warnings.warn(
                f"{scene.call.name} gathers all items in the rows after the text; they keep what leaked into "
                f"them unless the other items are named: Patch({', '.join(map(repr, self.items))}, others=...).",
                stacklevel=2,
            )
        isolation = "substituted" if several else "bare"
        eos_pads = "compose" if several and scene.causal else "keep"
        return replace(
            self,
            isolation=isolation if self.isolation == "auto" else self.isolation,
            eos_pads=eos_pads if self.eos_pads == "auto" else self.eos_pads,
        )

    def _move(self, ctx: Context, scene: Scene, b: int, i: int) -> Move:
        """Where item i's rows of prompt b come from."""
        item = scene.named[i]
        isolated = {
            "bare": scene.alone,
            "positioned": scene.positioned,
            "masked-context": lambda i: scene.masked({i}),
            "substituted": lambda i: scene.substituted({i}),
            "attn-mask": lambda _: scene.separated,
        }
        view = isolated[self.isolation](i)
        renamed = item.sense is not None and not occurrences(item.sense, item.text)
        dst, src = scene.prompt.spans[b][i], view.spans[b][i]
        what = f"{item.text!r} in {scene.call.name}"
        unequal = "error" if self.carriers.pieces and i in scene.others else self.unequal
        unequal = "right-align" if renamed and unequal == "error" else unequal
        carriers: Collection[int] = ()
        if unequal == "representative":
            carriers = self.carriers.positions(scene.call, view.tokens[b], ctx.anatomy.encoders)
            if not carriers and not self.carriers.counts(scene.call.name):
                unequal = "right-align"
        move = Move(view, *align(dst, src, unequal, what, carriers))
        own, other = scene.prompt.tokens[b].ids[slice(*dst)], view.tokens[b].ids[slice(*src)]
        if len(own) == len(other) and own != other and not renamed:
            warnings.warn(f"{what} has other tokens alone than in the prompt.", stacklevel=2)
        return move

    def _rows(self, scene: Scene, moves: list[list[Move]], layer: Layer) -> Tensor:
        """One hidden layer [B, L, d] of the repaired prompts."""
        rows = []
        for b, todo in enumerate(moves):
            H = layer(scene.prompt.output)[b : b + 1]
            for move in todo:
                H = patch(H, layer(move.view.output)[b : b + 1], move.dst, move.src)
                if move.cleared:
                    H = patch(H, layer(scene.empty.output)[b : b + 1], move.cleared, move.cleared)
            if self.eos_pads != "keep" and scene.causal:
                own = scene.prompt.tokens[b]
                words = between(scene.prompt, b) if self.eos_pads in IN_PLACE else []
                kinds = ["context"] * len(words) + ["eos", *["pads"] * len(own.tail)][: len(own.tail)]
                T = POLICIES[self.eos_pads](scene, partial(_rest, layer, b, own, len(words)))
                chosen = [j for j, kind in enumerate(kinds) if kind in self.rows]
                rest = [*words, *own.tail]
                H = patch(H, T[None].to(H), [rest[j] for j in chosen], chosen)
            rows.append(H)
        return torch.cat(rows)

    def _pooled(self, scene: Scene, name: str) -> Tensor:
        """The pooled vectors [B, dp] of the repaired prompts."""
        full = scene.prompt.output[name]
        if self.pooled == "item":
            return torch.stack([scene.alone(i).output[name] for i in scene.items]).mean(0)
        if self.pooled == "eos_pads" and scene.causal:
            policy = POLICIES[self.eos_pads]
            each = [policy(scene, partial(_pooled_row, name, b)) for b in range(len(full))]
            return torch.cat(each).to(full)
        return full


def _rest(layer: Layer, b: int, own: Tokens, words: int, view: View) -> Tensor:
    """The view's rows that belong to no item, [T, d], one for each such row of the prompt b.

    Without ``words`` only those after the text: EOS and pads.
    """
    found = between(view, b) if words else []
    if len(found) != words:
        raise SpanMismatch(f"{view.tokens[b].text!r} has not the same words between its items as {own.text!r}.")
    return layer(view.output)[b, [*found, *aligned(own, view.tokens[b])]]


def _pooled_row(name: str, b: int, view: View) -> Tensor:
    return view.output[name][b : b + 1]


class Move(NamedTuple):
    """``H[dst] = view[src]``; the item's rows that have no source get pad rows (``cleared``)."""

    view: View
    dst: list[int]
    src: list[int]
    cleared: list[int]
