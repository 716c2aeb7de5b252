"""The desk: one worker that draws for everybody who has the page open, one job after the other.

A job can be cancelled while it waits and while it draws: before every call of a module of the pipeline it is asked
whether it is still wanted. The desk keeps the last pipeline that it opened, and a folder for what can be downloaded.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Event, Lock
from typing import Any

from unleak.core.result import Result
from unleak.drawing.generate import check_call, image_size, parse_seeds
from unleak.errors import BadInput, UnleakError, in_words
from unleak.judges.embedded import embedded_judge
from unleak.report import page as page_of

MOST_WAITING = 8  #: jobs that may wait
MOST_SEEDS = 32  #: images of one prompt, which a page can still show
KEPT = 40  #: jobs whose files are kept for download
UNFORESEEN = "something went wrong that nobody has foreseen; the window where `unleak app` runs says what"


class Cancelled(BaseException):
    """The job is no longer wanted. No Exception, so that no method mistakes it for an error of its own."""


class Busy(UnleakError):
    """Too many jobs wait."""


@dataclass
class Settings:
    """What is asked of the model, as it stands on the page. Empty fields leave a value to the model."""

    model: str = "emoji-sd"
    seeds: str = "0:4"
    steps: str = ""
    guidance: str = ""

    @cached_property
    def numbers(self) -> list[int]:
        """The seeds. Raises BadInput."""
        numbers = parse_seeds(str(self.seeds).strip())
        if len(numbers) > MOST_SEEDS:
            raise BadInput(f"{len(numbers)} seeds: the page shows at most {MOST_SEEDS}; the command line draws more")
        return numbers

    @property
    def own_steps(self) -> int | None:
        """The steps, where they are given. Raises BadInput."""
        text = self.steps.strip()
        if text and not (text.isascii() and text.isdecimal() and 1 <= int(text[:5]) <= 1000):
            raise BadInput(f"steps {text!r}: give a whole number from 1 to 1000, or leave the field empty")
        return int(text) if text else None

    @property
    def own_guidance(self) -> float | None:
        """The guidance, where it is given. Raises BadInput."""
        text = self.guidance.strip()
        try:
            return float(text) if text else None
        except ValueError:
            raise BadInput(f"guidance {text!r}: give a number, or leave the field empty") from None

    @cached_property
    def call(self) -> dict[str, Any]:
        """The model's recommended call arguments, overridden by what is given. Raises BadInput."""
        from unleak import models

        given = {"num_inference_steps": self.own_steps, models.guidance(self.model): self.own_guidance}
        call = {**models.settings(self.model), **{k: v for k, v in given.items() if v is not None}}
        check_call(call)
        return call


@dataclass
class Job:
    """One job: who asked for it, how far it is, and what its work may use while it runs."""

    desk: Desk
    session: str
    settings: Settings
    number: int
    cancelled: Event = field(default_factory=Event)
    began: float | None = None
    images: int = 0
    calls: int = 0
    notes: list[str] = field(default_factory=list)
    future: Future[Any] | None = None
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def tick(self, images: int) -> None:
        """So many more images are drawn. Raises Cancelled."""
        self.images += images
        self.wanted()

    def wanted(self) -> None:
        """Raises Cancelled where the job is no longer wanted."""
        if self.cancelled.is_set():
            raise Cancelled

    def note(self, text: str) -> None:
        """What a user should know."""
        self.notes.append(text)

    def open(self, text_only: bool = False) -> Any:
        """The pipeline of the settings' model, or one that reads prompts at least. Raises as `models.load` does."""
        pipe = self.desk.pipeline(self.settings.model, text_only)
        self.stack.enter_context(watched(self, pipe))
        return pipe

    def judge(self, size: tuple[int, int] | None) -> Any:
        """Who looks at images (height, width) of this model; None where nobody can."""
        return embedded_judge(self.settings.model, size, self.note)

    def looks(self, pipe: Any, without: str = "") -> Any:
        """Who looks at what the pipeline draws; `without` is noted where nobody does."""
        judge = self.judge(image_size(pipe, self.settings.call))
        if judge is None and without:
            self.note(without)
        return judge

    def files(self, result: Result) -> tuple[str, list[str]]:
        """The page of a result, and files for download: page, JSON, and a ZIP archive with every picture, too."""
        folder = self.desk.folder / f"{self.number}"
        result.save(f"{folder / result.verb}/")
        archive = shutil.make_archive(str(folder / f"unleak-{result.verb}"), "zip", folder / result.verb)
        page, data = result.save(folder / f"{result.verb}.html"), result.save(folder / f"{result.verb}.json")
        shutil.rmtree(folder / result.verb)
        return page_of(result), [str(page), str(data), archive]

    def progress(self) -> str:
        """How far it is, in a sentence."""
        ahead = self.desk.ahead(self)
        if self.began is None:
            jobs = "1 job comes" if ahead == 1 else f"{ahead} jobs come"
            return f"Waiting: {jobs} before yours." if ahead else "Starting."
        seconds = time.monotonic() - self.began
        if not self.calls:
            return f"Loading {self.settings.model}. {seconds:.0f} s"
        drawn = f"{self.images} {'image' if self.images == 1 else 'images'} drawn" if self.images else "Drawing"
        return f"{drawn}, {self.calls} passes through the model so far. {seconds:.0f} s"


class Desk:
    """Runs jobs in the order in which they were asked for.

    Args:
        device, dtype, offload: see `unleak.models.load`.

    Attributes:
        folder: what can be downloaded; `close` deletes it.
    """

    def __init__(self, device: str | None = None, dtype: Any = None, offload: str = "none") -> None:
        self.load = {"device": device, "dtype": dtype, "offload": offload}
        self.folder = Path(tempfile.mkdtemp(prefix="unleak-app-"))
        self.jobs: list[Job] = []  #: those that wait or run
        self._numbers, self._lock, self._closed = itertools.count(1), Lock(), False
        self._worker = ThreadPoolExecutor(1, "unleak-desk")
        self._open: tuple[tuple[str, bool], Any] | None = None

    def ask(self, session: str, settings: Settings, work: Callable[[Job], Any]) -> Job:
        """Put a job at the end of the line. Raises Busy."""
        with self._lock:
            if self._closed:
                raise Busy("the server is being stopped: start `unleak app` again")
            if len(self.jobs) > MOST_WAITING:
                raise Busy(f"{len(self.jobs)} jobs wait already: try again when some of them are done")
            job = Job(self, session, settings, next(self._numbers))
            self.jobs.append(job)
            job.future = self._worker.submit(self._run, job, work)
        return job

    def ahead(self, job: Job) -> int:
        """How many jobs are drawn before this one."""
        return self.jobs.index(job) if job in self.jobs else 0

    def cancel(self, session: str) -> int:
        """Cancel all jobs of a session; how many there were."""
        with self._lock:
            mine = [job for job in self.jobs if job.session == session]
        for job in mine:
            job.cancelled.set()
        return len(mine)

    def close(self) -> None:
        """Cancel everything, wait until nothing runs, and delete all files."""
        with self._lock:
            self._closed = True
            for job in self.jobs:
                job.cancelled.set()
        self._worker.shutdown(wait=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def pipeline(self, model: str, text_only: bool) -> Any:
        """The pipeline of a model; the last one stays open."""
        from unleak import models

        if self._open is not None and self._open[0] in ((model, False), (model, text_only)):
            return self._open[1]
        self._open = None  # two large models may not fit together
        self._open = ((model, text_only), models.load(model, text_only=text_only, **self.load))
        return self._open[1]

    def _run(self, job: Job, work: Callable[[Job], Any]) -> Any:
        try:
            job.wanted()
            job.began = time.monotonic()
            self._forget()
            with job.stack, warnings.catch_warnings():
                warnings.simplefilter("always", UserWarning)
                warnings.showwarning = lambda message, kind, *_, **__: (
                    job.note(str(message)) if issubclass(kind, UserWarning) else None
                )
                return work(job)
        finally:
            with self._lock:
                self.jobs.remove(job)

    def _forget(self) -> None:
        """Delete the files of all but the last jobs."""
        folders = sorted((f for f in self.folder.iterdir() if f.name.isdecimal()), key=lambda f: int(f.name))
        for folder in folders[:-KEPT]:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def watched(job: Job, pipe: Any) -> Iterator[None]:
    """Every call of a model of the pipeline is counted, and asks first whether the job is still wanted."""
    parts = [part for part in pipe.components.values() if callable(getattr(part, "register_forward_pre_hook", None))]

    def ask(*_: Any) -> None:
        job.calls += 1
        job.wanted()

    handles = [part.register_forward_pre_hook(ask) for part in parts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def told(error: BaseException) -> tuple[str, str]:
    """What a page says of an error: a title, and what happened with its remedy."""
    if isinstance(error, Cancelled):
        return "Cancelled", "Nothing is drawn any more."
    known = in_words(error)
    return ("Error", UNFORESEEN) if known is None else (TITLES.get(known[0], "Error"), known[2])


TITLES = {2: "This cannot be used", 4: "This model cannot do it"}
"""Exit status of the command line -> what a page calls it."""


def waiting(job: Job, every: float = 0.4) -> Iterator[str]:
    """How far a job is, in words, every so many seconds until it is done.

    Raises what the job raised. A page that is closed meanwhile cancels it.
    """
    assert job.future is not None
    try:
        while True:
            yield job.progress()
            with contextlib.suppress(NotYet):
                job.future.exception(every)
                return
    except GeneratorExit:
        job.cancelled.set()
        raise
