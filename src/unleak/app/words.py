"""The room of words: why is an item of the prompt wrong or missing, and what repairs it?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

import gradio as gr

from unleak.app.desk import Job
from unleak.app.frame import Frame, downloads, gallery, shown
from unleak.errors import UnleakError
from unleak.judges.embedded import known_items, known_senses
from unleak.report.maps import overlays
from unleak.text.items import Item, parse_items
from unleak.words.attention_maps import maps
from unleak.words.diagnosis.diagnose import check_senses, items_of, senses_of
from unleak.words.diagnosis.diagnose import diagnose as examine
from unleak.words.diagnosis.diagnosis import code
from unleak.words.presets import REPAIRS
from unleak.words.repair.repair import repair as mend

EXAMPLE = "a key and a guitar"
WORD = re.compile(r"\w[\w'’-]*\w")
PICTURE = "the picture alone"


def build(frame: Frame) -> None:
    """Put the room on the page."""
    gr.Markdown("Which word of the prompt is drawn wrong, which other word leaked into it, and what repairs it?")
    prompt = gr.Textbox(EXAMPLE, label="Prompt", max_lines=4)
    model = frame.settings[0]
    words, known = words_in(EXAMPLE, str(model.value))
    chosen = gr.CheckboxGroup(words, value=known, label="Which words are things? Click them.", elem_classes="chips")
    # What is clicked, for the handlers: they leave out what is not in the prompt, where gradio would refuse it.
    # Somebody may press a button before the words of a new prompt are here.
    clicked = gr.State(known)
    chosen.input(lambda words: words, chosen, clicked, queue=False, show_progress="hidden", api_visibility="private")
    with gr.Accordion("More: expressions, senses, the repair", open=False):
        more = gr.Textbox(label="Further items", placeholder="hot dog, mouse=furry mouse",
                          info="Expressions of several words, and what a word is to mean.")  # fmt: skip
        senses = gr.Textbox(label="Other senses", placeholder="mouse=computer mouse",
                            info="What a word must not become.")  # fmt: skip
        with_ = gr.Dropdown(["auto", *REPAIRS], value="auto", label="Repair", info="auto: chosen by trial.")
    room = frame.room(["Diagnose", "Repair"])
    with gr.Column(visible=False) as looking:
        item = gr.Radio([], label="Where does the picture read this item?", elem_classes="chips")
        pictures = maps_gallery()
    report = gr.HTML(elem_classes="result")
    python = gr.Code(language="python", label="Take it home: Python", visible=False, interactive=False, lines=1)
    files = downloads()
    kept = gr.State({}, time_to_live=3600)

    for changed in (prompt.change, cast(gr.Dropdown, model).change):
        changed(lambda *given: _choices(*words_in(*given)), [prompt, model], [chosen, clicked], queue=False,
                show_progress="hidden", trigger_mode="always_last", api_visibility="private")  # fmt: skip
    given, results = [prompt, clicked, more], [python, looking, item, pictures, kept, report, *files]
    room.connect(0, diagnose, [*given, senses], results)
    room.connect(1, repair, [*given, with_], results)
    room.connect_cancel()
    item.input(lambda name, views: views.get(name, []), [item, kept], pictures, queue=False, show_progress="hidden",
                api_visibility="private")  # fmt: skip


def maps_gallery() -> gr.Gallery:
    """Pictures with a map over each."""
    return gr.Gallery(label="Bright cells attend to the item most", columns=4, height="auto", object_fit="contain",
                      buttons=["download", "fullscreen"], elem_classes="pixels")  # fmt: skip


def words_in(prompt: str, model: str) -> tuple[list[str], list[str]]:
    """The words of a prompt to click on, and those among them that an embedded model knows."""
    plain = re.sub(r"[\[\]]", "", prompt or "")
    try:
        known = known_items(str(model or ""), plain, lambda _: None) or []
    except UnleakError:
        known = []  # said when a job runs
    words = list(dict.fromkeys([*known, *(word for word in WORD.findall(plain) if len(word) > 2)]))
    return words, known


def named(job: Job, prompt: str, chosen: Sequence[str], more: str) -> tuple[str, tuple[Item, ...]]:
    """The prompt without brackets, and its items: in brackets, else what was clicked and written, else known ones.

    Raises what `items_of` does.
    """
    prompt, written = (prompt or "").strip(), parse_items(more) if (more or "").strip() else ()
    if "[" in prompt:
        return items_of(prompt)
    clicked = [Item(word) for word in chosen or () if word in prompt and word not in {one.text for one in written}]
    items = (*clicked, *written) or known_items(job.settings.model, prompt, job.note)
    return items_of(prompt, items)


def diagnose(job: Job, prompt: str, chosen: Sequence[str], more: str, senses: str) -> list[Any]:
    """`unleak diagnose` and `unleak maps`."""
    other = senses_of((senses or "").strip())
    text, items = named(job, prompt, chosen, more)
    check_senses(other, items)
    settings, pipe = job.settings, job.open()
    judge = job.looks(pipe, "without a judge the text rows are the only evidence: no verdict; look at the pictures")
    drawing: dict[str, Any] = {"seeds": settings.numbers, "model": settings.model, "call": settings.call,
                               "progress": job.tick}  # fmt: skip
    found = examine(pipe, text, items, judge=judge, senses={**known_senses(settings.model), **other}, **drawing)
    seen = maps(pipe, text, items, **drawing)
    under = [f"seed {seed}" for seed in seen.seeds]
    views = {PICTURE: gallery(list(seen.images), under)}
    views |= {name: gallery(overlays(seen, i), under) for i, name in enumerate(seen.items)}
    first = seen.items[0]
    python = code(found.repair, text, found.seeds, found.call, found.model) if found.repair else None
    radio = gr.update(choices=[*seen.items, PICTURE], value=first)
    return [_python(python), gr.update(visible=True), radio, views[first], views, *shown(job, found)]


def repair(job: Job, prompt: str, chosen: Sequence[str], more: str, with_: str) -> list[Any]:
    """`unleak repair`."""
    text, items = named(job, prompt, chosen, more)
    settings, pipe = job.settings, job.open()
    judge = job.looks(pipe, "without a judge every item is repaired, and no rate is claimed")
    mended = mend(pipe, text, items, with_=with_, seeds=settings.numbers, judge=judge,
                  senses=known_senses(settings.model), model=settings.model, call=settings.call,
                  progress=job.tick)  # fmt: skip
    return [_python(mended.code), gr.update(visible=False), gr.skip(), [], {}, *shown(job, mended)]


def _choices(words: list[str], known: list[str]) -> Any:
    return gr.update(choices=words, value=known), known


def _python(code: str | None) -> Any:
    return gr.update(value=code or "", visible=code is not None)
