"""An item without its context: its bare phrase ("a mouse"); the prompt with items named by their sense."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from unleak.text.match import Chars, occurrences

_ARTICLE = re.compile(r"(?<!\w)(an?|the)(\s+)$", re.IGNORECASE)
_LEADING = re.compile(r"(an?|the)\s+", re.IGNORECASE)


class Phrase(NamedTuple):
    """A text; where the item's own words are in it, and its whole name; the characters it stands for."""

    text: str
    item: Chars
    name: Chars
    stands_for: Chars


def phrase(prompt: str, at: Chars, sense: str | None = None, article: str = "auto") -> Phrase:
    """The item at ``at`` as a text of its own: its article and its words, or the name of its sense.

    Args:
        sense: an unambiguous name ("furry mouse"). The item's rows are those of its own words in the name
            where it holds them, else of the whole name; "a" and "an" follow its first letter.
        article: ``"auto"``: "a", "an" or "the" where one stands directly before the item; ``""``: none; or
            any word to put before the item.
    """
    start, words = at[0], prompt[slice(*at)]
    lead_word, space = (article, " ") if article not in {"", "auto"} else ("", "")
    if article == "auto" and (before := _ARTICLE.search(prompt[:start])):
        start, (lead_word, space) = before.start(), before.groups()
    name = sense or words
    if sense and _LEADING.match(sense):
        lead_word, space = "", ""
    elif sense and lead_word.lower() in {"a", "an"}:
        lead_word = lead_word[0] + ("n" if sense[0].lower() in "aeiou" else "")
    lead = lead_word + space
    a, b = _own_words(name, words)
    n = len(lead)
    return Phrase(lead + name, (n + a, n + b), (n, n + len(name)), (start, at[1]))


def rename(prompt: str, items: Sequence[tuple[Chars, str | None]]) -> tuple[str, list[Phrase]]:
    """The prompt with each item that has a sense named by it, and each item's phrase inside the new text."""
    text, done = "", 0
    placed: dict[Chars, Phrase] = {}
    for at, sense in sorted(items):
        new = phrase(prompt, at, sense)
        if new.stands_for[0] < done:  # its article belongs to the item before it
            new = phrase(prompt, at, sense, article="")
        text += prompt[done : new.stands_for[0]]
        a = len(text)
        text += new.text
        item, name = ((a + x, a + y) for x, y in (new.item, new.name))
        placed[at] = Phrase(new.text, item, name, (a, len(text)))
        done = at[1]
    return text + prompt[done:], [placed[at] for at, _ in items]


def past_article(text: str, at: Chars) -> Chars:
    """The range without the article that it begins with, if it does: "mouse" of "a mouse"."""
    article = _LEADING.match(text, *at)
    return (article.end() if article else at[0]), at[1]


def _own_words(name: str, words: str) -> Chars:
    """Where ``words`` are in ``name`` (the last time); else all of the name but its article."""
    matches = occurrences(name, words)
    return matches[-1] if matches else past_article(name, (0, len(name)))
