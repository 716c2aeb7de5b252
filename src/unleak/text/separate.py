"""Keep items apart inside the encoder: a mask [B, L, L] of which token (row) may attend to which (column)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unleak.errors import UnsupportedModel
from unleak.text.rows import last_layer
from unleak.text.spans import Span, Tokens

CLOSE = 0.1
"""Largest mean difference, relative to the rows' mean size, that another attention kernel may make."""


def separated(
    encode: Callable[[Tensor], Any],
    output: Any,
    tokens: Sequence[Tokens],
    closed: Tensor,
    causal: bool,
) -> Any:
    """The encoder's output when rows may not attend to some others.

    Args:
        encode: encodes the texts under a mask [B, L, L]. output: what the encoder says of them without one.
        closed: [B, L, L], True where a row (first L) may not attend to another (second L): `apart`, `hidden`.

    Whether the pipeline hides pads from its encoder is not asked but found: the mask that closes nothing must
    give back ``output``.

    Raises:
        UnsupportedModel: the encoder takes no such mask, or pays no attention to it.
    """
    L = tokens[0].length
    everything = torch.ones(len(tokens), L, L, dtype=torch.bool)
    pairs = everything.tril() if causal else everything
    real = torch.tensor([cut.real for cut in tokens])[:, None, :]
    masks = [pairs, pairs & real]
    whole = [encode(mask) for mask in masks]
    errors = [_difference(one, output) for one in whole]
    best = errors.index(min(errors))
    if errors[best] > CLOSE:
        raise UnsupportedModel("This text encoder takes no attention mask per pair of tokens.")
    cut = masks[best] & ~closed
    result = encode(cut)
    if not torch.equal(cut & real, masks[best] & real) and _difference(result, whole[best]) == 0:
        raise UnsupportedModel("This text encoder ignores an attention mask per pair of tokens.")
    return result


def apart(tokens: Sequence[Tokens], phrases: Sequence[Mapping[int, Span]], causal: bool) -> Tensor:
    """True where a row of a phrase would attend outside of it (in a causal encoder, to BOS it may); [B, L, L]."""
    L = tokens[0].length
    mask = torch.zeros(len(tokens), L, L, dtype=torch.bool)
    for b, spans in enumerate(phrases):
        bos = tokens[b].body[0] if causal or tokens[b].before is not None else 0
        for start, stop in spans.values():
            mask[b, start:stop, bos:start] = True
            mask[b, start:stop, stop:] = True
    return mask


def hidden(tokens: Sequence[Tokens], phrases: Sequence[Mapping[int, Span]]) -> Tensor:
    """True where a row outside of a phrase would attend to it; [B, L, L]."""
    L = tokens[0].length
    mask = torch.zeros(len(tokens), L, L, dtype=torch.bool)
    for b, spans in enumerate(phrases):
        for start, stop in spans.values():
            mask[b, :start, start:stop] = True
            mask[b, stop:, start:stop] = True
    return mask


def _difference(one: Any, two: Any) -> float:
    a, b = last_layer(one).float(), last_layer(two).float()
    return float((a - b).abs().mean() / b.abs().mean())
