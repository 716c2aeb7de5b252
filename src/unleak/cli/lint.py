"""`unleak lint`: leaks between words, from text encodings alone."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unleak.cli.command import Command, command
from unleak.cli.console import number, say, show, show_json, show_row, ticking
from unleak.cli.options import MODEL, CalibrationFile, Column, Merge, ShardOf, SomeItems, shard_of
from unleak.errors import BadInput
from unleak.files.outputs import Reads, Writes, prompt_files
from unleak.judges.embedded import world_items

if TYPE_CHECKING:
    from unleak.words.lint.lint_file import Summary


@command(*MODEL, "fail_over", "out", "html")
def lint(
    cmd: Command,
    file: Annotated[
        str | None,
        typer.Argument(
            help="Prompts: text lines, .jsonl, .json, .csv, .tsv, .parquet; a folder or 'pattern*'; -: stdin."
        ),
        Reads("prompts", prompt_files),
    ] = None,
    items: SomeItems = None,
    form: Annotated[
        str | None, typer.Option("--format", help="text, jsonl, json, csv, tsv or parquet; default: by the ending.")
    ] = None,
    column: Column = None,
    calibration: CalibrationFile = None,
    fit: Annotated[
        Path | None, typer.Option(help="Fit a calibration on labelled prompts and write it here."), Writes("--fit")
    ] = None,
    shard: ShardOf = None,
    merge: Merge = None,
) -> None:
    """Which items of which prompts would leak? Reads text encodings alone and draws nothing.

    Items of a prompt are in brackets, or in its line; --items are looked for where it names none, with the senses that
    they may take: mouse=furry mouse|computer mouse; auto finds noun phrases. An embedded model knows its own. The
    results are JSONL, on stdout or in the file of -o, which goes on after a kill. What --fail-over compares is an
    item's risk, 0 to 1.
    """
    from unleak.files.prompt_file import count_entries, files_of, format_of, opened
    from unleak.text.items import parse_items
    from unleak.text.noun_phrases import AUTO, finder
    from unleak.words.lint.prompt_file import Watched, read_files, read_prompts

    limit = None if cmd.fail_over is None else number(cmd.fail_over, "--fail-over")
    if fit is not None and (limit is not None or cmd.out is not None or cmd.html is not None):
        raise BadInput("--fit writes a calibration and nothing else: leave --fail-over, -o and --html out")
    if limit is not None and not 0 <= limit <= 1:
        raise BadInput(f"--fail-over {cmd.fail_over}: a risk lies between 0 and 1")
    mine = shard_of(shard, cmd.out)
    if file is None or merge is not None:
        return merged(cmd, file, merge, limit)
    several = file != "-" and files_of(file) != [Path(file)]
    if several and form is not None:
        raise BadInput(f"{file!r} names several files, whose endings say what they hold: leave --format out")
    form = form if several else format_of(file, form)
    watched: Watched = parse_items(items) if items else world_items(cmd.model)
    if items == AUTO:
        watched, items = finder(), f"{AUTO}: {finder().name}"
        say("note", f"items, by {finder().name}, where a line names none")
    out = cmd.out
    with nullcontext((None, count_entries(file))) if several else opened(file, form) as (stream, total):
        if total == 0:
            raise BadInput(f"the files of {file!r} are empty")
        from unleak.words.lint.calibration import RiskCalibration

        fitted = RiskCalibration.load(calibration) if calibration else None
        pipe = cmd.open(text_only=True)
        from unleak.files.atomic import write_atomic
        from unleak.models import settings
        from unleak.words.lint import lint_file
        from unleak.words.lint.lint import Linter, calibrate

        linter = Linter(pipe, fitted, **settings(cmd.model))
        if stream is None or form is None:
            lines = read_files(file, watched, column)
        else:
            lines = read_prompts(stream, form, watched, column, repr(file))
        if fit is not None:
            risk_calibration = calibrate(linter, lines, Path(file).name)
            write_atomic(fit, risk_calibration.to_json())
            show_row(fit, f"{risk_calibration.leaks} of {risk_calibration.items} items leak")
            return
        if not linter.calibrated:
            say("note", "no calibration belongs to these text encoders: the risk is a score, no probability; --fit")
        head = lint_file.header(linter, cmd.model, file, items=items, format=form, column=column)
        with ticking("reading", total) as tick:
            summary = lint_file.run(linter, lines, head, out, show_json if out is None else None, tick, mine)
    show_lint(cmd, summary, limit)


def merged(cmd: Command, file: str | None, folder: Path | None, limit: float | None) -> None:
    """Join shards, and show what they hold."""
    from unleak.files.shards import merge
    from unleak.words.lint.lint_file import FILE, RECORD, summary_of

    if folder is None or file is not None:
        raise BadInput("give a file of prompts, or --merge and the folder of the shards, and not both")
    if cmd.out is None:
        raise BadInput("--merge needs a file for the joined results: name it with -o")
    merge(folder, cmd.out, FILE, RECORD)
    show_lint(cmd, summary_of(cmd.out), limit)


def show_lint(cmd: Command, summary: Summary, limit: float | None) -> None:
    """What could not be used, the riskiest prompts, the page, and the exit status that --fail-over asks for."""
    if cmd.html is not None:
        from unleak.files.atomic import write_atomic
        from unleak.report import lint as report

        write_atomic(cmd.html, report.page(summary))
    if summary.bad:
        numbers = [str(e["line"]) for e in summary.errors] + ["..."] * (summary.bad > len(summary.errors))
        say("note", f"{summary.bad} lines could not be used: {', '.join(numbers)}")
    if (first := summary.first_left_out) is not None:
        words = ", ".join(first.left_out)
        say("note", f"{summary.left_out} prompts hold known words outside their brackets, which are left out, such as "
            f"line {first.number}: {words}")  # fmt: skip
    if cmd.out is not None:
        for record in summary.riskiest[:10]:
            worst = max(record["items"], key=lambda i: i["risk"])
            show_row(f"{record['risk']:.2f}", worst["text"], record["prompt"])
        show(cmd.out)
    if limit is not None and summary.risk >= limit:
        raise typer.Exit(3)
