"""Who does the work of a long file: this process, or many of them. The file's side is the same for both.

A worker is any object whose methods take and return plain data: a `Scanner`, a `LintWorker`. It knows no engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from unleak.errors import NotFinite, UnleakError, WorkerLost

T = TypeVar("T")
R = TypeVar("R")


class Workers(Protocol):
    """Equal workers."""

    def map(self, method: str, inputs: Iterable[Any]) -> Iterator[Any]:
        """What `method` of a worker returns for each input, in the order of the inputs.

        Inputs may be read ahead. Those that were read before one fails to be read are answered first. What a worker
        raises is raised in its input's place.
        """
        ...


class Here:
    """The one worker of this process."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker

    def map(self, method: str, inputs: Iterable[Any]) -> Iterator[Any]:
        return map(getattr(self.worker, method), inputs)


def answered(
    workers: Workers, method: str, inputs: Iterable[tuple[T, Any]], name: Callable[[T], str] = str
) -> Iterator[tuple[T, Any]]:
    """(what an input is known by, the answer) for pairs of (what it is known by, the input), in order.

    Raises NotFinite or WorkerLost, which `name` says the input of; and whatever the workers raise.
    """
    waiting = deque[T]()

    def given() -> Iterator[Any]:
        for known_by, one in inputs:
            waiting.append(known_by)
            yield one

    try:
        for answer in workers.map(method, given()):
            yield waiting.popleft(), answer
    except (NotFinite, WorkerLost) as e:
        raise type(e)(f"{name(waiting[0])}: {e}" if waiting else str(e)) from e


def parts(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter. Where an item cannot be read, those before it come first."""
    part: list[T] = []
    try:
        for item in items:
            part.append(item)
            if len(part) == size:
                yield part
                part = []
    except UnleakError:
        if part:
            yield part
        raise
    if part:
        yield part
