"""One attention call as the methods see it: what its rows, queries and keys stand for, and its columns."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from unleak.core import scores
from unleak.core.anatomy import Site
from unleak.core.rows import Rows, Which
from unleak.errors import BadInput, UnsupportedModel

T = TypeVar("T")

Checks = list[tuple[Tensor, str]]
"""What must not be: a bool on the device, and the message where it is true."""

KEPT = 1024
"""Index tensors, masks on a site's grid and encodings that are kept at a time."""


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
    checks: Checks | None = None
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
        shares = self._part(self.at(self.rows.of(rows)), self.layout.image_queries, self.at(keys))
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
        return self._part(slice(row, row + 1), cells + queries.start, others + keys.start)[0]

    def _part(self, picked: slice | Tensor, queries: slice | Tensor, keys: slice | Tensor) -> Tensor:
        """The map [rows, heads, n, m] of some batch rows, queries and keys."""
        q, k, mask = self.q[picked][:, :, queries], self.k[picked], self._mask_of(picked, queries)
        if self._fused is None and self.mask is None:
            self._fused = scores.fused(self.q, self.k, self.v, self.scale)
        if self._fused is None:
            lse = scores.log_sum_exp(q, k, self.scale, mask)
        else:
            lse = self._fused[1][picked][:, :, queries]
        return scores.columns(q, k, keys, self.scale, lse, mask)

    def _mask_of(self, picked: slice | Tensor, queries: slice | Tensor) -> Tensor | None:
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
        picked, keys, cells = self.at(self.rows.of(rows)), self.at(self.token_keys(None)), self.layout.image_queries
        q, k, mask = self.q[picked][:, :, cells], self.k[picked], self._mask_of(picked, cells)
        shares = scores.shares(q, k, self.scale, mask)[..., keys]
        return shares if self.kind == "cross" else shares / shares.sum(-1, keepdim=True)

    def encode(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [n, H, L, d] that this cross site makes of other text rows [n, L, D] or [L, D].

        The module itself makes them (one query row is enough), so projections, norms, adapters and fused
        weights are all its own. Kept for the same `text` tensor during a generation.
        """
        if self.kind != "cross" or self.capture is None:
            raise BadInput(f"site {self.name} is {self.kind}: only a cross site projects text by itself")
        capture = self.capture
        return self.once((self.name, "encode", contents(text)), text, lambda: capture(text))

    def at(self, positions: Sequence[int]) -> slice | Tensor:
        """What indexes these positions without a copy from the host: a slice, or a tensor made once in a generation."""
        consecutive = bool(positions) and list(positions) == list(range(positions[0], positions[0] + len(positions)))
        return slice(positions[0], positions[-1] + 1) if consecutive else self.index(positions)

    def index(self, positions: Sequence[int]) -> Tensor:
        """The positions as a tensor on the device, made once in a generation."""
        numbers = tuple(positions)
        return self.once(
            ("index", numbers, self.q.device),
            None,
            lambda: torch.tensor(numbers, dtype=torch.long, device=self.q.device),
        )

    def once(self, key: Any, owner: Any, build: Callable[[], T]) -> T:
        """`build()` of the first call with this key in a generation; of the last `KEPT` keys.

        `owner` is kept, so that the tensors whose `contents` are in the key keep their memory to themselves.
        """
        kept: dict[Any, tuple[Any, Any]] = self.cache.setdefault("once", {})
        found = kept.pop(key, None) or (owner, build())
        kept[key] = found
        while len(kept) > KEPT:
            kept.pop(next(iter(kept)))
        built: T = found[1]
        return built

    def refuse(self, wrong: Tensor, message: str) -> None:
        """Raise BadInput where `wrong`, a bool on the device, is true.

        That is at the end of the denoiser's call, which asks the device once for all sites; outside of one, at once.
        """
        if self.checks is None:
            raise_wrong([(wrong, message)])
        else:
            self.checks.append((wrong, message))


def additive(mask: Tensor, like: Tensor) -> Tensor:
    """An attention mask as additive logits, in 4 dimensions; a boolean one is True where attention may go."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=like.dtype).masked_fill(~mask, float("-inf"))
    return mask.reshape((1,) * (4 - mask.ndim) + mask.shape).to(like.dtype)


def contents(tensor: Tensor) -> Hashable:
    """What tells the numbers of a tensor from others, while its memory is kept: views of equal parts are equal."""
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device, version


def raise_wrong(checks: Checks) -> None:
    """Raise BadInput with the message of the first check that is true; one question to the device."""
    wrong = torch.stack([flag for flag, _ in checks]).tolist() if checks else []
    for is_wrong, (_, message) in zip(wrong, checks, strict=True):
        if is_wrong:
            raise BadInput(message)
