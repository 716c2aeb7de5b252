"""Where items, ends of text and pads stand among the text rows that the denoiser reads.

Every encoder cuts a prompt in its own way, and its rows stand at its own columns of the denoiser's text. Encoders that
are joined on channels share columns (and differ only where their tokenizers do), one that is appended comes after the
others, and one that gives only a pooled vector has none. Columns are found by content, see `Encoded.place`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unleak.errors import BadInput, PromptTruncated, UnsupportedModel
from unleak.text.call import Encoded, Place, TextCall
from unleak.text.items import Item
from unleak.text.scene import Scene
from unleak.text.spans import Tokens

Positions = tuple[int, ...]
"""Rows of the denoiser's text."""

InPrompt = tuple[tuple[Positions, ...], ...]
"""Rows by item and encoder, in one prompt."""


class ItemPositions(NamedTuple):
    """``at[prompt][item][e]`` are the rows that encoder ``encoders[e]`` gives the item."""

    encoders: tuple[str, ...]
    at: tuple[InPrompt, ...]


def places(encoded: Encoded) -> dict[str, Place]:
    """The encoders whose rows the denoiser reads, each with where these stand in the denoiser's text.

    Raises:
        BadInput: the pipeline was called without `prompt`.
        UnsupportedModel: no encoder's rows are found among those of the denoiser.
    """
    if not encoded.calls:
        raise BadInput("which text row is which word is known from the prompt: call the pipeline with `prompt`")
    each = {name: encoded.place(name) for name in encoded.calls}
    found = {name: place for name, place in each.items() if place is not None}
    if not found:
        raise UnsupportedModel("no text encoder's rows were found among the denoiser's text rows")
    return found


def readable(encoded: Encoded) -> dict[str, slice]:
    """The encoders whose rows the denoiser reads, each with its columns of the denoiser's text; errors: `places`."""
    return {name: place.columns for name, place in places(encoded).items()}


def columns_of(encoded: Encoded, encoder: str, text: str, positions: Iterable[int]) -> Positions:
    """The denoiser's text rows that tokens of a text have, by their positions among those of the encoder.

    The text is one of the prompts, or another, whose rows stand where those of the prompts do.

    Raises:
        PromptTruncated: the pipeline does not give the denoiser one of them.
        UnsupportedModel: the rows of other texts may stand elsewhere; and as `places`.
    """
    place, call = places(encoded)[encoder], encoded.calls[encoder]
    if text in call.prompts:
        at = place.at[call.prompts.index(text)]
    else:
        at = max(place.at, key=len)
        left = call.given is not None and not all(one.real[0] for one in call.given)
        if left or any(other != at[: len(other)] for other in place.at):
            raise UnsupportedModel(
                f"the pipeline puts the rows of {encoder} at other places of the denoiser's text for other prompts, so "
                f"where those of {text!r} would stand is not known"
            )
    return _given(at, positions, encoder, text)


def _given(at: Sequence[int | None], positions: Iterable[int], encoder: str, text: str) -> Positions:
    """The columns of an encoder's rows. Raises PromptTruncated: the denoiser is not given one of them."""
    columns = [at[p] if p < len(at) else None for p in positions]
    if None in columns:
        raise PromptTruncated(
            f"the pipeline gives the denoiser only a part of the rows of {encoder}, and not those of {text!r}: shorten "
            "the prompt, or raise max_sequence_length"
        )
    return tuple(column for column in columns if column is not None)


def first_encoder(encoded: Encoded) -> TextCall:
    """The call of the first encoder whose rows open the denoiser's text: its positions are the denoiser's.

    Raises: as `places`; UnsupportedModel: no encoder's rows stand first, or a template stands around the prompt, so
    that positions differ; PromptTruncated: that one lost a part.
    """
    call, place = _opening(encoded)
    own_columns(call, place)
    return call


def own_columns(call: TextCall, place: Place) -> slice:
    """The columns of the denoiser's text that hold an encoder's rows one by one, as it cuts the prompt alone.

    Raises UnsupportedModel where they stand at other places, or others with them.
    """
    columns = place.columns
    if call.given is not None or any(at != tuple(range(columns.start, columns.start + call.length)) for at in place.at):
        raise UnsupportedModel(
            f"the pipeline puts a template around the prompt or drops rows of {call.name}, so that its rows stand at "
            "other places than the tokens of the prompt alone; this method needs a pipeline that does not"
        )
    return columns


def _opening(encoded: Encoded) -> tuple[TextCall, Place]:
    for name, call in encoded.cut.items():
        if (column := encoded.columns(name)) is not None and column.start == 0:
            call.check_length(call.prompts)
    first = [(name, place) for name, place in places(encoded).items() if place.columns.start == 0]
    if not first:
        raise UnsupportedModel("the denoiser's text does not begin with the rows of a text encoder")
    name, place = first[0]
    return encoded.calls[name], place


def prompt_tokens(encoded: Encoded) -> list[Tokens]:
    """The prompts of a generation as the encoder cuts them that opens the denoiser's text, one token for each of the
    denoiser's rows; errors: `places`, and PromptTruncated."""
    call, place = _opening(encoded)
    return [_at_columns(tokens, at) for tokens, at in zip(call.cut(call.prompts), place.at, strict=True)]


def _at_columns(tokens: Tokens, at: Sequence[int | None]) -> Tokens:
    """The tokens that the denoiser gets, at its own columns; a column that is none's is a pad."""
    source = {column: p for p, column in enumerate(at) if column is not None}
    rows = [source.get(column) for column in range(max(source) + 1)]
    if rows == list(range(tokens.length)):
        return tokens

    def moved(values: Sequence[Any], none: Any) -> tuple[Any, ...]:
        return tuple(none if p is None else values[p] for p in rows)

    before = tokens.before
    return replace(
        tokens,
        ids=moved(tokens.ids, tokens.ids[-1]),
        offsets=moved(tokens.offsets, (0, 0)),
        words=moved(tokens.words, False),
        real=moved(tokens.real, False),
        before=None if before is None else sum(p is None or p < before for p in rows),
    )


def item_positions(encoded: Encoded, items: Sequence[Item]) -> ItemPositions:
    """The rows of the items in every prompt, in every encoder that the denoiser reads.

    Raises: as `places`; ItemNotFound, AmbiguousItem, PromptTruncated: an item is not usable in one of the prompts.
    """
    found = places(encoded)
    spans = {name: Scene(encoded.calls[name], items).prompt.spans for name in found}

    def rows(prompt: int, item: int, name: str) -> Positions:
        return _given(found[name].at[prompt], range(*spans[name][prompt][item]), name, items[item].text)

    at = (
        tuple(tuple(rows(b, i, name) for name in found) for i in range(len(items))) for b in range(len(encoded.prompts))
    )
    return ItemPositions(tuple(found), tuple(at))


def summary_rows(encoded: Encoded) -> Tensor:
    """[images, K] of bool: which of the denoiser's K text rows are an encoder's end of text or stand after it.

    Raises: as `places`; PromptTruncated.
    """
    found = places(encoded)
    assert encoded.cond is not None
    is_summary = torch.zeros(encoded.cond.shape[:2], dtype=torch.bool)
    for name, place in found.items():
        call = encoded.calls[name]
        call.check_length(call.prompts)
        for prompt, tokens in enumerate(call.cut(call.prompts)):
            columns = [c for p in tokens.after_text if (c := place.at[prompt][p]) is not None]
            is_summary[encoded.images_of(prompt), columns] = True
    return is_summary
