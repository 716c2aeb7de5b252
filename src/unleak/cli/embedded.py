"""What the command line knows about the embedded models without being told: their judge, words and senses."""

from __future__ import annotations

from typing import Any

from unleak.cli.console import say


def is_embedded(model: str) -> bool:
    from unleak import models

    return model in models.EMBEDDED


def embedded_judge(model: str, size: tuple[int, int] | None) -> Any:
    """The world's judge of images (height, width) of an embedded model; None for other models and sizes."""
    if not is_embedded(model):
        return None
    from unleak.judges.glyphs import glyph_judge

    judge = glyph_judge()
    if size != (judge.world.image,) * 2:
        say("note", f"not judged: the judge reads images of {judge.world.image}x{judge.world.image} pixels")
        return None
    return judge


def world_items(model: str) -> tuple[Any, ...]:
    """The words of the embedded world, polysemes with both their senses, for the embedded models; others know none."""
    if not is_embedded(model):
        return ()
    from unleak.text.items import Item
    from unleak.world import load

    world = load()
    senses = {word: f"{p.default_name}|{p.other_name}" for word, p in world.polysemes.items()}
    return tuple(Item(word, sense=senses.get(word)) for word in world.words)


def known_items(model: str, prompt: str) -> list[str] | None:
    """The words of the embedded world that stand in the prompt, for the embedded models; None: look for brackets."""
    if not is_embedded(model):
        return None
    from unleak.text.items import bracketed, known
    from unleak.world import load

    if "[" not in prompt:
        return [str(item) for item in known(prompt, load().words)] or None
    plain, items = bracketed(prompt)
    taken = {item.text for item in items}
    if others := sorted({item.text for item in known(plain, load().words)} - taken):
        say("note", f"known words outside the brackets are left out: {', '.join(others)}")
    return None


def known_senses(model: str) -> dict[str, list[str]]:
    """The other senses of the embedded world's words, for the embedded models."""
    if not is_embedded(model):
        return {}
    from unleak.world import load

    return {word: [p.default_name, p.other_name] for word, p in load().polysemes.items()}
