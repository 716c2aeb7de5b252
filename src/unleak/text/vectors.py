"""Words of several vectors, as textual inversion makes them: the user writes ``<toy>``, the tokenizer is given
``<toy> <toy>_1 <toy>_2``, and the pipeline puts the one for the other."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from unleak.text.match import Chars


def expand(tokenizer: Any, text: str) -> tuple[str, Callable[[Chars], Chars]]:
    """The text as diffusers gives it to the tokenizer, and a map from its character ranges to those of ``text``.

    Every vector of a word stands for the whole word.
    """
    added = tokenizer.added_tokens_encoder
    several = {token for token in added if f"{token}_1" in added}
    several &= set(tokenizer.tokenize(text)) if several else set()
    if not several:
        return text, lambda at: at
    longest_first = sorted(several, key=len, reverse=True)
    parts, words, done, length = list[str](), list[tuple[Chars, Chars]](), 0, 0
    for match in re.finditer("|".join(map(re.escape, longest_first)), text):
        vectors = [match.group()]
        while (vector := f"{match.group()}_{len(vectors)}") in added:
            vectors.append(vector)
        parts += [text[done : match.start()], " ".join(vectors)]
        start = length + match.start() - done
        done, length = match.end(), start + len(parts[-1])
        words.append(((start, length), match.span()))

    def written(at: Chars) -> Chars:
        shift = 0
        for (start, stop), word in words:
            if start < at[1] and at[0] < stop:
                return word
            if stop <= at[0]:
                shift = word[1] - stop
        return at[0] + shift, at[1] + shift

    return "".join(parts) + text[done:], written


def expanded(tokenizer: Any, text: str) -> str:
    """The text as diffusers gives it to the tokenizer."""
    return expand(tokenizer, text)[0]
