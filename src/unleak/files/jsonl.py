"""A JSONL file that grows batch by batch and goes on where a killed run stopped.

Its first line, the header, says what made it; a run goes on only with a file whose header is its own. A batch is
written in one go and is on the disk before the next begins, so that a run which measures again from the last whole
batch on ends with the bytes of an uninterrupted one. Nothing is changed before the first batch is written: a run that
is refused, by the file or by what it reads there, leaves it as it was.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from unleak.errors import BadInput, BrokenFile, CannotWrite
from unleak.files.atomic import identity, is_special, locked, sync_folder, target, wrote
from unleak.saved import Saved


def encode(record: Mapping[str, Any], ascii: bool = False) -> bytes:
    """One line of JSON, always the same for equal records; `ascii` escapes every other character."""
    return json.dumps(record, ensure_ascii=ascii).encode("utf-8", "backslashreplace") + b"\n"


class Stream:
    """``with Stream(path, header, batch) as out``: read `out.records()`, then `out.write(...)` the batches that lack.

    Args:
        header: all that decides the records, and as "schema": "unleak/<verb>/1".
        batch: records that are written together; only the last batch of a file may have fewer.
        ascii: whether the file holds ASCII only. record: what each of its records is.

    Attributes:
        count: whole records that earlier runs have left.

    Raises (on entering):
        Conflict: another run writes the file.
        BadInput: something else is there, such as a device, or results with another header.
        BrokenFile: a line before the last batch is damaged.
        CannotWrite: the file cannot be written.

    Raises (later):
        CannotWrite: the disk is full, or the file was removed or replaced meanwhile.
    """

    def __init__(
        self,
        path: Path,
        header: Mapping[str, Any],
        batch: int,
        ascii: bool = False,
        record: Saved[Any] | None = None,
    ) -> None:
        self.path, self.batch, self.ascii, self.record = path, batch, ascii, record
        self.count = self._end = self._kept = 0  # bytes: up to the last whole record, and to the last whole batch
        self._header, self._written = encode(header, ascii), False
        self._verb = header["schema"].split("/")[1]
        self._file: FileIO

    def __enter__(self) -> Stream:
        with contextlib.ExitStack() as undo:
            with self._errors():
                self._real = target(self.path)
                if is_special(self.path):
                    raise BadInput(f"{self.path} is no file that a {self._verb} can go on with: name a file with -o")
            undo.enter_context(locked(self._real, self._verb))
            with self._errors():
                new = not self._real.exists()
                self._file = undo.enter_context(self._real.open("ab", buffering=0))
                if new:
                    undo.callback(self._drop_if_empty)
                self._check()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        with self._undo, self._errors():
            if kind is None:
                if not self._written and self._size() > self._end:
                    self._file.truncate(self._end)  # what a kill left of a record that nobody asks for any more
                self._check_there()
                wrote(self._real)

    def records(self) -> Iterator[dict[str, Any]]:
        """The whole records that earlier runs have left, one at a time. Raises BrokenFile: one is not what it was."""
        with self._errors():
            file = self._real.open("rb")
        with file:
            file.readline()
            for line in range(2, self.count + 2):
                value = json.loads(file.readline())
                if self.record is not None:
                    self.record.parse(value, f"{self.path}, line {line}")
                yield value

    def write(self, *records: Mapping[str, Any]) -> None:
        """Append one batch and wait until it is on the disk. The first time, what a kill left of one makes room, and
        a new file gets its header. Raises CannotWrite."""
        raw = b"".join(encode(record, self.ascii) for record in records)
        with self._errors():
            if not self._written:
                self._file.truncate(self._kept)
                raw = raw if self._kept else self._header + raw
                self._written = True
            rest = memoryview(raw)
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
            if not self._kept:
                sync_folder(self._real.parent)
            self._check_there()

    def _check_there(self) -> None:
        open_now = os.fstat(self._file.fileno())
        if identity(self._real) != (open_now.st_dev, open_now.st_ino):
            raise CannotWrite(
                f"{self.path} was removed or replaced while it was written: what was in it is gone; run again"
            )

    def _check(self) -> None:
        """Refuse a file that is not ours, and find what of it is whole."""
        with self._real.open("rb") as file:
            first = file.readline(len(self._header) + 1_000_000)
            if not first.endswith(b"\n") and self._header.startswith(first):  # new, or killed in its very first line
                return
            self._compare(_parsed(first))
            self._end = self._kept = len(first)
            for raw in file:
                if _parsed(raw) is None:
                    if self.count % self.batch + 1 + sum(1 for _ in file) > self.batch:
                        raise BrokenFile(f"line {self.count + 2} of {self.path} is damaged: delete the file, or choose"
                                         " another with -o")  # fmt: skip
                    return
                self.count, self._end = self.count + 1, self._end + len(raw)
                self._kept = self._end if self.count % self.batch == 0 else self._kept

    def _compare(self, there: dict[str, Any] | None) -> None:
        own = json.loads(self._header)
        if there is None or there.get("schema") != own["schema"]:
            raise BadInput(f"{self.path} is there already and is no {self._verb}: choose another file with -o")
        other = [
            key for key in {**own, **there} if key not in own or key not in there or not _same(own[key], there[key])
        ]
        if other:
            raise BadInput(f"{self.path} holds a {self._verb} with another {', '.join(other)}: choose another file"
                           " with -o, or delete it")  # fmt: skip

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def _drop_if_empty(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if not self._real.stat().st_size:
                self._real.unlink()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise CannotWrite(f"cannot write {self.path}: {e.strerror or e}; choose another file with -o") from e


def _same(one: Any, two: Any) -> bool:
    """Equal as JSON, where 1 is not true."""
    return json.dumps(one, sort_keys=True) == json.dumps(two, sort_keys=True)


def _parsed(raw: bytes) -> dict[str, Any] | None:
    """The record of a line; None if the line has no end, or holds none."""
    try:
        value = json.loads(raw) if raw.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def rejects_of(out: Path) -> Path:
    """Where lines go that cannot be used: scan.jsonl, or scan.parquet -> scan.rejects.jsonl."""
    return out.with_name(f"{out.stem}.rejects{'.jsonl' if out.suffix.lower() == '.parquet' else out.suffix}")


def check_rejects(out: Path, growing: Path | None = None) -> None:
    """What stands at `rejects_of(out)` was written with the output `out`, or nothing stands there. Raises BadInput.

    `growing`: where the output grows, if not in its own place.

    It was if the output is there (`Stream` then asks for its own header) and its first line is that of a rejected line.
    """
    rejects = rejects_of(out)
    if not os.path.lexists(rejects):
        return
    if not rejects.is_symlink() and rejects.is_file() and (out.is_file() or (growing or out).is_file()):
        with rejects.open("rb") as lines:
            line = _parsed(lines.readline(2**20))
        if line is not None and set(line) - {"file"} == {"line", "reason", "text"}:
            return
    raise BadInput(f"{rejects} is there already, and the results in {out} were not written with it: move it, or choose"
                   " another output with -o")  # fmt: skip
