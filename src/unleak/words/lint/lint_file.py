"""`unleak.lint`, and the same of a whole file: JSONL (schema unleak/lint/1) that resumes, and a summary."""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, TypedDict

from unleak.core.result import Result
from unleak.errors import BadInput
from unleak.files.jsonl import Stream
from unleak.files.parquet import grown, results
from unleak.files.provenance import versions
from unleak.files.shards import Shard, complete
from unleak.saved import Number, Saved, Share, Wrong
from unleak.text.items import Item, parse_items
from unleak.text.noun_phrases import AUTO, finder
from unleak.words.lint.calibration import RiskCalibration
from unleak.words.lint.lint import CHUNK, ItemLint, Linter, PromptLint, lines_of
from unleak.words.lint.prompt_file import Line, Watched

SCHEMA = "unleak/lint/1"
SHOWN = 100  #: prompts on a page
LISTED = 20  #: bad lines whose reason is kept


@dataclass(frozen=True)
class LintHeader:
    """The first line of a lint's output: all that the others depend on."""

    model: str
    encoders: dict[str, str]
    calibrated: bool
    calibration: dict[str, float]
    source: str
    settings: dict[str, Any]
    shard: str | None = None


class _Numbered(TypedDict):
    line: Number
    prompt: str


class LintRecord(_Numbered, total=False):
    """One further line: what `PromptLint.to_dict` gives, and the digest of its `question`."""

    risk: Share
    items: list[ItemLint]
    error: str
    question: str
    file: str


def _check_record(record: LintRecord) -> None:
    if "error" not in record and not (record.get("items") and "risk" in record):
        raise Wrong("items", "is missing or empty")


FILE = Saved("output of unleak lint", LintHeader, "lint again into another file", SCHEMA)
RECORD = Saved("record of unleak lint", LintRecord, "lint again into another file", check=_check_record)


@dataclass(repr=False)
class Summary(Result):
    """What a run found: counts, the riskiest prompts (records, riskiest first), the first bad lines."""

    verb: ClassVar[str] = "lint"
    header: dict[str, Any]
    prompts: int = 0
    bad: int = 0
    riskiest: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    left_out: int = 0  #: prompts whose brackets leave out known words
    first_left_out: Line | None = None

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

    def lines(self) -> list[str]:
        bad = f"; {self.bad} cannot be used" if self.bad else ""
        lines = [f"{self.header['source']}: {self.prompts} prompts read without drawing one{bad}"]
        if not self.header["calibrated"]:
            lines.append("  uncalibrated: the risk orders items and is no probability")
        for record in self.riskiest:
            worst = max(record["items"], key=lambda i: i["risk"])
            by = f", because of {worst['by']}" if worst["by"] else ""
            lines.append(f"  {record['risk']:.2f}  {record['prompt']}  ({worst['text']}{by})")
        return [*lines, *(f"  line {e['line']}: {e['error']}" for e in self.errors)]

    def data(self) -> dict[str, Any]:
        """The header, the counts, and the riskiest prompts."""
        head = {k: v for k, v in self.header.items() if k not in ("schema", "versions")}
        counts = {"prompts": self.prompts, "bad": self.bad, "risk": self.risk}
        return {**head, **counts, "riskiest": self.riskiest, "errors": self.errors}


@dataclass(repr=False)
class Lint(Summary):
    """The lint of some prompts: a sequence of one `PromptLint` for each, and their summary."""

    each: list[PromptLint] = field(default_factory=list)

    def __iter__(self) -> Iterator[PromptLint]:
        return iter(self.each)

    def __len__(self) -> int:
        return len(self.each)

    def __getitem__(self, i: int) -> PromptLint:
        return self.each[i]

    def data(self) -> dict[str, Any]:
        return {**super().data(), "each": [one.to_dict() for one in self.each]}


def lint(
    pipe: Any,
    prompts: str | Line | Iterable[str | Line],
    items: str | Item | Iterable[str | Item] = (),
    *,
    calibration: RiskCalibration | None = None,
    model: str = "",
    call: Mapping[str, Any] | None = None,
) -> Lint:
    """Which items of which prompts would leak? Only text encoders run.

    Args:
        pipe: any diffusers pipeline; its denoiser may be missing.
        prompts: one or several, with items in [brackets], or lines of `unleak.words.lint.prompt_file.read_prompts`.
        items: words to look for in prompts without brackets; "mouse=furry mouse|computer mouse" names the intended
            sense and further ones, and the result says how far the item moved from the one to the others. "auto": the
            prompts' noun phrases, see `unleak.text.noun_phrases`.
        calibration: default: the shipped one of these encoders, or else the embedded model's, uncalibrated.
        model: its name, for the record. call: arguments of the pipeline that concern its text.

    Returns:
        One result per prompt, in order; a prompt that cannot be read has an `error` and is not lost.

    Raises:
        UnsupportedModel: the pipeline's encoders cannot be read. BadInput: the calibration is another encoder's.
    """
    given = [prompts] if isinstance(prompts, str | Line) else list(prompts)
    linter = Linter(pipe, calibration, **(call or {}))
    watched: Watched = finder() if items == AUTO else parse_items(items) if items else ()
    each = list(linter(lines_of(given, watched)))
    source = each[0].prompt if len(each) == 1 else f"{len(each)} prompts"
    result = Lint(
        header(
            linter,
            model,
            source,
            items=f"{AUTO}: {finder().name}" if items == AUTO else str(items) if items else None,
            call=dict(call or {}),
        ),
        each=each,
    )
    for one in each:
        result.add(one.to_dict())
    return result


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
    shard: Shard | None = None,
) -> Summary:
    """Lint every line; results go to `emit` and, if given, to the file `out`, where an earlier run is gone on with.

    Chunks are always the same lines, so that a run that was killed and resumed writes the same bytes as one that was
    not; only chunks that are not complete in `out` are encoded, and written as a whole. Of a `shard` only its lines are
    linted; beside `out` stands then, when it is complete, what `shards.merge` asks for.

    Raises BadInput: `out` belongs to another run, or to other prompts; no line can be used.
    """
    head = {**head, "shard": str(shard)} if shard is not None else head
    summary, digest = Summary(head), hashlib.sha256()
    with contextlib.ExitStack() as stack:
        stream = None
        if out is not None:
            growing = stack.enter_context(grown(out, RECORD))
            stream = stack.enter_context(Stream(growing, head, CHUNK, record=RECORD))
        earlier = stream.records() if stream is not None else iter(())
        if emit:
            emit(head)
        source = iter(lines) if shard is None else _of_shard(shard, lines, digest)
        while chunk := list(islice(source, CHUNK)):
            done = list(_same(islice(earlier, len(chunk)), chunk, out))
            results = linter.chunk(chunk) if len(done) < len(chunk) else []
            new = [_record(line, result) for result, line in zip(results, chunk, strict=bool(results))]
            if stream is not None and new:
                stream.write(*new)
            for line in chunk:
                if line.left_out:
                    summary.left_out += 1
                    summary.first_left_out = summary.first_left_out or line
            for record in new or done:
                summary.add(record)
                if emit:
                    emit(record)
            if progress:
                progress(len(chunk))
        if next(earlier, None) is not None:
            raise BadInput(f"{out} holds results of more prompts than there are: choose another file with -o")
        if shard is not None and stream is not None and not stream.count and not summary.prompts + summary.bad:
            stream.write()  # the header alone: this shard holds no prompt
    if shard is not None and out is not None:
        complete(out, shard, digest.hexdigest())
    elif not summary.prompts:
        first = summary.errors[0] if summary.errors else None
        raise BadInput(f"no usable prompt; line {first['line']}: {first['error']}" if first else "there is no prompt")
    return summary


def _same(records: Iterable[dict[str, Any]], chunk: list[Line], out: Path | None) -> Iterator[dict[str, Any]]:
    """The records, each of which must be that of its line."""
    for record, given in zip(records, chunk, strict=False):
        if (record["line"], record.get("question"), record.get("file", "")) != (
            given.number, question(given), given.file,
        ):  # fmt: skip
            raise BadInput(f"line {given.number} of the prompts has changed since {out} was written: choose another")
        yield record


def _record(line: Line, result: PromptLint) -> dict[str, Any]:
    """What is written of a line."""
    record = {**result.to_dict(), "question": question(line)}
    return {**record, "file": line.file} if line.file else record


def _of_shard(shard: Shard, lines: Iterable[Line], digest: Any) -> Iterator[Line]:
    """The lines of a shard; `digest` is told of all."""
    for line in lines:
        digest.update(f"{line.file}\0{line.number}\0{question(line)}\n".encode("utf-8", "surrogatepass"))
        if shard.holds(line.prompt):
            yield line


def summary_of(out: Path) -> Summary:
    """Of an output that is there. Raises BrokenFile."""
    records = results(out, FILE, RECORD)
    summary = Summary(next(records))
    for record in records:
        summary.add(record)
    return summary


def question(line: Line) -> str:
    """A digest of all that a line asks: its prompt, and its items with their places and senses; or why it cannot."""
    asked = [line.prompt, [[i.text, i.occurrence, i.sense] for i in line.items], line.spans, line.error]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
