"""One pipeline, its arguments, its seeds and a judge: what all images of a study share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from unleak.core.intervention import Intervention
from unleak.drawing.generate import Seeds, generate, parse_seeds, rehearse
from unleak.engine.run import Run
from unleak.engine.session import attach
from unleak.judges import Judge
from unleak.text.items import Item


class Drawing:
    """Images of prompts under interventions, each prompt at the same seeds.

    Args:
        pipe: a text-to-image pipeline. seeds: see `parse_seeds`.
        call: arguments of the pipeline (steps, guidance, size).
        judge: who looks for items in the images. progress: is told how many images each call made.

    Attributes:
        log: what the denoiser was called with, for all images so far, an entry for each generation.
        run: the state of the last one: `results`, `encoded`, `log`.
    """

    def __init__(
        self,
        pipe: Any,
        seeds: Seeds = 4,
        call: Mapping[str, Any] | None = None,
        judge: Judge | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.pipe, self.seeds, self.call, self.judge = pipe, parse_seeds(seeds), dict(call or {}), judge
        self.progress = progress
        self.log: list[Any] = []
        self.run: Run | None = None

    def rehearse(self, prompt: str | Sequence[str], *interventions: Intervention) -> Run:
        """Everything that comes before the denoiser; see `unleak.drawing.generate.rehearse`, also for its errors."""
        return rehearse(self.pipe, prompt, *interventions, **self.call)

    def images(
        self, prompt: str, *interventions: Intervention, seeds: Iterable[int] | None = None, batch: int | None = None
    ) -> np.ndarray:
        """Images [S, H, W, 3] uint8, at the drawing's seeds or at others; `batch` of them in one call.

        Raises BadInput, NotFinite: see `unleak.drawing.generate.generate`; and what the interventions raise.
        """
        with attach(self.pipe, *interventions) as self.run:
            chosen = self.seeds if seeds is None else seeds
            images = generate(self.pipe, prompt, chosen, batch, progress=self.progress, **self.call)[0]
        self.log.extend(self.run.log)
        return images

    def present(self, images: np.ndarray, items: Sequence[Item]) -> np.ndarray | None:
        """Which items the judge sees in images [S, H, W, 3]: [S, items] of bool; None without a judge."""
        return None if self.judge is None else self.judge.present(images, items)

    def skip(self, images: int) -> None:
        """So many images need not be drawn."""
        if self.progress:
            self.progress(images)
