"""A JSONL file that grows record by record and goes on where a killed run stopped.

Its first line says what made it; a run goes on only with a file whose first line is its own. Whole lines are written;
what a kill left of a line is cut off. A lock keeps two runs from writing one file.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from unleak.errors import BadInput


def encode(record: Mapping[str, Any]) -> bytes:
    """One line of JSON, always the same for equal records."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


class Stream:
    """``with Stream(path, header) as out``: read `out.records()`, then `out.write(...)`.

    Raises BadInput (on entering): another run writes the file; it was made by something else or with other settings;
    it cannot be written. Nothing of such a file is touched.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path, self.header = path, encode(header)
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))
        self._file: BinaryIO

    def __enter__(self) -> Stream:
        with contextlib.ExitStack() as undo:
            try:
                self._lock.acquire(timeout=0)
                undo.callback(self._release)
                self._file = undo.enter_context(self.path.open("a+b"))
                self._check()
            except Timeout:
                raise BadInput(f"another run is writing {self.path}: wait for it, or choose another with -o") from None
            except OSError as e:
                raise BadInput(f"cannot write {self.path}: {e.strerror or e}; choose another file with -o") from e
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._undo.close()

    def records(self) -> Iterator[dict[str, Any]]:
        """What earlier runs have written, one record at a time."""
        with self.path.open("rb") as file:
            file.readline()
            for k, raw in enumerate(file, 2):
                try:
                    yield dict(json.loads(raw))
                except (ValueError, TypeError):
                    raise BadInput(f"line {k} of {self.path} is damaged: delete the file, or choose another") from None

    def write(self, *records: Mapping[str, Any]) -> None:
        """Append records; they are on their way to the disk when this returns."""
        self._append(b"".join(map(encode, records)))

    def _check(self) -> None:
        """Refuse a file that is not ours; cut off a line that has no end; write the first line."""
        self._file.seek(0)
        first = self._file.readline(len(self.header) + 1)
        if first != self.header:
            if not self.header.startswith(first):
                raise BadInput(
                    f"{self.path} was not made by this command with these settings and versions: choose another"
                    " file with -o, or delete it"
                )
            self._file.truncate(0)
            self._append(self.header)
        end = 0
        with self.path.open("rb") as file:
            for raw in file:
                end += len(raw) if raw.endswith(b"\n") else 0
        self._file.truncate(end)

    def _append(self, raw: bytes) -> None:
        self._file.write(raw)
        self._file.flush()

    def _release(self) -> None:
        with contextlib.suppress(OSError):
            Path(self._lock.lock_file).unlink()
        self._lock.release()
