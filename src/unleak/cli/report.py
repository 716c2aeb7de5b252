"""`unleak report`: results that were written before, shown again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from unleak.cli.command import Command, command
from unleak.cli.console import show, show_row
from unleak.errors import BadInput, BrokenFile
from unleak.files.outputs import Reads
from unleak.saved import parse_json, read_document, regular


@command("html")
def report(
    cmd: Command,
    file: Annotated[
        Path, typer.Argument(help="results.json of a benchmark, or the JSONL of a scan or a lint."), Reads("results")
    ],
) -> None:
    """Show results again: the table of a benchmark, or a scan or a lint, also as a page."""
    kinds = {"unleak/bench/1": _bench, "unleak/scan/1": _scan, "unleak/lint/1": _lint}
    head, records = _records(regular(file, "results"))
    schema = head.get("schema") if isinstance(head, dict) else None
    if not isinstance(schema, str) or schema not in kinds:
        raise BadInput(f"{file} holds no results that can be shown again: give one of {', '.join(kinds)}")
    kinds[schema](cmd, file, head, records)


def _records(file: Path) -> tuple[Any, Iterator[tuple[str, Any]]]:
    """The first record of a JSONL file, and where the others stand and what they are; or the one document of a JSON
    file and nothing. Raises BrokenFile."""

    def parse(text: str | bytes, where: str) -> Any:
        try:
            return parse_json(text)
        except ValueError as e:
            raise BrokenFile(f"cannot read the results {where}: {e}; write them again") from e

    def others() -> Iterator[tuple[str, Any]]:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if number > 1 and line.strip():
                    where = f"{file}, line {number}"
                    yield where, parse(line, where)

    try:
        with file.open(encoding="utf-8") as lines:
            first = lines.readline()
        head = parse_json(first)
    except ValueError:
        return parse(read_document(file, "results"), str(file)), iter(())
    return head, others()


def _bench(cmd: Command, file: Path, head: dict[str, Any], records: Iterator[tuple[str, Any]]) -> None:
    from unleak.bench.results import Results

    if cmd.html is not None:
        raise BadInput("a benchmark has no page, but a table: leave --html out")
    show(Results.from_dict(head, path=file).table().rstrip("\n"))


def _scan(cmd: Command, file: Path, head: dict[str, Any], records: Iterator[tuple[str, Any]]) -> None:
    from heapq import nlargest

    from unleak.copies.scan.scan_file import FILE, HIGHEST, RECORD
    from unleak.files.atomic import write_atomic
    from unleak.report.scan import file_page

    FILE.parse(head, file)
    every = (RECORD.parse(record, where) for where, record in records)
    highest = nlargest(HIGHEST, ((r.score, -r.line, r.prompt) for r in every))
    if cmd.html is not None:
        write_atomic(cmd.html, file_page(file))
    show_row("score", "line", "prompt")
    for score, line, prompt in highest:
        show_row(f"{score:.6g}", -line, prompt)


def _lint(cmd: Command, file: Path, head: dict[str, Any], records: Iterator[tuple[str, Any]]) -> None:
    from unleak.words.lint.lint_file import FILE, RECORD, Summary

    FILE.parse(head, file)
    summary = Summary(head)
    for where, record in records:
        RECORD.parse(record, where)
        summary.add(record)
    if cmd.html is not None:
        summary.save(cmd.html)
    show(summary)
