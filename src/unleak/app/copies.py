"""The room of copies: which prompts make the model copy a training image, and what a mitigation makes of them."""

from __future__ import annotations

from typing import Any

import gradio as gr

from unleak import models
from unleak.app.desk import Job
from unleak.app.frame import Frame, downloads, shown
from unleak.copies.originals import copy_judge
from unleak.copies.presets import MITIGATIONS
from unleak.copies.protect import guard as protect
from unleak.copies.scan.calibrate import Calibration
from unleak.copies.scan.scan import scan as measure
from unleak.errors import BadInput
from unleak.text.prompt import check_prompt

EXAMPLE = "Renbrith concert poster\na dog and a tree"
MOST = 200  #: prompts at once; the command line takes files of any length
STEPS = 1  #: how many denoising steps are looked at


def build(frame: Frame) -> None:
    """Put the room on the page."""
    gr.Markdown("Does a prompt make the model copy an image that it was trained on? And what does a mitigation draw?")
    prompts = gr.Textbox(EXAMPLE, lines=4, max_lines=16, label="Prompts, one a line",
                         info="The first denoising step of several seeds tells; nothing is drawn.")  # fmt: skip
    with gr.Row():
        preset = gr.Dropdown(list(MITIGATIONS), value="detour", label="Mitigation", min_width=200)
        gated = gr.Checkbox(False, label="Only where the calibration flags the prompt", min_width=200,
                            info="Takes the calibration that comes with the model.")  # fmt: skip
    chosen = gr.Dropdown([], label="Draw this prompt", allow_custom_value=True, visible=False,
                         info="Highest score first.")  # fmt: skip
    room = frame.room(["Score", "Draw before and after"])
    report = gr.HTML(elem_classes="result")
    files = downloads()
    room.connect(0, score, [prompts], [chosen, report, *files])
    room.connect(1, guard, [prompts, chosen, preset, gated], [chosen, report, *files])
    room.connect_cancel()


def prompts_in(text: str) -> list[str]:
    """The prompts of a text, one a line. Raises BadInput: there are none, or too many."""
    prompts = [line.strip() for line in (text or "").splitlines() if line.strip()]
    if not prompts:
        raise BadInput("there is no prompt: write at least one, each on a line of its own")
    if len(prompts) > MOST:
        raise BadInput(f"{len(prompts)} prompts: the page takes {MOST} at once; `unleak scan FILE` takes any number")
    return prompts


def score(job: Job, prompts: str) -> list[Any]:
    """`unleak scan`."""
    texts = [check_prompt(text) for text in prompts_in(prompts)]
    settings, pipe = job.settings, job.open()
    calibration = own_calibration(job, pipe)
    if calibration is None:
        job.note("uncalibrated: the scores order the prompts, and what counts as memorized is not known")
    result = measure(pipe, texts, settings.numbers, STEPS, calibration=calibration, model=settings.model,
                     call=settings.call, progress=job.tick)  # fmt: skip
    order = [texts[i] for i in (-result.scores).argsort(kind="stable")]
    return [gr.update(choices=order, value=order[0], visible=True), *shown(job, result)]


def own_calibration(job: Job, pipe: Any) -> Calibration | None:
    """The calibration that comes with the model; None, noted, where it does not hold for this run."""
    settings = job.settings
    if (file := models.calibration(settings.model)) is None:
        return None
    calibration = Calibration.load(file)
    try:
        calibration.made_at.check(pipe, len(settings.numbers), settings.call, STEPS)
    except BadInput as e:
        job.note(f"the model's own calibration is not used: {e}")
        return None
    return calibration


def guard(job: Job, prompts: str, chosen: str, preset: str, gated: bool) -> list[Any]:
    """`unleak guard` of the prompt that was chosen, or of the first one."""
    texts = prompts_in(prompts)
    prompt = check_prompt(chosen if chosen in texts else texts[0])
    settings = job.settings
    if gated and (file := models.calibration(settings.model)) is None:
        raise BadInput(f"no calibration comes with {settings.model!r}: make one with `unleak calibrate`, or take the "
                       "mark away")  # fmt: skip
    gate = Calibration.load(file) if gated and file else None
    MITIGATIONS[preset].make(gate=gate)  # refuses what cannot be
    pipe = job.open()
    judge = job.looks(pipe, "without a judge only the images are compared; look at them")
    result = protect(pipe, prompt, preset, gate=gate, seeds=settings.numbers, judge=judge,
                     items=judge.named(prompt) if judge else (), copies=copy_judge(pipe, (), judge, settings.call),
                     model=settings.model, call=settings.call, progress=job.tick)  # fmt: skip
    return [gr.update(choices=texts, value=prompt, visible=True), *shown(job, result)]
