"""Workers in a Ray cluster. Ray starts processes, places and watches them; here is only who gets which input.

Each worker has one input at a time. An input whose worker dies goes to another one, and a new worker is started; an
input that has ended `TRIES` workers is reported and not tried again. Answers keep the order of the inputs.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from unleak.errors import BadInput, UnleakError, WorkerLost

TRIES = 3  #: workers that one input may end
STORE = 100 * 2**20  #: bytes of the object store of a cluster that is started here; inputs and answers are small
PATIENCE = 120.0  #: seconds that all workers together may be away


class RayWorkers:
    """``with RayWorkers(Scanner, arguments, workers=2) as workers``: equal workers, each ``make(**arguments)``.

    The cluster is the one that this process, or ``RAY_ADDRESS``, is connected to; else one is started on this machine,
    on 127.0.0.1, without a dashboard and without usage statistics, and is stopped with the block.

    Args:
        make: a class that can be imported where the workers run. arguments: plain data, such as a model's name.
        workers: how many; default: one for each GPU of the cluster, or else for each CPU.
        gpus: of each worker; default: 1 where the cluster has any.
        patience: seconds to wait while no worker lives.

    Raises (on entering, or with the first answer):
        BadInput: Ray is not installed, or the cluster cannot be reached. UnleakError: what making a worker raises, such
        as a model that is not there on its machine.
    """

    def __init__(
        self,
        make: Callable[..., Any],
        arguments: Mapping[str, Any],
        workers: int | None = None,
        gpus: float | None = None,
        patience: float = PATIENCE,
    ) -> None:
        if workers is not None and workers < 1:
            raise BadInput(f"workers={workers}: give at least one")
        self.make, self.arguments, self.count, self.gpus = make, dict(arguments), workers, gpus
        self.patience = patience

    def __enter__(self) -> RayWorkers:
        self.ray = ray = _ray()
        self._started = not ray.is_initialized()
        try:
            if self._started and os.environ.get("RAY_ADDRESS"):
                ray.init(log_to_driver=False, logging_level="ERROR")
            elif self._started:
                ray.init(num_cpus=self.count, object_store_memory=STORE, include_dashboard=False,
                         log_to_driver=False, logging_level="ERROR", _node_ip_address="127.0.0.1")  # fmt: skip
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as e:
            raise BadInput(
                f"the Ray cluster cannot be reached or started ({e}): see RAY_ADDRESS, or leave --engine ray out"
            ) from e
        there = ray.cluster_resources()
        self.gpus = (1.0 if there.get("GPU") else 0.0) if self.gpus is None else self.gpus
        self.count = self.count or max(1, int(there.get("GPU" if self.gpus else "CPU", 1)))
        self._class = ray.remote(num_cpus=1, num_gpus=self.gpus, scheduling_strategy="SPREAD", max_restarts=0)(_Worker)
        self._living: list[_Actor] = []
        for _ in range(self.count):
            self._start()
        return self

    def __exit__(self, *exc: object) -> None:
        for actor in self._living:
            with contextlib.suppress(Exception):
                self.ray.kill(actor.handle)
        if self._started:
            self.ray.shutdown()

    def map(self, method: str, inputs: Iterable[Any]) -> Iterator[Any]:
        """See `unleak.files.workers.Workers`. At most two inputs for each worker are read ahead.

        Raises WorkerLost: an input ended several workers, or none is left; and what a worker raises.
        """
        source, failed = enumerate(inputs), list[UnleakError]()
        again = deque[_Task]()
        running: dict[Any, tuple[_Task, _Actor]] = {}
        done: dict[int, Any] = {}
        busy: set[int] = set()
        at = read = 0
        reading = True

        def following() -> _Task | None:
            nonlocal reading, read
            if again:
                return again.popleft()
            if not reading or read - at >= 2 * (self.count or 1):
                return None
            try:
                number, value = next(source)
            except StopIteration:
                reading = False
                return None
            except UnleakError as e:  # of reading: what was read before is answered first
                reading = False
                failed.append(e)
                return None
            read = number + 1
            return _Task(number, value)

        while True:
            for actor in self._ready():
                if id(actor) in busy:
                    continue
                task = following()
                if task is None:
                    break
                running[actor.handle.call.remote(method, task.value)] = (task, actor)
                busy.add(id(actor))
            while at in done:
                yield _unwrapped(done.pop(at))
                at += 1
            if not running and not again and not reading:
                break
            if running and at not in done:
                self._collect(running, busy, again, done)
            elif not running and not self._ready(wait=True):
                raise WorkerLost(
                    "no worker is left, and the cluster has no room for another: start more machines, or ask for fewer"
                    " --workers; what is written stays, and the same command goes on"
                )
        if failed:
            raise failed[0]

    def _collect(
        self,
        running: dict[Any, tuple[_Task, _Actor]],
        busy: set[int],
        again: deque[_Task],
        done: dict[int, Any],
    ) -> None:
        """Take the answers that are there; wait for one, or for a worker to become ready."""
        starting = [actor.ready for actor in self._living if not actor.made]
        over, _ = self.ray.wait([*running, *starting], num_returns=1, timeout=10)
        for one in over:
            if one not in running:
                continue
            task, actor = running.pop(one)
            busy.discard(id(actor))
            try:
                done[task.number] = self.ray.get(one)
            except self.ray.exceptions.RayTaskError:
                raise
            except self.ray.exceptions.RayError as e:  # the worker, its node or its answer is lost
                self._replace(actor)
                task.tries += 1
                if task.tries < TRIES:
                    again.append(task)
                else:
                    done[task.number] = _Failure(_ended(e))

    def _start(self) -> None:
        handle = self._class.remote(self.make, self.arguments)
        self._living.append(_Actor(handle, handle.ready.remote()))

    def _replace(self, actor: _Actor) -> None:
        if actor in self._living:
            self._living.remove(actor)
            self._start()

    def _ready(self, wait: bool = False) -> list[_Actor]:
        """The workers that are made. Raises what making one raised."""
        until = time.monotonic() + (self.patience if wait else 0)
        while True:
            for actor in list(self._living):
                if actor.made or not self.ray.wait([actor.ready], timeout=0)[0]:
                    continue
                try:
                    _unwrapped(self.ray.get(actor.ready))
                    actor.made = True
                except self.ray.exceptions.RayActorError:
                    self._replace(actor)
            ready = [actor for actor in self._living if actor.made]
            if ready or time.monotonic() > until:
                return ready
            self.ray.wait([actor.ready for actor in self._living], timeout=1)


@dataclass
class _Task:
    """An input, and how many workers it has ended."""

    number: int
    value: Any
    tries: int = 0


@dataclass(eq=False)
class _Actor:
    """A worker, what tells that it is made, and whether it is."""

    handle: Any
    ready: Any
    made: bool = False


@dataclass(frozen=True)
class _Failure:
    """What a worker raised, as a value."""

    error: UnleakError


class _Worker:
    """Around a worker, in its own process."""

    def __init__(self, make: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
        self.worker: Any = None
        self.made = _caught(lambda: setattr(self, "worker", make(**arguments)))

    def ready(self) -> Any:
        if isinstance(self.made, _Failure):
            import socket

            error = self.made.error
            return _Failure(type(error)(f"a worker on {socket.gethostname()} cannot start: {error}"))
        return None

    def call(self, method: str, value: Any) -> Any:
        return _caught(lambda: getattr(self.worker, method)(value))


def _caught(do: Callable[[], Any]) -> Any:
    try:
        return do()
    except UnleakError as e:
        return _Failure(e)


def _unwrapped(value: Any) -> Any:
    if isinstance(value, _Failure):
        raise value.error
    return value


def _ended(error: Exception) -> WorkerLost:
    why = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
    return WorkerLost(
        f"it ended {TRIES} workers ({why}): where the memory does not hold the batch, give a smaller one; else take"
        " these lines out; what is written stays, and the same command goes on"
    )


def _ray() -> Any:
    """Ray, told to keep to this machine and to report nothing. Raises BadInput: it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "ray" not in sys.modules and not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # Ray's own switch for a cluster on 127.0.0.1
    try:
        import ray
    except ImportError:
        raise BadInput("--engine ray needs Ray: pip install 'unleak[cluster]'; or use --shard and --merge") from None
    return ray
