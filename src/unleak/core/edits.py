"""Descriptions of what a method does to one attention call. The engine carries them out.

With q, k, v of a call, all edits together mean, for every batch row and query,

    out = softmax(F * (scale q k^T) + mask + biases) v

in a fixed order, whoever asked: row swaps change q, k, v first (in list order), a region's keys and values
replace them for its queries (a later region wins), key scales multiply into F, biases add up; the softmax then
may be mixed with that of other rows. `rows` says
which batch rows are meant ("cond", "uncond", a branch's name, positions, None = all). Cells and tokens are
addressed alike everywhere: a bool tensor [h, w] (any size, resized nearest; or [rows, h, w]) is a mask over
image cells, a sequence of integers are text tokens, "image" is every image cell, None is everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from unleak.core.rows import Which

Where: TypeAlias = Tensor | Sequence[int] | str | None


@dataclass(frozen=True, eq=False)
class KeyScale:
    """Multiply the logits of text tokens: the same as scaling their key rows, so no map is materialised.

    `factor` is a number or a tensor broadcastable to [rows, heads, tokens]; 1 changes nothing. `queries`
    limits it to some image cells, `heads` to some heads.
    """

    tokens: Sequence[int] | None
    factor: float | Tensor
    rows: Which = "cond"
    heads: Sequence[int] | None = None
    queries: Where = None


@dataclass(frozen=True, eq=False)
class Bias:
    """Add to the logits between `queries` and `keys`.

    `value` is a number, or a tensor broadcastable to [rows, heads, queries, keys]; with one entry per query
    (or key) these are counted off by position, so they cannot be given as a mask.
    """

    value: float | Tensor
    keys: Where = None
    queries: Where = None
    rows: Which = "cond"
    heads: Sequence[int] | None = None


def Mask(keys: Where = None, queries: Where = None, rows: Which = "cond") -> Bias:
    """Forbid attention from `queries` to `keys`."""
    return Bias(float("-inf"), keys, queries, rows)


@dataclass(frozen=True, eq=False)
class Region:
    """Image cells that read other text: `text` rows [L, D] (cross sites project them by themselves), or
    `keys` and/or `values` [H, K, d] or [rows, H, K, d] for the whole key sequence."""

    mask: Tensor
    text: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None
    keep_keys: bool = False
    """With `text`: take only the values from it and leave the call's own keys."""


@dataclass(frozen=True, eq=False)
class Partition:
    """Queries split by region, each region with its own keys and values; other queries stay as they are."""

    regions: Sequence[Region]
    rows: Which = "cond"


@dataclass(frozen=True, eq=False)
class RowSwap:
    """Batch rows `target` take `parts` of batch rows `source`; one source may serve many targets. `cells`: of image
    cells alone, where text and image attend jointly."""

    target: Which
    source: Which
    parts: str = "qk"
    cells: bool = False


def QueryKeySwap(target: Which, source: Which) -> RowSwap:
    """Use the attention map of `source`, with the target's own values."""
    return RowSwap(target, source, "qk")


def KeyValueSwap(target: Which, source: Which) -> RowSwap:
    """Let the target's queries read the source's keys and values."""
    return RowSwap(target, source, "kv")


@dataclass(frozen=True, eq=False)
class ValueSwap:
    """Replace values: of text `tokens` (None: of every key) by `values`, broadcastable to [rows, H, T, d]."""

    values: Tensor
    tokens: Sequence[int] | None = None
    rows: Which = "cond"


@dataclass(frozen=True, eq=False)
class MapMix:
    """Batch rows `target` take over the attention map of batch rows `source` in part:

        A_target <- A_source take + A_target diag(keep)

    with `take` [K, K] or [rows, K, K] from the source's keys to the target's and `keep` [K] or [rows, K], over all
    keys of the site. Linear in the map, so that values carry it and no map is materialised: ``A_source (take v) +
    A_target (keep v)``. One source may serve many targets; a row is mixed once, from a row that is not.
    """

    target: Which
    source: Which
    take: Tensor
    keep: Tensor


Edit: TypeAlias = KeyScale | Bias | Partition | RowSwap | ValueSwap | MapMix
