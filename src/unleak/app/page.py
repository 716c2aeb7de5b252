"""The page: a head with the model's settings, and a tab for each room."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr

from unleak.app import copies, lint, regions, words
from unleak.app.desk import Desk, Settings
from unleak.app.frame import Frame
from unleak.models import EMBEDDED, INDEX, embedded_folder

ROOMS: dict[str, Callable[[Frame], None]] = {
    "Words": words.build,
    "Regions": regions.build,
    "Copies": copies.build,
    "Lint": lint.build,
}
"""Name of a tab -> what builds it, in the order of the page."""
KEPT = 3600  #: seconds for which uploads and results are kept


def build(desk: Desk, model: str = "emoji-sd") -> gr.Blocks:
    """The page over a desk; nothing is loaded or served yet."""
    own = Settings(model)
    here = [name for name in EMBEDDED if (embedded_folder(name) / INDEX).is_file()]

    def left(request: gr.Request) -> None:
        desk.cancel(request.session_hash or "")

    with gr.Blocks(title="unleak", analytics_enabled=False, delete_cache=(60, KEPT)) as page:
        gr.HTML("<h1>unleak</h1><p>Find and stop leaks in text-to-image diffusion: between words, between regions, "
                "from the training set.</p>", elem_classes="head")  # fmt: skip
        with gr.Accordion("Model, seeds and steps", open=True), gr.Row():
            settings = [
                gr.Dropdown(list(dict.fromkeys([model, *here])), value=model, allow_custom_value=True, label="Model",
                            info="An embedded model, a folder, or a hub id.", min_width=220),
                gr.Textbox(own.seeds, label="Seeds", info="7, 0:4 or 1,5,9.", min_width=120),
                gr.Textbox(own.steps, label="Steps", info="Empty: the model's.", min_width=120),
                gr.Textbox(own.guidance, label="Guidance", info="Empty: the model's.", min_width=120),
            ]  # fmt: skip
        frame = Frame(desk, settings)
        for name, room in ROOMS.items():
            with gr.Tab(name, id=name.lower()):
                room(frame)
        page.unload(left)
    return page
