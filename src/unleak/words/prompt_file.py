"""Prompts from a file, one at a time: text lines, JSONL or CSV. A bad line is reported by its number, never lost.

A file of any size is read in constant memory: no line is held beyond `LONGEST` bytes.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from unleak.errors import BadInput
from unleak.generate import check_prompt
from unleak.text.items import Item, bracketed, find_all, parse_items, present
from unleak.text.match import Chars

FORMATS = ("text", "jsonl", "csv")
LONGEST = 100_000  #: bytes of one line
MOST_ITEMS = 12  #: of one prompt
_ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}


@dataclass(frozen=True)
class Line:
    """One prompt of a file, or what is wrong with it.

    Attributes:
        number: of its first line in the file, from 1.
        found: where the items are in the prompt.
        leaks: for each item, whether it is known to leak; None where the file has no labels.
        error: why there is nothing to work with; None for a usable line.
    """

    number: int
    prompt: str = ""
    items: tuple[Item, ...] = ()
    found: tuple[Chars, ...] = ()
    leaks: tuple[bool, ...] | None = None
    error: str | None = None


def format_of(path: Path | str, given: str | None = None) -> str:
    """The format of a file: as given, else by its ending, else text lines. Raises BadInput."""
    if given is not None and given not in FORMATS:
        raise BadInput(f"no format {given!r}; choose from {', '.join(FORMATS)}")
    return given or _ENDINGS.get(Path(path).suffix.lower(), "text")


@contextmanager
def opened(file: str) -> Iterator[tuple[BinaryIO, int | None]]:
    """The bytes of a file (`-`: stdin) and its number of lines, where that can be known. Raises BadInput."""
    if file == "-":
        yield sys.stdin.buffer, None
        return
    try:
        with Path(file).open("rb") as stream:
            lines = sum(1 for _ in iter(partial(stream.readline, LONGEST), b""))
            if not lines:
                raise BadInput(f"{file!r} is empty")
            stream.seek(0)
            yield stream, lines
    except OSError as e:
        raise BadInput(f"cannot read {file!r}: {e.strerror or e}") from e


def read_prompts(
    stream: BinaryIO, form: str = "text", items: Sequence[Item] = (), column: str = "prompt"
) -> Iterator[Line]:
    """Every prompt of a file; empty lines are skipped.

    A prompt's items are those of its record, else those in [brackets] in it, else those of `items` that occur in it. An
    item without a sense has that of the same word in `items`.

    Args:
        form: one of `FORMATS`. JSONL has objects ``{"prompt": ..., "items": [...], "leaks": [...]}``, CSV a first line
            that names its columns, and items and leaks separated by commas. Both may be left out. What an item is
            meant to be stands in ``"sense": {"mouse": "furry mouse"}``, or among the items: ``"mouse=furry mouse"``.
        column: the field that holds the prompt.
    """
    lines = _Lines(stream)
    records = {"text": _texts, "jsonl": _objects, "csv": _rows}[form](lines, column)
    while True:
        number = lines.number + 1
        try:
            record = next(records)
            if record:
                yield line(number, record[column], _with_senses(record), record.get("leaks"), items)
        except StopIteration:
            return
        except (BadInput, csv.Error) as e:
            yield Line(number, error=str(e))


def line(number: int, prompt: Any, items: Any = None, leaks: Any = None, watched: Sequence[Item] = ()) -> Line:
    """A usable line, checked. Raises BadInput (and its kinds) for whatever cannot be used."""
    check_prompt(prompt)
    if items:
        named = parse_items(_names("items", items))
    else:
        prompt, named = bracketed(prompt) if "[" in prompt else (prompt, ())
        named = named or present(prompt, watched)
    if not named:
        raise BadInput("no item is named: give items in the file, in [brackets] or with --items")
    if len(named) > MOST_ITEMS:
        raise BadInput(f"{len(named)} items; at most {MOST_ITEMS} can be compared")
    senses = {item.text: item.sense for item in watched}
    named = tuple(replace(item, sense=item.sense or senses.get(item.text)) for item in named)
    found = tuple(find_all(prompt, named))
    if leaks is None:
        return Line(number, prompt, named, found)
    wrong = set(_names("leaks", leaks))
    if unknown := wrong - {item.text for item in named}:
        raise BadInput(f"'leaks' names {sorted(unknown)}, which are no items of this prompt")
    return Line(number, prompt, named, found, tuple(item.text in wrong for item in named))


def _with_senses(record: dict[str, Any]) -> Any:
    """The record's items, with the senses that it names."""
    items, senses = record.get("items"), record.get("sense")
    if not senses:
        return items
    if not isinstance(senses, dict) or not all(isinstance(text, str) for pair in senses.items() for text in pair):
        raise BadInput('\'sense\' must name items and what is meant: {"mouse": "furry mouse"}')
    named = _names("items", items or list(senses))
    if unknown := [text for text in senses if text not in named]:
        raise BadInput(f"'sense' names {unknown}, which are no items of this prompt")
    return [f"{text}={senses[text]}" if text in senses else text for text in named]


def _names(field: str, value: Any) -> list[str]:
    names = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadInput(f"{field!r} must be a list of texts")
    return names


class _Lines:
    """Decoded lines. One that cannot be used raises BadInput, and the next call goes on after it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.number = stream, 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        raw = part = self._stream.readline(LONGEST + 1)
        if not raw:
            raise StopIteration
        self.number += 1
        if len(raw) > LONGEST and not raw.endswith(b"\n"):
            while part and not part.endswith(b"\n"):
                part = self._stream.readline(LONGEST)
            raise BadInput(f"the line is longer than {LONGEST} bytes")
        try:
            return raw.decode("utf-8-sig" if self.number == 1 else "utf-8")
        except UnicodeDecodeError as e:
            raise BadInput(f"no UTF-8 text (byte {e.start + 1} of the line)") from None


# Readers: iterators of records, empty for a blank line. They are no generators, so that an error does not end them.


def _texts(lines: _Lines, column: str) -> Iterator[dict[str, Any]]:
    def read(text: str) -> dict[str, Any]:
        return {column: text.strip()} if text.strip() else {}

    return map(read, lines)


def _objects(lines: _Lines, column: str) -> Iterator[dict[str, Any]]:
    def read(text: str) -> dict[str, Any]:
        if not text.strip():
            return {}
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise BadInput(f"no JSON ({e})") from None
        if not isinstance(value, dict) or not isinstance(value.get(column), str):
            raise BadInput(f'no JSON object like {{"{column}": "a mouse and a laptop", "items": ["mouse", "laptop"]}}')
        return value

    return map(read, lines)


def _rows(lines: _Lines, column: str) -> Iterator[dict[str, Any]]:
    rows = csv.reader(lines)
    try:
        names = next(rows, [])
    except csv.Error as e:
        raise BadInput(f"the first line of the CSV file cannot be read: {e}") from None
    if column not in names:
        raise BadInput(f"the CSV file has no column {column!r} in its first line; name it with --column")

    def read(row: list[str]) -> dict[str, Any]:
        if row and len(row) != len(names):
            raise BadInput(f"{len(row)} fields, where the first line names {len(names)}")
        record: dict[str, Any] = dict(zip(names, row, strict=True)) if row else {}
        return record

    return map(read, rows)
