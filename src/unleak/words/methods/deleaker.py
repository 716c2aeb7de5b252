"""DeLeaker (arXiv 2510.15015): keep items apart inside joint attention, and strengthen each where it is.

With ``Z`` the logits of an attention call, ``A = softmax(Z)``, ``I_e`` the text rows of item e, ``m_e`` its mask among
the image cells (`item_masks.py`) from the running mean of its attention map, for all items e and f:

    Z[x, I_e] *= alpha      for cells x in m_e                                           (strengthening)
    Z[x, I_f]  = -inf       for cells x in m_e                                           (weakening)
    Z[x, y]    = -inf       for linked cells x in m_e, y in m_f: A[x, y] > mean + link std   (image to image)
    Z[I_e, I_f] = -inf                                                                   (text to text, off)

The paper's pairs overlap: an item in two pairs, a cell in two masks. `order_free` reads the equations once for all
items; `pair_by_pair` is the released code, whose pairs follow one another. Scaled logits are scaled keys, and a mask is
a set of queries, so only the links need attention between cells, and only that between two masks is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations, permutations
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from unleak.core.edits import Bias, Edit, KeyScale, Mask
from unleak.core.intervention import JOINT, Window
from unleak.core.scores import RunningMean
from unleak.errors import BadInput, UnsupportedModel, choose
from unleak.text.positions import ItemPositions, Positions
from unleak.words.methods.item_columns import alike, item_columns
from unleak.words.methods.item_masks import item_masks
from unleak.words.methods.on_items import OnItems

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context

HISTORIES = ("mean", "earlier", "none")
Tokens = Sequence[Sequence[int]]
"""The text rows ``I_e`` of each item."""


@dataclass(frozen=True)
class DeLeaker(OnItems):
    """Forbid items to read each other, and strengthen each in its own mask: ``DeLeaker("cat,horse")``.

    For denoisers with joint attention (FLUX, SD3). The two windows of its own count in sites, not only in
    steps: call j of the n sites in step t of T lies at ``(t + j / n) / T``.

    Attributes:
        items: as `Item.of` writes them; every prompt must hold them.
        gain: ``alpha``, the factor of own logits; 1 leaves them.
        weaken: forbid image cells of one item to attend to the rows of another.
        image_image: forbid linked cells of two items; ``link_threshold``: how many standard deviations above the
            mean is linked.
        text_text: forbid rows of one item to attend to those of another.
        std_threshold, morphology: of the masks, see `item_masks`.
        history: ``"mean"``: masks from the running mean of the maps in `gather`, that of this call included.
            ``"earlier"``: from the mean of the maps before this call; the release calls this its binary history, and
            does not use the binary masks. ``"none"``: from the map of this call.
        pairwise: ``False``: `order_free`. ``True``: `pair_by_pair`, as released; with three items their order matters.
        gather, act: when maps are gathered, and when attention is edited.

    Raises:
        UnsupportedModel: the denoiser has no joint attention. BadInput: a value is out of range.
    """

    layouts: ClassVar[tuple[str, ...]] = (JOINT,)
    gain: float = 1.2
    weaken: bool = True
    image_image: bool = True
    text_text: bool = False
    std_threshold: float = 1.0
    link_threshold: float = 1.0
    morphology: bool = True
    history: str = "mean"
    pairwise: bool = False
    gather: Window = field(default=Window(0.01, 0.6))
    act: Window = field(default=Window(0.015, 1.0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.gain < math.inf:
            raise BadInput(f"gain={self.gain}: give a number above 0, e.g. 1.2; 1 changes nothing.")
        choose("history", self.history, HISTORIES)

    def on_attention(self, ctx: Context, site: AttentionCall) -> list[Edit] | None:
        if site.kind == "self":
            return None
        if site.kind != "joint":
            raise UnsupportedModel(
                "DeLeaker edits image and text in one attention map, and this denoiser has none: use Boost"
            )
        positions, now = self.positions(ctx), call_fraction(ctx, site)
        masks = self.masks(ctx, site, positions) if self.needs_masks(now) else None
        if masks is None or now not in self.act:
            return None
        edits_of, order, edits = pair_by_pair if self.pairwise else order_free, site.rows.of("cond"), list[Edit]()
        for at, rows in alike(site, positions):
            tokens = [sorted(set().union(*in_encoders)) for in_encoders in at]
            edits += edits_of(self, site, tokens, masks[site.at([order.index(row) for row in rows])], rows)
        return edits

    def needs_masks(self, now: float) -> bool:
        """Are masks made at this fraction of the run?"""
        return now in self.act or (self.history != "none" and now in self.gather)

    def masks(self, ctx: Context, site: AttentionCall, positions: ItemPositions) -> Tensor | None:
        """``m`` [rows, items, h, w] of the positive rows of this call; None where there are none.

        Masks of a mean that no longer changes are made once.
        """
        rows = site.rows.of("cond")
        if not rows:
            return None
        key = (tuple(site.rows.images[row] for row in rows), site.grid)
        gathers = self.history != "none" and call_fraction(ctx, site) in self.gather
        mean: RunningMean = ctx.state.setdefault("mean", RunningMean())
        final: dict[object, Tensor] = ctx.state.setdefault("final masks", {})
        if not gathers and key in final:
            return final[key]
        columns = item_columns(ctx, site, positions)
        assert columns is not None
        a = columns[1].mean(-1).movedim(-1, 1)
        if gathers and self.history == "mean":
            mean.add(key, a)
        masks = self.masks_of(ctx, mean.mean(key) if mean.count(key) else a)
        if gathers and self.history == "earlier":
            mean.add(key, a)
        if not gathers and mean.count(key):
            final[key] = masks
        return masks

    def masks_of(self, ctx: Context, a: Tensor) -> Tensor:
        """The masks of attention maps a [rows, items, h, w]."""
        return item_masks(a, self.names, self.std_threshold, self.morphology)


def order_free(it: DeLeaker, site: AttentionCall, tokens: Tokens, m: Tensor, rows: Positions) -> list[Edit]:
    """The equations for all items at once, from the unedited attention: their order does not matter.

    Each item is strengthened once, and a cell in two masks reads both items.
    """
    pairs, edits = list(permutations(range(len(tokens)), 2)), list[Edit]()
    edits += [KeyScale(own, it.gain, rows, queries=m[:, e]) for e, own in enumerate(tokens)]
    if it.weaken:
        edits += [Mask(tokens[f], m[:, e] & ~m[:, f], rows) for e, f in pairs]
    if it.text_text:
        edits += [Mask(tokens[f], tokens[e], rows) for e, f in pairs]
    if it.image_image and pairs:
        links = [_links(it, site, row, masks) for row, masks in zip(rows, m, strict=True)]
        edits.append(_forbidden(torch.stack(links), site.q, rows))
    return edits


def pair_by_pair(it: DeLeaker, site: AttentionCall, tokens: Tokens, m: Tensor, rows: Positions) -> list[Edit]:
    """The equations for one pair of items after the other, as released.

    An item in k pairs is strengthened k times, a cell in two masks reads neither item, text to text takes first rows
    only, and the links of a pair are those of the attention that the pairs before it left.
    """
    n, pairs, edits = len(tokens), list(permutations(range(len(tokens)), 2)), list[Edit]()
    edits += [KeyScale(own, it.gain ** (n - 1), rows, queries=m[:, e]) for e, own in enumerate(tokens)]
    if it.weaken:
        edits += [Mask(tokens[f], m[:, e], rows) for e, f in pairs]
    if it.text_text:
        edits += [Mask(tokens[f][:1], tokens[e][:1], rows) for e, f in pairs]
    if it.image_image and pairs:
        links = [_links_in_turn(it, site, row, tokens, masks) for row, masks in zip(rows, m, strict=True)]
        edits.append(_forbidden(torch.stack(links), site.q, rows))
    return edits


def _links(it: DeLeaker, site: AttentionCall, row: int, m: Tensor) -> Tensor:
    """Which cells [N, N] of two items are linked by the unedited attention of one batch row; m: [items, h, w]."""
    links = _no_links(m)
    for x, y in combinations(_cells(m), 2):
        _link(links, x, y, lambda x, y: site.between(row, x, y).mean(0), it.link_threshold)
    return links


def _links_in_turn(it: DeLeaker, site: AttentionCall, row: int, tokens: Tokens, m: Tensor) -> Tensor:
    """The same where every pair sees the edits of the pairs before it, on materialised logits Z [heads, N, K]."""
    links, cells, image = _no_links(m), _cells(m), site.layout.image_keys
    Z = site.scale * site.q[row, :, site.layout.image_queries].float() @ site.k[row].float().mT
    keys = [site.index(site.token_keys(own)) for own in tokens]
    for e, f in combinations(range(len(tokens)), 2):
        A = torch.softmax(Z, -1)[:, :, image].mean(0)
        _link(links, cells[e], cells[f], partial(_part, A), it.link_threshold)
        for own, other in ((e, f), (f, e)):
            Z[:, cells[own][:, None], keys[own]] *= it.gain
            if it.weaken:
                Z[:, cells[own][:, None], keys[other]] = float("-inf")
        Z[:, :, image] += _minus_infinity(links, Z)
    return links


def _link(
    links: Tensor, x: Tensor, y: Tensor, attention: Callable[[Tensor, Tensor], Tensor], link_threshold: float
) -> None:
    """Add the links between cells x [n] and y [m], in both directions; ``attention(x, y)`` is [n, m]."""
    for one, two in ((x, y), (y, x)):
        links[one[:, None], two[None]] |= linked(attention(one, two), link_threshold)


def linked(w: Tensor, link_threshold: float) -> Tensor:
    """``w > mean + link std`` of the entries of w that are not 0; unbiased deviation."""
    some = w[w != 0]
    if some.numel() < 2:
        return torch.zeros_like(w, dtype=torch.bool)
    return w > some.mean() + link_threshold * some.std()


def _part(A: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return A[x[:, None], y[None]]


def _cells(m: Tensor) -> list[Tensor]:
    """The numbers of the cells in each mask [items, h, w]."""
    return [torch.nonzero(mask.flatten()).flatten() for mask in m]


def _no_links(m: Tensor) -> Tensor:
    n = m[0].numel()
    return torch.zeros(n, n, dtype=torch.bool, device=m.device)


def _forbidden(links: Tensor, q: Tensor, rows: Positions) -> Bias:
    """No attention between linked cells [rows, N, N]."""
    return Bias(_minus_infinity(links, q)[:, None], keys="image", queries="image", rows=rows)


def _minus_infinity(where: Tensor, like: Tensor) -> Tensor:
    """-inf where True, else 0."""
    return torch.zeros(where.shape, dtype=like.dtype, device=where.device).masked_fill(where, float("-inf"))


def call_fraction(ctx: Context, site: AttentionCall) -> float:
    """How far the run is at this attention call, in 0..1, counting sites."""
    if "site order" not in ctx.state:
        ctx.state["site order"] = {one.name: j for j, one in enumerate(ctx.anatomy.sites)}
    order = ctx.state["site order"]
    return (ctx.step + order[site.name] / len(order)) / ctx.steps
