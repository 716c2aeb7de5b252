"""What is known of models that draw an embedded world, without being told: judge, words and senses.

`note` is told, in a sentence, what a user should know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Note = Callable[[str], object]


def world_of(model: str) -> Any:
    """The embedded world that a model draws, as its `unleak.json` says; None for other models."""
    from unleak import models

    edition = models.world(model)
    if edition is None:
        return None
    from unleak.world import load

    return load(edition)


def embedded_judge(model: str, size: tuple[int, int] | None, note: Note) -> Any:
    """The world's judge of images (height, width) of a model that draws it; None for other models and sizes."""
    from unleak import models

    edition = models.world(model)
    if edition is None:
        return None
    from unleak.judges.glyphs import glyph_judge

    judge = glyph_judge(edition)
    if size != (judge.world.image,) * 2:
        note(f"not judged: the judge reads images of {judge.world.image}x{judge.world.image} pixels")
        return None
    return judge


def world_items(model: str) -> tuple[Any, ...]:
    """The words of the model's embedded world, polysemes with both their senses; other models know none."""
    if (world := world_of(model)) is None:
        return ()
    from unleak.text.items import Item

    senses = {word: f"{p.default_name}|{p.other_name}" for word, p in world.polysemes.items()}
    return tuple(Item(word, sense=senses.get(word)) for word in world.words)


def known_items(model: str, prompt: str, note: Note) -> list[str] | None:
    """The words of the model's embedded world that stand in the prompt; None: look for brackets."""
    if (world := world_of(model)) is None:
        return None
    from unleak.text.items import bracketed, known

    if "[" not in prompt:
        return [str(item) for item in known(prompt, world.words)] or None
    plain, items = bracketed(prompt)
    taken = {item.text for item in items}
    if others := sorted({item.text for item in known(plain, world.words)} - taken):
        note(f"known words outside the brackets are left out: {', '.join(others)}")
    return None


def known_senses(model: str) -> dict[str, list[str]]:
    """The two senses of each ambiguous word of the model's embedded world; nothing for other models."""
    world = world_of(model)
    return {} if world is None else {word: [p.default_name, p.other_name] for word, p in world.polysemes.items()}
