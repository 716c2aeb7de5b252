"""Prompts from a file of any length: plain lines, JSON, tables. An entry is usable, or it says why it is not.

Nothing is held but the current entry, so memory does not grow with the file; only a JSON document is read at once.
"""

from __future__ import annotations

import csv
import glob
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from unleak.errors import BadInput, choose
from unleak.files.atomic import is_special
from unleak.files.lines import BLOCK, LONGEST, blocks, count_lines, lines, open_file, plain_text
from unleak.saved import MOST, parse_json
from unleak.text.prompt import check_prompt

FORMATS = ("text", "jsonl", "json", "csv", "tsv", "parquet")
NAMES = ("prompt", "caption", "text")  #: columns and keys that hold a prompt, in any case, the first that is there
ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
PLAIN = ("", ".txt", ".text", ".lst", ".list", ".prompts")  #: endings of files that hold a prompt a line
EMPTY = "the prompt is empty: give a sentence to draw"
#: how a text begins that is no list of prompts
OTHER_TEXT = ('{"', "[{", '["', "[[", "<?xml", "<!doctype", "<html")


@dataclass(frozen=True)
class Entry:
    """One entry of a file: `number` is that of its first line, from 1, and `error` says why it cannot be used.

    `text` is the prompt, or what stands in a bad entry instead (its beginning). `fields` is all that a JSON object or a
    row of a table holds, under its own keys and the lower-case names of columns; empty for a line of text. `file` is
    the name of its file where several are read.
    """

    number: int
    text: str
    error: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    file: str = ""

    @property
    def place(self) -> str:
        """Where it stands: "12", or "b.jsonl:12" where several files are read."""
        return f"{self.file}:{self.number}" if self.file else str(self.number)

    @property
    def blank(self) -> bool:
        """An empty line."""
        return not self.fields and not self.text.strip()


def format_of(path: Path | str, given: str | None = None) -> str:
    """The format of a file: as given, else by its ending. Raises BadInput: there is no such format, or its ending names
    none; a file that is no text is called by what it is."""
    if given is not None:
        return choose("format", given, FORMATS)
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS and ending not in PLAIN:
        with open_file(path) as stream:
            plain_text(stream.read(BLOCK), repr(str(path)))
        raise BadInput(
            f"{str(path)!r} ends in {ending}, which is no format of prompts that is read: name it .txt if it holds a "
            f"prompt a line, else convert it to one of {', '.join(ENDINGS)}"
        )
    return ENDINGS.get(ending, "text")


def count_entries(file: str | Path, form: str | None = None) -> int | None:
    """How many lines a file has, or all files of a folder or a pattern; None for JSON documents and parquet, whose
    records are not counted beforehand, and for a pipe, which can be read only once.

    This reads the whole file, so that text that is damaged anywhere ends a command before a model is loaded, and not
    after hours of work.

    Raises BadInput: it cannot be read, or holds no text.
    """
    if is_special(Path(file)):
        return None
    if (several := files_of(file)) != [Path(file)]:
        counts = [count_entries(one) for one in several]
        return None if None in counts else sum(count or 0 for count in counts)
    if (form or format_of(file)) in ("json", "parquet"):
        with open_file(file):
            return None
    return count_lines(file)


@contextmanager
def opened(file: str, form: str | None = None) -> Iterator[tuple[BinaryIO, int | None]]:
    """The bytes of a file (`-`: stdin) and its number of lines, where that can be known.

    Raises BadInput: it cannot be read, holds no text, or is empty.
    """
    if file == "-":
        if sys.stdin is None or sys.stdin.closed:
            raise BadInput("there is no standard input: name a file")
        yield sys.stdin.buffer, None
        return
    if (count := count_entries(file, form)) == 0:
        raise BadInput(f"{file!r} is empty")
    with open_file(file) as stream:
        yield stream, count


def files_of(source: str | Path) -> list[Path]:
    """The files that a path names, in the order of their names: itself; those that match it, where it is a pattern
    (``part-*.parquet``, ``**/*.jsonl``); those of a folder and its folders, but for hidden ones and ``_SUCCESS``.

    Raises BadInput: a pattern or a folder names none.
    """
    path = Path(source)
    if os.path.isdir(path):  # noqa: PTH112 (also of what can be no path)
        below = (one for one in path.rglob("*") if one.is_file())
        names = {one.relative_to(path).as_posix(): one for one in below}
        files = [names[name] for name in sorted(names) if not any(p[0] in "._" for p in name.split("/"))]
        if not files:
            raise BadInput(f"the folder {str(path)!r} holds no file of prompts: name one of {', '.join(ENDINGS)}")
        return files
    if not os.path.exists(path) and glob.has_magic(str(source)):  # noqa: PTH110
        matches = map(Path, glob.glob(str(source), recursive=True))  # noqa: PTH207 (Path.glob refuses "a**b")
        found = sorted((one for one in matches if one.is_file()), key=Path.as_posix)
        if not found:
            raise BadInput(f"no file matches {str(source)!r}: write the pattern in quotes, from this folder on")
        return found
    return [path]


def named_files(source: str | Path) -> list[tuple[str, Path]]:
    """(name, file) of each file of a source: below the folder that all stand in; "" of the one file that it is."""
    files = files_of(source)
    if files == [Path(source)]:
        return [("", files[0])]
    top = source if os.path.isdir(source) else os.path.commonpath([file.parent.absolute() for file in files])  # noqa: PTH112
    return [(os.path.relpath(file, top).replace(os.sep, "/"), file) for file in files]


def read_prompts(path: str | Path, column: str | None = None) -> Iterator[Entry]:
    """`read` of a file, or of all files that a folder or a pattern names; endings decide what they hold.

    Raises:
        BadInput: a file cannot be read, holds something else, or its header has no such column; there is no file.
    """
    for name, file in named_files(path):
        with open_file(file) as stream:
            for entry in read(stream, format_of(file), column, repr(str(file))):
                yield replace(entry, file=name) if name else entry


def read(
    stream: BinaryIO, form: str = "text", column: str | None = None, name: str = "the file of prompts"
) -> Iterator[Entry]:
    """Every entry of a file in order, empty lines too.

    Args:
        form: one of `FORMATS`. Text is one prompt a line. JSONL holds strings or objects, one a line. A JSON document
            is a list of them, or an object of such lists (their names do not matter), or one object. A table (CSV, TSV,
            parquet) has a header; CSV is separated by comma, semicolon or tab.
        column: names the key or column of the prompt; default: the first of `NAMES` that is there.
        name: of the file, for errors.

    Encodings and line ends: see `unleak.files.lines`. The number of an entry is that of its first line; of JSON
    documents and parquet that of its record.

    Raises:
        BadInput: the file is no text, or not of this format; the header has no such column, or several of its name.
    """
    if form == "parquet":
        return _parquet(stream, column, name)
    if form == "json":
        return _document(stream, column, name)
    numbered = enumerate(lines(stream, name), 1)
    if form in ("csv", "tsv"):
        return _table(numbered, column, "\t" if form == "tsv" else None)
    if form == "text" and column is not None:
        raise BadInput(f"{name} holds lines and no columns: leave --column out, or name the file by what it holds")
    parse = _json(column) if form == "jsonl" else _plain
    return (_entry(number, text, parse) for number, text in (numbered if form == "jsonl" else _prompts(numbered, name)))


def _prompts(numbered: Iterator[tuple[int, str]], name: str) -> Iterator[tuple[int, str]]:
    """The same lines. Raises BadInput: the first that is not empty begins another format."""
    begun = False
    for number, text in numbered:
        start = text.strip().lower()
        if not begun and start:
            begun = True
            if start in ("[", "{") or start.startswith(OTHER_TEXT):
                raise BadInput(
                    f"{name} begins with {start[:20]!r} and holds no prompts line by line: name it by what it holds "
                    f"({', '.join(ENDINGS)})"
                )
        yield number, text


Parsed = tuple[Any, Mapping[str, Any]]
"""What is to be the prompt, and the fields that it comes from."""


def _plain(text: str) -> Parsed:
    return text, {}


def _entry(number: int, text: str, parse: Callable[[str], Parsed]) -> Entry:
    """The entry of one line. Too long a line was cut to one character more than is allowed."""
    fields: Mapping[str, Any] = {}
    try:
        if len(text) > LONGEST:
            raise BadInput(f"the line is longer than {LONGEST} characters")
        prompt, fields = parse(text)
        return Entry(number, check_prompt(prompt), None, fields)
    except BadInput as e:
        return Entry(number, text[:200], str(e), fields)


def _json(column: str | None) -> Callable[[str], Parsed]:
    def parse(text: str) -> Parsed:
        if not text.strip():
            return "", {}
        try:
            return _prompt_in(parse_json(text), column)
        except ValueError as e:
            raise e if isinstance(e, BadInput) else BadInput(f"no JSON: {e}") from None

    return parse


def _prompt_in(value: Any, column: str | None) -> Parsed:
    """The prompt of a JSON record. Raises BadInput: it has none."""
    fields: dict[str, Any] = value if isinstance(value, dict) else {}
    if fields:
        names = {name.lower(): name for name in fields}
        value = fields[names[_choose([name.lower() for name in fields], column)]]
    if not isinstance(value, str):
        raise BadInput(f"the prompt is a {type(value).__name__}, not text")
    return value, fields


def _as_json(record: Any) -> str:
    return record if isinstance(record, str) else json.dumps(record, ensure_ascii=False)


def _of_record(number: int, record: Any, column: str | None, show: Callable[[Any], str]) -> Entry:
    """The entry of a record; `show` says what stands for one that has no usable prompt."""
    try:
        prompt, fields = _prompt_in(record, column)
        return Entry(number, check_prompt(prompt), None, fields)
    except BadInput as e:
        return Entry(number, show(record)[:200], str(e), record if isinstance(record, dict) else {})


def _document(stream: BinaryIO, column: str | None, name: str) -> Iterator[Entry]:
    """The records of a JSON document, in order."""
    for number, record in enumerate(records(stream, name), 1):
        yield _of_record(number, record, column, _as_json)


def records(stream: BinaryIO, name: str) -> list[Any]:
    """The records of a JSON document: of a list its entries, of an object of lists those of each list, else itself.

    Raises BadInput: it is larger than `MOST`, no JSON, or neither a list nor an object.
    """
    parts, size = [], 0
    for block in blocks(stream, name):
        parts.append(block)
        size += len(block)
        if size > MOST:
            raise BadInput(f"{name} is a JSON document of more than {MOST} characters: save it as JSONL")
    text = "".join(parts)
    try:
        value = parse_json(text)
    except ValueError as e:
        several = "; if it holds one record a line, name it .jsonl" if "Extra data" in str(e) else ""
        raise BadInput(f"{name} is no JSON document: {e}{several}") from None
    if isinstance(value, dict) and value and all(isinstance(one, list) for one in value.values()):
        return [record for one in value.values() for record in one]
    if not isinstance(value, dict | list):
        raise BadInput(f"{name} holds a {type(value).__name__}: a JSON document of prompts is a list")
    return value if isinstance(value, list) else [value]


def _parquet(stream: BinaryIO, column: str | None, name: str) -> Iterator[Entry]:
    """The rows of a parquet file, batch by batch."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise BadInput(f"{name} is read with pyarrow: pip install 'unleak[cluster]', or save it as JSONL") from None
    try:
        table, number = ParquetFile(stream), 0
        _choose([one.lower() for one in table.schema_arrow.names], column)
        for batch in table.iter_batches(1024):
            for fields in batch.to_pylist():
                number += 1
                yield _of_record(number, fields, column, str)
    except (ArrowException, OSError) as e:
        raise BadInput(f"{name} cannot be read as parquet: {e}") from e


def _choose(names: list[str], column: str | None) -> str:
    candidates = (column.lower(),) if column is not None else NAMES
    for name in candidates:
        if names.count(name) > 1:
            raise BadInput(f"there are {names.count(name)} columns {name!r}: rename one, or name another with --column")
        if name in names:
            return name
    there = [name if len(name) <= 40 else f"{name[:37]}..." for name in names[:20]]
    raise BadInput(f"there is no {' or '.join(map(repr, candidates))} among {there}; name it with --column")


def _table(numbered: Iterator[tuple[int, str]], column: str | None, delimiter: str | None) -> Iterator[Entry]:
    at = 0
    taken: list[str] = []  # of the record that is being read

    def feed() -> Iterator[str]:
        nonlocal at
        for number, text in numbered:
            at = number
            taken.append(text[:200])
            yield text + "\n"

    fed = feed()
    header = next(fed, "")
    delimiter = delimiter or max(",;\t", key=header.count)
    try:
        names = [name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter), [])]
    except csv.Error as e:
        raise BadInput(f"the header of the table cannot be read ({e})") from None
    place = names.index(_choose(names, column))
    rows = csv.reader(fed, delimiter=delimiter, strict=True)
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
            yield Entry(start, "", EMPTY)
        elif len(row) != len(names):
            yield Entry(start, " ".join(taken)[:200], f"{len(row)} fields, and the header names {len(names)}")
        else:
            fields = dict(zip(names, row, strict=True))
            yield _entry(start, row[place], lambda text, fields=fields: (text, fields))  # type: ignore[misc]
