"""What counts as a usable prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from unleak.errors import BadInput


def check_prompt(prompt: str, limit: int = 10_000) -> str:
    """The prompt, if it is usable text. Raises BadInput: it is empty, absurdly long, undecodable, or holds a NUL."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise BadInput("the prompt is empty: give a sentence to draw")
    if len(prompt) > limit:
        raise BadInput(f"the prompt has {len(prompt)} characters; no encoder reads more than {limit}")
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError:
        raise BadInput("the prompt is not valid UTF-8 text") from None
    if "\0" in prompt:
        raise BadInput("the prompt holds a NUL character: remove it")
    return prompt


def each_prompt(given: str | Iterable[str]) -> tuple[str, ...]:
    """The prompts, where one or several are given: a text is one prompt, not its letters.

    Raises BadInput: something is no text.
    """
    several = isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping)
    prompts: tuple[Any, ...] = tuple(given) if several else (given,)
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise BadInput(f"a prompt is text, not {type(prompt).__name__}: give one text, or a list of texts")
    return prompts
