"""`unleak lint`: leaks between words, from text encodings alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unleak.cli.command import Command, command
from unleak.cli.console import number, say, show, show_json, show_row, ticking
from unleak.cli.embedded import world_items
from unleak.cli.options import MODEL, CalibrationFile, Column, SomeItems
from unleak.errors import BadInput
from unleak.files.outputs import Reads, Writes


@command(*MODEL, "fail_over", "out", "html")
def lint(
    cmd: Command,
    file: Annotated[
        str, typer.Argument(help="Prompts: text lines, .jsonl, .json, .csv, .tsv; - for stdin."), Reads("prompts")
    ],
    items: SomeItems = None,
    form: Annotated[
        str | None, typer.Option("--format", help="text, jsonl, json, csv, tsv or parquet; default: by the ending.")
    ] = None,
    column: Column = None,
    calibration: CalibrationFile = None,
    fit: Annotated[
        Path | None, typer.Option(help="Fit a calibration on labelled prompts and write it here."), Writes("--fit")
    ] = None,
) -> None:
    """Which items of which prompts would leak? Reads text encodings alone and draws nothing.

    Items of a prompt are in brackets, or in its line; --items are looked for where it names none, with the senses that
    they may take: mouse=furry mouse|computer mouse. An embedded model knows its own. The results are JSONL, on stdout
    or in the file of -o, which goes on after a kill. What --fail-over compares is an item's risk, 0 to 1.
    """
    from unleak.files.prompt_file import format_of, opened
    from unleak.text.items import parse_items
    from unleak.words.lint.prompt_file import read_prompts

    limit = None if cmd.fail_over is None else number(cmd.fail_over, "--fail-over")
    if fit is not None and (limit is not None or cmd.out is not None or cmd.html is not None):
        raise BadInput("--fit writes a calibration and nothing else: leave --fail-over, -o and --html out")
    if limit is not None and not 0 <= limit <= 1:
        raise BadInput(f"--fail-over {cmd.fail_over}: a risk lies between 0 and 1")
    form, watched = format_of(file, form), parse_items(items) if items else world_items(cmd.model)
    out, html = cmd.out, cmd.html
    with opened(file, form) as (stream, total):
        from unleak.words.lint.calibration import RiskCalibration

        fitted = RiskCalibration.load(calibration) if calibration else None
        pipe = cmd.open(text_only=True)
        from unleak.files.atomic import write_atomic
        from unleak.models import settings
        from unleak.report import lint as report
        from unleak.words.lint import lint_file
        from unleak.words.lint.lint import Linter, calibrate

        linter = Linter(pipe, fitted, **settings(cmd.model))
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
            summary = lint_file.run(linter, lines, head, out, show_json if out is None else None, tick)
    if html is not None:
        write_atomic(html, report.page(summary))
    if summary.bad:
        numbers = [str(e["line"]) for e in summary.errors] + ["..."] * (summary.bad > len(summary.errors))
        say("note", f"{summary.bad} lines could not be used: {', '.join(numbers)}")
    if (first := summary.first_left_out) is not None:
        words = ", ".join(first.left_out)
        say("note", f"{summary.left_out} prompts hold known words outside their brackets, which are left out, such as "
            f"line {first.number}: {words}")  # fmt: skip
    if out is not None:
        for record in summary.riskiest[:10]:
            worst = max(record["items"], key=lambda i: i["risk"])
            show_row(f"{record['risk']:.2f}", worst["text"], record["prompt"])
        show(out)
    if limit is not None and summary.risk >= limit:
        raise typer.Exit(3)
