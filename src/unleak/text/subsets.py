"""Subsets of a prompt's rows, named by what they spell, and their positions in one encoder.

Every encoder cuts a prompt in its own way, so a subset holds no positions. It names items, tokens of items and
kinds of rows; `Subset.positions` finds them anew in each encoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from unleak.errors import BadInput, choose
from unleak.text.items import Item
from unleak.text.spans import Tokens, token_span, tokenize
from unleak.text.vectors import expanded

KINDS = ("bos", "text", "eos", "pads")


class Cutter(Protocol):
    """Whatever has a name and a tokenizer: a text encoder of a pipeline, or one call of it."""

    @property
    def name(self) -> str: ...

    @property
    def tokenizer(self) -> Any: ...


@dataclass(frozen=True)
class Subset:
    """Which rows of a prompt. EOS and the contextual pads belong to it only if they are named.

    `Subset.of`, `token`, `tokens`, `pads`, `everything` and `nothing` make one; ``a | b`` joins two.

    Attributes:
        items: whole items, as `Item.of` writes them.
        pieces: single tokens (item, k, encoder): the k-th token of the item, from 0, as that encoder cuts it.
            In every other encoder these are the tokens that lie wholly inside the same characters.
        kinds: whole kinds of rows: ``"text"`` (the prompt's own tokens), ``"bos"``, ``"eos"``, ``"pads"``.
    """

    items: tuple[str, ...] = ()
    pieces: tuple[tuple[str, int, str | None], ...] = ()
    kinds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for kind in self.kinds:
            choose("kind of rows", kind, KINDS)
        for item in self.named:
            Item.of(item)  # refuses an empty one
        object.__setattr__(self, "items", tuple(dict.fromkeys(self.items)))
        object.__setattr__(self, "pieces", tuple(dict.fromkeys(map(tuple, self.pieces))))
        object.__setattr__(self, "kinds", tuple(k for k in KINDS if k in self.kinds))

    @classmethod
    def of(cls, items: str | Item | Iterable[str | Item] = (), kinds: Iterable[str] = ()) -> Subset:
        """Whole items, and whole kinds of rows: ``Subset.of("mouse")``, ``Subset.of(("mouse", "laptop"), ["eos"])``."""
        given = (items,) if isinstance(items, (str, Item)) else tuple(items)
        return cls(tuple(Item.of(one).written() for one in given), kinds=tuple(kinds))

    @classmethod
    def token(cls, item: str | Item, k: int, encoder: str | None = None) -> Subset:
        """One token of an item. ``encoder`` ("text_encoder_2") must be told where encoders cut the item differently."""
        return cls(pieces=((Item.of(item).written(), k, encoder),))

    @classmethod
    def tokens(cls) -> Subset:
        """All tokens of the text, without BOS, EOS and pads."""
        return cls(kinds=("text",))

    @classmethod
    def pads(cls) -> Subset:
        """The contextual pads, without EOS."""
        return cls(kinds=("pads",))

    @classmethod
    def everything(cls) -> Subset:
        """Every row: the prompt as it is."""
        return cls(kinds=KINDS)

    @classmethod
    def nothing(cls) -> Subset:
        """No row: what a judge sees there it would see without the prompt."""
        return cls()

    def __or__(self, other: Subset) -> Subset:
        return Subset(self.items + other.items, self.pieces + other.pieces, self.kinds + other.kinds)

    @property
    def named(self) -> tuple[str, ...]:
        """The items that whole items and single tokens belong to, each once."""
        return tuple(dict.fromkeys((*self.items, *(item for item, _, _ in self.pieces))))

    def counts(self, encoder: str) -> bool:
        """Whether its single tokens are those of this encoder."""
        return all(name in (None, encoder) for _, _, name in self.pieces)

    def positions(self, own: Cutter, tokens: Tokens, every: Sequence[Cutter]) -> list[int]:
        """Positions of the subset in a prompt that the encoder ``own`` cuts into ``tokens``.

        Args:
            every: all encoders of the pipeline, by which single tokens are counted.

        Raises:
            BadInput: an item has no such token, or it is not said whose tokens are counted.
            ItemNotFound, AmbiguousItem, PromptTruncated: see `Item.find` and `token_span`.
        """
        positions = {i for i, kind in enumerate(row_kinds(tokens)) if kind in self.kinds}
        for item in self.items:
            positions |= set(range(*token_span(own.tokenizer, tokens, Item.of(item).find(tokens.text), own.name)))
        for item, k, encoder in self.pieces:
            positions |= _piece(own, tokens, every, Item.of(item), k, encoder)
        return sorted(positions)


def row_kinds(tokens: Tokens) -> list[str]:
    """The kind of each of L rows, one of `KINDS`."""
    start = tokens.real.index(True) + 1 if tokens.before is None else tokens.before
    start = next((i for i, own in enumerate(tokens.words) if own), start)
    special = ["bos" if i < start else "eos" for i in range(tokens.length)]
    return [
        "pads" if not real else "text" if word else other
        for real, word, other in zip(tokens.real, tokens.words, special, strict=True)
    ]


def cut(cutter: Cutter, prompt: str) -> Tokens:
    """The whole prompt as this encoder's tokenizer cuts it, without pads."""
    room = len(cutter.tokenizer(expanded(cutter.tokenizer, prompt), verbose=False).input_ids)
    return tokenize(cutter.tokenizer, prompt, room, cutter.name)


def cut_item(cutter: Cutter, prompt: str, item: str | Item) -> list[frozenset[int]]:
    """For each token of the item, in this encoder, the characters of the prompt that it spells, without spaces."""
    tokens = cut(cutter, prompt)
    span = token_span(cutter.tokenizer, tokens, Item.of(item).find(prompt), cutter.name)
    return [letters(cutter, tokens, i) for i in range(*span)]


def _piece(own: Cutter, tokens: Tokens, every: Sequence[Cutter], item: Item, k: int, encoder: str | None) -> set[int]:
    cuts = {cutter.name: cut_item(cutter, tokens.text, item) for cutter in every if encoder in (None, cutter.name)}
    if not cuts:
        choose("encoder", encoder, [c.name for c in every])
    name, item_letters = next(iter(cuts.items()))
    if any(other != item_letters for other in cuts.values()):
        counts = ", ".join(f"{len(c)} in {n}" for n, c in cuts.items())
        raise BadInput(
            f"the encoders cut {item.text!r} differently ({counts} tokens): say whose token {k} is meant, "
            f"Subset.token({item.text!r}, {k}, encoder={name!r})."
        )
    if not 0 <= k < len(item_letters):
        raise BadInput(
            f"{item.text!r} has {len(item_letters)} token(s) in {name}, counted from 0: there is no token {k}."
        )
    a, b = token_span(own.tokenizer, tokens, item.find(tokens.text), own.name)
    if encoder in (None, own.name):
        return {a + k}
    return {i for i in range(a, b) if letters(own, tokens, i) and letters(own, tokens, i) <= item_letters[k]}


def letters(cutter: Cutter, tokens: Tokens, i: int) -> frozenset[int]:
    """The characters of the text that token i spells, without spaces; none for the bare mark that opens a word."""
    if not cutter.tokenizer.decode([tokens.ids[i]]).strip():
        return frozenset()
    return frozenset(at for at in range(*tokens.offsets[i]) if not tokens.text[at].isspace())
