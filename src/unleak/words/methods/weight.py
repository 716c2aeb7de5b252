"""Prompt weights, ``(mouse:1.4)``, as key scales: image cells attend more, or less, to some words.

Other tools multiply a word's text rows by its weight, which a norm after the encoder takes away again (LLM encoders, T5
with a norm). In attention the weight stays: with ``q`` of an image cell and ``k`` of a row of the word,

    logit = <q, w k> / sqrt(d)

so that the word's share of attention grows with ``w`` wherever the cell attends to it at all (a logit above 0).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unleak.core.edits import KeyScale
from unleak.errors import BadInput
from unleak.text.items import item_at
from unleak.words.methods.item_columns import alike
from unleak.words.methods.on_items import OnItems

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context

_WEIGHTED = re.compile(r"\(([^()]*):\s*([\d.]+)\s*\)")  # (mouse:1.4)
_LEFT = re.compile(r":\s*[\d.]+\s*\)")  # the end of another one around it


@dataclass(frozen=True)
class Weight(OnItems):
    """Let image cells attend to words by weight: ``Weight("mouse,laptop", (1.4, 0.8))``; see `weighted` for prompts.

    Attributes:
        items: as `Item.of` writes them; every prompt must hold them. One row is scaled for each token of an item.
        weights: one for every item, in their order, or a number for all; above 0. 1 changes nothing.

    Raises:
        BadInput: a weight out of range, or not as many as items; and the errors of items, as `Maps`.
    """

    weights: float | tuple[float, ...] = 1.4

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.weights, Iterable):
            object.__setattr__(self, "weights", tuple(self.weights))
        if len(self.of_items) != len(self.names):
            raise BadInput(f"weights={self.weights}: give one for each of the {len(self.names)} items, or one for all")
        for weight in self.of_items:
            if not isinstance(weight, int | float) or not 0 < weight < math.inf:
                raise BadInput(f"weights={self.weights}: a weight is a number above 0, e.g. 1.4; 1 changes nothing")

    @property
    def of_items(self) -> tuple[float, ...]:
        """A weight for each item."""
        return self.weights if isinstance(self.weights, tuple) else (self.weights,) * len(self.names)

    def on_attention(self, ctx: Context, site: AttentionCall) -> list[KeyScale] | None:
        if site.kind == "self":
            return None
        queries = None if site.kind == "cross" else "image"
        return [
            KeyScale(sorted(set().union(*rows_of_item)), weight, rows, queries=queries)
            for at, rows in alike(site, self.positions(ctx))
            for rows_of_item, weight in zip(at, self.of_items, strict=True)
            if weight != 1
        ]


def weighted(prompt: str) -> tuple[str, Weight]:
    """A prompt in the notation of other tools, on request: the text without its marks, and its weights.

    Other parentheses are text. No other mark is read: ``[mouse]`` names an item, see `unleak.text.items.bracketed`.

    >>> weighted("a (mouse:1.4) and a (red car:0.8)")[0]
    'a mouse and a red car'

    Raises:
        BadInput: no word has a weight; one stands around another, holds a part of a word, or is no number above 0.
    """
    parts = _WEIGHTED.split(prompt)  # plain, words, weight, plain, ..., plain
    if len(parts) == 1 or any(_LEFT.search(plain) for plain in parts[::3]):
        raise BadInput(
            f"no weights can be read from {prompt!r}: write 'a (mouse:1.4) and a laptop', none inside another"
        )
    plain = "".join(part for k, part in enumerate(parts) if k % 3 != 2)
    items, weights, at = [], [], 0
    for k, part in enumerate(parts):
        if k % 3 == 1:
            items.append(item_at(plain, part, at))
        if k % 3 == 2:
            try:
                weights.append(float(part))
            except ValueError:
                raise BadInput(f"{part!r} is no weight: write a number such as 1.4") from None
            continue
        at += len(part)
    return plain, Weight(items, tuple(weights))
