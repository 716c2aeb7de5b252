"""Where items, ends of text and pads stand among the text rows that the denoiser reads.

Every encoder cuts a prompt in its own way, and its rows stand at its own columns of the denoiser's text. Encoders that
are joined on channels share columns (and differ only where their tokenizers do), one that is appended comes after the
others, and one that gives only a pooled vector has none. Columns are found by content, see `Encoded.columns`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unleak.errors import BadInput, UnsupportedModel
from unleak.text.call import Encoded, TextCall, check_length
from unleak.text.items import Item
from unleak.text.scene import Scene
from unleak.text.spans import Tokens, tokenize

Positions = tuple[int, ...]
"""Rows of the denoiser's text."""

InPrompt = tuple[tuple[Positions, ...], ...]
"""Rows by item and encoder, in one prompt."""


class ItemPositions(NamedTuple):
    """``at[prompt][item][e]`` are the rows that encoder ``encoders[e]`` gives the item."""

    encoders: tuple[str, ...]
    at: tuple[InPrompt, ...]


def readable(encoded: Encoded) -> dict[str, slice]:
    """The encoders whose rows the denoiser reads, each with its columns of the denoiser's text.

    Raises:
        BadInput: the pipeline was called without `prompt`.
        UnsupportedModel: no encoder's rows are found among those of the denoiser.
    """
    if not encoded.calls:
        raise BadInput("which text row is which word is known from the prompt: call the pipeline with `prompt`")
    columns = {name: encoded.columns(name) for name in encoded.calls}
    readable_columns = {name: column for name, column in columns.items() if column is not None}
    if not readable_columns:
        raise UnsupportedModel("no text encoder's rows were found among the denoiser's text rows")
    return readable_columns


def first_encoder(encoded: Encoded) -> TextCall:
    """The call of the first encoder whose rows open the denoiser's text: its positions are the denoiser's.

    Raises: as `readable`; UnsupportedModel: no encoder's rows stand first; PromptTruncated: that one lost a part.
    """
    for name, call in encoded.cut.items():
        if (column := encoded.columns(name)) is not None and column.start == 0:
            check_length(name, call.tokenizer, call.prompts, call.length)
    first = [name for name, column in readable(encoded).items() if column.start == 0]
    if not first:
        raise UnsupportedModel("the denoiser's text does not begin with the rows of a text encoder")
    return encoded.calls[first[0]]


def prompt_tokens(encoded: Encoded) -> list[Tokens]:
    """The prompts of a generation as `first_encoder` cuts them."""
    call = first_encoder(encoded)
    return [tokenize(call.tokenizer, text, call.length, call.name) for text in call.prompts]


def item_positions(encoded: Encoded, items: Sequence[Item]) -> ItemPositions:
    """The rows of the items in every prompt, in every encoder that the denoiser reads.

    Raises: as `readable`; ItemNotFound, AmbiguousItem, PromptTruncated: an item is not usable in one of the prompts.
    """
    starts = {name: column.start for name, column in readable(encoded).items()}
    spans = {name: Scene(encoded.calls[name], items).prompt.spans for name in starts}

    def rows(prompt: int, item: int, name: str) -> Positions:
        start, stop = spans[name][prompt][item]
        return tuple(range(starts[name] + start, starts[name] + stop))

    at = (
        tuple(tuple(rows(b, i, name) for name in starts) for i in range(len(items)))
        for b in range(len(encoded.prompts))
    )
    return ItemPositions(tuple(starts), tuple(at))


def summary_rows(encoded: Encoded) -> Tensor:
    """[images, K] of bool: which of the denoiser's K text rows are an encoder's end of text or stand after it.

    Raises: as `readable`; PromptTruncated.
    """
    columns = readable(encoded)
    assert encoded.cond is not None
    is_summary = torch.zeros(encoded.cond.shape[:2], dtype=torch.bool)
    for name, column in columns.items():
        call = encoded.calls[name]
        check_length(name, call.tokenizer, call.prompts, call.length)
        for prompt, text in enumerate(call.prompts):
            end = tokenize(call.tokenizer, text, call.length, name).end
            is_summary[encoded.images_of(prompt), column.start + end : column.stop] = True
    return is_summary
