"""How much image cells attend to the items of their prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unleak.text.positions import InPrompt, ItemPositions, Positions

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context


def alike(site: AttentionCall, positions: ItemPositions) -> list[tuple[InPrompt, Positions]]:
    """The positive batch rows of a call, together where their items stand at the same positions: (where, rows)."""
    groups: dict[InPrompt, list[int]] = {}
    for prompt, rows in site.rows.by_prompt("cond").items():
        groups.setdefault(positions.at[prompt], []).extend(rows)
    return [(at, tuple(sorted(rows))) for at, rows in groups.items()]


def item_columns(ctx: Context, site: AttentionCall, positions: ItemPositions) -> tuple[Positions, Tensor] | None:
    """Attention of each image cell to each item: the mean over the item's rows and over heads, before any edit.

    Returns:
        The images that the call draws, and [images, height, width, items, encoders] in 0..1; None where the
        call has no positive rows.
    """
    means = ctx.state.setdefault("means", {})
    parts, order = [], list[int]()
    for at, rows in alike(site, positions):
        if at not in means:
            means[at] = _means(at, site.q.device)
        tokens, mean = means[at]
        columns = site.columns(tokens, rows)
        parts.append(torch.tensordot(columns, mean.to(columns), dims=1))
        order += rows
    if not parts:
        return None
    back = sorted(range(len(order)), key=order.__getitem__)
    return tuple(site.rows.images[row] for row in sorted(order)), torch.cat(parts)[site.at(back)]


def _means(at: InPrompt, device: torch.device) -> tuple[list[int], Tensor]:
    """The rows that any item has, and the weights [rows, items, encoders] that make means over an item's own."""
    tokens = sorted({token for item in at for own in item for token in own})
    weights = torch.zeros(len(tokens), len(at), len(at[0]))
    for i, item in enumerate(at):
        for e, own in enumerate(item):
            weights[[tokens.index(token) for token in own], i, e] = 1 / len(own)
    return tokens, weights.to(device)
