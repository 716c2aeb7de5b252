"""`unleak doctor` and `unleak generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unleak.cli.console import (
    call_arguments,
    check_file,
    check_folder,
    emit,
    err,
    errors,
    judge_for,
    open_model,
    say,
    ticking,
)
from unleak.cli.options import (
    Folder,
    Guidance,
    JsonFile,
    Model,
    Seeds,
    Size,
    Steps,
    app,
)
from unleak.errors import PromptTruncated


@app.command()
def doctor(model: Model = "emoji-sd", json_file: JsonFile = None) -> None:
    """What is this pipeline, which attention sites has it, can they be seen, and do the laws hold?"""
    with errors():
        check_file(json_file, "--json")
        pipe = open_model(model)
        from unleak.drawing.doctor import doctor as examine

        with err.status("examining it"):
            report = examine(pipe)
        emit(report.to_dict(), json_file)
        if json_file != "-":
            print(report)
        if not report.ok:
            raise typer.Exit(1 if report.observable else 4)


@app.command()
def generate(
    prompt: str,
    model: Model = "emoji-sd",
    seeds: Seeds = "0:4",
    out: Folder = Path("out"),
    json_file: JsonFile = None,
    steps: Steps = None,
    guidance: Guidance = None,
    height: Size = None,
    width: Size = None,
    truncate: Annotated[bool, typer.Option("--truncate", help="Draw a prompt although its end does not fit.")] = False,
) -> None:
    """Draw a prompt at several seeds; with an embedded model, also say what is in the images."""
    with errors():
        from unleak.drawing.generate import parse_seeds
        from unleak.text.prompt import check_prompt

        check_prompt(prompt)
        numbers = parse_seeds(seeds)
        folder = check_folder(out)
        check_file(json_file, "--json", out)
        call = call_arguments(model, num_inference_steps=steps, guidance_scale=guidance, height=height, width=width)
        pipe = open_model(model)
        from unleak.drawing.generate import image_size, rehearse
        from unleak.drawing.images import generate as draw

        judge = judge_for(model, image_size(pipe, call))
        try:
            rehearse(pipe, prompt, **call)
        except PromptTruncated as e:
            if not truncate:
                raise PromptTruncated(f"{e}; or draw it without its end: --truncate") from e
            say("note", e)
        with ticking("drawing", len(numbers)) as tick:
            result = draw(pipe, prompt, seeds=numbers, describe=judge and judge.describe, model=model, call=call,
                          truncate=truncate, progress=tick)  # fmt: skip
        result.save(f"{folder}/")
        data = result.to_dict()
        names, seen = data["images"], data["seen"]
        emit(data, json_file)
        if json_file != "-":
            for i, name in enumerate(names):
                print(folder / name, *([", ".join(seen[i]) or "nothing"] if seen is not None else []), sep="\t")
