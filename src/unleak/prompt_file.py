"""Prompts from a file of any length: JSONL, CSV or plain lines. A line is usable, or it says why it is not.

Nothing is held but the current line, so memory does not grow with the file.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from unleak.errors import BadInput
from unleak.generate import check_prompt

NAMES = ("prompt", "caption", "text")  #: columns and keys that hold a prompt, in any case, the first that is there
LONGEST = 100_000  #: bytes of one line; csv itself stops at 131,072 characters of a field


@dataclass(frozen=True)
class Line:
    """One entry of a file: `number` is that of its first line, from 1, and `error` says why it cannot be used.

    `text` is the prompt, or what stands in a bad line instead (its beginning).
    """

    number: int
    text: str
    error: str | None = None


def read_prompts(path: str | Path, column: str | None = None) -> Iterator[Line]:
    """Every entry of the file in order.

    The suffix decides: `.jsonl` and `.ndjson` hold strings or objects, `.csv` and `.tsv` have a header (separated by
    comma, semicolon or tab), anything else is one prompt a line. `column` names the key or column of the prompt.

    Raises:
        BadInput: the file cannot be read, or its header has no such column.
    """
    path = Path(path)
    try:
        file = path.open("rb")
    except OSError as e:
        raise BadInput(f"cannot read {path}: {e.strerror or e}") from e
    with file:
        suffix = path.suffix.lower()
        if suffix in (".csv", ".tsv"):
            yield from _csv(file, column)
        else:
            parse = _json(column) if suffix in (".jsonl", ".ndjson") else str
            yield from (_line(number, text, parse) for number, text in _lines(file))


def _line(number: int, text: str, parse: Callable[[str], object]) -> Line:
    """The entry of one line. Too long a line was cut to one character more than is allowed."""
    try:
        if len(text) > LONGEST:
            raise BadInput(f"the line is longer than {LONGEST} bytes")
        return Line(number, check_prompt(parse(text)))  # type: ignore[arg-type]
    except BadInput as e:
        return Line(number, text[:200], str(e))


def _lines(file: BinaryIO) -> Iterator[tuple[int, str]]:
    """(number, text without its end) of every line; bytes that are no UTF-8 stay as surrogates, to be refused."""
    number = 0
    while raw := file.readline(LONGEST + 1):
        number += 1
        part = raw
        while len(part) > LONGEST and not part.endswith(b"\n"):
            part = file.readline(LONGEST + 1)
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape")
        yield number, text.rstrip("\r\n")


def _json(column: str | None) -> Callable[[str], object]:
    def parse(text: str) -> object:
        if not text.strip():
            return ""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise BadInput(f"no JSON ({e})") from None
        if isinstance(value, dict):
            names = {name.lower(): name for name in value}
            key = _choose(list(names), column)
            value = value[names[key]]
        if not isinstance(value, str):
            raise BadInput(f"the prompt is a {type(value).__name__}, not text")
        return value

    return parse


def _choose(names: list[str], column: str | None) -> str:
    wanted = (column.lower(),) if column is not None else NAMES
    for name in wanted:
        if name in names:
            return name
    raise BadInput(f"there is no {' or '.join(map(repr, wanted))} among {names[:20]}; name it with --column")


def _csv(file: BinaryIO, column: str | None) -> Iterator[Line]:
    numbered = _lines(file)
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
    names = [name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter), [])]
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
            yield Line(start, " ".join(taken)[:200], f"lines {start} to {at}: {e}")
            continue
        if not row:
            yield Line(start, "", "the prompt is empty: give a sentence to draw")
        elif len(row) != len(names):
            yield Line(start, " ".join(taken)[:200], f"{len(row)} fields, and the header names {len(names)}")
        else:
            yield _line(start, row[place], str)
