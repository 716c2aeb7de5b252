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
        from PIL import Image

        from unleak.drawing.generate import generate as draw
        from unleak.drawing.generate import image_size, rehearse
        from unleak.files.atomic import write_atomic
        from unleak.report.pictures import contact_sheet, png

        judge = judge_for(model, image_size(pipe, call))
        try:
            rehearse(pipe, prompt, **call)
        except PromptTruncated as e:
            if not truncate:
                raise PromptTruncated(f"{e}; or draw it without its end: --truncate") from e
            say("note", e)
        with ticking("drawing", len(numbers)) as tick:
            images = draw(pipe, prompt, numbers, progress=tick, **call)[0]
        names = [f"{s}.png" for s in numbers]
        for name, image in zip(names, images, strict=True):
            write_atomic(folder / name, png(Image.fromarray(image)))
        write_atomic(folder / "sheet.png", png(contact_sheet([(prompt, list(images))], across=1)))
        seen = None
        if judge is not None:
            read = judge.read(images)
            seen = [sorted(f"{f.tint} {f.glyph}" if f.tint else f.glyph for f in r.found) for r in read]
        emit({"schema": "unleak/generate/1", "prompt": prompt, "model": model, "seeds": numbers, "settings": call,
              "images": names, "seen": seen}, json_file)  # fmt: skip
        if json_file != "-":
            for i, name in enumerate(names):
                print(folder / name, *([", ".join(seen[i]) or "nothing"] if seen is not None else []), sep="\t")
