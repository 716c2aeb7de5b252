"""Lint of a whole file: JSONL (schema unleak/lint/1) that resumes, and a summary of the riskiest prompts."""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from unleak.errors import BadInput
from unleak.files.jsonl import Stream
from unleak.files.provenance import versions
from unleak.words.lint.lint import CHUNK, Linter
from unleak.words.lint.prompt_file import Line

SCHEMA = "unleak/lint/1"


SHOWN = 100  #: prompts on a page


LISTED = 20  #: bad lines whose reason is kept


@dataclass
class Summary:
    """What a run found: counts, the riskiest prompts (records, riskiest first), the first bad lines."""

    header: dict[str, Any]
    prompts: int = 0
    bad: int = 0
    riskiest: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)

    def add(self, record: dict[str, Any]) -> None:
        if "error" in record:
            self.bad += 1
            self.errors += [record] if len(self.errors) < LISTED else []
            return
        self.prompts += 1
        self.riskiest = heapq.nsmallest(SHOWN, [*self.riskiest, record], key=lambda r: (-r["risk"], r["line"]))

    @property
    def risk(self) -> float:
        """The largest of all prompts'."""
        return self.riskiest[0]["risk"] if self.riskiest else 0.0


def header(linter: Linter, model: str, source: str, **settings: Any) -> dict[str, Any]:
    """The first record: all that the others depend on."""
    return {
        "schema": SCHEMA,
        "model": model,
        "encoders": linter.digests,
        "calibrated": linter.calibrated,
        "calibration": {"slope": linter.calibration.slope, "intercept": linter.calibration.intercept},
        "source": source,
        "settings": settings,
        "versions": versions(),
    }


def run(
    linter: Linter,
    lines: Iterable[Line],
    head: dict[str, Any],
    out: Path | None = None,
    emit: Callable[[dict[str, Any]], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Summary:
    """Lint every line; results go to `emit` and, if given, to the file `out`, where an earlier run is gone on with.

    Chunks are always the same lines, so that a run that was killed and resumed writes the same bytes as one that was
    not; only chunks that are not complete in `out` are encoded.

    Raises BadInput: `out` belongs to another run, or to other prompts; no line can be used.
    """
    summary = Summary(head)
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(Stream(out, head)) if out is not None else None
        earlier = stream.records() if stream is not None else iter(())
        if emit:
            emit(head)
        source = iter(lines)
        while chunk := list(islice(source, CHUNK)):
            done = list(_same(islice(earlier, len(chunk)), chunk, out))
            new = [r.to_dict() for r in linter.chunk(chunk)][len(done) :] if len(done) < len(chunk) else []
            if stream is not None:
                stream.write(*new)
            for record in [*done, *new]:
                summary.add(record)
                if emit:
                    emit(record)
            if progress:
                progress(len(chunk))
        if next(earlier, None) is not None:
            raise BadInput(f"{out} holds results of more prompts than there are: choose another file with -o")
    if not summary.prompts:
        first = summary.errors[0] if summary.errors else None
        raise BadInput(f"no usable prompt; line {first['line']}: {first['error']}" if first else "there is no prompt")
    return summary


def _same(records: Iterable[dict[str, Any]], chunk: list[Line], out: Path | None) -> Iterator[dict[str, Any]]:
    """The records, each of which must be that of its line."""
    for record, given in zip(records, chunk, strict=False):
        if record.get("line") != given.number or record.get("prompt") != given.prompt:
            raise BadInput(f"line {given.number} of the prompts has changed since {out} was written: choose another")
        yield record
