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
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from unleak.copies.scan.calibrate import fingerprint_of
from unleak.copies.scan.scan import ScanPlan, fits, measure
from unleak.errors import BadInput, CannotWrite, PromptTruncated
from unleak.files.atomic import replacing
from unleak.files.jsonl import Stream, check_rejects, encode, rejects_of
from unleak.files.outputs import same_file
from unleak.files.prompt_file import Entry, read_prompts
from unleak.saved import Name, Number, Saved, Seed, length

SCHEMA = "unleak/scan/1"


@dataclass(frozen=True)
class ScanHeader:
    """The first line of a scan's output: everything that decides the records, so that only an equal scan goes on.

    weights, bias: of a calibration that joins several detectors.
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


@dataclass(frozen=True)
class ScanRecord:
    """One scanned prompt; `images` holds the score of each image by detector."""

    line: Number
    prompt: Name
    score: float
    memorized: bool | None
    scores: dict[str, float]
    images: dict[str, list[float]]


FILE = Saved("output of unleak scan", ScanHeader, "scan again into another file", SCHEMA)
RECORD = Saved("record of unleak scan", ScanRecord, "scan again into another file")

HIGHEST = 20  #: prompts that a summary names


@dataclass
class ScanSummary:
    """What a scan found. `highest` holds (score, line, prompt) of the highest scores, the highest first.

    `measured` counts the prompts of this run; the others were there from an interrupted one.
    """

    prompts: int = 0
    measured: int = 0
    rejected: int = 0
    over: int = 0
    limit: float | None = None
    highest: list[tuple[float, int, str]] = field(default_factory=list)

    def add(self, record: dict[str, Any]) -> None:
        self.prompts += 1
        self.over += self.limit is not None and record["score"] >= self.limit
        entry = (record["score"], -record["line"], record["prompt"])
        (heapq.heappush if len(self.highest) < HIGHEST else heapq.heappushpop)(self.highest, entry)


def scan_file(
    pipe: Any,
    path: str | Path,
    out: str | Path,
    plan: ScanPlan,
    *,
    model: str = "",
    column: str | None = None,
    limit: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> ScanSummary:
    """Scan every prompt of a file (see `prompt_file.read_prompts`) into `out`; resumes if `out` is its beginning.

    `limit` counts the prompts that score at least so much (default: a calibration's threshold). `progress` is told the
    number of the line that was reached.

    Raises:
        Conflict: another scan writes to `out` now.
        BadInput: `out` holds something else, or a scan with other settings, or of a file that has changed since; it, or
            the file of its rejects, is the file of prompts; another file has the name of that of its rejects.
        CannotWrite: the disk is full, or `out` was removed meanwhile.
    """
    out = Path(out)
    if not out.parent.is_dir():
        raise BadInput(f"cannot write {out}: there is no folder {str(out.parent)!r}; make it first")
    for one in (out, rejects_of(out)):
        if same_file(one, Path(path)):
            raise BadInput(f"{one} is the file of prompts itself: choose another output with -o")
    check_rejects(out)
    if limit is None and plan.calibration:
        limit = plan.calibration.threshold
    check = fits(pipe, plan)
    with Stream(out, header_of(pipe, path, plan, model), plan.batch, ascii=True, record=RECORD) as stream:
        return _Run(pipe, plan, check, stream, limit, progress).over(path, column)


def header_of(pipe: Any, path: str | Path, plan: ScanPlan, model: str) -> dict[str, Any]:
    """The first line of the output, see `ScanHeader`."""
    known = plan.calibration
    header = ScanHeader(
        input=Path(path).name, model=model, fingerprint=fingerprint_of(pipe, plan.call), detectors=list(plan.names),
        score=plan.score_name, steps=plan.steps, seeds=list(plan.seeds), batch=plan.batch, call=dict(plan.call),
        calibrated=known is not None, threshold=known.threshold if known else None,
        weights=dict(known.weights) if known else {}, bias=known.bias if known else 0.0,
    )  # fmt: skip
    return {"schema": SCHEMA, **asdict(header)}


class _Run:
    """One run over a file: reads lines, skips what is done, measures the rest batch by batch."""

    def __init__(self, pipe: Any, plan: ScanPlan, check: Callable[[str], None], stream: Stream, limit: float | None,
                 progress: Callable[[int], None] | None) -> None:  # fmt: skip
        self.pipe, self.plan, self.check, self.stream = pipe, plan, check, stream
        self.summary, self.progress = ScanSummary(limit=limit), progress
        self.waiting: list[Entry] = []
        self.kept: list[tuple[Entry, dict[str, Any]]] = []

    def over(self, path: str | Path, column: str | None) -> ScanSummary:
        out, left = self.stream.path, self.stream.records()
        rejects = rejects_of(out)
        try:
            with replacing(rejects, drop_empty=True) as refused:
                for line in self._usable(path, column, refused):
                    record = next(left, None)
                    if record is None:
                        self._measure(line)
                    elif (record["line"], record["prompt"]) != (line.number, line.text):
                        raise BadInput(f"{path} has changed since {out} was begun: scan into another file with -o")
                    else:
                        self.kept.append((line, record))
                        self._count_full_batch()
                if next(left, None) is not None:
                    raise BadInput(f"{path} is shorter than when {out} was begun: scan into another file with -o")
                if self.waiting or not self.stream.count:
                    self._flush()
                for _, record in self.kept:
                    self.summary.add(record)
                check_rejects(out)
        except OSError as e:
            raise CannotWrite(f"cannot write {rejects}: {e.strerror or e}; choose another output with -o") from e
        self.summary.highest = [(s, -n, p) for s, n, p in sorted(self.summary.highest, reverse=True)]
        return self.summary

    def _count_full_batch(self) -> None:
        """Count the records of a whole batch; those of the last, unfinished one are kept until it is known whether
        more prompts belong to it."""
        if len(self.kept) == self.plan.batch:
            for _, record in self.kept:
                self.summary.add(record)
            self.kept = []

    def _usable(self, path: str | Path, column: str | None, rejects: BinaryIO) -> Iterator[Entry]:
        """The lines that can be measured; the others are written down with the reason."""
        earlier = _Earlier()
        for line in read_prompts(path, column):
            error = line.error or self._unfit(line.text) or earlier.same(line)
            if error is None:
                yield line
            else:
                self.summary.rejected += 1
                rejects.write(encode({"line": line.number, "reason": error, "text": line.text}, ascii=True))
            if self.progress:
                self.progress(line.number)

    def _unfit(self, prompt: str) -> str | None:
        try:
            self.check(prompt)
        except PromptTruncated as e:
            return str(e)
        return None

    def _measure(self, line: Entry) -> None:
        self.waiting += [*(kept for kept, _ in self.kept), line]  # an unfinished batch is measured again as a whole
        self.kept = []
        if len(self.waiting) == self.plan.batch:
            self._flush()

    def _flush(self) -> None:
        """Measure the prompts that wait, and write them; of a file without any, the header."""
        texts = [line.text for line in self.waiting]
        images = measure(self.pipe, texts, self.plan) if texts else {}
        records = []
        for i, line in enumerate(self.waiting):
            scores = {name: float(x[i].mean()) for name, x in images.items()}
            score, c = _round(self.plan.score(scores)), self.plan.calibration
            records.append({
                "line": line.number, "prompt": line.text, "score": score,
                "memorized": score >= c.threshold if c else None,
                "scores": {name: _round(x) for name, x in scores.items()},
                "images": {name: [_round(v) for v in x[i].tolist()] for name, x in images.items()},
            })  # fmt: skip
            self.summary.add(records[-1])
        self.stream.write(*records)
        self.summary.measured += len(records)
        self.waiting = []


def _round(x: float) -> float:
    """Six digits: what is beyond is noise of the batch."""
    return float(f"{x:.6g}")


class _Earlier:
    """Which prompts occurred before, in a temporary database on the disk, so that memory does not grow."""

    def __init__(self) -> None:
        self.known = sqlite3.connect("")
        self.known.execute("CREATE TABLE prompts (digest BLOB PRIMARY KEY, line INTEGER) WITHOUT ROWID")

    def same(self, line: Entry) -> str | None:
        digest = hashlib.blake2b(line.text.encode(), digest_size=16).digest()
        earlier = self.known.execute("SELECT line FROM prompts WHERE digest = ?", (digest,)).fetchone()
        if earlier:
            return f"the same prompt as line {earlier[0]}"
        self.known.execute("INSERT INTO prompts VALUES (?, ?)", (digest, line.number))
        return None
