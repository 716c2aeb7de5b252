"""`unleak report`: results that were written before, shown again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from unleak.cli.command import Command, command
from unleak.errors import BadInput, BrokenFile


@command("html")
def report(
    cmd: Command,
    file: Annotated[Path, typer.Argument(help="results.json of a benchmark, or the JSONL of a scan or a lint.")],
) -> None:
    """Show results again: the table of a benchmark, or a scan or a lint, also as a page."""
    cmd.reads(results=file)
    kinds = {"unleak/bench/1": _bench, "unleak/scan/1": _scan, "unleak/lint/1": _lint}
    records = _records(file)
    head: Any = next(records, None)
    schema = head.get("schema") if isinstance(head, dict) else None
    if schema not in kinds:
        raise BadInput(f"{file} holds no results that can be shown again: give one of {', '.join(kinds)}")
    try:
        kinds[schema](cmd, file, head, records)
    except (KeyError, TypeError, AttributeError, IndexError) as e:
        raise BrokenFile(f"{file} is damaged ({type(e).__name__}: {e}): write it again") from e


def _records(file: Path) -> Iterator[Any]:
    """The records of a JSONL file, or the one document of a JSON file. Raises BadInput."""
    try:
        with file.open(encoding="utf-8") as lines:
            first = lines.readline()
            try:
                yield json.loads(first)
            except ValueError:
                yield json.loads(first + lines.read())
            yield from (json.loads(line) for line in lines if line.strip())
    except (OSError, ValueError, RecursionError) as e:
        raise BadInput(f"cannot read the results {file}: {e}") from e


def _bench(cmd: Command, file: Path, head: dict[str, Any], records: Iterator[Any]) -> None:
    from unleak.bench.results import Results

    if cmd.html is not None:
        raise BadInput("a benchmark has no page, but a table: leave --html out")
    print(Results.from_dict(head).table(), end="")


def _scan(cmd: Command, file: Path, head: dict[str, Any], records: Iterator[Any]) -> None:
    from heapq import nlargest

    from unleak.files.atomic import write_atomic
    from unleak.report.scan import file_page

    highest = nlargest(10, ((r["score"], -r["line"], r["prompt"]) for r in records))
    if cmd.html is not None:
        write_atomic(cmd.html, file_page(file))
    print("score", "line", "prompt", sep="\t")
    for score, line, prompt in highest:
        print(f"{score:.6g}", -line, " ".join(prompt.split()), sep="\t")


def _lint(cmd: Command, file: Path, head: dict[str, Any], records: Iterator[Any]) -> None:
    from unleak.words.lint.lint_file import Summary

    summary = Summary(head)
    for record in records:
        summary.add(record)
    if cmd.html is not None:
        summary.save(cmd.html)
    print(summary)
