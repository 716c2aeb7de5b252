"""One run of a benchmark: what its parts share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from unleak.bench.results import Parts
from unleak.core.anatomy import Anatomy
from unleak.text.encode import fingerprint
from unleak.world import World
from unleak.world import load as load_world
from unleak.world.prompts import Case, prompts


@dataclass
class Run:
    """A pipeline, what it is asked to draw, and the folder `out` where finished parts lie.

    ``notes`` say what could not be measured and why; they are written beside the figures.
    """

    pipe: Any
    out: Path
    model: str
    split: str
    seeds: list[int]
    limit: int | None
    call: dict[str, Any]
    progress: Callable[[str, int, int], None] | None = None
    notes: list[str] = field(default_factory=list)

    @cached_property
    def world(self) -> World:
        return load_world()

    @cached_property
    def weights(self) -> str:
        return fingerprint(Anatomy.of(self.pipe).denoiser)

    def cases(self, kind: str, most: int) -> list[Case]:
        """Prompts of one kind, at most `most` and at most the limit."""
        return prompts(self.world, kind, self.split, min(self.limit or most, most))

    def part(self, name: str, inputs: Any, compute: Callable[[], Any]) -> Any:
        """A finished part, or what `compute` returns; the same only for equal inputs, model, seeds and call."""
        settings = [self.model, self.weights, self.seeds, self.call]
        return Parts(self.out).get(name, [*settings, *inputs], compute)

    def ticking(self, name: str, total: int) -> Callable[[int], None]:
        """Counts up to `total` under this name; call it with how many were done."""
        done = 0

        def tick(n: int) -> None:
            nonlocal done
            done += n
            if self.progress:
                self.progress(name, done, total)

        return tick
