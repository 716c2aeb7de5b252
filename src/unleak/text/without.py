"""The prompt without some of its items: a word for any object stands in their place, "a mouse and a thing"."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from unleak.text.items import Item
from unleak.text.match import Chars
from unleak.text.phrases import Phrase, past_article, rename

THING = "thing"
"""A word for any object at all."""


def without(
    prompt: str,
    spans: Sequence[Chars],
    gone: Collection[int],
    substitute: str = THING,
    senses: Sequence[str | None] | None = None,
) -> tuple[str, list[Phrase]]:
    """The prompt with `substitute` for the items numbered in `gone`; articles follow it.

    Args:
        spans: where the items are in the prompt; none overlaps another.
        senses: names for the items that stay; None leaves one as it is written.

    Returns:
        The text, and for each item what stands for it there, as ranges of the text.

    >>> without("a cup and an owl", [(2, 5), (13, 16)], {1})[0]
    'a cup and a thing'
    """
    kept = senses or [None] * len(spans)
    return rename(prompt, [(at, substitute if i in gone else kept[i]) for i, at in enumerate(spans)])


def each_without(prompt: str, items: Sequence[Item]) -> list[str]:
    """The prompt once for each item, which is just a thing there, also where the item holds its article.

    >>> each_without("a cup and a mouse", [Item("cup"), Item("a mouse")])
    ['a thing and a mouse', 'a cup and a thing']
    """
    return [without(prompt, [past_article(prompt, item.find(prompt))], {0})[0] for item in items]
