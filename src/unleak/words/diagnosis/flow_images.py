"""Flow between items in images: how much item j's presence changes what the rows of item i draw.

Source: Follow the Flow (arXiv 2504.01137), flow between items: the images of S = span(i), once with the rows of the
prompt and once with rows that have not read item j. What an item's rows are in a causal encoder is said in
`unleak.words.diagnosis.neglect`. Without j means that another word stands in its place: "a mouse and a thing".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np

from unleak.drawing.drawing import Drawing
from unleak.drawing.generate import Seeds
from unleak.errors import BadInput
from unleak.judges import Judge
from unleak.stats.rate import Rate
from unleak.text.items import Item, find_all, parse_items
from unleak.text.match import Chars, occurrences
from unleak.text.prompt import check_prompt
from unleak.text.without import without
from unleak.words.diagnosis.neglect import KeepItem, Sighting, judge_images


@dataclass(frozen=True)
class ImageChange:
    """What item j's presence does to the images of item i's rows.

    Attributes:
        distance: root mean square difference of the pixels from the same noise, 0..1; 0 exactly where j cannot
            reach these rows.
        beside, without: how often item i is there in its intended sense, its other senses, and item j, by name; empty
            where nobody judged.
    """

    distance: float
    beside: dict[str, Rate]
    without: dict[str, Rate]

    @property
    def appears(self) -> list[str]:
        """What is there on half of the images or more only because of j; not item i itself."""
        return [n for n, rate in list(self.beside.items())[1:] if rate.yes and not self.without[n].yes]

    @property
    def kind(self) -> str | None:
        """``"leak"``: item i is lost, or something else appears; ``"disambiguation"``: it is there only because of j;
        ``"none"``; None where nobody judged."""
        if not self.beside:
            return None
        there, alone = next(iter(self.beside.values())).yes, next(iter(self.without.values())).yes
        if self.appears or (alone and not there):
            return "leak"
        return "disambiguation" if there and not alone else "none"


@dataclass(frozen=True)
class ImageFlow:
    """All changes of one prompt, by (i, j): the images of item i's rows, changed by item j."""

    prompt: str
    items: tuple[Item, ...]
    seeds: list[int]
    changes: dict[tuple[int, int], ImageChange]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        pairs = []
        for (i, j), change in self.changes.items():
            rates = {
                name: {"beside": list(change.beside[name]), "without": list(change.without[name])}
                for name in change.beside
            }
            pairs.append({"item": i, "by": j, "kind": change.kind, "distance": change.distance, "seen": rates})
        return {"seeds": self.seeds, "pairs": pairs}


def image_flow(
    pipe: Any,
    prompt: str,
    items: str | Iterable[str | Item],
    *,
    seeds: Seeds = 4,
    judge: Judge | None = None,
    senses: Mapping[str, Sequence[str]] | None = None,
    rows: str = "all",
    call: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> ImageFlow:
    """Draw each item's rows in the prompt and in the prompt without each other item: n x n x seeds images.

    Args:
        items: every item of the prompt; "mouse=furry mouse" names the intended sense.
        judge: who looks; an item that it cannot read has distances alone. senses: for the text of an item, the
            names of its other senses. rows: of an item, as in `unleak.words.diagnosis.neglect.KeepItem`.
        call: arguments of the pipeline. progress: is told how many images each call made.

    Raises:
        BadInput, ItemNotFound, AmbiguousItem, PromptTruncated: before anything is drawn.
    """
    check_prompt(prompt)
    named, drawing = parse_items(items), Drawing(pipe, seeds, call, judge, progress)
    spans = find_all(prompt, named)
    texts = {None: (prompt, named)} | {j: _items_without(prompt, spans, j) for j in range(len(named))}
    jobs = {
        (i, j): (text, KeepItem(own[i], own[:i] + own[i + 1 :], rows))
        for j, (text, placed) in texts.items()
        for own in [tuple(str(replace(item, sense=None)) for item in placed)]
        for i in range(len(named))
        if i != j
    }
    for text, says in jobs.values():
        drawing.rehearse(text, says)

    images = {pair: drawing.images(*job) for pair, job in jobs.items()}
    changes = {}
    for i, j in permutations(range(len(named)), 2):
        sightings = [_sighting(judge, images[i, at], named, i, j, senses or {}) for at in (None, j)]
        changes[i, j] = ImageChange(_distance(images[i, None], images[i, j]), sightings[0].seen, sightings[1].seen)
    return ImageFlow(prompt, named, drawing.seeds, changes)


def _items_without(prompt: str, spans: Sequence[Chars], j: int) -> tuple[str, tuple[Item, ...]]:
    """The prompt with another word for item j, and all items as they are written in it."""
    text, phrases = without(prompt, spans, {j})
    return text, tuple(_at(text, one.item) for one in phrases)


def _at(text: str, chars: Chars) -> Item:
    every = occurrences(text, text[slice(*chars)])
    return Item(text[slice(*chars)], every.index(chars) + 1 if len(every) > 1 else None)


def _sighting(
    judge: Judge | None, images: np.ndarray, items: Sequence[Item], i: int, j: int, senses: Mapping[str, Sequence[str]]
) -> Sighting:
    """How often item i, its other senses and item j are there; nothing where the judge cannot read item i or j."""
    if judge is None:
        return Sighting("", images)
    try:
        intended, other = judge.senses([items[i], items[j]])
    except BadInput:
        return Sighting("", images)
    others = [name for name in senses.get(items[i].text, ()) if name != intended]
    watched = [replace(items[i], sense=intended), *(Item(items[i].text, sense=name) for name in others)]
    return judge_images(judge, images, [*watched, replace(items[j], sense=other)], "", len(others))


def _distance(one: np.ndarray, two: np.ndarray) -> float:
    return float(np.sqrt(np.mean(((one.astype(float) - two) / 255) ** 2)))
