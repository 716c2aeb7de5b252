"""Results as parquet. They grow as JSONL, which can go on after a kill, and become a table when they are complete.

The columns follow from the type of a record (see `unleak.saved`), so that an empty table has them too; a field with
names of its own (the detectors) is a map. The header stands in the table's metadata, as JSON under ``unleak``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Generator, Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints, is_typeddict

from unleak.errors import BadInput, BrokenFile, CannotWrite
from unleak.files.atomic import beside, replacing
from unleak.files.jsonl import encode
from unleak.saved import Saved, parse_json, regular

ENDING = ".parquet"
ROWS = 10_000  #: of a row group, and held in memory


def is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ENDING


def growing(out: Path) -> Path:
    """Where an output grows until it is complete: scan.parquet -> .scan.parquet.jsonl; JSONL in its own place."""
    return beside(out, ".jsonl") if is_parquet(out) else out


@contextlib.contextmanager
def grown(out: Path, record: Saved[Any], ascii: bool = False) -> Iterator[Path]:
    """``with grown(out, RECORD) as lines``: the JSONL file that `out` grows in; afterwards `out` holds what it holds.

    An output that is complete goes on from what it holds, as JSONL does. Where the block fails, `out` is as it was.

    Raises:
        BadInput: pyarrow is not installed. BrokenFile: what stands at `out` was not written here. CannotWrite.
    """
    lines = growing(out)
    if lines == out:
        yield out
        return
    _arrow()
    unpacked = 0
    if out.exists() and not lines.exists():
        with _writing(lines), replacing(lines) as file:
            for line in read_lines(out, record, ascii):
                unpacked += file.write(line)
    try:
        yield lines
    except BaseException:
        if unpacked and lines.exists() and lines.stat().st_size == unpacked:
            lines.unlink()  # nothing was added to what `out` holds
        raise
    _pack(lines, out, record)
    lines.unlink()


def read_lines(path: Path, record: Saved[Any], ascii: bool = False) -> Generator[bytes, None, None]:
    """The lines of an output, header first, be it JSONL or parquet. Raises BrokenFile: it is neither."""
    if not is_parquet(path):
        with regular(path, "results").open("rb") as file:
            yield from file
        return
    pa = _arrow()
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(regular(path, "results")) as table:
            header = (table.schema_arrow.metadata or {}).get(b"unleak")
            if header is None:
                raise record.broken(path, "its metadata hold no header of unleak")
            yield encode(json.loads(header), ascii)
            for batch in table.iter_batches(ROWS):
                for row in batch.to_pylist(maps_as_pydicts="strict"):
                    yield encode(_without_absent(record.of, row), ascii)
    except (pa.ArrowException, OSError, ValueError) as e:
        raise e if isinstance(e, BadInput | BrokenFile) else record.broken(path, e) from e


def results(path: Path, header: Saved[Any], record: Saved[Any]) -> Iterator[dict[str, Any]]:
    """The header of an output, then its records, one at a time. Raises BrokenFile: one is damaged."""
    kind = header
    for number, line in enumerate(read_lines(path, record), 1):
        where = f"{path}, line {number}"
        try:
            value = parse_json(line)
        except ValueError as e:
            raise kind.broken(where, e) from None
        kind.parse(value, where)
        yield value
        kind = record
    if kind is header:
        raise header.broken(path, "it is empty")


def _pack(lines: Path, out: Path, record: Saved[Any]) -> None:
    """JSONL as a table, in constant memory."""
    pa = _arrow()
    from pyarrow.parquet import ParquetWriter

    with lines.open("rb") as source:
        schema = pa.schema(_fields(record.of), metadata={"unleak": source.readline().strip()})
        with _writing(out), replacing(out) as file, ParquetWriter(file, schema, compression="zstd") as table:
            while rows := [json.loads(line) for line in islice(source, ROWS)]:
                table.write_table(pa.Table.from_pylist(rows, schema))


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise CannotWrite(f"cannot write {path}: {e.strerror or e}; choose another file with -o") from e


def _arrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        raise BadInput(
            "parquet is written with pyarrow: pip install 'unleak[cluster]', or name an -o that ends in .jsonl"
        ) from None
    return pyarrow


def _fields(kind: Any) -> list[tuple[str, Any]]:
    return [(name, _type(hint)) for name, hint in get_type_hints(kind, include_extras=True).items()]


def _type(hint: Any) -> Any:
    """The arrow type of an annotation."""
    pa, origin, args = _arrow(), get_origin(hint), get_args(hint)
    plain = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    if origin is Annotated:
        return _type(args[0])
    if origin in (Union, UnionType):
        (some,) = (one for one in args if one is not NoneType)
        return _type(some)
    if origin in (dict, Mapping):
        return pa.map_(pa.string(), _type(args[1]))
    if origin in (list, tuple):
        return pa.list_(_type(args[0]))
    return plain[hint] if hint in plain else pa.struct(_fields(hint))


def _without_absent(kind: Any, row: dict[str, Any]) -> dict[str, Any]:
    """A row without the fields that its record did not have: a table has every column."""
    if is_typeddict(kind):
        needed = kind.__required_keys__
    else:
        needed = {f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING}
    return {name: value for name, value in row.items() if value is not None or name in needed}
