"""Which denoising step runs: distinct timesteps, counted by the scheduler's own steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


class Clock:
    """Position in the trajectory of one generation.

    `step` counts distinct timesteps from 0 and `steps` is their number, so a second-order sampler that calls
    the denoiser twice for a timestep, or a pipeline that calls it once per branch, moves the clock once. `passed_over`:
    the denoiser is at another timestep than in its last call, without a step of the scheduler.
    """

    def __init__(self) -> None:
        self.restart([])

    def restart(self, timesteps: Any) -> None:
        """A trajectory over these timesteps begins (1-D tensor or sequence, in the scheduler's units)."""
        self._table = [float(t) for t in timesteps]
        self._given, self._entered = bool(self._table), False
        self._place()
        self.done = 0
        self.calls = 0
        self.passed_over = False
        self._value: float | None = None

    def at_denoiser(self, scheduler: Any, timestep: Callable[[Sequence[float]], float | None]) -> None:
        """The denoiser is called. The first call finds where the table is entered (image-to-image skips).

        `timestep` finds the call's timestep among those of a table.
        """
        self.calls += 1
        if not self._entered and not self._given:
            self._table = [float(t) for t in getattr(scheduler, "timesteps", [])]
        value = timestep(self._table)
        self.passed_over = self.calls > 1 and value != self._value
        self._value = value
        if self._entered:
            return
        self._entered = True
        begin = getattr(scheduler, "begin_index", None)
        if begin is None:
            begin = self._table.index(value) if value in self._table else 0
        self._table = self._table[int(begin) :]
        self._place()

    def _place(self) -> None:
        self._table = self._table or [0.0]
        distinct = list(dict.fromkeys(self._table))
        self._numbers = [distinct.index(t) for t in self._table]
        self.steps = len(distinct)

    def after_step(self) -> None:
        """The scheduler has made one of its steps."""
        self.done += 1
        self.calls = 0

    @property
    def over(self) -> bool:
        """The scheduler has made its last step."""
        return self.done >= len(self._table)

    @property
    def timestep(self) -> float:
        """The current timestep in the scheduler's units."""
        return self._table[min(self.done, len(self._table) - 1)]

    @property
    def step(self) -> int:
        return self._numbers[min(self.done, len(self._numbers) - 1)]

    @property
    def fraction(self) -> float:
        """0 at the first step, 1 at the last; 0 where there is only one."""
        return self.step / (self.steps - 1) if self.steps > 1 else 0.0
