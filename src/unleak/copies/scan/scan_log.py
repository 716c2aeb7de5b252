"""The output of a scan: a header and one record a line, never half a batch of them.

A batch is written in one go and is on the disk before the next begins. What a kill left of the last one is dropped when
the next is written, and not before: a scan that is refused changes nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from unleak.errors import BadInput

SCHEMA = "unleak/scan/1"


def append(file: BinaryIO, records: list[dict[str, Any]], sync: bool = True) -> None:
    """Write records in one go and wait until they are on the disk."""
    file.write(b"".join(map(line_of, records)))
    if sync:
        file.flush()
        os.fsync(file.fileno())


def line_of(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


class Records:
    """The records that an earlier run left in `out`. Nothing is changed before `cut` is called.

    Raises:
        BadInput: the file is no scan, or one with other settings.
    """

    def __init__(self, out: Path, header: dict[str, Any], batch: int) -> None:
        self.whole = self.count = 0  #: bytes up to the last whole batch; records that can be read
        self.left: Iterator[dict[str, Any]] = iter(())
        if not out.exists() or not out.stat().st_size:
            return
        with out.open("rb") as file:
            first = file.readline(1_000_000)
            if not first.endswith(b"\n") and line_of(header).startswith(first):  # killed in its very first line
                return
            there = _parsed(first)
            if there is None or there.get("schema") != SCHEMA:
                raise BadInput(f"{out} is there already and is no scan: choose another output with -o")
            if other := [k for k in header if there.get(k) != header[k]]:
                raise BadInput(f"{out} holds a scan with another {', '.join(other)}: choose another output with -o")
            self.whole = at = len(first)
            for raw in file:
                if not raw.endswith(b"\n") or _parsed(raw) is None:
                    break
                at, self.count = at + len(raw), self.count + 1
                self.whole = at if self.count % batch == 0 else self.whole
        self.left = _records(out, self.count)

    def cut(self, results: BinaryIO, header: dict[str, Any]) -> None:
        """Make the file ready for the next batch, once: drop what a kill left of the last one."""
        if self.whole >= 0:
            results.truncate(self.whole)
            if not self.whole:
                append(results, [header])
            self.whole = -1


def _records(out: Path, count: int) -> Iterator[dict[str, Any]]:
    with out.open("rb") as file:
        file.readline()
        for _ in range(count):
            yield json.loads(file.readline())


def _parsed(raw: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(raw)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
