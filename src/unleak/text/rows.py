"""The algebra of rows: ``H~ = where(S, H, C)``, ``H~[span(A)] = G[span(A)]``.

A row is *removed* by putting the pad row of the same position in its place: the length L never changes,
because the denoiser attends to pads too. Nothing here mutates its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unleak.errors import BadInput, SpanMismatch, UnsupportedModel, choose
from unleak.text.spans import Span

UNEQUAL = ("error", "right-align", "representative")
FIELDS = ("last_hidden_state", "hidden_states")
"""Where an encoder's output has its rows."""
POOLED_FIELDS = ("pooler_output", "text_embeds")
"""Where an encoder's output has its pooled vector."""


def keep(H: Tensor, C: Tensor, S: Iterable[int]) -> Tensor:
    """``H~_i = H_i if i in S else C_i``, in every batch row.

    Args:
        H: contextual rows [B, L, d], or an attention mask [B, L].
        C: pad rows [1, L, d] (or their mask [1, L]); same L.
        S: positions in 0..L-1.

    Where the denoiser is given an attention mask, apply `keep` to the mask as well: a position outside the
    prompt's own mask has no effect, whatever its row holds.
    """
    L = H.shape[1]
    if C.shape[1:] != H.shape[1:]:
        raise BadInput(f"Pad rows {tuple(C.shape)} do not fit rows {tuple(H.shape)}: encode pads at the same length.")
    m = torch.zeros(L, dtype=torch.bool, device=H.device)
    m[_positions(S, L)] = True
    return torch.where(m.view(1, L, *(1,) * (H.ndim - 2)), H, C)


def remove(H: Tensor, C: Tensor, R: Iterable[int]) -> Tensor:
    """`keep` of every position but R: ``H~_i = C_i if i in R else H_i``."""
    L = H.shape[1]
    return keep(H, C, set(range(L)) - set(_positions(R, L)))


def patch(H: Tensor, G: Tensor, dst: Sequence[int], src: Sequence[int]) -> Tensor:
    """``H~[dst] = G[src]``: rows of another encoding at chosen positions, in every batch row.

    Args:
        H: [B, L, d]. G: [1, L', d] or [B, L', d].
        dst, src: positions, one source for each destination.
    """
    if len(dst) != len(src):
        raise SpanMismatch(f"{len(dst)} rows cannot be replaced by {len(src)}: align the two spans first.")
    out = H.clone()
    out[:, _positions(dst, H.shape[1])] = G[:, _positions(src, G.shape[1])]
    return out


def align(
    dst: Span, src: Span, unequal: str = "error", what: str = "The item", carriers: Collection[int] = ()
) -> tuple[list[int], list[int], list[int]]:
    """Pair the rows of two spans: (destinations, their sources, destinations left without one).

    Args:
        unequal: what to do when the spans differ in length. ``"error"``: refuse. ``"right-align"``: pair the
            last rows, which hold the meaning in a causal encoder; what is left over gets pad rows.
            ``"representative"``: the same with ``carriers`` as sources, each of which carries the meaning,
            wherever it stands.
        what: how the error calls the item.

    Raises:
        SpanMismatch: lengths differ under ``"error"``; there are no carriers.
    """
    choose("unequal policy", unequal, UNEQUAL)
    targets, sources = list(range(*dst)), list(range(*src))
    if len(targets) != len(sources) and unequal == "error":
        raise SpanMismatch(
            f"{what} has {len(targets)} token(s) in the prompt and {len(sources)} alone. Use"
            " unequal='right-align', or name it in as many tokens."
        )
    if unequal == "representative":
        sources = sorted(carriers)
        if not sources:
            raise SpanMismatch(f"{what} has none of its `carriers` alone. Name others, or use unequal='right-align'.")
    m = min(len(targets), len(sources))
    cut = len(targets) - m
    return targets[cut:], sources[len(sources) - m :], targets[:cut]


Layer = Callable[[Any], Tensor]
"""encoder output -> the rows [B, L, d] of one of its hidden layers."""


def hidden_layers(output: Any) -> list[Tensor]:
    """Every hidden layer [B, L, d] of an encoder's output: the last hidden state, where it has one, then all others.

    Raises UnsupportedModel: it has none, as a language model has that was not asked for its hidden states.
    """
    last, states = (output.get(name) if isinstance(output, Mapping) else None for name in FIELDS)
    layers = [*([] if last is None else [last]), *(states or ())]
    if not layers:
        raise UnsupportedModel(
            f"a text encoder returned a {type(output).__name__} without {' and '.join(FIELDS)}, so it has no text rows"
        )
    return layers


def last_layer(output: Any) -> Tensor:
    """The last hidden layer [B, L, d] of an encoder's output; errors: `hidden_layers`."""
    layers = hidden_layers(output)
    return layers[0] if output.get("last_hidden_state") is not None else layers[-1]


def each_layer(change: Callable[[Layer], Tensor], output: Any) -> Any:
    """A new encoder output whose every hidden layer is ``change(layer)``; ``layer(output)`` are its old rows.

    Pipelines read different layers (the last, the last but one, a chosen one), so all are changed alike.
    Pooled vectors and attentions are carried over as they are.
    """
    every = len(hidden_layers(output))
    layers = [change(partial(_layer, k)) for k in range(every)]
    changed: dict[str, Any] = {}
    if output.get("last_hidden_state") is not None:
        changed["last_hidden_state"], *layers = layers
    if layers:
        changed["hidden_states"] = tuple(layers)
    return type(output)(**{**output, **changed})


def _layer(k: int, output: Any) -> Tensor:
    return hidden_layers(output)[k]


def _positions(chosen: Iterable[int], length: int) -> list[int]:
    positions = list(chosen)
    if any(not 0 <= i < length for i in positions):
        raise BadInput(f"Token positions run from 0 to {length - 1}; got {positions}.")
    return positions
