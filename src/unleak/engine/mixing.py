"""Attention maps mixed across batch rows (`MapMix`), carried out on values instead of maps.

A target's output is ``A_source (take v) + A_target (keep v)``: the batch gets one more row for every target, with the
source's queries and keys, and the two outputs are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unleak.core.attention import AttentionCall, additive
from unleak.core.edits import Edit, MapMix
from unleak.engine.resolve import Resolved
from unleak.errors import BadInput, Conflict


@dataclass(frozen=True, eq=False)
class Mix:
    """One target row of a call: the row it takes from, `take` [K, K] and `keep` [K]."""

    target: int
    source: int
    take: Tensor
    keep: Tensor


def resolve_mixes(call: AttentionCall, edits: Sequence[Edit], resolved: Sequence[Resolved]) -> list[Mix]:
    """Every mixed row of a call.

    Raises:
        BadInput: `take` or `keep` does not fit the site's keys or the rows.
        Conflict: a row is mixed twice, or from a mixed row, or a region gives it other values.
    """
    mixes: list[Mix] = []
    for edit in edits:
        if not isinstance(edit, MapMix):
            continue
        pairs, keys = call.rows.pairs(edit.target, edit.source), call.k.shape[2]
        take, keep = edit.take.to(call.v).reshape(-1, *edit.take.shape[-2:]), edit.keep.to(call.v)
        keep = keep.reshape(-1, keep.shape[-1])
        if take.shape[1:] != (keys, keys) or keep.shape[1:] != (keys,):
            raise BadInput(f"a mix over {tuple(take.shape[1:])} keys does not fit the {keys} of site {call.name}")
        if pairs and {len(take), len(keep)} - {1, len(pairs)}:
            raise BadInput(f"{len(take)} and {len(keep)} tables do not fit {len(pairs)} target rows")
        mixes += [Mix(t, s, take[i % len(take)], keep[i % len(keep)]) for i, (t, s) in enumerate(pairs)]
    targets = [mix.target for mix in mixes]
    valued = {row for edit in resolved if edit.values is not None for row in edit.rows}
    if len(set(targets)) < len(targets) or {mix.source for mix in mixes} & set(targets) or valued & set(targets):
        raise Conflict(f"a row of site {call.name} is mixed twice, from a mixed row, or has values by region")
    return mixes


def with_source_rows(
    call: AttentionCall, q: Tensor, k: Tensor, v: Tensor, resolved: Sequence[Resolved], mixes: Sequence[Mix]
) -> tuple[AttentionCall, Tensor, Tensor, Tensor, list[Resolved]]:
    """The call with one more row for each mix, whose values are ``take v``; the target's own become ``keep v``."""
    numbers = [mix.source for mix in mixes]
    sources, targets = call.index(numbers), call.index([mix.target for mix in mixes])
    taken = torch.stack([mix.take @ v[mix.target] for mix in mixes])
    kept = torch.stack([mix.keep[:, None] * v[mix.target] for mix in mixes])
    values = torch.cat([v, taken])
    values[targets] = kept
    mask = call.mask
    if mask is not None:
        mask = additive(mask, q)
        mask = mask if len(mask) == 1 else torch.cat([mask, mask[sources]])
    edits = [_with_copies(call, edit, numbers, len(q)) for edit in resolved]
    return replace(call, mask=mask), torch.cat([q, q[sources]]), torch.cat([k, k[sources]]), values, edits


def _with_copies(call: AttentionCall, edit: Resolved, sources: Sequence[int], batch: int) -> Resolved:
    """The edit also on the copies of its rows."""
    at = [edit.rows.index(source) for source in sources if source in edit.rows]
    copies = tuple(batch + i for i, source in enumerate(sources) if source in edit.rows)
    parts = {name: getattr(edit, name) for name in ("queries", "keys", "values", "factor", "bias", "shut")}
    own: dict[str, Any] = {
        name: torch.cat([t, t[call.index(at)]]) for name, t in parts.items() if t is not None and len(t) > 1
    }
    return replace(edit, rows=(*edit.rows, *copies), **own)


def add_source_rows(out: Tensor, mixes: Sequence[Mix]) -> Tensor:
    """The output of a call `with_source_rows`, with each target's two parts added."""
    batch = len(out) - len(mixes)
    result = out[:batch].clone()
    for i, mix in enumerate(mixes):
        result[mix.target] += out[batch + i]
    return result
