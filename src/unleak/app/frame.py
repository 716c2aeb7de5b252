"""What every room of the page shares: the model's settings, a button that runs a job, how far it is, and downloads."""

from __future__ import annotations

import html
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np

from unleak.app.desk import Cancelled, Desk, Job, Settings, told, waiting
from unleak.core.result import Result
from unleak.errors import printable
from unleak.report.pictures import enlarge

log = logging.getLogger("unleak.app")

FRAME = (
    '<iframe class="report" title="{title}" sandbox="allow-same-origin" srcdoc="{page}" '
    "onload=\"this.style.height = this.contentDocument.documentElement.scrollHeight + 40 + 'px'\"></iframe>"
)
"""A page of the command line inside this one. Its sandbox runs no script; it is only measured from outside."""
SIDE = 320  #: pixels of a picture's longer side in a gallery


@dataclass
class Frame:
    """The desk, and the components that hold `Settings`, in the order of its fields."""

    desk: Desk
    settings: Sequence[gr.components.Component]

    def room(self, runs: Sequence[str]) -> Room:
        """The row of buttons of a room, and the line that says how far its job is."""
        with gr.Row(elem_classes="buttons"):
            buttons = [gr.Button(text, variant="secondary" if i else "primary") for i, text in enumerate(runs)]
            cancel = gr.Button("Cancel", variant="stop", interactive=False)
        return Room(self, buttons, cancel, gr.HTML(elem_classes="state"))


@dataclass
class Room:
    """Buttons that run jobs, one at a time for each person, and the line under them."""

    frame: Frame
    buttons: list[gr.Button]
    cancel: gr.Button
    state: gr.HTML

    def connect(
        self,
        button: int,
        work: Callable[..., Sequence[Any]],
        inputs: Sequence[gr.components.Component],
        outputs: Sequence[gr.components.Component],
    ) -> None:
        """Let a button run ``work(job, *inputs) -> values of the outputs``; `cancel` stops it."""
        controls = [*self.buttons, self.cancel]
        handler = runner(self.frame.desk, work, len(outputs), len(self.buttons))
        self.buttons[button].click(
            handler, [*self.frame.settings, *inputs], [self.state, *outputs, *controls], concurrency_limit=None,
            show_progress="hidden", api_visibility="private",
        )  # fmt: skip

    def connect_cancel(self) -> None:
        """Let the cancel button cancel what this person runs."""
        desk = self.frame.desk

        def cancel(request: gr.Request) -> str:
            return line("Cancelling: the step that runs now is the last one." if desk.cancel(request.session_hash or "")
                        else "Nothing runs.")  # fmt: skip

        self.cancel.click(cancel, None, self.state, queue=False, api_visibility="private")


def runner(
    desk: Desk, work: Callable[..., Sequence[Any]], outputs: int, buttons: int = 0
) -> Callable[..., Iterator[Any]]:
    """A handler that puts a job on the desk, says how far it is, and gives the values of state and outputs.

    After them come those of the room's buttons, if it has any, and of `cancel`: while the job is there it alone works.
    """
    busy, idle = ([gr.update(interactive=on)] * buttons + [gr.update(interactive=not on)] * bool(buttons)
                  for on in (False, True))  # fmt: skip

    def handler(request: gr.Request, *values: Any) -> Iterator[Any]:
        model, seeds, steps, guidance, *inputs = values
        same = [gr.skip()] * outputs
        began = time.monotonic()
        try:
            settings = Settings(str(model or "").strip(), *(str(one or "") for one in (seeds, steps, guidance)))
            job = desk.ask(request.session_hash or "", settings, lambda job: work(job, *inputs))
            for text in waiting(job):
                yield [line(text), *same, *busy]
            assert job.future is not None
            drawn = job.future.result()
        except Cancelled as e:
            yield [line(": ".join(told(e)), "alert"), *same, *idle]
            return
        except Exception as e:
            title, text = told(e)
            if text not in str(e):
                log.exception("a job failed")
            yield [line(f"{title}: {text}", "alert", "bad"), *same, *idle]
            message = html.escape(printable(text), quote=False)
            raise gr.Error(message, None, title=title, print_exception=False) from None
        notes = [f"Note: {note}." for note in dict.fromkeys(job.notes)]
        done = "\n".join([f"Done in {time.monotonic() - began:.0f} s.", *notes])
        yield [line(done, "status", "good", job.number), *drawn, *idle]

    return handler


def line(text: str, role: str = "none", kind: str = "faint", job: int = 0) -> str:
    """Lines under the buttons; every text is escaped. `role` tells a screen reader when to say it."""
    escaped = html.escape(printable(text), quote=False).replace("\n", "<br>")
    return f'<p role="{role}" class="{kind}" data-job="{job}">{escaped}</p>'


def downloads() -> list[gr.DownloadButton]:
    """Buttons for what the command line writes; there is nothing to download yet."""
    labels = ("Page (HTML)", "Data (JSON)", "All, with pictures (ZIP)")
    with gr.Row(elem_classes="buttons"):
        return [gr.DownloadButton(label, visible=False, size="sm") for label in labels]


def shown(job: Job, result: Result) -> list[Any]:
    """Values of a report and of its downloads."""
    page, files = job.files(result)
    framed = FRAME.format(title=f"unleak {result.verb}", page=html.escape(page))
    return [framed, *(gr.update(value=file, visible=True) for file in files)]


def gallery(images: Sequence[np.ndarray], names: Sequence[str]) -> list[tuple[Any, str]]:
    """Pictures [H, W, 3] uint8 with what stands under them, large enough to look at."""
    return [(enlarge(image, max(SIDE, *image.shape[:2])), name) for image, name in zip(images, names, strict=True)]
