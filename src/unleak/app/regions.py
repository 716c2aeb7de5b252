"""The room of regions: edit objects of a picture and nothing else, or draw each phrase where it is to be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
import numpy as np

from unleak import models
from unleak.app import paint
from unleak.app.desk import Job
from unleak.app.frame import SIDE, Frame, downloads, gallery, shown
from unleak.drawing.images import generate
from unleak.errors import BadInput
from unleak.files import pictures
from unleak.regions.check import add_checks
from unleak.regions.edit import edit as turn
from unleak.regions.plan import Edit, plan
from unleak.regions.presets import EDITORS, recommended
from unleak.regions.regional import RegionPrompt
from unleak.regions.regional import regions as draw_regions
from unleak.report.pictures import enlarge

CAPTION = "a dog and a red car"
EDITS = (("dog", "cat"), ("", ""), ("", ""), ("", ""))
PROMPT = "a dog and a red car"
BOXES = (("dog", "0,0,0.5,1"), ("red car", "0.5,0,1,1"), ("", ""), ("", ""))


def build(frame: Frame) -> None:
    """Put the room on the page."""
    with gr.Tab("Edit a picture"):
        _edit(frame)
    with gr.Tab("Draw by regions"):
        _regions(frame)


def _edit(frame: Frame) -> None:
    gr.Markdown("Turn objects of a picture into others and change nothing else. Paint what may change, each object in "
                "the colour of its line; what you do not paint, the model finds itself.")  # fmt: skip
    canvas = paint.canvas("Picture and masks")
    caption = gr.Textbox(CAPTION, label="Caption", info="It names every object that is edited.")
    rows = _pairs(EDITS, "what is there", "what it becomes")
    with gr.Accordion("More: method, masks from files, pixels", open=False):
        preset = gr.Dropdown(list(EDITORS), value="ale", label="Method")
        files = gr.Files(label="Masks from files, white where something may change: one for each line, in their order",
                         file_types=["image"], type="filepath")  # fmt: skip
        keep = gr.Checkbox(False, label="Keep the photo's own pixels outside the masks")
    room = frame.room(["Edit", "Draw a picture from the caption"])
    with gr.Column(visible=False) as looking:
        slider = gr.ImageSlider(
            label="Left of the line before, right of it after: drag it",
            max_height=520,
            type="numpy",
            buttons=["download"],
            interactive=False,
            elem_classes="pixels",
        )
    report = gr.HTML(elem_classes="result")
    results = [canvas, looking, slider, report, *downloads()]
    room.connect(0, edit, [canvas, caption, preset, files, keep, *rows], results)
    room.connect(1, draw, [caption], results[:1])
    room.connect_cancel()


def _regions(frame: Frame) -> None:
    gr.Markdown("Every phrase acts in its own region. Give a box as left, top, right, bottom in shares of the picture, "
                "or paint where the phrase acts, in the colour of its line; paint goes before a box.")  # fmt: skip
    prompt = gr.Textbox(PROMPT, label="Prompt", info="It holds every phrase.")
    rows = _pairs(BOXES, "phrase", "box: left, top, right, bottom")
    canvas = paint.canvas("Regions", blank=True)
    room = frame.room(["Draw"])
    drawn = gr.Gallery(label="Pictures", columns=4, height="auto", object_fit="contain", visible=False,
                       buttons=["download", "fullscreen"], elem_classes="pixels")  # fmt: skip
    report = gr.HTML(elem_classes="result")
    room.connect(0, regions, [prompt, canvas, *rows], [drawn, report, *downloads()])
    room.connect_cancel()


def _pairs(values: Sequence[tuple[str, str]], first: str, second: str) -> list[gr.Textbox]:
    """A line of two fields for each colour."""
    fields = []
    for name, pair in zip(paint.COLOURS, values, strict=True):
        with gr.Row(elem_classes=f"pair {name}"):
            fields += [gr.Textbox(pair[0], label=f"{name}: {first}", min_width=120),
                       gr.Textbox(pair[1], label=f"{name}: {second}", min_width=120)]  # fmt: skip
    return fields


def lines_of(fields: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour -> its two fields; empty lines are left out."""
    pairs = zip(paint.COLOURS, fields[::2], fields[1::2], strict=True)
    written = {name: ((one or "").strip(), (two or "").strip()) for name, one, two in pairs}
    return {name: pair for name, pair in written.items() if any(pair)}


def edit(
    job: Job, painted: dict[str, Any], caption: str, preset: str, files: list[str] | None, keep: bool, *fields: str
) -> list[Any]:
    """`unleak edit`."""
    photo, lines, drawn = pictures.photo(paint.picture(painted)), lines_of(fields), paint.masks(painted)
    if not lines:
        raise BadInput("nothing is to be edited: write in a line what is there and what it becomes")
    if unnamed := drawn.keys() - lines.keys():
        raise BadInput(f"{', '.join(sorted(unnamed))} is painted, and the line of that colour is empty: fill it in, or "
                       "erase the paint")  # fmt: skip
    if len(files or ()) > len(lines):
        raise BadInput(f"{len(files or ())} files of masks for {len(lines)} lines: give one for each line at most")
    given = dict(zip(lines, files or (), strict=False))
    masks = {name: pictures.mask(file, f"the mask of {lines[name][0]!r}") for name, file in given.items()} | drawn
    named = [Edit(*pair, mask=masks.get(name)) for name, pair in lines.items()]
    source = (caption or "").strip() or None
    plan(named, source)
    settings = job.settings
    asked: dict[str, Any] = {"steps": settings.own_steps, "target_guidance": settings.own_guidance}
    options = {name: value for name, value in asked.items() if value is not None}
    EDITORS[preset].make(**options)
    options = {**recommended(preset, models.edit_settings(settings.model)), **options}
    pipe = job.open()
    result = turn(pipe, photo, named, preset=preset, seed=settings.numbers[0], source_prompt=source,
                  model=settings.model, keep_pixels=keep, call=models.settings(settings.model), **options)  # fmt: skip
    judge = job.judge(result.image.shape[:2])
    if judge is not None:
        add_checks(result, judge)
    sides = tuple(_large(image) for image in (result.before, result.image))
    return [gr.skip(), gr.update(visible=True), sides, *shown(job, result)]


def draw(job: Job, caption: str) -> list[Any]:
    """`unleak generate`, for a picture to edit."""
    settings = job.settings
    pipe = job.open()
    result = generate(pipe, (caption or "").strip(), seeds=settings.numbers[:1], model=settings.model,
                      call=settings.call, progress=job.tick)  # fmt: skip
    picture = _large(result.images[0, 0])
    return [{"background": picture, "layers": [], "composite": picture}]


def regions(job: Job, prompt: str, painted: dict[str, Any], *fields: str) -> list[Any]:
    """`unleak regions`."""
    lines, drawn = lines_of(fields), paint.masks(painted)
    if unnamed := drawn.keys() - lines.keys():
        raise BadInput(f"{', '.join(sorted(unnamed))} is painted, and the line of that colour is empty: fill it in, or "
                       "erase the paint")  # fmt: skip
    where = [region(*pair, drawn.get(name)) for name, pair in lines.items()]
    settings, pipe = job.settings, job.open()
    result = draw_regions(pipe, (prompt or "").strip(), where, seeds=settings.numbers, model=settings.model,
                          call=settings.call, progress=job.tick)  # fmt: skip
    shots = gallery(list(result.images), [f"seed {seed}" for seed in result.seeds])
    return [gr.update(value=shots, visible=True), *shown(job, result)]


def region(phrase: str, box: str, mask: np.ndarray | None) -> RegionPrompt:
    """A phrase where it is painted, or else in its box. Raises BadInput: it has neither, or the box cannot be read."""
    if mask is not None:
        return RegionPrompt(phrase, mask)
    try:
        sides = tuple(float(x) for x in box.split(","))
    except ValueError:
        sides = ()
    if len(sides) != 4:
        raise BadInput(f"{phrase!r} has no region: paint it, or write a box such as 0,0,0.5,1")
    return RegionPrompt(phrase, sides)


def _large(image: np.ndarray) -> np.ndarray:
    """A picture large enough to look at and to paint on."""
    return np.asarray(enlarge(image, max(paint.SIDE, SIDE, *image.shape[:2])))
