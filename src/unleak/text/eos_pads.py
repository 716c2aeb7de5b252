"""Policies for EOS and the pads after a prompt: rows that gather every item, and a leak with them.

In a causal encoder an item's own rows cannot see what follows, yet EOS and the pads see all of it. Each policy
below is one equation for the rows of no item: ``T(Q)`` are those rows in an encoding Q, one for each such row of
the prompt P. A new policy is one function in `POLICIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unleak.errors import BadInput, choose
from unleak.text.items import Item
from unleak.text.scene import Scene, View
from unleak.text.spans import Tokens

RowsOf = Callable[[View], Tensor]
"""``T``: an encoding -> its rows of no item, [R, d]."""


def keep(scene: Scene, T: RowsOf) -> Tensor:
    """``T(P)``: as the prompt has them; the channel stays open."""
    return T(scene.prompt)


def item(scene: Scene, T: RowsOf) -> Tensor:
    """``T(Q)``: those of the repaired item alone; they know nothing of the other items."""
    return T(scene.alone(0))


def masked_context(scene: Scene, T: RowsOf) -> Tensor:
    """``T(P with the other items masked)``: the sentence stays, the other items are lost."""
    return T(scene.masked(scene.items))


def mean_of_items(scene: Scene, T: RowsOf) -> Tensor:
    """``1/n sum_i T(Q_i)`` over all n items."""
    return torch.stack([T(scene.alone(i)).float() for i in scene.every]).mean(0)


def round_robin(scene: Scene, T: RowsOf) -> Tensor:
    """``T_j(Q_(j mod n))``: every row is a real row of one item alone; EOS (j = 0) is the first item's."""
    rows = torch.stack([T(scene.alone(i)) for i in scene.every])  # [n, R, d]
    j = torch.arange(rows.shape[1], device=rows.device)
    return rows[j % len(scene.every), j]


def difference(scene: Scene, T: RowsOf) -> Tensor:
    """``sum_i T(P, all masked but i) - (n - 1) T(P, all masked)``.

    What each item adds to the sentence on its own, without what items add because of each other: for two
    items A and B, ``T(A, _) + T(_, B) - T(_, _)`` with the filler ``_``.
    """
    alone = torch.stack([T(scene.masked({i})).float() for i in scene.every]).sum(0)
    return alone - (len(scene.every) - 1) * T(scene.masked(())).float()


def compose(scene: Scene, T: RowsOf) -> Tensor:
    """``sum_i T(P, all replaced but i) - (n - 1) T(P, all replaced)``.

    As `difference`, with items replaced by a word for any object instead of masked by a token, so that every
    term is the encoding of a sentence: ``T("A and a thing") + T("a thing and B") - T("a thing and a thing")``.
    What A means because B is there is in none of the terms.
    """
    alone = torch.stack([T(scene.substituted({i})).float() for i in scene.every]).sum(0)
    return alone - (len(scene.every) - 1) * T(scene.substituted(())).float()


def renamed(scene: Scene, T: RowsOf) -> Tensor:
    """``T(P')``: of the same prompt with the items named by their sense."""
    return T(scene.renamed)


def attn_mask(scene: Scene, T: RowsOf) -> Tensor:
    """``T(P)`` with each named item's rows attending to themselves only; EOS and pads see them all."""
    return T(scene.separated)


POLICIES: dict[str, Callable[[Scene, RowsOf], Tensor]] = {
    "keep": keep,
    "item": item,
    "masked-context": masked_context,
    "mean-of-items": mean_of_items,
    "round-robin": round_robin,
    "difference": difference,
    "compose": compose,
    "renamed": renamed,
    "attn-mask": attn_mask,
}


#: policies whose encodings hold the whole sentence, so that the words between the items have a counterpart
WHOLE_SENTENCE = frozenset({"masked-context", "difference", "compose", "renamed", "attn-mask"})


def words_of_no_item(view: View, b: int) -> list[int]:
    """The rows of text b's words that belong to no item."""
    of_items = {row for span in view.names[b].values() for row in range(*span)}
    return [row for row in range(*view.tokens[b].body) if row not in of_items]


def aligned(dst: Tokens, src: Tokens) -> list[int]:
    """For each row after the text ``dst`` the row of ``src`` to read: EOS from EOS, what a template puts after the text
    from the same, a pad from the pad at its place.

    A place that still belongs to the text in ``src`` reads its first pad (its last row if it has no pad).
    """
    after, eos, last = dst.after_text, src.after_text.start, src.length - 1
    n = max(1, sum(dst.real[j] for j in after))
    return [min(eos + k if k < n else max(j, eos + n), last) for k, j in enumerate(after)]


def check_policy(policy: str, items: Sequence[Item], others: Sequence[Item]) -> None:
    """Raise BadInput where a policy is unknown or lacks what its equation needs."""
    choose("eos_pads", policy, POLICIES)
    if policy == "item" and len(items) != 1:
        raise BadInput("eos_pads='item' repairs one item: choose 'mean-of-items' or 'round-robin' for several.")
    if policy == "renamed" and not any(item.sense for item in items):
        raise BadInput("eos_pads='renamed' needs a name for the intended sense: as_='furry mouse'.")
    lacks = {"masked-context": not others} | dict.fromkeys(
        ("mean-of-items", "round-robin", "difference", "compose"), len(items) + len(others) < 2
    )
    if lacks.get(policy):
        raise BadInput(f"eos_pads={policy!r} must know the other items: name them, others=('laptop',).")
