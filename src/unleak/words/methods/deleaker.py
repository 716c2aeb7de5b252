"""DeLeaker (arXiv 2510.15015): keep the regions of items apart inside joint attention.

Per attention call, with the own region ``m_e`` of each item e (`own_region.py`) from the running mean of its
attention map: logits of own rows times ``alpha`` in ``m_e``; no attention from ``m_e`` to the rows of another
item f; none between cells of ``m_e`` and ``m_f`` that are linked more than the pair's cells are in the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations, permutations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unleak.core.edits import Bias, Edit, KeyScale, Mask
from unleak.core.intervention import Window
from unleak.core.scores import RunningMean
from unleak.errors import BadInput, UnsupportedModel
from unleak.text.positions import ItemPositions, Positions
from unleak.words.methods.item_columns import alike, item_columns
from unleak.words.methods.on_items import OnItems
from unleak.words.methods.own_region import own_regions

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context

Between = Callable[[Tensor, Tensor], Tensor]
"""Numbers of image cells [n], [m] -> attention between them, mean over heads [n, m]."""


@dataclass(frozen=True)
class DeLeaker(OnItems):
    """Forbid items to read each other, and strengthen each in its own region: ``DeLeaker("cat,horse")``.

    For denoisers with joint attention (FLUX, SD3). The two windows of its own count in sites, not only in
    steps: call j of the n sites in step t of T lies at ``(t + j / n) / T``.

    Attributes:
        items: as `Item.of` writes them; every prompt must hold them.
        gain: ``alpha``, the factor of own logits; 1 leaves them.
        weaken: forbid image cells of one item to attend to the rows of another.
        image_image: forbid linked cells of two items; ``link``: how many deviations above the mean is linked.
        text_text: forbid rows of one item to attend to those of another.
        spread, smooth: of the own regions, see `own_regions`.
        history: regions from the running mean of the maps in `gather`; False: from the map of the call itself.
        pairwise: as released. The gain is applied once for each pair that an item is in, cells in two regions
            read neither item, later pairs are linked by the attention that earlier ones left, and `text_text`
            takes first rows only, so that with three items their order matters. By default each item gets its
            gain once, cells in two regions read both, and no order matters.

    Raises:
        UnsupportedModel: the denoiser has no joint attention. BadInput: a value is out of range.
    """

    gain: float = 1.2
    weaken: bool = True
    image_image: bool = True
    text_text: bool = False
    spread: float = 1.0
    link: float = 1.0
    smooth: bool = True
    history: bool = True
    pairwise: bool = False
    gather: Window = field(default=Window(0.01, 0.6))
    act: Window = field(default=Window(0.015, 1.0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.gain < math.inf:
            raise BadInput(f"gain={self.gain}: give a number above 0, e.g. 1.2; 1 changes nothing.")

    def on_attention(self, ctx: Context, site: AttentionCall) -> list[Edit] | None:
        if site.kind == "self":
            return None
        if site.kind != "joint":
            raise UnsupportedModel(
                "DeLeaker edits image and text in one attention map, and this denoiser has none: use Boost"
            )
        found = self.positions(ctx)
        masks = self.regions(ctx, site, found)
        if masks is None or progress(ctx, site) not in self.act:
            return None
        order, edits = site.rows.of("cond"), list[Edit]()
        for at, rows in alike(site, found):
            tokens = [sorted(set().union(*own)) for own in at]
            mine = masks[[order.index(row) for row in rows]]
            edits += self._of_text(tokens, mine, rows)
            if self.image_image and len(at) > 1:
                links = [self._links(site, row, tokens, m) for row, m in zip(rows, mine, strict=True)]
                edits.append(Bias(torch.stack(links)[:, None], keys="image", queries="image", rows=rows))
        return edits

    def regions(self, ctx: Context, site: AttentionCall, found: ItemPositions) -> Tensor | None:
        """Own regions [rows, items, h, w] of the positive rows of this call; None while they are not needed."""
        now, rows = progress(ctx, site), site.rows.of("cond")
        gathers, key = self.history and now in self.gather, (tuple(site.rows.images[row] for row in rows), site.grid)
        if not rows or not (gathers or now in self.act):
            return None
        mean: RunningMean = ctx.state.setdefault("mean", RunningMean())
        settled: dict[object, Tensor] = ctx.state.setdefault("settled", {})
        if key not in settled or gathers or not mean.count(key):
            seen = item_columns(ctx, site, found)
            assert seen is not None
            a = seen[1].mean(-1).movedim(-1, 1)
            if gathers:
                mean.add(key, a)
            a = mean.mean(key) if mean.count(key) else a
            settled[key] = own_regions(a, self.names, self.spread, self.smooth)
        return settled[key]

    def _of_text(self, tokens: Sequence[Sequence[int]], m: Tensor, rows: Positions) -> list[Edit]:
        """Own rows stronger, foreign rows forbidden. m: [rows, items, h, w]."""
        n, edits = len(tokens), list[Edit]()
        times = n - 1 if self.pairwise else 1
        for e in range(n):
            edits.append(KeyScale(tokens[e], self.gain**times, rows, queries=m[:, e]))
        for e, f in permutations(range(n), 2):
            if self.weaken:
                edits.append(Mask(tokens[f], m[:, e] if self.pairwise else m[:, e] & ~m[:, f], rows))
            if self.text_text:
                last = 1 if self.pairwise else None
                edits.append(Mask(tokens[f][:last], tokens[e][:last], rows))
        return edits

    def _links(self, site: AttentionCall, row: int, tokens: Sequence[Sequence[int]], m: Tensor) -> Tensor:
        """-inf [N, N] where cells of two items are linked, in one batch row. m: [items, h, w]."""
        cells = [torch.nonzero(region.flatten()).flatten() for region in m]
        bias = site.q.new_zeros(m[0].numel(), m[0].numel())
        if self.pairwise:
            edited = _Edited(site, row)
        for e, f in combinations(range(len(cells)), 2):
            between: Between = edited.attention() if self.pairwise else lambda x, y: site.between(row, x, y).mean(0)
            for x, y in ((cells[e], cells[f]), (cells[f], cells[e])):
                at = (x[:, None], y[None])
                bias[at] = bias[at].masked_fill(linked(between(x, y), self.link), float("-inf"))
            if self.pairwise:
                for own, other, x in ((e, f, cells[e]), (f, e, cells[f])):
                    edited.of_text(x, tokens[own], self.gain, tokens[other] if self.weaken else [])
                edited.of_image(bias)
        return bias


class _Edited:
    """The logits [heads, N, K] of the image cells of one batch row, as the release edits them pair by pair."""

    def __init__(self, site: AttentionCall, row: int) -> None:
        self.site = site
        self.Z = site.scale * site.q[row, :, site.layout.image_queries].float() @ site.k[row].float().mT

    def attention(self) -> Between:
        A = torch.softmax(self.Z, -1)[:, :, self.site.layout.image_keys].mean(0)
        return lambda x, y: A[x[:, None], y[None]]

    def of_text(self, cells: Tensor, own: Sequence[int], gain: float, other: Sequence[int]) -> None:
        self.Z[:, cells[:, None], torch.tensor(self.site.token_keys(own))] *= gain
        self.Z[:, cells[:, None], torch.tensor(self.site.token_keys(other), dtype=torch.long)] = float("-inf")

    def of_image(self, bias: Tensor) -> None:
        self.Z[:, :, self.site.layout.image_keys] += bias


def linked(w: Tensor, spread: float) -> Tensor:
    """``w > mean + spread std`` of the entries of w that are not 0."""
    some = w[w != 0]
    if some.numel() < 2:
        return torch.zeros_like(w, dtype=torch.bool)
    return w > some.mean() + spread * some.std()


def progress(ctx: Context, site: AttentionCall) -> float:
    """How far the run is at this call, 0 to 1, counting sites."""
    if "order" not in ctx.state:
        ctx.state["order"] = {one.name: j for j, one in enumerate(ctx.anatomy.sites)}
    order = ctx.state["order"]
    return (ctx.step + order[site.name] / len(order)) / ctx.steps
