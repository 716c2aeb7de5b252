"""Scan a file of any length into a file of results, in constant memory, and go on after any interruption.

The output is JSONL: a header (schema unleak/scan/1) and one record for each usable prompt, in the order of the input.
A batch is written whole and flushed before the next begins; a scan that finds its own output measures again from the
last whole batch on, so that the result is byte for byte that of an uninterrupted run on the same machine. Lines that
cannot be used go to a second file, by number.
"""

from __future__ import annotations

import hashlib
import heapq
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, BinaryIO

from unleak.copies.scan.scan import ScanPlan
from unleak.copies.scan.scanner import Scanner
from unleak.errors import BadInput, CannotWrite
from unleak.files.atomic import replacing
from unleak.files.jsonl import Stream, check_rejects, encode, rejects_of
from unleak.files.lines import count_lines
from unleak.files.outputs import same_file
from unleak.files.parquet import growing, grown, results
from unleak.files.prompt_file import Entry, files_of, read_prompts
from unleak.files.shards import Shard, complete
from unleak.files.workers import Here, Workers, answered, parts
from unleak.saved import Name, Number, Saved, Seed, length

SCHEMA = "unleak/scan/1"


@dataclass(frozen=True)
class ScanHeader:
    """The first line of a scan's output: everything that decides the records, so that only an equal scan goes on.

    weights, bias: of a calibration that joins several detectors. shard: "2/8", where it is one.
    cascade: how the prompts were chosen, where a cheaper look went before.
    """

    input: str
    model: str
    fingerprint: Name
    detectors: Annotated[list[Name], length(1)]
    score: Name
    steps: Number | None
    seeds: Annotated[list[Seed], length(1)]
    batch: Number
    call: dict[str, Any]
    calibrated: bool
    threshold: float | None
    weights: dict[str, float] = field(default_factory=dict)
    bias: float = 0.0
    shard: str | None = None
    cascade: dict[str, Any] | None = None


@dataclass(frozen=True)
class ScanRecord:
    """One scanned prompt; `images` holds the score of each image by detector. file: of several, which one."""

    line: Number
    prompt: Name
    score: float
    memorized: bool | None
    scores: dict[str, float]
    images: dict[str, list[float]]
    file: str = ""


FILE = Saved("output of unleak scan", ScanHeader, "scan again into another file", SCHEMA)
RECORD = Saved("record of unleak scan", ScanRecord, "scan again into another file")

HIGHEST = 20  #: prompts that a summary names
CHECKED = 256  #: lines whose prompts are checked together


@dataclass
class ScanSummary:
    """What a scan found. `highest` holds (score, line, prompt, file) of the highest scores, the highest first.

    `measured` counts the prompts of this run; the others were there from an interrupted one.
    """

    prompts: int = 0
    measured: int = 0
    rejected: int = 0
    over: int = 0
    limit: float | None = None
    highest: list[tuple[float, int, str, str]] = field(default_factory=list)

    @classmethod
    def of(cls, out: Path, limit: float | None = None) -> ScanSummary:
        """Of an output that is there. `limit`: default: a calibration's threshold. Raises BrokenFile."""
        records = results(out, FILE, RECORD)
        head = next(records)
        summary = cls(limit=head["threshold"] if limit is None else limit)
        for record in records:
            summary.add(record)
        if (rejects := rejects_of(out)).exists():
            summary.rejected = count_lines(rejects)
        return summary.ordered()

    def ordered(self) -> ScanSummary:
        """The same at its end, with the highest score first."""
        self.highest = [(s, -n, p, f) for s, n, p, f in sorted(self.highest, reverse=True)]
        return self

    def add(self, record: dict[str, Any]) -> None:
        self.prompts += 1
        self.over += self.limit is not None and record["score"] >= self.limit
        entry = (record["score"], -record["line"], record["prompt"], record.get("file", ""))
        (heapq.heappush if len(self.highest) < HIGHEST else heapq.heappushpop)(self.highest, entry)


def scan_file(
    pipe: Any,
    path: str | Path,
    out: str | Path,
    plan: ScanPlan,
    *,
    model: str = "",
    **settings: Any,
) -> ScanSummary:
    """Scan every prompt of a file into `out` in this process. `settings` and errors: see `scan_by`."""
    return scan_by(Here(Scanner(pipe, plan=plan, name=model)), path, out, **settings)


def scan_by(
    workers: Workers,
    path: str | Path,
    out: str | Path,
    *,
    column: str | None = None,
    limit: float | None = None,
    shard: Shard | None = None,
    progress: Callable[[int], None] | None = None,
    normal: Callable[[str], str] = str,
    only: Callable[[Entry], bool] | None = None,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> ScanSummary:
    """Let equal `Scanner`s scan every prompt of a file (see `prompt_file.read_prompts`) into `out`; resumes if `out` is
    its beginning. The output does not depend on how many they are.

    Args:
        limit: counts the prompts that score at least so much (default: a calibration's threshold).
        shard: only its prompts; beside `out` stands then, when it is complete, what `shards.merge` asks for.
        progress: is told the number of the line that was reached.
        normal: prompts of which it says the same are scanned once. only: which entries; the others leave no trace.
        more: fields of the header.

    Raises:
        Conflict: another scan writes to `out` now.
        BadInput: `out` holds something else, or a scan with other settings, or of a file that has changed since; it, or
            the file of its rejects, is the file of prompts; another file has the name of that of its rejects.
        NotFinite: predictions are NaN; the message says of which lines.
        CannotWrite: the disk is full, or `out` was removed meanwhile.
    """
    out = Path(out)
    if not out.parent.is_dir():
        raise BadInput(f"cannot write {out}: there is no folder {str(out.parent)!r}; make it first")
    sources = files_of(path)
    for one in (out, rejects_of(out)):
        if any(same_file(one, source) for source in sources):
            raise BadInput(f"{one} is the file of prompts itself: choose another output with -o")
    check_rejects(out, growing(out))
    (about,) = workers.map("about", [None])
    header = {"schema": SCHEMA, "input": Path(path).name, **about, **more}
    header |= {"shard": str(shard)} if shard else {}
    limit = header["threshold"] if limit is None else limit
    with (
        grown(out, RECORD, ascii=True) as lines,
        Stream(lines, header, header["batch"], ascii=True, record=RECORD) as stream,
    ):
        run = _Run(workers, out, stream, shard, limit, progress)
        run.normal, run.only = normal, only
        summary = run.over(path, column)
    if shard is not None:
        complete(out, shard, run.digest.hexdigest())
    return summary


class _Run:
    """One run over a file: reads lines, skips what is done, lets the rest be measured batch by batch."""

    def __init__(self, workers: Workers, out: Path, stream: Stream, shard: Shard | None, limit: float | None,
                 progress: Callable[[int], None] | None) -> None:  # fmt: skip
        self.workers, self.out, self.stream, self.shard = workers, out, stream, shard
        self.summary, self.progress = ScanSummary(limit=limit), progress
        self.digest = hashlib.sha256()  # of everything that was read
        self.normal: Callable[[str], str] = str
        self.only: Callable[[Entry], bool] | None = None

    def over(self, path: str | Path, column: str | None) -> ScanSummary:
        out, written = self.out, self.stream.count
        rejects = rejects_of(out)
        try:
            with replacing(rejects, drop_empty=True) as refused:
                lines = self._without_record(path, self._usable(path, column, refused))
                batches = ((batch, [line.text for line in batch]) for batch in parts(lines, self.stream.batch))
                for batch, records in answered(self.workers, "records", batches, partial(_lines_of, path)):
                    self._write([_placed(x, {"line": x.number, **r}) for x, r in zip(batch, records, strict=True)])
                    written += len(records)
                if not written:
                    self.stream.write()  # the header alone
                check_rejects(out, self.stream.path)
        except OSError as e:
            raise CannotWrite(f"cannot write {rejects}: {e.strerror or e}; choose another output with -o") from e
        return self.summary.ordered()

    def _without_record(self, path: str | Path, lines: Iterable[Entry]) -> Iterator[Entry]:
        """The lines that are not in the output yet. Those of its last, unfinished batch come again, as a whole."""
        left, out = self.stream.records(), self.out
        unfinished: list[tuple[Entry, dict[str, Any]]] = []
        for line in lines:
            record = next(left, None)
            if record is None:
                yield from (again for again, _ in unfinished)
                unfinished = []
                yield line
            elif (record["line"], record["prompt"], record.get("file", "")) != (line.number, line.text, line.file):
                raise BadInput(f"{path} has changed since {out} was begun: scan into another file with -o")
            else:
                unfinished.append((line, record))
                if len(unfinished) == self.stream.batch:
                    self._count(unfinished)
                    unfinished = []
        if next(left, None) is not None:
            raise BadInput(f"{path} is shorter than when {out} was begun: scan into another file with -o")
        self._count(unfinished)

    def _count(self, recorded: Iterable[tuple[Entry, dict[str, Any]]]) -> None:
        for _, record in recorded:
            self.summary.add(record)

    def _usable(self, path: str | Path, column: str | None, rejects: BinaryIO) -> Iterator[Entry]:
        """The lines that can be measured; the others are written down with the reason."""
        chunks = parts(self._new(path, column), CHECKED)
        asked = ((new, [line.text for line, error in new if error is None]) for new in chunks)
        for new, reasons in answered(self.workers, "unfit", asked):
            left = iter(reasons)
            for line, known in new:
                error = next(left) if known is None else known
                if error is None:
                    yield line
                else:
                    self.summary.rejected += 1
                    rejected = {"line": line.number, "reason": error, "text": line.text}
                    rejects.write(encode(_placed(line, rejected), ascii=True))
                if self.progress:
                    self.progress(line.number)

    def _new(self, path: str | Path, column: str | None) -> Iterator[tuple[Entry, str | None]]:
        """The lines of this shard, and why one cannot be used or needs no second look."""
        earlier = _Earlier(self.normal)
        for line in read_prompts(path, column):
            self.digest.update(f"{line.file}\0{line.number}\0{line.text}\n".encode("utf-8", "surrogatepass"))
            if (self.shard is None or self.shard.holds(line.text)) and (self.only is None or self.only(line)):
                yield line, line.error or earlier.same(line)

    def _write(self, records: Sequence[dict[str, Any]]) -> None:
        self.stream.write(*records)
        self.summary.measured += len(records)
        for record in records:
            self.summary.add(record)


def _placed(entry: Entry, record: dict[str, Any]) -> dict[str, Any]:
    """The record, which of several files says the one that it is from."""
    return {**record, "file": entry.file} if entry.file else record


def _lines_of(path: str | Path, batch: Sequence[Entry]) -> str:
    return f"{path}, lines {batch[0].place} to {batch[-1].place}"


class _Earlier:
    """Which prompts occurred before, in a temporary database on the disk, so that memory does not grow."""

    def __init__(self, normal: Callable[[str], str]) -> None:
        self.normal = normal
        self.known = sqlite3.connect("")
        self.known.execute("CREATE TABLE prompts (digest BLOB PRIMARY KEY, place) WITHOUT ROWID")

    def same(self, line: Entry) -> str | None:
        digest = hashlib.blake2b(self.normal(line.text).encode(), digest_size=16).digest()
        earlier = self.known.execute("SELECT place FROM prompts WHERE digest = ?", (digest,)).fetchone()
        if earlier:
            alike = "" if self.normal is str else ", but for case, spaces and punctuation,"
            return f"the same prompt{alike} as line {earlier[0]}"
        self.known.execute("INSERT INTO prompts VALUES (?, ?)", (digest, line.place))
        return None
