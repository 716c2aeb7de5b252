"""One attention call as the methods see it: what its rows, queries and keys stand for, and its columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from unleak.core import scores
from unleak.core.anatomy import Site
from unleak.core.rows import Rows, Which
from unleak.errors import BadInput, UnsupportedModel

T = TypeVar("T")


@dataclass(frozen=True)
class Layout:
    """Which queries and keys of a site are image cells and which are text rows.

    `kind` is "cross" (image queries, text keys), "joint" (both in both), "self" (image only) or "text" (text only; no
    intervention is asked there). Positions in no slice are neither: register tokens, padding, reference images.
    """

    kind: str
    image_queries: slice
    image_keys: slice | None
    text_queries: slice | None
    text_keys: slice | None

    @property
    def text_length(self) -> int:
        """How many text rows stand among the keys."""
        return 0 if self.text_keys is None else self.text_keys.stop - self.text_keys.start

    @classmethod
    def cross(cls, queries: int, text: int) -> Layout:
        return cls("cross", slice(0, queries), None, None, slice(0, text))

    @classmethod
    def self_(cls, length: int) -> Layout:
        return cls("self", slice(0, length), slice(0, length), None, None)

    @classmethod
    def joint(cls, length: int, text: int, text_first: bool) -> Layout:
        rows, cells = slice(0, text), slice(text, length)
        if not text_first:
            rows, cells = slice(length - text, length), slice(0, length - text)
        return cls("joint", cells, cells, rows, rows)


@dataclass(eq=False)
class AttentionCall:
    """One `scaled_dot_product_attention` call of a site: q [B, H, N, d], k and v [B, H, K, d].

    `rows` labels the batch; `grid` is (height, width) of the image cells, row-major; `text_length` counts
    the text rows. `other_kernel`: the user chose another than `scaled_dot_product_attention`. `module`, `hidden` and
    `text` are the attention module and what it was given.
    """

    site: Site
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    scale: float
    layout: Layout
    grid: tuple[int, int] | None
    rows: Rows
    plain_call: Callable[[], Tensor]
    other_kernel: bool = False
    hidden: Tensor | None = None
    capture: Callable[..., tuple[Tensor, Tensor]] | None = None
    cache: dict[Any, Any] = field(default_factory=dict)
    _fused: tuple[Tensor, Tensor] | None = None

    @property
    def name(self) -> str:
        return self.site.name

    @property
    def module(self) -> nn.Module:
        return self.site.module

    @property
    def kind(self) -> str:
        return self.layout.kind

    @property
    def text_length(self) -> int:
        return self.layout.text_length

    def plain(self) -> Tensor:
        """The unedited output, computed once."""
        return self.plain_call() if self._fused is None or self.other_kernel else self._fused[0]

    def token_keys(self, tokens: Sequence[int] | None) -> list[int]:
        """Key positions of text tokens (None: of all)."""
        keys = self.layout.text_keys
        if keys is None:
            raise BadInput(f"site {self.name} is {self.kind}: it has no text tokens to address")
        tokens = range(self.text_length) if tokens is None else tokens
        if any(not 0 <= token < self.text_length for token in tokens):
            raise BadInput(f"tokens {list(tokens)} do not fit the {self.text_length} text rows of {self.name}")
        return [keys.start + token for token in tokens]

    def columns(self, tokens: Sequence[int], rows: Which = "cond", mean_heads: bool = True) -> Tensor:
        """Attention of the image cells to text tokens, before any edit of this call.

        Returns:
            [rows, height, width, T], averaged over heads, or [rows, heads, height, width, T]; in [0, 1].

        Raises:
            UnsupportedModel: the image cells of this site have no known height and width.
        """
        if self.grid is None:
            raise UnsupportedModel(f"the latent height and width at site {self.name} are not known")
        keys = self.token_keys(tokens)
        shares = self._part(row_index(self.rows.of(rows)), self.layout.image_queries, keys)
        return (shares.mean(1) if mean_heads else shares).unflatten(-2, self.grid)

    def between(self, row: int, cells: Tensor, others: Tensor) -> Tensor:
        """Attention of some image cells to other image cells in one batch row, before any edit of this call.

        Args:
            cells, others: numbers of image cells, row-major: [n] and [m].

        Returns:
            [heads, n, m] in [0, 1]; nothing else of the map is built.
        """
        queries, keys = self.layout.image_queries, self.layout.image_keys
        if keys is None:
            raise BadInput(f"site {self.name} is {self.kind}: its cells attend to no image cells")
        return self._part([row], cells + queries.start, (others + keys.start).tolist())[0]

    def _part(self, picked: slice | list[int], queries: slice | Tensor, keys: Sequence[int]) -> Tensor:
        """The map [rows, heads, n, m] of some batch rows, queries and keys."""
        q, k, mask = self.q[picked][:, :, queries], self.k[picked], self._mask_of(picked, queries)
        if self._fused is None and self.mask is None:
            self._fused = scores.fused(self.q, self.k, self.v, self.scale)
        if self._fused is None:
            lse = scores.log_sum_exp(q, k, self.scale, mask)
        else:
            lse = self._fused[1][picked][:, :, queries]
        return scores.columns(q, k, keys, self.scale, lse, mask)

    def _mask_of(self, picked: slice | list[int], queries: slice | Tensor) -> Tensor | None:
        """The call's own mask, additive, for some batch rows and queries."""
        if self.mask is None:
            return None
        mask = additive(self.mask, self.q).expand(len(self.q), -1, -1, -1)[picked]
        return mask[:, :, queries] if mask.shape[-2] > 1 else mask

    def text_shares(self, rows: Which = "cond") -> Tensor:
        """How the average image cell divides its attention to the text among the text rows, before any edit.

        Returns:
            [rows, heads, text rows]; sums to 1 over the text, also at joint sites, where the image has a share.
        """
        picked, keys, cells = row_index(self.rows.of(rows)), self.token_keys(None), self.layout.image_queries
        q, k, mask = self.q[picked][:, :, cells], self.k[picked], self._mask_of(picked, cells)
        shares = scores.shares(q, k, self.scale, mask)[..., row_index(keys)]
        return shares if self.kind == "cross" else shares / shares.sum(-1, keepdim=True)

    def encode(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [n, H, L, d] that this cross site makes of other text rows [n, L, D] or [L, D].

        The module itself makes them (one query row is enough), so projections, norms, adapters and fused
        weights are all its own. Kept for the same `text` tensor during a generation.
        """
        if self.kind != "cross" or self.capture is None:
            raise BadInput(f"site {self.name} is {self.kind}: only a cross site projects text by itself")
        capture = self.capture
        return self.once((self.name, "encode", id(text)), text, lambda: capture(text))

    def once(self, key: Any, owner: Any, build: Callable[[], T]) -> T:
        """`build()` of the first call with this key in a generation; keeping `owner` keeps its id unique."""
        if key not in self.cache:
            self.cache[key] = (owner, build())
        built: T = self.cache[key][1]
        return built


def additive(mask: Tensor, like: Tensor) -> Tensor:
    """An attention mask as additive logits, in 4 dimensions; a boolean one is True where attention may go."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=like.dtype).masked_fill(~mask, float("-inf"))
    return mask.reshape((1,) * (4 - mask.ndim) + mask.shape).to(like.dtype)


def row_index(rows: Sequence[int]) -> slice | list[int]:
    """A slice where rows are consecutive, so that indexing needs no copy."""
    consecutive = rows and list(rows) == list(range(rows[0], rows[0] + len(rows)))
    return slice(rows[0], rows[-1] + 1) if consecutive else list(rows)
