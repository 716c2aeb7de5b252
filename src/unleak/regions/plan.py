"""The plan of an edit: phrases of the source's prompt, and the target's prompt that they lead to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unleak.errors import BadInput
from unleak.text.items import Item, find_all
from unleak.text.match import Chars, occurrences
from unleak.text.prompt import check_prompt

_ARTICLE = re.compile(r"^(an?|the)\s+", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Edit:
    """Turn `source` into `target` inside `mask`.

    Attributes:
        source: a phrase of the image's caption ("yellow car", or "car#2" for its second occurrence).
        target: what stands there afterwards ("red car").
        mask: a file, an image, or an array [H, W]; None: found by the model itself, or who `masks_from` names.
    """

    source: str
    target: str
    mask: Any = None

    def __post_init__(self) -> None:
        for name, text in (("source", self.source), ("target", self.target)):
            if not isinstance(text, str) or not text.strip():
                raise BadInput(f"the {name} of an edit is empty: name what is in the image, and what it becomes")

    @classmethod
    def parse(cls, text: str) -> Edit:
        """``"SRC=TGT"`` or ``"SRC=TGT@MASK.png"``. Raises BadInput."""
        source, equals, rest = text.partition("=")
        target, at, mask = rest.partition("@")
        if not (equals and source.strip() and target.strip()) or (at and not mask.strip()):
            raise BadInput(f"cannot read the edit {text!r}: write 'red car=bus' or 'red car=bus@mask.png'")
        return cls(source.strip(), target.strip(), mask.strip() or None)


@dataclass(frozen=True)
class EditPlan:
    """Prompts of both sides, and the edited phrases in each as `Item.of` reads them, in the order of the edits."""

    source: str
    target: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]


def plan(edits: Sequence[Edit], source_prompt: str | None = None) -> EditPlan:
    """Both prompts of some edits.

    Args:
        source_prompt: a caption of the image that names every source; default: the sources joined by "and". The
            target's prompt is the same with every source replaced.

    Raises:
        ItemNotFound, AmbiguousItem: a source is not in the caption, or more than once.
        BadInput: two sources overlap, or a phrase is only a part of a word in the prompt.
    """
    if source_prompt is None:
        source, spans = _joined([Item.of(edit.source).text for edit in edits])
    else:
        source = check_prompt(source_prompt)
        spans = find_all(source, [Item.of(edit.source) for edit in edits])
    target, new_spans = _replaced(source, spans, [edit.target.strip() for edit in edits])
    return EditPlan(source, target, _items(source, spans), _items(target, new_spans))


def located(prompt: str, phrases: Sequence[str]) -> tuple[str, ...]:
    """Items of a prompt that names these phrases in this order, each after the one before."""
    spans: list[Chars] = []
    for phrase in phrases:
        after = [at for at in occurrences(prompt, phrase) if not spans or at[0] >= spans[-1][1]]
        if not after:
            raise BadInput(f"{phrase!r} does not follow the phrases before it in {prompt!r}")
        spans.append(after[0])
    return _items(prompt, spans)


def without_article(phrase: str) -> str:
    """ "a banana" -> "banana"; what the phrase names, for whoever looks for it in an image."""
    return _ARTICLE.sub("", phrase)


def named(prompt: str, objects: Sequence[str]) -> tuple[str, ...]:
    """The same objects of a prompt without their articles."""
    spans = [Item.of(one).find(prompt) for one in objects]
    return _items(prompt, [(end - len(without_article(prompt[start:end])), end) for start, end in spans])


def _joined(phrases: Sequence[str]) -> tuple[str, list[Chars]]:
    text, spans = "", []
    for phrase in phrases:
        text += " and " if text else ""
        spans.append((len(text), len(text) + len(phrase)))
        text += phrase
    return text, spans


def _replaced(text: str, spans: Sequence[Chars], new: Sequence[str]) -> tuple[str, list[Chars]]:
    """The text with each range replaced, and where the new phrases are, in the order given."""
    out, at, new_spans = "", 0, {}
    for i in sorted(range(len(spans)), key=lambda i: spans[i]):
        out += text[at : spans[i][0]]
        new_spans[i] = len(out), len(out) + len(new[i])
        out, at = out + new[i], spans[i][1]
    return out + text[at:], [new_spans[i] for i in range(len(spans))]


def _items(prompt: str, spans: Sequence[Chars]) -> tuple[str, ...]:
    """The ranges as items that are found again by their words."""
    items = []
    for at in spans:
        phrase = prompt[slice(*at)]
        everywhere = occurrences(prompt, phrase)
        if at not in everywhere:
            raise BadInput(f"{phrase!r} is no expression of its own in {prompt!r}: choose other words")
        items.append(str(Item(phrase, everywhere.index(at) + 1 if len(everywhere) > 1 else None)))
    return tuple(items)
