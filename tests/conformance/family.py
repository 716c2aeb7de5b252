"""One pipeline class: how a tiny one is built and how it is called."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import numpy as np
import torch

PROMPT = "a red mouse and a laptop"


@dataclass(frozen=True)
class Family:
    """`build()` makes the pipeline out of random weights; `call` is what a bare call needs besides the prompt.

    `call` leaves out whatever the pipeline's own defaults can decide, so that its templates, instructions and
    masks run as users run them. Steps and size are the smallest that the class takes; height and width differ.
    `needs` is a package without which diffusers cannot run the class; a `slow` family takes more than a few seconds.
    """

    name: str
    build: Callable[[], diffusers.DiffusionPipeline]
    call: Mapping[str, Any] = field(default_factory=dict)
    needs: str = ""
    slow: bool = False

    @property
    def missing(self) -> bool:
        """Whether the package that it needs is not installed."""
        return bool(self.needs) and importlib.util.find_spec(self.needs) is None

    def pipe(self, seed: int = 0) -> diffusers.DiffusionPipeline:
        """A fresh pipeline; equal seeds give equal weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pipe = self.build()
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def settings(self) -> dict[str, Any]:
        """Keyword arguments of a call: two steps, 64 x 96 pixels unless `call` says otherwise."""
        return {"num_inference_steps": 2, "height": 64, "width": 96, **self.call}

    def draw(
        self, pipe: diffusers.DiffusionPipeline, prompt: Any = PROMPT, *, seed: int = 0, **changes: Any
    ) -> np.ndarray:
        """[N, H, W, C] pictures in 0..1, one generator on the CPU; the frames of a video are pictures.

        Some pipelines encode a reference image with the global generator, which is seeded and put back.
        """
        generator = torch.Generator("cpu").manual_seed(seed)
        settings = {"output_type": "np", **self.settings(), **changes}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drawn = np.asarray(pipe(prompt=prompt, generator=generator, **settings)[0])
        return drawn.reshape(-1, *drawn.shape[-3:])
