"""Repairs of leaks between words that act on text rows alone: one more encoding per item, no denoiser work.

Source: Follow the Flow (arXiv 2504.01137), patching an item with its uncontextualised rows. With H the rows of the
prompt P, ``I(A)`` the rows of item A, and Q an encoding in which A stands without its context:

    H~[I_P(A)] = H^Q[I_Q(A)]     for each item A; `ISOLATIONS` are the ways to make Q
    H~[R]      = T(P)            for the rows R of no item, in a causal encoder; `eos_pads.POLICIES` are the ways to T
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from unleak.core.intervention import ALL, Intervention, SiteFilter, Window
from unleak.errors import BadInput, SpanMismatch, choose
from unleak.text.eos_pads import POLICIES, WHOLE_SENTENCE, aligned, check_policy, words_of_no_item
from unleak.text.items import Item, parse_items, written
from unleak.text.match import occurrences
from unleak.text.rows import POOLED_FIELDS, UNEQUAL, Layer, align, each_layer, patch
from unleak.text.scene import Scene, View
from unleak.text.subsets import Cutter, Subset

if TYPE_CHECKING:
    from unleak.core.context import Context
    from unleak.text.call import TextCall

POOLED = ("full", "item", "eos_pads")
ROWS = ("item", "context", "eos", "pads")
_WHOLE_RUN = Window()
_NO_ROWS = Subset.nothing()


# -- Q: item i without its context ------------------------------------------------------------------------------


def bare(scene: Scene, i: int) -> View:
    """``Q = A``: the item's phrase alone, as in the paper: "a mouse"."""
    return scene.alone(i)


def positioned(scene: Scene, i: int) -> View:
    """``Q = , , , A``: its phrase after fillers, so that its tokens keep their places."""
    return scene.positioned(i)


def masked_context(scene: Scene, i: int) -> View:
    """``Q = P with the tokens of all other items masked by the filler``."""
    return scene.masked({i})


def substituted(scene: Scene, i: int) -> View:
    """``Q = P with all other items replaced by the substitute``: "a mouse and a thing"."""
    return scene.substituted({i})


def attn_mask(scene: Scene, i: int) -> View:
    """``Q = P``, each named item attending to itself alone."""
    return scene.separated


ISOLATIONS: dict[str, Callable[[Scene, int], View]] = {
    "bare": bare,
    "positioned": positioned,
    "masked-context": masked_context,
    "substituted": substituted,
    "attn-mask": attn_mask,
}


@dataclass(frozen=True, init=False)
class Patch(Intervention):
    """Give items the rows they have without their context; every other row keeps its context.

    ``Patch("mouse")``, ``Patch("mouse", "bat")``, ``Patch("mouse#2", as_="furry mouse", others="laptop")``.
    Only rows of the positive prompt change, in every layer that the pipeline asks its encoders for.

    Attributes:
        items: the items to repair, as `Item.of` writes them, with their own modifiers ("yellow car").
        others: the further items of the prompt, where a policy below must know them.
        isolation: where an item's rows come from, one of `ISOLATIONS`. ``"auto"``: ``"substituted"`` if more items
            than one are named, else ``"bare"``, which is the paper's. An item that has a sense (``as_``) is named by
            it in all of them.
        eos_pads: the rows after the text in a causal encoder, one of `unleak.text.eos_pads.POLICIES`; ``"keep"``
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
        named, beside = _named(item, items, as_), parse_items(others) if others else ()
        carriers = Subset(**carriers) if isinstance(carriers, Mapping) else carriers
        if isolation in ("masked-context", "substituted") and len(named) + len(beside) < 2:
            raise BadInput(f"{isolation=} must know the other items: others=('laptop',).")
        if eos_pads != "auto":
            check_policy(eos_pads, named, beside)
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
        """Both equations in every layer of one encoder, for each of its B prompts; then the pooled vectors."""
        others = parse_items(self.others) if self.others else ()
        scene = Scene(call, parse_items(self.items), others, self.article, self.filler, self.substitute)
        chosen = self.chosen(scene)
        prompts = range(len(call.prompts))
        swaps = [chosen.swaps(scene, b, ctx.anatomy.encoders) for b in prompts]

        def rows(layer: Layer) -> Tensor:
            return torch.cat([chosen.patched(scene, b, swaps[b], layer) for b in prompts])

        output = each_layer(rows, call.output)
        pooled = {name: chosen.pooled_of(scene, name) for name in POOLED_FIELDS if output.get(name) is not None}
        return type(output)(**{**output, **pooled})

    def chosen(self, scene: Scene) -> Patch:
        """This patch with "auto" resolved for one encoder."""
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

    def rebuilds(self, scene: Scene) -> bool:
        """Are the rows of no item exchanged in this encoder?"""
        return self.eos_pads != "keep" and scene.causal

    def swaps(self, scene: Scene, b: int, encoders: Sequence[Cutter]) -> list[Swap]:
        """Which rows of prompt b are exchanged for those of an isolated item: the items', and the others' where the
        sentence is rebuilt."""
        items = scene.items if "item" in self.rows else ()
        others = scene.others if "context" in self.rows and self.rebuilds(scene) else ()
        return [self.swap(scene, b, i, encoders) for i in (*items, *others)]

    def swap(self, scene: Scene, b: int, i: int, encoders: Sequence[Cutter]) -> Swap:
        """``I_P(A)`` and ``I_Q(A)`` of item i in prompt b, paired row by row."""
        view, item = ISOLATIONS[self.isolation](scene, i), scene.named[i]
        dst, src = scene.prompt.spans[b][i], view.spans[b][i]
        what, renamed = f"{item.text!r} in {scene.call.name}", item.sense and not occurrences(item.sense, item.text)
        unequal, carriers = self.unequal, list[int]()
        if self.carriers.pieces and i in scene.others:
            unequal = "error"
        if renamed and unequal == "error":
            unequal = "right-align"
        if unequal == "representative":
            carriers = self.carriers.positions(scene.call, view.tokens[b], encoders)
            if not carriers and not self.carriers.counts(scene.call.name):
                unequal = "right-align"
        swap = Swap(view, *align(dst, src, unequal, what, carriers))
        own, alone = scene.prompt.tokens[b].ids[slice(*dst)], view.tokens[b].ids[slice(*src)]
        if len(own) == len(alone) and own != alone and not renamed:
            warnings.warn(f"{what} has other tokens alone than in the prompt.", stacklevel=2)
        return swap

    def patched(self, scene: Scene, b: int, swaps: Sequence[Swap], layer: Layer) -> Tensor:
        """``H~`` [1, L, d]: one hidden layer of prompt b after both equations."""
        H = layer(scene.prompt.output)[b : b + 1]
        for swap in swaps:
            H = patch(H, layer(swap.view.output)[b : b + 1], swap.dst, swap.src)
            if swap.cleared:
                H = patch(H, layer(scene.empty.output)[b : b + 1], swap.cleared, swap.cleared)
        if not self.rebuilds(scene):
            return H
        words, after = words_of_no_item(scene.prompt, b), scene.prompt.tokens[b].after_text
        words = words if self.eos_pads in WHOLE_SENTENCE else []
        R = [*words, *after]
        kinds = ["context"] * len(words) + ["eos" if row == after.start else "pads" for row in after]
        T = POLICIES[self.eos_pads](scene, partial(rows_of_no_item, scene, b, len(words), layer))
        chosen = [j for j, kind in enumerate(kinds) if kind in self.rows]
        return patch(H, T[None].to(H), [R[j] for j in chosen], chosen)

    def pooled_of(self, scene: Scene, name: str) -> Tensor:
        """The pooled vectors [B, dp] of the patched prompts."""
        full: Tensor = scene.prompt.output[name]
        if self.pooled == "item":
            return torch.stack([scene.alone(i).output[name] for i in scene.items]).mean(0)
        if self.pooled == "eos_pads" and scene.causal:
            policy = POLICIES[self.eos_pads]
            return torch.cat([policy(scene, partial(_pooled_row, name, b)) for b in range(len(full))]).to(full)
        return full


class Swap(NamedTuple):
    """``H~[dst] = H^Q[src]``, Q being `view`; rows of the item that have no source become pad rows (``cleared``)."""

    view: View
    dst: list[int]
    src: list[int]
    cleared: list[int]


def rows_of_no_item(scene: Scene, b: int, words: int, layer: Layer, view: View) -> Tensor:
    """``T(view)`` [R, d]: the rows of no item in another encoding, one for each such row of prompt b.

    Args:
        words: how many rows of words the prompt has between its items; 0: only those after the text are read.

    Raises SpanMismatch: the encoding has not as many.
    """
    own, other = scene.prompt.tokens[b], view.tokens[b]
    between = words_of_no_item(view, b) if words else []
    if len(between) != words:
        raise SpanMismatch(f"{other.text!r} has not the same words between its items as {own.text!r}.")
    return layer(view.output)[b, [*between, *aligned(own, other)]]


def _pooled_row(name: str, b: int, view: View) -> Tensor:
    """``T(view)`` [1, dp] where T is the pooled vector of prompt b."""
    return view.output[name][b : b + 1]


def _named(
    item: Sequence[str | Item | Iterable[str | Item]], items: Iterable[str | Item], as_: str | None
) -> list[Item]:
    """The items, however they were given."""
    named = [
        one
        for given in (*item, items if isinstance(items, str) else tuple(items))
        for one in (parse_items(given) if given else ())
    ]
    if not named:
        raise BadInput("Patch repairs at least one item: Patch('mouse').")
    if as_ is not None and len(named) != 1:
        raise BadInput("as_ names the sense of one item; for several write 'mouse=furry mouse' for each.")
    return named if as_ is None else [Item(named[0].text, named[0].occurrence, as_)]
