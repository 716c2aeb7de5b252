"""`unleak doctor` and `unleak generate`."""

from __future__ import annotations

from typing import Annotated

import typer

from unleak.cli.command import Command, command
from unleak.cli.console import err, say, ticking
from unleak.cli.options import CALL, MODEL, OUTPUT, Prompt
from unleak.errors import PromptTruncated


@command(*MODEL, "json", "html")
def doctor(cmd: Command) -> None:
    """What is this pipeline, which attention sites has it, do the laws hold, and which verbs work on it, or why not?"""
    from unleak import models
    from unleak.report.verbs import doctor as examine

    pipe = cmd.open() if models.has_weights(cmd.model) else models.skeleton(cmd.model)

    with err.status("examining it") as status:
        report = examine(pipe, progress=lambda verb: status.update(f"trying {verb}"))
    cmd.show(report)
    if report.weights and not report.ok:
        raise typer.Exit(1 if report.observable else 4)


@command(*MODEL, "seeds", *CALL, "judge", *OUTPUT)
def generate(
    cmd: Command,
    prompt: Prompt,
    truncate: Annotated[bool, typer.Option("--truncate", help="Draw a prompt although its end does not fit.")] = False,
) -> None:
    """Draw a prompt at several seeds; a judge that can describe images says what is in them."""
    from unleak.text.prompt import check_prompt

    check_prompt(prompt)
    seeds, call, pipe = cmd.numbers, cmd.call, cmd.open()
    from unleak.drawing.generate import rehearse
    from unleak.drawing.images import generate as draw

    describe = getattr(cmd.looks(pipe), "describe", None)
    try:
        rehearse(pipe, prompt, **call)
    except PromptTruncated as e:
        if not truncate:
            raise PromptTruncated(f"{e}; or draw it without its end: --truncate") from e
        say("note", e)
    with ticking("drawing", len(seeds)) as tick:
        result = draw(pipe, prompt, seeds=seeds, describe=describe, model=cmd.model, call=call, truncate=truncate,
                      progress=tick)  # fmt: skip
    cmd.show(result, *(cmd.folder / name for name in result.to_dict()["images"]))
