"""The room of prompts that nobody draws: which of them would leak, and why?"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import gradio as gr

from unleak.app.desk import Job
from unleak.app.frame import Frame, downloads, shown
from unleak.errors import BadInput
from unleak.judges.embedded import world_items
from unleak.models import settings as call_of
from unleak.text.items import parse_items
from unleak.words.lint.lint_file import lint as read
from unleak.words.lint.prompt_file import read_prompts

EXAMPLE = "a key and a guitar\na bat and a racket\na dog and a tree"
MOST = 1000  #: prompts at once; the command line takes files of any length


def build(frame: Frame) -> None:
    """Put the room on the page."""
    gr.Markdown("Which items of which prompts would leak? Only the text is read, and nothing is drawn.")
    how = "Items stand in [brackets], or are listed below; an embedded model knows its own."
    prompts = gr.Textbox(EXAMPLE, lines=6, max_lines=16, label="Prompts, one a line", info=how)
    items = gr.Textbox(label="Items to look for", placeholder="mouse=furry mouse|computer mouse, laptop")
    room = frame.room(["Lint"])
    report = gr.HTML(elem_classes="result")
    files = downloads()
    room.connect(0, lint, [prompts, items], [report, *files])
    room.connect_cancel()


def lint(job: Job, prompts: str, items: str) -> list[Any]:
    """`unleak lint`."""
    model = job.settings.model
    watched = parse_items(items) if (items or "").strip() else world_items(model)
    lines = list(read_prompts(BytesIO((prompts or "").encode()), "text", watched, name="the prompts"))
    if not lines:
        raise BadInput("there is no prompt: paste at least one, each on a line of its own")
    if len(lines) > MOST:
        raise BadInput(f"{len(lines)} prompts: the page takes {MOST} at once; `unleak lint FILE` takes any number")
    result = read(job.open(text_only=True), lines, model=model, call=call_of(model))
    if not result.prompts:
        raise BadInput(f"no prompt can be used; line {result.errors[0]['line']}: {result.errors[0]['error']}")
    return shown(job, result)
