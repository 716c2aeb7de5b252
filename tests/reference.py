"""What edits mean, written down with materialised attention maps. The executors are tested against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unleak.core.attention import AttentionCall, additive
from unleak.core.rows import Which
from unleak.engine.execute import execute
from unleak.engine.mixing import Mix, resolve_mixes
from unleak.engine.resolve import Resolved, resolve, swap


@dataclass(frozen=True, eq=False)
class MapEdit:
    """Change the attention map itself, [B, H, N, K] -> same shape, all batch rows, after all other edits."""

    change: Callable[[Tensor], Tensor]


def softmax_map(q: Tensor, k: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """The whole attention map [B, H, N, K]."""
    q, k = (x if x.dtype == torch.float64 else x.float() for x in (q, k))
    logits = q @ k.mT * scale
    return torch.softmax(logits if mask is None else logits + mask, dim=-1)


def full_map(call: AttentionCall, rows: Which = "cond") -> Tensor:
    """The whole map [rows, heads, N, K] of some rows of a call, before any edit."""
    picked = call.at(call.rows.of(rows))
    mask = None if call.mask is None else additive(call.mask, call.q).expand(len(call.q), -1, -1, -1)[picked]
    return softmax_map(call.q[picked], call.k[picked], call.scale, mask)


def mixed_maps(weights: Tensor, mixes: Sequence[Mix]) -> Tensor:
    """``A_target <- A_source take + A_target diag(keep)`` on maps [B, H, N, K]."""
    out = weights.clone()
    for mix in mixes:
        out[mix.target] = weights[mix.source] @ mix.take.to(weights) + weights[mix.target] * mix.keep.to(weights)
    return out


def dense(call: AttentionCall, edits: Sequence[Any]) -> Tensor:
    """``softmax(F * (scale q k^T) + mask + biases) v``, one materialised map for each batch row."""
    maps = [edit for edit in edits if isinstance(edit, MapEdit)]
    edits = [edit for edit in edits if not isinstance(edit, MapEdit)]
    q, k, v = swap(call, edits)
    resolved = resolve(call, edits)
    mixes = resolve_mixes(call, edits, resolved)
    wide = q.dtype if q.dtype == torch.float64 else torch.float32
    q, k, v, dtype = q.to(wide), k.to(wide), v.to(wide), q.dtype
    logits = call.scale * q @ k.mT
    biases = torch.zeros_like(logits) if call.mask is None else additive(call.mask, q) + torch.zeros_like(logits)
    factors = torch.ones_like(logits)
    for edit in resolved:
        for row in edit.rows:
            here = _queries(call, edit, row)
            if edit.keys is not None:
                logits[row, :, here] = (
                    call.scale * q[row, :, here] @ edit.of_rows(edit.keys, [row], call)[0].to(wide).mT
                )
            if edit.factor is not None:
                factors[row, :, here] *= edit.of_rows(edit.factor, [row], call)[0].to(wide)
            if edit.shut is not None:
                biases[row, :, here] += torch.zeros_like(
                    edit.of_rows(edit.shut, [row], call)[0], dtype=wide
                ).masked_fill(edit.of_rows(edit.shut, [row], call)[0], float("-inf"))
            if edit.bias is not None:
                bias = edit.of_rows(edit.bias, [row], call)[0].to(wide)
                biases[row, :, here] += bias if bias.shape[1] == 1 else bias[:, here]
    weights = mixed_maps(torch.softmax(factors * logits + biases, dim=-1), mixes)
    for edit in maps:
        weights = edit.change(weights)
    out = weights @ v
    for edit in resolved:
        for row in edit.rows if edit.values is not None else ():
            here = _queries(call, edit, row)
            out[row, :, here] = weights[row, :, here] @ edit.of_rows(edit.values, [row], call)[0].to(wide)
    return out.to(dtype)


def _queries(call: AttentionCall, edit: Resolved, row: int) -> slice | Tensor:
    return slice(None) if edit.queries is None else edit.of_rows(edit.queries, [row], call)[0]


def execute_map_edits(call: AttentionCall, edits: Sequence[Any], kernel: Callable[..., Tensor]) -> Tensor:
    """As the engine, but a call with a `MapEdit` is carried out by `dense`."""
    materialise = any(isinstance(edit, MapEdit) for edit in edits)
    return dense(call, edits) if materialise else execute(call, edits, kernel)
