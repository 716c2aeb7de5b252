"""Carry out the edits of one attention call, with the meaning that `core/edits.py` gives them.

* `scaled`: only key scales, for all queries: one kernel call on scaled keys;
* `partitioned`: batch rows and queries split into classes with equal edits, one kernel call for each class; nothing of
  size N x K is built unless a bias itself has that size, since keys that a class may not read are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unleak.core.attention import AttentionCall, additive, contents
from unleak.core.edits import Edit
from unleak.engine.mixing import add_source_rows, resolve_mixes, with_source_rows
from unleak.engine.resolve import Resolved, resolve, swap
from unleak.errors import BadInput

Kernel = Callable[..., Tensor]
"""(q, k, v, attn_mask) -> out, with the scale of the call."""


def execute(call: AttentionCall, edits: Sequence[Edit], kernel: Kernel) -> Tensor:
    """The output [B, H, N, d] of one call with all its edits."""
    q, k, v = swap(call, edits)
    resolved = resolve(call, edits)
    mixes = resolve_mixes(call, edits, resolved)
    simple = all(edit.factor is not None and edit.queries is None for edit in resolved)
    attend = scaled if simple else partitioned
    if mixes:
        return add_source_rows(attend(*with_source_rows(call, q, k, v, resolved, mixes), kernel), mixes)
    return attend(call, q, k, v, resolved, kernel)


def scaled(call: AttentionCall, q: Tensor, k: Tensor, v: Tensor, edits: Sequence[Resolved], kernel: Kernel) -> Tensor:
    """`F * (q k^T)` is `q (F k)^T` where F does not depend on the query."""
    factor = torch.ones_like(k[:, :, :, :1])
    for edit in edits:
        assert edit.factor is not None
        factor[call.at(edit.rows)] *= edit.factor.mT
    return kernel(q, k * factor if edits else k, v, call.mask)


def partitioned(
    call: AttentionCall, q: Tensor, k: Tensor, v: Tensor, edits: Sequence[Resolved], kernel: Kernel
) -> Tensor:
    """Split the batch by rows with equal edits and each part by queries with equal edits."""
    out = q.new_empty(*q.shape[:3], v.shape[-1])
    for rows, own in _row_groups(len(q), edits):
        for chosen, index in _query_classes(call, rows, own, q.shape[2]):
            inputs = _class_inputs(call, q, k, v, rows, [own[i] for i in chosen], index)
            result = kernel(*inputs)
            if index is None:
                out[call.at(rows)] = result
            else:
                out[call.index(rows)[:, None], :, index[None]] = result.transpose(1, 2)
    return out


def _row_groups(batch: int, edits: Sequence[Resolved]) -> list[tuple[list[int], list[Resolved]]]:
    """Rows under the same edits together, unless an edit has a mask of queries or keys for each row."""
    groups: dict[tuple[tuple[int, ...], int | None], tuple[list[int], list[Resolved]]] = {}
    for row in range(batch):
        under = tuple(i for i, edit in enumerate(edits) if row in edit.rows)
        own = [edits[i] for i in under]
        masks = (mask for edit in own for mask in (edit.queries, edit.shut) if mask is not None)
        alone = any(len(mask) > 1 for mask in masks)
        key = under, row if alone else None
        groups.setdefault(key, ([], own))[0].append(row)
    return list(groups.values())


def _query_classes(
    call: AttentionCall, rows: list[int], edits: Sequence[Resolved], length: int
) -> list[tuple[tuple[int, ...], Tensor | None]]:
    """(edits that apply, their queries) for every set of edits that some query is under."""
    limited = [(i, edit, edit.queries) for i, edit in enumerate(edits) if edit.queries is not None]
    if not limited:
        return [(tuple(range(len(edits))), None)]
    masks = [edit.of_rows(queries, rows[:1], call) for _, edit, queries in limited]
    always = set(range(len(edits))) - {i for i, _, _ in limited}

    def build() -> list[tuple[tuple[int, ...], Tensor | None]]:
        code = sum(mask[0].long() << bit for bit, mask in enumerate(masks))
        classes: list[tuple[tuple[int, ...], Tensor | None]] = []
        for value in torch.unique(torch.as_tensor(code)).tolist():
            under = {i for bit, (i, _, _) in enumerate(limited) if value >> bit & 1}
            index = torch.nonzero(code == value).flatten()
            classes.append((tuple(sorted(always | under)), None if len(index) == length else index))
        return classes

    numbers = tuple(i for i, _, _ in limited)
    key = ("classes", tuple(map(contents, masks)), numbers, len(edits), length)
    return call.once(key, masks, build)


def _kept(shut: Sequence[Tensor]) -> Tensor:
    """Positions of the keys that none of the masks [1, K] shuts."""
    return torch.nonzero(~torch.stack(list(shut)).any(0)[0]).flatten()


def _class_inputs(
    call: AttentionCall,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: list[int],
    edits: Sequence[Resolved],
    index: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """q, k, v and additive mask of one class: `rows` of the batch, queries `index`."""
    at = call.at(rows)
    queries, keys, values = q[at], k[at], v[at]
    mask = None if call.mask is None else additive(call.mask, q).expand(len(q), -1, -1, -1)[at]
    for edit in edits:
        if edit.keys is not None:
            keys = edit.of_rows(edit.keys, rows, call).expand_as(keys)
        if edit.values is not None:
            values = edit.of_rows(edit.values, rows, call).expand_as(values)
        if edit.factor is not None:
            keys = keys * edit.of_rows(edit.factor, rows, call).mT
        if edit.bias is not None:
            bias = edit.of_rows(edit.bias, rows, call)
            mask = bias if mask is None else mask + bias
    if shut := [edit.of_rows(edit.shut, rows, call) for edit in edits if edit.shut is not None]:
        kept = call.once(("kept", tuple(map(contents, shut))), shut, lambda: _kept(shut))
        if not len(kept):
            raise BadInput(f"the masks of site {call.name} forbid some query every key")
        keys, values = keys[:, :, kept], values[:, :, kept]
        mask = mask[..., kept] if mask is not None and mask.shape[-1] > 1 else mask
    if index is not None:
        queries = queries[:, :, index]
        mask = mask[:, :, index] if mask is not None and mask.shape[2] > 1 else mask
    if mask is not None:
        if any(edit.may_forbid for edit in edits):
            nothing_left = torch.isneginf(mask).all(-1).any()
            call.refuse(nothing_left, f"the masks of site {call.name} forbid some query every key")
        mask = mask.expand(len(rows), -1, queries.shape[2], keys.shape[2])
    return queries, keys, values, mask
