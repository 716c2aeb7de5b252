"""Shards: a file that many separate runs share, each with the prompts of its own, and the joining of what they wrote.

A prompt belongs to a shard by a digest of its text, so that equal prompts meet in one shard, wherever they stand.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from unleak.errors import BadInput, BrokenFile
from unleak.files.atomic import locked, replacing, target, write_atomic
from unleak.files.jsonl import check_rejects, encode, rejects_of
from unleak.files.outputs import same_file
from unleak.files.parquet import grown, read_lines
from unleak.saved import Saved


@dataclass(frozen=True)
class Shard:
    """One of `of` shards; `index` counts from 1."""

    index: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """
        >>> Shard.parse("2/4")
        Shard(index=2, of=4)

        Raises BadInput.
        """
        index, slash, of = text.partition("/")
        plain = slash and all(part.isascii() and part.isdigit() and len(part) < 8 for part in (index, of))
        if not plain or not 1 <= int(index) <= int(of):
            raise BadInput(f"--shard {text!r}: write I/N, from 1/N to N/N, such as 2/8 for the second of eight")
        return cls(int(index), int(of))

    def holds(self, text: str) -> bool:
        """Whether a prompt, or what stands in its place, belongs to this shard; the same on every machine."""
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.of == self.index - 1

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"


@dataclass(frozen=True)
class Completed:
    """What stands beside the output of a shard that is complete; digests (sha256) of what it read and wrote.

    rejects: of the file of its rejects; None where there is none.
    """

    shard: str
    read: str
    written: str
    rejects: str | None


COMPLETED = Saved("note that a shard is complete", Completed, "run that shard again: it goes on", "unleak/shard/1")


def note_of(out: Path) -> Path:
    """Where it is noted that a shard is complete: scan-2.jsonl -> scan-2.complete.json."""
    return out.with_name(f"{out.stem}.complete.json")


def complete(out: Path, shard: Shard, read: str) -> None:
    """Note that the output of a shard is complete. `read`: a digest of all that all shards read. Raises CannotWrite."""
    rejects = rejects_of(out)
    note = Completed(str(shard), read, _digest(out), _digest(rejects) if rejects.exists() else None)
    write_atomic(note_of(out), json.dumps({"schema": COMPLETED.schema, **asdict(note)}) + "\n")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def merge(folder: Path, out: Path, header: Saved[Any], record: Saved[Any], ascii: bool = False) -> int:
    """Join the outputs of all shards in a folder into what one run would have written, with its rejects.

    Args:
        header, record: what the first line and the others of an output are. ascii: see `encode`.

    Returns:
        How many records there are.

    Raises:
        BadInput: there is no shard; one is missing, doubled, not complete, of another model or with other settings, or
            read other prompts; `out` holds something else. BrokenFile: a shard is not what was written.
    """
    shards = _shards(folder, out, header, record)
    heads = [shard.head for shard in shards]
    _check_whole(folder, shards)
    head = {key: value for key, value in heads[0].items() if key != "shard"}
    if os.path.lexists(out) and _first(out, header, record) != head:
        raise BadInput(f"{out} is there already and is no result of these shards: choose another file with -o")
    check_rejects(out)
    count = 0
    with grown(out, record, ascii) as whole, locked(target(whole), "merge"):
        with replacing(whole) as file:
            file.write(encode(head, ascii))
            for count, (_, line) in enumerate(heapq.merge(*(_lines(one.path, record) for one in shards)), 1):  # noqa: B007
                file.write(line)
        with replacing(rejects_of(out), drop_empty=True) as file:
            for _, line in heapq.merge(*(_lines(rejects_of(one.path)) for one in shards)):
                file.write(line)
    return count


@dataclass(frozen=True)
class _Output:
    """The output of one shard, its header and the note beside it."""

    path: Path
    head: dict[str, Any]
    shard: Shard
    note: Completed | None


def _shards(folder: Path, out: Path, header: Saved[Any], record: Saved[Any]) -> list[_Output]:
    if not folder.is_dir():
        raise BadInput(f"--merge {str(folder)!r} is no folder: name the one that holds the outputs of the shards")
    found = []
    for path in sorted(folder.glob("*.jsonl")):
        if path.name.endswith(".rejects.jsonl") or same_file(path, out):
            continue
        head = _first(path, header, record)
        if head.get("shard") is None:
            raise BadInput(f"{path} is no shard but a whole {header.what}: move it out of {folder}")
        note = COMPLETED.load(note_of(path)) if note_of(path).exists() else None
        found.append(_Output(path, head, Shard.parse(head["shard"]), note))
    if not found:
        raise BadInput(f"{folder} holds no output of a shard (*.jsonl): run with --shard I/N and -o FILE in it first")
    return sorted(found, key=lambda one: one.shard.index)


def _first(path: Path, header: Saved[Any], record: Saved[Any]) -> dict[str, Any]:
    """The header of an output. Raises BrokenFile: it has none."""
    with contextlib.closing(read_lines(path, record)) as lines:
        line = next(lines, b"")
    header.parse(line, path)
    head: dict[str, Any] = json.loads(line)
    return head


def _check_whole(folder: Path, shards: list[_Output]) -> None:
    """The shards are all that there are, one of each, of one run, and complete. Raises BadInput, BrokenFile."""
    first = shards[0]
    for one, two in pairwise(shards):
        if one.shard == two.shard:
            raise BadInput(f"shard {one.shard} is there twice, {one.path.name} and {two.path.name}: move one of them")
    for one in shards:
        same = {**one.head, "shard": None} == {**first.head, "shard": None}
        if one.shard.of != first.shard.of or not same:
            other = [k for k in first.head if k != "shard" and one.head.get(k) != first.head[k]] or ["number of shards"]
            raise BadInput(f"{one.path} and {first.path} are of two runs, with another {', '.join(other)}: run the"
                           " shard again as the others were run")  # fmt: skip
    there = {one.shard.index for one in shards}
    if missing := [f"{i}/{first.shard.of}" for i in range(1, first.shard.of + 1) if i not in there]:
        more = f" and {len(missing) - 9} more" if len(missing) > 9 else ""
        raise BadInput(f"{folder} lacks the shards {', '.join(missing[:9])}{more}: run them, or copy them there")
    for one in shards:
        if one.note is None or one.note.shard != str(one.shard):
            raise BadInput(f"shard {one.shard} in {one.path} is not complete ({note_of(one.path).name} is not there):"
                           " run it again with the same output; it goes on where it stopped")  # fmt: skip
        rejects = rejects_of(one.path)
        now = (_digest(one.path), _digest(rejects) if rejects.exists() else None)
        if now != (one.note.written, one.note.rejects):
            raise BrokenFile(f"{one.path}, or its rejects, is not what shard {one.shard} wrote: copy it again, or run"
                             " the shard again into another file")  # fmt: skip
    if len({one.note.read for one in shards if one.note is not None}) > 1:
        raise BadInput(f"the shards in {folder} read other prompts: the file was changed between them; run all again")


def _lines(path: Path, record: Saved[Any] | None = None) -> Iterator[tuple[tuple[str, int], bytes]]:
    """(where its prompt stands, the line) of every record of an output, or of a file of rejects if it is there."""
    if record is None and not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1 and record is not None:
                continue
            value = json.loads(line)
            if record is not None:
                record.parse(value, f"{path}, line {number}")
            yield (value.get("file", ""), value["line"]), line
