"""Lexical items: what the user points at in a prompt, by its own words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from unleak.errors import BadInput
from unleak.text.match import Chars, locate, occurrences


@dataclass(frozen=True)
class Item:
    """A word or expression of the prompt that names one concept.

    Attributes:
        text: as it stands in the prompt, with its own modifiers ("yellow car"), at least one character.
        occurrence: which one, from 1, when the text occurs several times; None when it occurs once.
        sense: an unambiguous name of the concept ("computer mouse"), used wherever the item is encoded
            without its context; None to use ``text`` itself.
    """

    text: str
    occurrence: int | None = None
    sense: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", self.text.strip())
        if not self.text:
            raise BadInput("An item is empty: name a word or an expression of the prompt, without a comma too many.")
        if self.occurrence is not None and self.occurrence < 1:
            raise BadInput(f"Occurrences of {self.text!r} are counted from 1, not from {self.occurrence}.")
        if self.sense is not None and not self.sense.strip():
            raise BadInput(f"The sense of {self.text!r} is empty: name it, or leave it out.")

    @classmethod
    def of(cls, value: str | Item) -> Item:
        """``value`` itself, or the item written ``text``, ``text#k`` or ``text#k=sense``."""
        if isinstance(value, Item):
            return value
        words, equals, sense = value.partition("=")
        text, mark, k = words.rpartition("#")
        if not (mark and k.strip().isdecimal()):
            text, k = words, ""
        elif len(k.strip()) > 6:
            raise BadInput(
                f"There is no occurrence #{k.strip()[:12]}... of {text.strip()[:40]!r}: it has {len(k)} digits."
            )
        return cls(text.strip(), int(k) if k else None, sense.strip() if equals else None)

    def written(self) -> str:
        """One line of text that `of` reads back. Raises BadInput where the item's text cannot be told from marks."""
        if Item.of(str(self)) != self:
            raise BadInput(f"{self.text!r} cannot be written as an item: it ends in '#' and digits, or holds '='.")
        return str(self)

    def find(self, prompt: str) -> Chars:
        """Half-open range of characters of ``prompt``; the errors are those of `unleak.text.match.locate`."""
        return locate(prompt, self.text, self.occurrence)

    def __str__(self) -> str:
        return (
            self.text
            + (f"#{self.occurrence}" if self.occurrence is not None else "")
            + (f"={self.sense}" if self.sense is not None else "")
        )


def parse_items(value: str | Item | Iterable[str | Item]) -> tuple[Item, ...]:
    """Items of the command line (``"mouse#2,laptop"``, comma separated) or of a list of texts and items.

    Raises:
        BadInput: none is named, or one of them is empty.
    """
    if isinstance(value, Item):
        return (value,)
    items = tuple(Item.of(part) for part in (value.split(",") if isinstance(value, str) else value))
    if not items:
        raise BadInput("No item is named: give words or expressions of the prompt, e.g. 'mouse,laptop'.")
    return items


def written(value: str | Item | Iterable[str | Item]) -> tuple[str, ...]:
    """Items as lines of plain text that `Item.of` reads back; what a serialisable method keeps of them.

    Raises:
        BadInput: none is named, one is empty, named twice, or not writable as a line.
    """
    items = parse_items(value)
    for item in items:
        if items.count(item) > 1:
            raise BadInput(f"The item '{item}' is named twice: name it once.")
    return tuple(item.written() for item in items)


#: what stands in brackets of other tools: alternatives, escapes, weights, and what is exchanged from a step on
_OTHER_MARKS = re.compile(r"[|\\]|:\s*[\d.]+[\s)]*$")


def bracketed(prompt: str) -> tuple[str, tuple[Item, ...]]:
    """``"a [mouse] and a [laptop]"`` -> ``("a mouse and a laptop", (Item("mouse"), Item("laptop")))``.

    An item whose text occurs more than once gets the occurrence that was bracketed. A prompt that needs
    literal brackets cannot use this notation: name its items in a list instead.

    Raises:
        BadInput: brackets are nested, unbalanced or empty, hold only a part of a word, or mean something else: prompt
            editing (``[mouse:laptop:0.5]``), alternation (``[mouse|laptop]``) or an escape of other tools.
    """
    parts = re.split(r"\[([^\[\]]*)\]", prompt)  # plain, item, plain, item, ..., plain
    if any(bracket in part for part in parts for bracket in "[]"):
        raise BadInput(f"Brackets in {prompt!r} are nested or unbalanced: write 'a [mouse] and a [laptop]'.")
    plain = "".join(parts)
    items, at = [], 0
    for index, part in enumerate(parts):
        if index % 2:
            if _OTHER_MARKS.search(part):
                raise BadInput(
                    f"'[{part}]' is prompt editing of other tools, which no pipeline of diffusers reads, and no item: "
                    "leave it out, or write 'a [mouse] and a [laptop]'."
                )
            items.append(item_at(plain, part, at))
        at += len(part)
    return plain, tuple(items)


def item_at(prompt: str, text: str, start: int) -> Item:
    """The item of `text`, blanks around it aside, that begins at a character of the prompt.

    Raises BadInput: there is no text, or it is only a part of a word.
    """
    item = Item(text.strip())
    spans = occurrences(prompt, item.text)
    here = (start + len(text) - len(text.lstrip()), start + len(text.rstrip()))
    if here not in spans:
        raise BadInput(f"{text!r} in brackets is only a part of a word in {prompt!r}: put them around whole words.")
    return Item(item.text, occurrence=spans.index(here) + 1 if len(spans) > 1 else None)


def present(prompt: str, watched: Iterable[Item]) -> tuple[Item, ...]:
    """The watched items that stand in the prompt, each time they do, in its order; of two that overlap the longer."""
    taken: dict[Chars, Item] = {}
    for item in sorted(watched, key=lambda item: -len(item.text)):
        places = occurrences(prompt, item.text)
        for k, (a, b) in enumerate(places, 1):
            if item.occurrence in (None, k) and all(b <= c or d <= a for c, d in taken):
                taken[a, b] = replace(item, occurrence=k if len(places) > 1 else None)
    return tuple(taken[at] for at in sorted(taken))


def known(prompt: str, vocabulary: Iterable[str]) -> tuple[Item, ...]:
    """The words of a vocabulary that stand in the prompt; see `present`."""
    return present(prompt, map(Item, sorted(set(vocabulary))))


def find_all(prompt: str, items: Sequence[Item]) -> list[Chars]:
    """Where each item is, in the order given.

    Raises:
        BadInput: two of them overlap (and the errors of `Item.find`).
    """
    spans = [item.find(prompt) for item in items]
    ordered = sorted(zip(spans, items, strict=True), key=lambda pair: pair[0])
    for (one, first), (two, second) in pairwise(ordered):
        if two[0] < one[1]:
            raise BadInput(f"The items '{first}' and '{second}' overlap in {prompt!r}: name each word once.")
    return spans
