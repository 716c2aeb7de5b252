"""Whole-word search of an item in a prompt, on the user's own characters.

Tokenizers fold case, compose accents and squeeze spaces, so the search does the same and keeps, for every
character it compares, the range of the original string it came from.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterator

from unleak.errors import AmbiguousItem, BadInput, ItemNotFound

Chars = tuple[int, int]
"""Half-open range of characters of a text."""

_HYPHENS = "-\u2010\u2011"
_ZERO_WIDTH_JOINER = "\u200d"


def occurrences(text: str, item: str) -> list[Chars]:
    """Every whole-word occurrence of ``item`` in ``text``, left to right, as ranges of ``text``.

    Unicode composition and runs of whitespace do not matter. Exact case is tried first; only when it occurs
    nowhere is case ignored. ``car`` is found neither in ``scarf`` nor in ``cars`` nor in ``car-park``.
    """
    return _search(text, item, fold=False) or _search(text, item, fold=True)


def locate(text: str, item: str, occurrence: int | None = None) -> Chars:
    """The range of ``text`` that holds ``item``; ``occurrence`` counts from 1, left to right.

    Raises:
        BadInput: ``text`` or ``item`` is blank, or ``occurrence`` is below 1.
        ItemNotFound: the item, or that occurrence of it, is not there.
        AmbiguousItem: it is there several times and ``occurrence`` is not given.
    """
    if not text.strip():
        raise BadInput("The prompt is empty: there is no item in it.")
    if not item.strip():
        raise BadInput("An item is empty: name a word or an expression of the prompt.")
    if occurrence is not None and occurrence < 1:
        raise BadInput(f"Occurrences of {item!r} are counted from 1, not from {occurrence}.")
    matches = occurrences(text, item)
    if not matches:
        close = _close(text, item)
        hint = f" Close to it: {', '.join(map(repr, close))}." if close else ""
        raise ItemNotFound(
            f"{item!r} is not a whole word or expression of the prompt {text!r}.{hint}"
            " Write the item as it stands in the prompt."
        )
    if occurrence is None and len(matches) > 1:
        where = "; ".join(f"{item}#{k} {_context(text, at)}" for k, at in enumerate(matches, 1))
        raise AmbiguousItem(
            f"{item!r} occurs {len(matches)} times in the prompt: {where}. Choose one: '{item}#1', or"
            f" Item({item!r}, occurrence=1)."
        )
    if occurrence is not None and occurrence > len(matches):
        raise ItemNotFound(f"{item!r} occurs {len(matches)} time(s) in {text!r}: there is no #{occurrence}.")
    return matches[(occurrence or 1) - 1]


def _search(text: str, item: str, fold: bool) -> list[Chars]:
    item_pieces = [piece for piece, _ in _pieces(item.strip(), fold)]
    pieces, ranges = zip(*_pieces(text, fold), strict=True) if text else ((), ())
    matches: list[Chars] = []
    for i in range(len(pieces) - len(item_pieces) + 1):
        a, b = ranges[i][0], ranges[i + len(item_pieces) - 1][1]
        apart = not matches or a >= matches[-1][1]
        if list(pieces[i : i + len(item_pieces)]) == item_pieces and apart and _splits(text, a) and _splits(text, b):
            matches.append((a, b))
    return matches


def _pieces(text: str, fold: bool) -> Iterator[tuple[str, Chars]]:
    """(normal form, range of ``text``) of each run of whitespace and each composed character."""
    a = 0
    while a < len(text):
        b = a + 1
        if text[a].isspace():
            while b < len(text) and text[b].isspace():
                b += 1
            yield " ", (a, b)
        else:
            while b < len(text) and _composes(text[a:b], text[b]):
                b += 1
            piece = unicodedata.normalize("NFC", text[a:b])
            yield (unicodedata.normalize("NFC", piece.casefold()) if fold else piece), (a, b)
        a = b


def _composes(cluster: str, char: str) -> bool:
    """Does ``char`` belong to the composed character that ``cluster`` begins?"""
    if cluster.isascii() and char.isascii():  # a shortcut: nearly every prompt
        return False
    if unicodedata.combining(char):
        return True
    return unicodedata.normalize("NFC", cluster + char) != unicodedata.normalize("NFC", cluster) + (
        unicodedata.normalize("NFC", char)
    )


def _splits(text: str, i: int) -> bool:
    """Is there a word boundary just before character ``i``?"""
    if i <= 0 or i >= len(text):
        return True
    left, right = text[i - 1], text[i]
    if left == _ZERO_WIDTH_JOINER or right == _ZERO_WIDTH_JOINER or _modifies(right):
        return False
    if right in _HYPHENS:
        return not (_is_word(left) and i + 1 < len(text) and _is_word(text[i + 1]))
    if left in _HYPHENS:
        return not (_is_word(right) and i >= 2 and _is_word(text[i - 2]))
    # scripts written without spaces (their letters are "wide") show no boundary: take the user's word
    return not (_is_word(left) and _is_word(right)) or _is_wide(left) or _is_wide(right)


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_" or unicodedata.category(char)[0] == "M"


def _modifies(char: str) -> bool:
    return unicodedata.category(char)[0] == "M" or 0x1F3FB <= ord(char) <= 0x1F3FF  # marks, skin tones


def _is_wide(char: str) -> bool:
    return unicodedata.east_asian_width(char) in "WF"


def _close(text: str, item: str, most: int = 3) -> list[str]:
    """Words, or runs of as many words as the item has, that look like the item."""
    words = [word.strip(".,;:!?\"'()[]{}") for word in text.split()]
    size = len(item.split())
    runs = dict.fromkeys(" ".join(words[i : i + size]) for i in range(len(words) - size + 1))
    inside = [run for run in runs if item.casefold() in run.casefold()]
    alike = difflib.get_close_matches(item, list(runs), n=most)
    return list(dict.fromkeys(inside + alike))[:most]


def _context(text: str, at: Chars, width: int = 12) -> str:
    a, b = at
    before, after = text[max(0, a - width) : a], text[b : b + width]
    return f"({'…' if a > width else ''}{before}[{text[a:b]}]{after}{'…' if b + width < len(text) else ''})"
