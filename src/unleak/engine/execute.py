"""Carry out the edits of one attention call. Three executors, one meaning (that of `edits.py`):

* `scaled`: only key scales, for all queries: one kernel call on scaled keys;
* `partitioned`: batch rows and queries split into classes with equal edits, one kernel call for each class;
  nothing of size N x K is built unless a bias itself has that size;
* `dense`: the map is materialised; the reference of the other two, and the only one that edits maps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unleak.core.attention import AttentionCall, additive, row_index
from unleak.core.edits import Edit, MapEdit
from unleak.engine.effects import Effect, effects, swapped
from unleak.engine.mixing import Mix, folded, grown, mixed_maps, mixes
from unleak.errors import BadInput

Kernel = Callable[..., Tensor]
"""(q, k, v, attn_mask) -> out, with the scale of the call."""


def execute(call: AttentionCall, edits: Sequence[Edit], kernel: Kernel, how: str | None = None) -> Tensor:
    """The output [B, H, N, d] of one call with all its edits; `how` forces one of the executors."""
    q, k, v = swapped(call, edits)
    made = effects(call, edits)
    wanted = mixes(call, edits, made)
    maps = [edit for edit in edits if isinstance(edit, MapEdit)]
    if how is None:
        simple = all(effect.factor is not None and effect.queries is None for effect in made)
        how = "dense" if maps else "scaled" if simple else "partitioned"
    if how == "dense":
        return dense(call, q, k, v, made, wanted, maps)
    fused = scaled if how == "scaled" else partitioned
    if wanted:
        return folded(fused(*grown(call, q, k, v, made, wanted), kernel), wanted)
    return fused(call, q, k, v, made, kernel)


def scaled(call: AttentionCall, q: Tensor, k: Tensor, v: Tensor, made: Sequence[Effect], kernel: Kernel) -> Tensor:
    """`F * (q k^T)` is `q (F k)^T` where F does not depend on the query."""
    factor = torch.ones_like(k[:, :, :, :1])
    for effect in made:
        assert effect.factor is not None
        factor[list(effect.rows)] *= effect.factor.mT
    return kernel(q, k * factor if made else k, v, call.mask)


def partitioned(call: AttentionCall, q: Tensor, k: Tensor, v: Tensor, made: Sequence[Effect], kernel: Kernel) -> Tensor:
    """Split the batch by rows with equal edits and each part by queries with equal edits."""
    out = q.new_empty(*q.shape[:3], v.shape[-1])
    for rows, mine in _row_groups(len(q), made):
        for chosen, index in _query_classes(call, rows, mine, q.shape[2]):
            inputs = _class_inputs(call, q, k, v, rows, [mine[i] for i in chosen], index)
            result = kernel(*inputs)
            if index is None:
                out[row_index(rows)] = result
            else:
                out[torch.tensor(rows, device=q.device)[:, None], :, index[None]] = result.transpose(1, 2)
    return out


def _row_groups(batch: int, made: Sequence[Effect]) -> list[tuple[list[int], list[Effect]]]:
    """Rows under the same effects together, unless an effect has a query mask for each row."""
    groups: dict[tuple[int, ...], tuple[list[int], list[Effect]]] = {}
    for row in range(batch):
        mine = [effect for effect in made if row in effect.rows]
        own = any(effect.queries is not None and len(effect.queries) > 1 for effect in mine)
        key = (*(id(effect) for effect in mine), *([row] if own else []))
        groups.setdefault(key, ([], mine))[0].append(row)
    return list(groups.values())


def _query_classes(
    call: AttentionCall, rows: list[int], mine: Sequence[Effect], length: int
) -> list[tuple[tuple[int, ...], Tensor | None]]:
    """(effects that apply, their queries) for every set of effects that some query is under."""
    limited = [i for i, effect in enumerate(mine) if effect.queries is not None]
    if not limited:
        return [(tuple(range(len(mine))), None)]
    masks = [_of_row(mine[i].queries, mine[i], rows[0]) for i in limited]
    always = set(range(len(mine))) - set(limited)

    def build() -> list[tuple[tuple[int, ...], Tensor | None]]:
        code = sum(mask[0].long() << bit for bit, mask in enumerate(masks))
        classes: list[tuple[tuple[int, ...], Tensor | None]] = []
        for value in torch.unique(torch.as_tensor(code)).tolist():
            under = {i for bit, i in enumerate(limited) if value >> bit & 1}
            index = torch.nonzero(code == value).flatten()
            classes.append((tuple(sorted(always | under)), None if len(index) == length else index))
        return classes

    owners = [mine[i].queries for i in limited]
    key = ("classes", tuple(id(owner) for owner in owners), tuple(limited), len(mine), rows[0], length)
    return call.once(key, owners, build)


def _class_inputs(
    call: AttentionCall,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: list[int],
    mine: Sequence[Effect],
    index: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """q, k, v and additive mask of one class: `rows` of the batch, queries `index`."""
    at = row_index(rows)
    queries, keys, values = q[at], k[at], v[at]
    mask = None if call.mask is None else additive(call.mask, q).expand(len(q), -1, -1, -1)[at]
    for effect in mine:
        if effect.keys is not None:
            keys = _of_rows(effect.keys, effect, rows).expand_as(keys)
        if effect.values is not None:
            values = _of_rows(effect.values, effect, rows).expand_as(values)
        if effect.factor is not None:
            keys = keys * _of_rows(effect.factor, effect, rows).mT
        if effect.bias is not None:
            bias = _of_rows(effect.bias, effect, rows)
            mask = bias if mask is None else mask + bias
    if index is not None:
        queries = queries[:, :, index]
        mask = mask[:, :, index] if mask is not None and mask.shape[2] > 1 else mask
    if mask is not None and any(effect.may_forbid for effect in mine) and _forbids_all(mask):
        raise BadInput(f"the masks of site {call.name} forbid some query every key")
    if mask is not None:
        mask = mask.expand(len(rows), -1, queries.shape[2], keys.shape[2])
    return queries, keys, values, mask


def _forbids_all(mask: Tensor) -> bool:
    return bool(torch.isneginf(mask).all(-1).any())


def _of_rows(value: Tensor, effect: Effect, rows: Sequence[int]) -> Tensor:
    return value if len(value) == 1 else value[[effect.rows.index(row) for row in rows]]


def _of_row(value: Tensor | None, effect: Effect, row: int) -> Tensor:
    assert value is not None
    return _of_rows(value, effect, [row])


def dense(
    call: AttentionCall,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    made: Sequence[Effect],
    wanted: Sequence[Mix],
    maps: Sequence[MapEdit],
) -> Tensor:
    """The definition, written down: one materialised map per batch row."""
    wide = q.dtype if q.dtype == torch.float64 else torch.float32
    q, k, v, dtype = q.to(wide), k.to(wide), v.to(wide), q.dtype
    logits = call.scale * q @ k.mT
    biases = torch.zeros_like(logits) if call.mask is None else additive(call.mask, q) + torch.zeros_like(logits)
    factors = torch.ones_like(logits)
    for effect in made:
        for row in effect.rows:
            here = slice(None) if effect.queries is None else _of_row(effect.queries, effect, row)[0]
            if effect.keys is not None:
                keys = _of_row(effect.keys, effect, row)[0].to(wide)
                logits[row, :, here] = call.scale * q[row, :, here] @ keys.mT
            if effect.factor is not None:
                factors[row, :, here] *= _of_row(effect.factor, effect, row)[0].to(wide)
            if effect.bias is not None:
                bias = _of_row(effect.bias, effect, row)[0].to(wide)
                biases[row, :, here] += bias if bias.shape[1] == 1 else bias[:, here]
    weights = torch.softmax(factors * logits + biases, dim=-1)
    weights = mixed_maps(weights, wanted) if wanted else weights
    for edit in maps:
        weights = edit.change(weights)
    out = weights @ v
    for effect in made:
        for row in effect.rows if effect.values is not None else ():
            here = slice(None) if effect.queries is None else _of_row(effect.queries, effect, row)[0]
            out[row, :, here] = weights[row, :, here] @ _of_row(effect.values, effect, row)[0].to(wide)
    return out.to(dtype)
