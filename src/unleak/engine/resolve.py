"""Resolved edits: which rows and queries of one attention call change, and the tensors that they change to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unleak.core.attention import AttentionCall, contents
from unleak.core.edits import Bias, Edit, KeyScale, Partition, Region, RowSwap, ValueSwap, Where
from unleak.errors import BadInput, EmptyMask


@dataclass(frozen=True, eq=False)
class Resolved:
    """One edit at one call: its batch rows, its queries ([1 or rows, N] bool, None = all) and what changes for them.

    One kind of change is set: `keys` and/or `values` [rows or 1, H, K, d]; `factor` [rows or 1, H or 1, 1,
    K]; `bias` [rows or 1, H or 1, N or 1, K]; `shut` [rows or 1, K], the keys that are not read. `order` sorts them:
    keys and values, then factors, then biases.
    """

    order: int
    rows: tuple[int, ...]
    queries: Tensor | None
    keys: Tensor | None = None
    values: Tensor | None = None
    factor: Tensor | None = None
    bias: Tensor | None = None
    shut: Tensor | None = None
    may_forbid: bool = False

    def of_rows(self, part: Tensor, rows: Sequence[int], call: AttentionCall) -> Tensor:
        """The part of some of its rows: [1, ...] where all have the same."""
        return part if len(part) == 1 else part[call.at([self.rows.index(row) for row in rows])]


def changes_nothing(edit: Edit) -> bool:
    """Whether an edit is written with the number that changes nothing."""
    if isinstance(edit, KeyScale):
        return not isinstance(edit.factor, Tensor) and edit.factor == 1
    return isinstance(edit, Bias) and not isinstance(edit.value, Tensor) and edit.value == 0


def resolve(call: AttentionCall, edits: Sequence[Edit]) -> list[Resolved]:
    """Everything but row swaps, value swaps and mixes, in canonical order.

    Raises BadInput: an edit is none, or does not fit the call. EmptyMask: a region holds no cell.
    """
    resolved: list[Resolved] = []
    for edit in edits:
        if not isinstance(edit, Edit):
            raise BadInput(f"on_attention returned a {type(edit).__name__}, which is no edit; see unleak.core.edits")
        rows = call.rows.of(edit.rows) if isinstance(edit, KeyScale | Bias | Partition) else ()
        if not rows:
            continue
        if isinstance(edit, KeyScale):
            resolved.append(_scale(call, edit, rows))
        elif isinstance(edit, Bias):
            resolved.append(_bias(call, edit, rows))
        elif isinstance(edit, Partition):
            resolved += [_region(call, region, rows) for region in edit.regions]
    return sorted(resolved, key=lambda edit: edit.order)


def swap(call: AttentionCall, edits: Sequence[Edit]) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v after the swaps, in list order; the call's own tensors are not written to."""
    parts = {"q": call.q, "k": call.k, "v": call.v}
    for edit in edits:
        if isinstance(edit, RowSwap):
            pairs = call.rows.pairs(edit.target, edit.source)
            targets, sources = call.index([t for t, _ in pairs]), call.index([s for _, s in pairs])
            for name in edit.parts if pairs else "":
                at = call.layout.image_queries if name == "q" else call.layout.image_keys
                where = at if edit.cells and at is not None else slice(None)
                swapped = parts[name].clone()
                swapped[targets, :, where] = parts[name][sources, :, where]
                parts[name] = swapped
        elif isinstance(edit, ValueSwap):
            rows = call.rows.of(edit.rows)
            keys = slice(None) if edit.tokens is None else call.at(call.token_keys(edit.tokens))
            v = parts["v"] = parts["v"].clone()
            for i, row in enumerate(rows):
                values = edit.values if edit.values.ndim < 4 or len(edit.values) == 1 else edit.values[i]
                v[row][:, keys] = values.to(v).reshape(-1, *values.shape[-2:])
    return parts["q"], parts["k"], parts["v"]


def _scale(call: AttentionCall, edit: KeyScale, rows: tuple[int, ...]) -> Resolved:
    factor = _number(call, edit.factor)
    factor = factor.reshape((1,) * (3 - factor.ndim) + factor.shape)[:, :, None]  # [rows or 1, heads or 1, 1, T or 1]
    ones = call.q.new_ones(len(factor), call.q.shape[1] if edit.heads else factor.shape[1], 1, call.k.shape[2])
    full = _write(call, ones, edit.heads, call.token_keys(edit.tokens), factor)
    return Resolved(1, rows, _queries(call, edit.queries, rows), factor=full)


def _bias(call: AttentionCall, edit: Bias, rows: tuple[int, ...]) -> Resolved:
    if not isinstance(edit.value, Tensor) and edit.value == float("-inf") and edit.heads is None:
        layout, length = call.layout, call.k.shape[2]
        shut = _as_mask(call, edit.keys, rows, layout.image_keys, layout.text_keys, length)
        return Resolved(2, rows, _queries(call, edit.queries, rows), shut=shut)
    value = _number(call, edit.value)
    value = value.reshape((1,) * (4 - value.ndim) + value.shape)
    heads = call.q.shape[1] if edit.heads else value.shape[1]
    may_forbid = isinstance(edit.value, Tensor) or edit.value == float("-inf")
    keys = _positions(call, edit.keys, rows, call.layout.image_keys, call.layout.text_keys, call.k.shape[2])
    if isinstance(keys, Tensor):  # [1 or rows, K]
        batch = max(len(value), len(keys))
        zeros = call.q.new_zeros(batch, heads, value.shape[2], call.k.shape[2])
        picked = torch.where(keys[:, None, None, :], value, zeros[:, :1])
        full = _write(call, zeros, edit.heads, list(range(call.k.shape[2])), picked)
    else:
        zeros = call.q.new_zeros(len(value), heads, value.shape[2], call.k.shape[2])
        full = _write(call, zeros, edit.heads, keys, value)
    if value.shape[2] == 1:
        return Resolved(2, rows, _queries(call, edit.queries, rows), bias=full, may_forbid=may_forbid)
    layout = call.layout
    queries = _positions(call, edit.queries, rows, layout.image_queries, layout.text_queries, call.q.shape[2])
    if isinstance(queries, Tensor) or len(queries) != value.shape[2]:
        raise BadInput(f"a bias of {value.shape[2]} query rows does not fit `queries` of site {call.name}")
    spread = full.new_zeros(len(full), full.shape[1], call.q.shape[2], full.shape[3])
    spread[:, :, call.at(queries)] = full
    return Resolved(2, rows, None, bias=spread, may_forbid=may_forbid)


def _number(call: AttentionCall, value: float | Tensor) -> Tensor:
    """A number or tensor in the dtype and on the device of the call; a number needs no copy from the host."""
    return value.to(call.q) if isinstance(value, Tensor) else call.q.new_full((), value)


def _write(
    call: AttentionCall, full: Tensor, heads: Sequence[int] | None, keys: Sequence[int], value: Tensor
) -> Tensor:
    """Put `value` [b, heads or 1, n, keys or 1] at some heads and keys of `full` [b, heads, n, K]."""
    if value.shape[-1] not in (1, len(keys)):
        raise BadInput(f"{value.shape[-1]} values do not fit {len(keys)} keys")
    if heads is None:
        full[..., call.at(keys)] = value
    else:
        for head in heads:
            full[:, head][..., call.at(keys)] = value[:, head if value.shape[1] > 1 else 0]
    return full


def _region(call: AttentionCall, region: Region, rows: tuple[int, ...]) -> Resolved:
    keys, values = region.keys, region.values
    if region.text is not None:
        keys, values = call.encode(region.text)
        keys = None if region.keep_keys else keys
    for part in (keys, values):
        if part is not None and part.shape[-2] != call.k.shape[2]:
            raise BadInput(f"a region brings {part.shape[-2]} keys to site {call.name} with {call.k.shape[2]}")
    four = [None if part is None else part.reshape(-1, *part.shape[-3:]).to(call.k) for part in (keys, values)]
    if not call.once(("filled", contents(region.mask)), region.mask, lambda: bool(region.mask.any())):
        raise EmptyMask("a region's mask holds no cell; draw it larger or leave the region out")
    return Resolved(0, rows, _queries(call, region.mask, rows), keys=four[0], values=four[1])


def _queries(call: AttentionCall, which: Where, rows: tuple[int, ...]) -> Tensor | None:
    """A mask [1 or rows, N] over queries, or None for all; the same tensor for the same `which`."""
    if which is None:
        return None
    return _as_mask(call, which, rows, call.layout.image_queries, call.layout.text_queries, call.q.shape[2])


def _as_mask(
    call: AttentionCall,
    which: Where,
    rows: tuple[int, ...],
    image: slice | None,
    text: slice | None,
    length: int,
) -> Tensor:
    """A mask [1 or rows, length] along one side of the map; the same tensor for the same `which`."""
    positions = _positions(call, which, rows, image, text, length)
    if isinstance(positions, Tensor):
        return positions

    def build() -> Tensor:
        mask = torch.zeros(1, length, dtype=torch.bool, device=call.q.device)
        mask[:, call.at(positions)] = True
        return mask

    return call.once(("mask", tuple(positions), length), None, build)


def _positions(
    call: AttentionCall,
    which: Where,
    rows: tuple[int, ...],
    image: slice | None,
    text: slice | None,
    length: int,
) -> list[int] | Tensor:
    """What `which` means along one side of the map: positions, or a mask [1 or rows, length]."""
    if which is None:
        return list(range(length))
    if isinstance(which, Tensor | str):
        if image is None:
            raise BadInput(f"site {call.name} is {call.kind}: there are no image cells on this side of the map")
        if isinstance(which, str):
            if which != "image":
                raise BadInput(f'{which!r} is neither "image", a bool mask nor token positions')
            return list(range(image.start, image.stop))
        return _cells(call, which, rows, image, length)
    if text is None:
        raise BadInput(f"site {call.name} is {call.kind}: there are no text tokens on this side of the map")
    if any(not 0 <= token < text.stop - text.start for token in which):
        raise BadInput(f"tokens {list(which)} do not fit the {text.stop - text.start} text rows of {call.name}")
    return [text.start + token for token in which]


def _cells(call: AttentionCall, mask: Tensor, rows: tuple[int, ...], image: slice, length: int) -> Tensor:
    """A mask over the latent grid, [h, w] or [rows, h, w], at this site: [1 or rows, length]."""
    if mask.dtype != torch.bool or mask.ndim not in (2, 3):
        raise BadInput("a mask is a bool tensor [h, w] or [rows, h, w]")
    if mask.ndim == 3 and len(mask) not in (1, len(rows)):
        raise BadInput(f"{len(mask)} masks do not fit {len(rows)} rows")
    if call.grid is None:
        raise BadInput(f"the latent height and width at site {call.name} are not known")

    def build() -> Tensor:
        planes = mask.reshape(-1, 1, *mask.shape[-2:]).to(call.q.device, torch.float32)
        resized = torch.nn.functional.interpolate(planes, size=call.grid, mode="nearest")
        full = torch.zeros(len(planes), length, dtype=torch.bool, device=call.q.device)
        full[:, image] = resized.flatten(1) > 0.5
        return full

    return call.once(("cells", contents(mask), image.start, length, call.grid), mask, build)
