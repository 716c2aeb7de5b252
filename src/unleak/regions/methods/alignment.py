"""Which token of a source's prompt stands for which of a target's: the tables of Prompt-to-Prompt.

Source: Hertz et al., Prompt-to-Prompt Image Editing with Cross Attention Control (arXiv 2208.01626). Positions are
those of the text rows, 0 the begin of text; L is their number. Words are what single spaces separate, so punctuation
belongs to its word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unleak.errors import BadInput
from unleak.text.spans import Tokens, tokenize

Share = float | Sequence[float]
"""A part of the run: its start and end in 0..1, or only its end."""

EVERYWHERE = "default_"
"""The key of the share for all positions that no word names."""


def words(tokens: Tokens) -> list[tuple[str, tuple[int, ...]]]:
    """Every word of a prompt with the positions of its tokens."""
    placed, start = [], 0
    for word in tokens.text.split(" "):
        end = start + len(word)
        own = (i for i, (a, b) in enumerate(tokens.offsets) if tokens.words[i] and max(a, start) < min(b, end))
        placed.append((word, tuple(own)))
        start = end + 1
    return placed


def positions(tokens: Tokens, word: str) -> list[int]:
    """Positions of every occurrence of a word; none where the prompt has no such word."""
    return [i for name, own in words(tokens) if name == word for i in own]


def replacement(source: Tokens, target: Tokens, shifted: bool = True) -> Tensor:
    """M [L, L] for prompts that differ word by word: ``A_source M`` is the source's map at the target's positions.

    Words that differ hand on the sum of their columns in equal parts; all others hand on column by column.

    Args:
        shifted: behind the last such word as well, a position is where its token moved to. False: it keeps its
            number, as in the authors' release; the same unless words were cut into different numbers of tokens.

    Raises BadInput: the prompts have different numbers of words.
    """
    pairs = list(zip(words(source), words(target), strict=False))
    if len(words(source)) != len(words(target)):
        raise BadInput(
            f"{source.text!r} and {target.text!r} have different numbers of words: refine instead of replacing"
        )
    changed = [(own, new) for (name, own), (other, new) in pairs if name != other and own and new]
    length, i, j = source.length, 0, 0
    M = torch.zeros(length, length)
    while i < length and j < length:
        if changed and changed[0][0][0] == i:
            own, new = changed.pop(0)
            if len(own) == len(new):
                M[own, new] = 1.0
            else:
                M[own[0] : own[-1] + 1, new[0] : new[-1] + 1] = 1 / len(new)
            i, j = i + len(own), j + len(new)
        else:
            M[i if changed or shifted else j, j] = 1.0
            i, j = i + 1, j + 1
    return M


def refinement(
    source: Tokens, target: Tokens, gap: float = 0.0, match: float = 1.0, mismatch: float = -1.0
) -> list[int]:
    """Position in the source for each of the target's L positions, -1 where the target's token is new.

    Needleman-Wunsch over the token ids from begin to end of text; of equally good alignments the one that, from
    the end, first takes a token of the target for new, then one of the source for lost. Pads keep their numbers.
    """
    x, y = _ids(source), _ids(target)
    score = [[gap * (i + j) for j in range(len(y) + 1)] for i in range(len(x) + 1)]
    for i, a in enumerate(x, 1):
        for j, b in enumerate(y, 1):
            both = score[i - 1][j - 1] + (match if a == b else mismatch)
            score[i][j] = max(score[i][j - 1] + gap, score[i - 1][j] + gap, both)
    counterpart, i, j = list(range(target.length)), len(x), len(y)
    while j:
        if i == 0 or score[i][j] == score[i][j - 1] + gap:
            j -= 1
            counterpart[j] = -1
        elif score[i][j] == score[i - 1][j] + gap:
            i -= 1
        else:
            i, j = i - 1, j - 1
            counterpart[j] = i
    return counterpart


def _ids(tokens: Tokens) -> list[int]:
    """From begin to end of text: the text's own tokens with a special one on either side."""
    first = tokens.words.index(True)
    last = tokens.length - tokens.words[::-1].index(True)
    return list(tokens.ids[first - 1 : last + 1])


def shares(targets: Sequence[Tokens], when: Share | Mapping[str, Share], steps: int) -> Tensor:
    """When the source's map is injected: [steps + 1, targets, L], 1 or 0.

    Args:
        when: a share of the run for all positions, or by word, with ``"default_"`` for all others (default: the
            whole run). A share ends before step ``int(end * (steps + 1))``.
    """
    by_word = dict(when) if isinstance(when, Mapping) else {EVERYWHERE: when}
    alphas = torch.zeros(steps + 1, len(targets), targets[0].length)
    alphas[_steps(by_word.pop(EVERYWHERE, 1.0), steps)] = 1.0
    for word, share in by_word.items():
        for i, tokens in enumerate(targets):
            own = positions(tokens, word)
            alphas[:, i, own] = 0.0
            alphas[_steps(share, steps), i, own] = 1.0
    return alphas


def fractions(share: Share) -> tuple[float, float]:
    """Start and end of a share. Raises BadInput: it is none."""
    start, end = share if isinstance(share, Sequence) else (0.0, share)
    if not 0.0 <= start <= end <= 1.0:
        raise BadInput(f"a share of the steps needs 0 <= start <= end <= 1, not [{start}, {end}]")
    return start, end


def _steps(share: Share, steps: int) -> slice:
    start, end = fractions(share)
    return slice(int(start * (steps + 1)), int(end * (steps + 1)))


def equalizer(tokens: Tokens, chosen: Sequence[str], values: Sequence[float]) -> Tensor:
    """Factors [values, L] of a prompt's columns: each row has one value at all positions of the chosen words."""
    factors = torch.ones(len(values), tokens.length)
    for word in chosen:
        factors[:, positions(tokens, word)] = torch.tensor(values)[:, None]
    return factors


def cut(tokenizer: Any, prompts: Sequence[str], length: int | None = None) -> list[Tokens]:
    """Prompts as one tokenizer cuts them, L = `length` (default: its own)."""
    return [tokenize(tokenizer, prompt, length) for prompt in prompts]
