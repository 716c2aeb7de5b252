"""How much a prompt's items change each other's rows, from text encodings alone.

With ``P`` the prompt, ``P-B`` the prompt with item B replaced by a word for any object ("a mouse and a thing"),
``h_A`` the row of item A (in a causal encoder its last, else the mean of its rows) and ``T`` the rows after the text
(in a causal encoder only: EOS and the first pad, which gather all items), B changes A by

    own    d = h_A(P) - h_A(P-B)                        where A alone says  a = h_A(P-B) - h_A(P-A-B)
    after  d = T(P) - T(P-A) - (T(P-B) - T(P-A-B))      where A alone says  a = T(P-B) - T(P-A-B)

``|d| / |a|`` is the size of the shift; ``-<d, a> / <a, a>`` its loss: the share of A's own meaning that is gone. After
Follow the Flow (arXiv 2504.01137), which masks B to find its flow into A's rows; the second difference carries the
idea over to rows that hold every item.

With three items or more, the others around A and B change their rows too, and more of them change more. What B does to
A is then the mean over two contexts: all other items (the prompt) and none ("a mouse and a laptop"), the two ends of
the contexts over which a Shapley value averages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unleak.errors import NotFinite, PromptTruncated
from unleak.text.call import stacked
from unleak.text.causal import is_causal
from unleak.text.encoder_calls import EncoderCall
from unleak.text.match import Chars
from unleak.text.phrases import phrase
from unleak.text.spans import Span, Tokens, token_span
from unleak.text.without import THING, without

REST = -1  #: stands for everything in a prompt but its only item
AND = " and "  #: joins two phrases that stand alone
AFTER = 2  #: rows after the text that are read: EOS and the first pad
TOKENS = 4096  #: encoded at once


class Sentence(NamedTuple):
    """A text and where its items (by number) are in it."""

    text: str
    items: tuple[tuple[int, Chars], ...]


class SentenceRows(NamedTuple):
    """What one encoder says of one sentence: a row [d] per item; the rows after the text [2d], if it is causal."""

    rows: dict[int, Tensor]
    after: Tensor | None


class Shift(NamedTuple):
    """The size and the loss of a shift, as in the module's equations; dimensionless, 0 where nothing shifts."""

    size: float
    loss: float

    @staticmethod
    def mean(shifts: Sequence[Shift]) -> Shift:
        """Of the same two items in several contexts."""
        return Shift(*(sum(each) / len(shifts) for each in zip(*shifts, strict=True)))


class Cut(NamedTuple):
    """A sentence as one encoder's tokenizer cuts it."""

    tokens: Tokens
    spans: dict[int, Span]


class SentenceEncoder:
    """One of a pipeline's text encoders, read at many sentences at once."""

    def __init__(self, encoder: EncoderCall) -> None:
        self.call, self.layer = encoder.call, encoder.layer
        self.name, self.length = encoder.call.name, encoder.call.length
        self.causal = is_causal(self.call.module, self._probe)

    def cut(self, sentence: Sentence) -> Cut:
        """Raises PromptTruncated where the sentence is too long, BadInput where an item has no tokens of its own."""
        tokenizer, name = self.call.tokenizer, f"{self.name}'s tokenizer"
        tokens = self._tokens(sentence.text)
        return Cut(tokens, {i: token_span(tokenizer, tokens, chars, name) for i, chars in sentence.items})

    def read(self, cuts: Sequence[Cut]) -> list[SentenceRows]:
        """The same sentences in the same order always give the same bits."""
        batch = max(1, TOKENS // self.length)
        parts = [cuts[start : start + batch] for start in range(0, len(cuts), batch)]
        return [reading for part in parts for reading in self._read(part)]

    @torch.no_grad()
    def _read(self, cuts: Sequence[Cut]) -> list[SentenceRows]:
        H = self.layer(self._encode([cut.tokens for cut in cuts])).float().cpu()
        if not torch.isfinite(H).all():
            raise NotFinite(f"{self.name} returned NaN or infinity; load it in float32 or bfloat16")
        return [self._reading(cut, rows) for cut, rows in zip(cuts, H, strict=True)]

    def _reading(self, cut: Cut, H: Tensor) -> SentenceRows:
        rows = {i: H[b - 1] if self.causal else H[a:b].mean(0) for i, (a, b) in cut.spans.items()}
        after = cut.tokens.after_text
        if not self.causal or not after:
            return SentenceRows(rows, None)
        return SentenceRows(rows, torch.cat([H[min(after.start + j, after.stop - 1)] for j in range(AFTER)]))

    def _encode(self, cuts: Sequence[Tokens]) -> Any:
        """No row of a causal encoder depends on what follows it: only as many columns as are read are encoded."""
        ids, real = stacked(cuts)
        last = max(int(real.nonzero()[:, 1].max()), *(cut.after_text.start for cut in cuts if any(cut.words)))
        used = min(last + AFTER, ids.shape[1]) if self.causal else ids.shape[1]
        return self.call.encode(ids[:, :used], real[:, :used], {})

    def _tokens(self, text: str) -> Tokens:
        (tokens,) = self.call.cut([text])
        if tokens.lost:
            raise PromptTruncated(
                f"{self.name} keeps {tokens.length} tokens; {text[:60]!r} has {len(tokens.lost)} more"
            )
        return tokens

    @torch.no_grad()
    def _probe(self, texts: list[str]) -> tuple[Tensor, Any]:
        cuts = [self._tokens(text) for text in texts]
        return stacked(cuts)[0], self.call.encoded(cuts)


Without = frozenset[int]
"""The items that are replaced by the substitute, or left out (`REST`)."""


def variants(prompt: str, spans: Sequence[Chars], substitute: str = THING) -> dict[Without, Sentence]:
    """The prompt, and the prompt without each item and each pair of items: 1 + n + n(n-1)/2 sentences.

    The context of an item that is the only one is the rest of the prompt, which is left out: "a mouse", "a thing".
    """
    every = range(len(spans))
    out = {}
    for gone in [Without(c) for size in range(3) for c in combinations(every, size)]:
        text, placed = without(prompt, spans, gone, substitute)
        out[gone] = Sentence(text, tuple((i, p.name) for i, p in enumerate(placed)))
    if len(spans) == 1:
        for gone, sense in ((Without({REST}), None), (Without({0, REST}), substitute)):
            bare = phrase(prompt, spans[0], sense)
            out[gone] = Sentence(bare.text, ((0, bare.name),))
    return out


Bare = tuple[str, Chars]
"""An item's phrase without its prompt, and where the item is in it: ("a mouse", (2, 7))."""


def beside(item: Bare, other: Bare, first: bool) -> dict[Without, Sentence]:
    """The variants of two phrases and nothing else, "a mouse and a laptop"; `item` is number 0 and `other` 1.

    Args:
        first: `item` stands before `other`.
    """
    (left, at), (right, (start, stop)) = (item, other) if first else (other, item)
    moved = len(left) + len(AND)
    spans = [at, (moved + start, moved + stop)]
    return variants(left + AND + right, spans if first else spans[::-1])


def shifts(rows: Mapping[Without, SentenceRows], a: int, b: int) -> dict[str, Shift]:
    """What b (an item, or the `REST`) does to item a: ``own``, and ``after`` in a causal encoder."""
    full, no_a, no_b, neither = (rows[Without(gone)] for gone in ((), {a}, {b}, {a, b}))
    out = {"own": _shift(full.rows[a] - no_b.rows[a], no_b.rows[a] - neither.rows[a])}
    if full.after is not None and no_a.after is not None and no_b.after is not None and neither.after is not None:
        alone = no_b.after - neither.after
        out["after"] = _shift(full.after - no_a.after - alone, alone)
    return out


def towards(rows: Mapping[Without, SentenceRows], a: int, b: int) -> float:
    """Cosine of a's own shift with the way from a's row to b's, each in a neutral context; 0 where nothing shifts."""
    full, no_a, no_b = (rows[Without(gone)] for gone in ((), {a}, {b}))
    way = no_a.rows[b] - no_b.rows[a]
    return float(torch.cosine_similarity(full.rows[a] - no_b.rows[a], way, dim=0))


def sense_position(full: SentenceRows, intended: SentenceRows, other: SentenceRows, a: int) -> dict[str, float]:
    """``<h - h_1, h_2 - h_1> / |h_2 - h_1|^2``: 0 where item a is as if named by the intended sense, 1 as if by
    the other; ``own`` and, in a causal encoder, ``after``."""
    triples = {"own": (full.rows[a], intended.rows[a], other.rows[a])}
    if full.after is not None and intended.after is not None and other.after is not None:
        triples["after"] = (full.after, intended.after, other.after)
    return {c: float((h - one) @ (two - one)) / _scale(two - one) ** 2 for c, (h, one, two) in triples.items()}


def _shift(d: Tensor, a: Tensor) -> Shift:
    return Shift(float(d.norm()) / _scale(a), -float(d @ a) / _scale(a) ** 2)


def _scale(a: Tensor) -> float:
    """``|a|``, or 1 where an item says nothing of its own: it is the substitute itself."""
    return float(a.norm()) or 1.0
