"""Character ranges of a prompt -> token spans, for any tokenizer that reports offsets.

Positions are found by character offsets, never by comparing token ids, and never carried from one tokenizer
to another: each encoder cuts the same prompt in its own way.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any

from unleak.errors import BadInput, PromptTruncated, UnsupportedModel
from unleak.text.items import Item
from unleak.text.match import Chars
from unleak.text.vectors import expand, expanded

Span = tuple[int, int]
"""Half-open token span."""


@dataclass(frozen=True)
class Tokens:
    """One text as one tokenizer cuts it, padded to the encoder's length L.

    Attributes:
        text: the text.
        ids: L token ids, special tokens and pads included.
        offsets: L character ranges of ``text``; (0, 0) for special tokens and pads. The tokens of a word of several
            vectors all have the word's.
        words: L flags; True for the text's own tokens, False for special tokens and pads.
        real: L flags; True for everything but pads.
        lost: the character ranges of the tokens that did not fit into L (empty when nothing was cut off).
        before: how many tokens stand before the text, where a template puts some there; None: not known.
    """

    text: str
    ids: tuple[int, ...]
    offsets: tuple[Chars, ...]
    words: tuple[bool, ...]
    real: tuple[bool, ...]
    lost: tuple[Chars, ...] = ()
    before: int | None = None

    @property
    def length(self) -> int:
        """L."""
        return len(self.ids)

    @property
    def body(self) -> Span:
        """The span of the text's own tokens, without special tokens and pads."""
        inside = [i for i, own in enumerate(self.words) if own]
        if not inside:
            raise BadInput(f"The text {self.text!r} has no token of its own.")
        return inside[0], inside[-1] + 1

    @property
    def end(self) -> int:
        """The row after the text's own tokens: EOS, where there is one. An empty text has it where a template puts the
        text, else at its last real row."""
        if any(self.words):
            return self.body[1]
        return self.length - 1 - self.real[::-1].index(True) if self.before is None else self.before

    @property
    def after_text(self) -> range:
        """The rows after the text: EOS or the end of the template, where there is one, and the pads."""
        return range(self.end, self.length)


def tokenize(tokenizer: Any, text: str, length: int | None = None, name: str = "the tokenizer") -> Tokens:
    """Cut ``text`` as a diffusers pipeline does: padded and truncated to ``length`` (default: its own).

    Args:
        name: how error messages call the tokenizer.

    Raises:
        UnsupportedModel: the tokenizer reports no character offsets.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UnsupportedModel(
            f"{name} ({type(tokenizer).__name__}) reports no character offsets, so words cannot be mapped to"
            " tokens. Use its fast version, for each tokenizer of the pipe: pipe.tokenizer ="
            " transformers.AutoTokenizer.from_pretrained(pipe.tokenizer.name_or_path)."
        )
    length = length or tokenizer.model_max_length
    outputs = {
        "return_offsets_mapping": True,
        "return_special_tokens_mask": True,
        "return_attention_mask": True,
    }
    given, written = expand(tokenizer, text)
    cut = tokenizer(given, padding="max_length", max_length=length, truncation=True, **outputs)
    full = tokenizer(given, truncation=False, padding=False, verbose=False, **outputs)
    words = tuple(not special for special in cut["special_tokens_mask"])
    every = [at for at, own in zip(full["offset_mapping"], full["special_tokens_mask"], strict=True) if not own]
    over = len(every) - sum(words)
    lost = every[:over] if tokenizer.truncation_side == "left" else every[len(every) - over :]
    return Tokens(
        text=text,
        ids=tuple(cut["input_ids"]),
        offsets=tuple(written((a, b)) for a, b in cut["offset_mapping"]),
        words=words,
        real=tuple(map(bool, cut["attention_mask"])),
        lost=tuple(written((a, b)) for a, b in lost),
    )


def token_span(tokenizer: Any, tokens: Tokens, chars: Chars, name: str = "the tokenizer") -> Span:
    """The tokens that spell ``tokens.text[chars]``, and nothing else.

    Raises:
        PromptTruncated: some of them lie beyond the encoder's length.
        BadInput: no token, or no run of whole tokens, spells these characters.
    """
    item = tokens.text[slice(*chars)]
    if any(_overlap(at, chars) for at in tokens.lost):
        raise PromptTruncated(
            f"{item!r} lies beyond the {tokens.length} tokens that {name} keeps of {tokens.text!r}."
            " Shorten the prompt, or move the item forward."
        )
    inside = [i for i, at in enumerate(tokens.offsets) if tokens.words[i] and _overlap(at, chars)]
    if not inside:
        raise BadInput(f"{name} makes no token of {item!r}: name another word.")
    start, stop = inside[0], inside[-1] + 1
    if _is_word_mark(tokenizer, tokens, start):
        start -= 1
    read = tokenizer.decode(list(tokens.ids[start:stop]))
    if _plain(read) != _plain(expanded(tokenizer, item)):
        raise BadInput(
            f"{name} reads {item!r} as {read!r} (tokens {start} to {stop - 1}), so these rows are not"
            " the item's alone. Name the whole expression, or another word that the tokenizer knows."
        )
    return start, stop


def item_span(tokenizer: Any, prompt: str, item: str | Item, length: int | None = None) -> Span:
    """Token span of ``item`` in ``prompt`` padded to ``length``; errors: `Item.find` and `token_span`."""
    return token_span(tokenizer, tokenize(tokenizer, prompt, length), Item.of(item).find(prompt))


def _overlap(one: Chars, two: Chars) -> bool:
    return max(one[0], two[0]) < min(one[1], two[1])


def _is_word_mark(tokenizer: Any, tokens: Tokens, start: int) -> bool:
    """Is the token before ``start`` the bare space that opens this word (SentencePiece's lone "▁")?"""
    if start == 0 or not tokens.words[start - 1]:
        return False
    (a, b), (c, d) = tokens.offsets[start - 1], tokens.offsets[start]
    apart = a < b == c < d and tokens.text[a:b].isspace() and not tokens.text[c].isspace()
    return apart and not tokenizer.decode([tokens.ids[start - 1]]).strip()


def _plain(text: str) -> str:
    """What is left to compare: compatibility form, no case, no spaces, no invisible characters."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return "".join(c for c in folded if not c.isspace() and unicodedata.category(c) != "Cf")
