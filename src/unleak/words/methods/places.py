"""Where the items of the prompts stand among the denoiser's text rows, and how much image cells attend to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from unleak.errors import BadInput, UnsupportedModel
from unleak.text.items import parse_items
from unleak.text.scene import Scene

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context

Positions = tuple[int, ...]
"""Rows of the denoiser's text."""

InPrompt = tuple[tuple[Positions, ...], ...]
"""Rows by item and encoder, in one prompt."""


class Places(NamedTuple):
    """``at[prompt][item][e]`` are the rows that encoder ``encoders[e]`` gives the item."""

    encoders: tuple[str, ...]
    at: tuple[InPrompt, ...]


def places(ctx: Context, items: Sequence[str]) -> Places:
    """Find the items in every prompt of this generation, in every encoder whose rows reach the denoiser.

    Encoders are placed by content: two that are joined on channels share the same rows (and differ only where
    their tokenizers do), one that is appended comes after the others, one that gives only its pooled vector
    has none.

    Raises:
        BadInput: the pipeline was called without `prompt`.
        UnsupportedModel: no encoder's rows are found among those of the denoiser.
        ItemNotFound, AmbiguousItem, PromptTruncated: an item is not usable in one of the prompts.
    """
    if "places" not in ctx.state:
        ctx.state["places"] = _find(ctx, items)
    found: Places = ctx.state["places"]
    return found


def _find(ctx: Context, items: Sequence[str]) -> Places:
    encoded = ctx.encoded
    if not encoded.calls:
        raise BadInput("items are found in the prompt's own text: call the pipeline with `prompt`")
    columns = {name: encoded.columns(name) for name in encoded.calls}
    starts = {name: column.start for name, column in columns.items() if column is not None}
    if not starts:
        raise UnsupportedModel("no text encoder's rows were found among the denoiser's text rows")
    spans = {name: Scene(encoded.calls[name], parse_items(items)).prompt.spans for name in starts}
    at = tuple(
        tuple(
            tuple(
                tuple(range(start + spans[name][b][i][0], start + spans[name][b][i][1]))
                for name, start in starts.items()
            )
            for i in range(len(items))
        )
        for b in range(len(encoded.prompts))
    )
    return Places(tuple(starts), at)


def alike(ctx: Context, site: AttentionCall, found: Places) -> list[tuple[InPrompt, Positions]]:
    """The positive batch rows of a call, together where their items stand at the same rows: (places, batch rows)."""
    groups: dict[InPrompt, list[int]] = {}
    for row in site.rows.of("cond"):
        groups.setdefault(found.at[site.rows.images[row] // ctx.encoded.images_per_prompt], []).append(row)
    return [(at, tuple(rows)) for at, rows in groups.items()]


def item_columns(ctx: Context, site: AttentionCall, found: Places) -> tuple[Positions, Tensor] | None:
    """Attention of each image cell to each item: the mean over the item's rows and over heads, before any edit.

    Returns:
        The images that the call draws, and [images, height, width, items, encoders] in 0..1; None where the
        call has no positive rows.
    """
    means = ctx.state.setdefault("means", {})
    parts, order = [], list[int]()
    for at, rows in alike(ctx, site, found):
        if at not in means:
            means[at] = _means(at, site.q.device)
        tokens, mean = means[at]
        columns = site.columns(tokens, rows)
        parts.append(torch.tensordot(columns, mean.to(columns), dims=1))
        order += rows
    if not parts:
        return None
    back = sorted(range(len(order)), key=order.__getitem__)
    return tuple(site.rows.images[row] for row in sorted(order)), torch.cat(parts)[back]


def _means(at: InPrompt, device: torch.device) -> tuple[list[int], Tensor]:
    """The rows that any item has, and the weights [rows, items, encoders] that make means over an item's own."""
    tokens = sorted({token for item in at for own in item for token in own})
    weights = torch.zeros(len(tokens), len(at), len(at[0]))
    for i, item in enumerate(at):
        for e, own in enumerate(item):
            weights[[tokens.index(token) for token in own], i, e] = 1 / len(own)
    return tokens, weights.to(device)
