"""`unleak lint`: leaks between words, from text encodings alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from unleak.cli.console import check_file, errors, open_model, say, ticking, world_items
from unleak.cli.options import (
    HtmlFile,
    Model,
    app,
)
from unleak.errors import BadInput


@app.command()
def lint(
    file: Annotated[str, typer.Argument(help="Prompts: text lines, .jsonl or .csv; - for stdin.")],
    items: Annotated[
        str | None,
        typer.Option(
            help="Words to look for where a prompt names none: mouse=furry mouse|computer mouse,bat; "
            "an embedded model knows its own.",
        ),
    ] = None,
    model: Model = "emoji-sd",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write the JSONL here and go on with it after a kill.")
    ] = None,
    html: HtmlFile = None,
    form: Annotated[str | None, typer.Option("--format", help="text, jsonl or csv; default: by the ending.")] = None,
    column: Annotated[
        str | None, typer.Option(help="The field or column of the prompt; default: prompt, caption or text.")
    ] = None,
    calibration: Annotated[Path | None, typer.Option(help="A calibration of this model's text encoders.")] = None,
    fit: Annotated[Path | None, typer.Option(help="Fit a calibration on labelled prompts and write it here.")] = None,
    fail_over: Annotated[
        float | None, typer.Option(min=0, max=1, help="Exit with status 3 if an item's risk is higher.")
    ] = None,
) -> None:
    """Which items of which prompts would leak? Reads text encodings alone and draws nothing."""
    with errors():
        from unleak.files.prompt_file import format_of, opened
        from unleak.text.items import parse_items
        from unleak.words.lint.prompt_file import read_prompts

        form, watched = format_of(file, form), parse_items(items) if items else world_items(model)
        for path, option in ((out, "-o"), (html, "--html"), (fit, "--fit")):
            check_file(path, option)
            if path is not None and path.exists() and Path(file).exists() and path.samefile(file):
                raise BadInput(f"{option} {str(path)!r} is the file with the prompts: choose another")
        with opened(file) as (stream, total):
            from unleak.words.lint import calibration as calibrations

            fitted = calibrations.read(calibration) if calibration else None
            pipe = open_model(model, text_only=True)
            from unleak.files.atomic import write_atomic
            from unleak.models import settings
            from unleak.report import lint as report
            from unleak.words.lint import lint_file
            from unleak.words.lint.lint import Linter, calibrate

            linter, lines = Linter(pipe, fitted, **settings(model)), read_prompts(stream, form, watched, column)
            if fit is not None:
                made = calibrate(linter, lines, Path(file).name)
                write_atomic(fit, made.to_json())
                print(fit, f"{made.leaks} of {made.items} items leak", sep="\t")
                return
            if not linter.calibrated:
                say("note", "no calibration belongs to these text encoders: the risk is a score, no probability; --fit")
            head = lint_file.header(linter, model, file, items=items, format=form, column=column)
            show = (lambda record: print(json.dumps(record, ensure_ascii=False))) if out is None else None
            with ticking("reading", total) as tick:
                found = lint_file.run(linter, lines, head, out, show, tick)
        if html is not None:
            write_atomic(html, report.page(found))
        if found.bad:
            numbers = [str(e["line"]) for e in found.errors] + ["..."] * (found.bad > len(found.errors))
            say("note", f"{found.bad} lines could not be used: {', '.join(numbers)}")
        if out is not None:
            for record in found.riskiest[:10]:
                worst = max(record["items"], key=lambda i: i["risk"])
                print(f"{record['risk']:.2f}", worst["text"], record["prompt"], sep="\t")
            print(out)
        if fail_over is not None and found.risk > fail_over:
            raise typer.Exit(3)
