"""Prompts from a file of any length: JSONL, CSV or plain lines. An entry is usable, or it says why it is not.

Nothing is held but the current entry, so memory does not grow with the file.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from unleak.errors import BadInput, choose
from unleak.text.prompt import check_prompt

FORMATS = ("text", "jsonl", "csv")
NAMES = ("prompt", "caption", "text")  #: columns and keys that hold a prompt, in any case, the first that is there
LONGEST = 100_000  #: bytes of one line; csv itself stops at 131,072 characters of a field
_ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv"}


@dataclass(frozen=True)
class Entry:
    """One entry of a file: `number` is that of its first line, from 1, and `error` says why it cannot be used.

    `text` is the prompt, or what stands in a bad entry instead (its beginning). `fields` is all that a JSON object or a
    row of a table holds, under its own keys and the lower-case names of columns; empty for a line of text.
    """

    number: int
    text: str
    error: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def blank(self) -> bool:
        """An empty line."""
        return not self.fields and not self.text.strip()


def format_of(path: Path | str, given: str | None = None) -> str:
    """The format of a file: as given, else by its ending, else text lines. Raises BadInput."""
    if given is not None:
        return choose("format", given, FORMATS)
    return _ENDINGS.get(Path(path).suffix.lower(), "text")


def count_lines(file: str | Path) -> int:
    """How many lines a file has. Raises BadInput: it cannot be read."""
    lines, last = 0, b"\n"
    with _open(file) as stream:
        while block := stream.read(2**20):
            lines, last = lines + block.count(b"\n"), block[-1:]
    return lines + (last != b"\n")


def _open(file: str | Path) -> BinaryIO:
    try:
        return Path(file).open("rb")
    except OSError as e:
        raise BadInput(f"cannot read {str(file)!r}: {e.strerror or e}") from e


@contextmanager
def opened(file: str) -> Iterator[tuple[BinaryIO, int | None]]:
    """The bytes of a file (`-`: stdin) and its number of lines, where that can be known.

    Raises BadInput: it cannot be read, or is empty.
    """
    if file == "-":
        yield sys.stdin.buffer, None
        return
    if not (lines := count_lines(file)):
        raise BadInput(f"{file!r} is empty")
    with _open(file) as stream:
        yield stream, lines


def read_prompts(path: str | Path, column: str | None = None) -> Iterator[Entry]:
    """`read` of a file; its suffix decides what it holds.

    Raises:
        BadInput: the file cannot be read, or its header has no such column.
    """
    with _open(path) as file:
        yield from read(file, format_of(path), column)


def read(stream: BinaryIO, form: str = "text", column: str | None = None) -> Iterator[Entry]:
    """Every entry of a file in order, empty lines too.

    Args:
        form: one of `FORMATS`. JSONL holds strings or objects, a table has a header (separated by comma, semicolon or
            tab), text is one prompt a line.
        column: names the key or column of the prompt; default: the first of `NAMES` that is there.

    Raises:
        BadInput: the header has no such column.
    """
    if form == "csv":
        return _csv(stream, column)
    parse = _json(column) if form == "jsonl" else _plain
    return (_entry(number, text, parse) for number, text in _lines(stream))


Parsed = tuple[Any, Mapping[str, Any]]
"""What is to be the prompt, and the fields that it comes from."""


def _plain(text: str) -> Parsed:
    return text, {}


def _entry(number: int, text: str, parse: Callable[[str], Parsed]) -> Entry:
    """The entry of one line. Too long a line was cut to one character more than is allowed."""
    fields: Mapping[str, Any] = {}
    try:
        if len(text) > LONGEST:
            raise BadInput(f"the line is longer than {LONGEST} bytes")
        prompt, fields = parse(text)
        return Entry(number, check_prompt(prompt), None, fields)
    except BadInput as e:
        return Entry(number, text[:200], str(e), fields)


def _lines(stream: BinaryIO) -> Iterator[tuple[int, str]]:
    """(number, text without its end) of every line; bytes that are no UTF-8 stay as surrogates, to be refused."""
    number = 0
    while raw := stream.readline(LONGEST + 1):
        number += 1
        part = raw
        while len(part) > LONGEST and not part.endswith(b"\n"):
            part = stream.readline(LONGEST + 1)
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape")
        yield number, text.rstrip("\r\n")


def _json(column: str | None) -> Callable[[str], Parsed]:
    def parse(text: str) -> Parsed:
        if not text.strip():
            return "", {}
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise BadInput(f"no JSON ({e})") from None
        fields: dict[str, Any] = value if isinstance(value, dict) else {}
        if fields:
            names = {name.lower(): name for name in fields}
            value = fields[names[_choose(list(names), column)]]
        if not isinstance(value, str):
            raise BadInput(f"the prompt is a {type(value).__name__}, not text")
        return value, fields

    return parse


def _choose(names: list[str], column: str | None) -> str:
    candidates = (column.lower(),) if column is not None else NAMES
    for name in candidates:
        if name in names:
            return name
    raise BadInput(f"there is no {' or '.join(map(repr, candidates))} among {names[:20]}; name it with --column")


def _csv(stream: BinaryIO, column: str | None) -> Iterator[Entry]:
    numbered = _lines(stream)
    at = 0
    taken: list[str] = []  # of the record that is being read

    def feed() -> Iterator[str]:
        nonlocal at
        for number, text in numbered:
            at = number
            taken.append(text[:200])
            yield text + "\n"

    lines = feed()
    header = next(lines, "")
    delimiter = max(",;\t", key=header.count)
    try:
        names = [name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter), [])]
    except csv.Error as e:
        raise BadInput(f"the header of the table cannot be read ({e})") from None
    place = names.index(_choose(names, column))
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        start = at + 1
        taken.clear()
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as e:
            yield Entry(start, " ".join(taken)[:200], f"lines {start} to {at}: {e}")
            continue
        if not row:
            yield Entry(start, "", "the prompt is empty: give a sentence to draw")
        elif len(row) != len(names):
            yield Entry(start, " ".join(taken)[:200], f"{len(row)} fields, and the header names {len(names)}")
        else:
            fields = dict(zip(names, row, strict=True))
            yield _entry(start, row[place], lambda text, fields=fields: (text, fields))  # type: ignore[misc]
