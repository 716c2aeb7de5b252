"""A prompt inside whatever a pipeline puts around it: chat template, system message, instruction, folded case.

No template is known here. The pipeline itself says which token ids it makes of a text; the tokens that it makes of the
empty text too are the template's, those between are the text's, and each is traced to the characters that it spells.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from typing import Any, NamedTuple

from unleak.errors import UnsupportedModel
from unleak.text.match import Chars
from unleak.text.spans import Tokens

LEAST = 0.5
"""Share of a text's characters that must be found in what an encoder reads; a cleaned caption lacks a few."""

_UNFINISHED = "\ufffd"
"""What a tokenizer writes for the bytes of a character that is not complete."""


class TokenIds(NamedTuple):
    """One text as an encoder is given it: L token ids, and L flags that are False for pads."""

    ids: tuple[int, ...]
    real: tuple[bool, ...]

    @property
    def places(self) -> list[int]:
        """The positions that are no pads."""
        return [i for i, real in enumerate(self.real) if real]

    @property
    def spoken(self) -> list[int]:
        """The ids that are no pads."""
        return [token for token, real in zip(self.ids, self.real, strict=True) if real]


class Template:
    """What one pipeline gives one of its encoders for a text.

    Args:
        tokenizer: of that encoder; it need not report offsets.
        inputs: texts -> what the encoder is given for each.
        name: how error messages call the encoder.
    """

    def __init__(self, tokenizer: Any, inputs: Callable[[Sequence[str]], list[TokenIds]], name: str) -> None:
        self.tokenizer, self.inputs, self.name = tokenizer, inputs, name
        self._bare: list[int] | None = None

    def cut(self, texts: Sequence[str]) -> tuple[Tokens, ...]:
        """Texts as the pipeline gives them to the encoder, in one batch; errors: `read`."""
        return tuple(self.read(text, given) for text, given in zip(texts, self.inputs(texts), strict=True))

    def read(self, text: str, given: TokenIds) -> Tokens:
        """Which of the given tokens are the text's own, and which of its characters each spells.

        Raises:
            UnsupportedModel: the tokens do not spell the text, or spell it more than once.
        """
        ids, places = given.spoken, given.places
        head, tail = self._around(ids)
        own = range(head, len(ids) - tail)
        spelling, chars = spell(self.tokenizer, ids)
        full = not tail and all(given.real)
        found, lost = self._trace(text, spelling, [chars[i] for i in own], full)
        offsets: list[Chars] = [(0, 0)] * len(given.ids)
        words = [False] * len(given.ids)
        for i, at in zip(own, _with_spaces(text, found), strict=True):
            offsets[places[i]], words[places[i]] = at, bool(text.strip())
        before = places[head] if head < len(places) else len(given.ids)
        return Tokens(text, given.ids, tuple(offsets), tuple(words), given.real, lost, before)

    def _around(self, ids: Sequence[int]) -> tuple[int, int]:
        """How many tokens the template has before and after the text: those that the empty text has as well."""
        if self._bare is None:
            try:
                self._bare = self.inputs([""])[0].spoken
            except Exception:  # a pipeline may refuse an empty text; then the text must occur once
                self._bare = []
        bare = self._bare
        head = _common(bare, ids)
        return head, min(_common(bare[::-1], ids[::-1]), len(bare) - head, len(ids) - head)

    def _trace(
        self, text: str, spelling: str, tokens: Sequence[Chars], full: bool
    ) -> tuple[list[Chars], tuple[Chars, ...]]:
        """For each token (a range of `spelling`) the characters of `text` that it spells, and those that are lost.

        `full`: nothing stands after the text, no pad either, so that it may have been cut off.
        """
        if not text.strip():
            return [(0, 0)] * len(tokens), ()
        if not tokens:
            if full:
                return [], ((0, len(text)),)
            raise self._foreign(text, "nothing")
        begin, stop = tokens[0][0], max(b for _, b in tokens)
        written = _letters(spelling[begin:stop].rstrip(_UNFINISHED))
        wanted = _letters(text)
        pairs, lost = self._pairs(text, wanted, written, full)
        source = {written[k][1] + begin: wanted[j][1] for j, k in pairs}
        found = []
        for a, b in tokens:
            spelled = [source[k] for k in range(a, b) if k in source]
            found.append((min(spelled), max(spelled) + 1) if spelled else (0, 0))
        return found, lost

    def _pairs(
        self, text: str, wanted: Sequence[Letter], written: Sequence[Letter], full: bool
    ) -> tuple[list[tuple[int, int]], tuple[Chars, ...]]:
        """Which letter of the text is which letter that the tokens spell; the range of the text that is cut off."""
        one, two = ("".join(letter for letter, _ in letters) for letters in (wanted, written))
        start = two.find(one)
        if start >= 0:
            if not self._bare and two.find(one, start + 1) >= 0:
                raise UnsupportedModel(
                    f"{self.name} reads {text!r} inside a longer text that says it more than once, so its tokens "
                    "cannot be told: write the prompt so that it differs from what stands around it"
                )
            return [(j, start + j) for j in range(len(one))], ()
        if one.startswith(two):  # cut off at the end
            return [(j, j) for j in range(len(two))], ((wanted[len(two)][1], len(text)),)
        if one.endswith(two):
            shift = len(one) - len(two)
            return [(shift + j, j) for j in range(len(two))], ((0, wanted[shift][1]),)
        blocks = SequenceMatcher(None, one, two, autojunk=False).get_matching_blocks()
        pairs = [(block.a + i, block.b + i) for block in blocks for i in range(block.size)]
        if len(pairs) < LEAST * max(len(one), 1):
            raise self._foreign(text, repr(two[:80]))
        last = pairs[-1][0] + 1
        rest = full and any(letter.isalnum() for letter in one[last:])
        return pairs, ((wanted[last][1], len(text)),) if rest else ()

    def _foreign(self, text: str, spelled: str) -> UnsupportedModel:
        return UnsupportedModel(
            f"{self.name} is not given the words of {text!r}: its tokens spell {spelled}. Items are found by the "
            "prompt's own words; switch off what rewrites the prompt"
        )


def spell(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[Chars]]:
    """The text that tokens spell, special tokens included, and the range of it that each spells.

    The bytes of one character may be several tokens; each then has the whole character.
    """
    text = _decode(tokenizer, ids)
    if getattr(tokenizer, "is_fast", False):
        again = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False)
        if list(again["input_ids"]) == list(ids):
            return text, [(a, b) for a, b in again["offset_mapping"]]
    ranges: list[Chars] = []
    done = 0
    for i in range(len(ids)):
        now = max(done, len(_decode(tokenizer, ids[: i + 1]).rstrip(_UNFINISHED)))
        ranges.append((done, max(now, min(done + 1, len(text)))))
        done = now
    return text, ranges


Letter = tuple[str, int]
"""A character that is compared, and the position of the character that it comes from."""


def _letters(text: str) -> list[Letter]:
    """What is left to compare: compatibility form, no case, no spaces, no invisible characters."""
    return [
        (letter, at)
        for at, char in enumerate(text)
        for letter in unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", char).casefold())
        if not letter.isspace() and unicodedata.category(letter) != "Cf"
    ]


def _with_spaces(text: str, found: Sequence[Chars]) -> list[Chars]:
    """The ranges of tokens, a token of white space alone having that between its neighbours."""
    out, done = list(found), 0
    for i, (a, b) in enumerate(found):
        if a == b:
            after = next((start for start, stop in found[i:] if start < stop), done)
            if text[done:after].isspace():
                out[i] = (done, after)
        done = max(done, b)
    return out


def _common(one: Sequence[int], two: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
