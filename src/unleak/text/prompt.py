"""What counts as a usable prompt."""

from __future__ import annotations

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
