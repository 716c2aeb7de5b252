"""`unleak.generate`: images of prompts at seeds, as a result that shows and saves itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from unleak.core.result import Result
from unleak.drawing import generate as drawing
from unleak.drawing.generate import Seeds, parse_seeds, rehearse
from unleak.errors import Conflict
from unleak.text.prompt import each_prompt


@dataclass(repr=False, eq=False)
class Images(Result):
    """Images [P, S, H, W, 3] uint8 of P prompts at S seeds.

    Attributes:
        contents: what is in each image, [P][S] lists of names, where someone said it.
    """

    verb: ClassVar[str] = "generate"
    prompts: list[str]
    seeds: list[int]
    images: np.ndarray
    model: str = ""
    call: dict[str, Any] = field(default_factory=dict)
    contents: list[list[list[str]]] | None = None

    def lines(self) -> list[str]:
        height, width = self.images.shape[2:4]
        title = self.prompts[0] if len(self.prompts) == 1 else f"{len(self.prompts)} prompts"
        lines = [title, f"  {self.images.shape[0] * self.images.shape[1]} images of {height}x{width} pixels"]
        for p, prompt in enumerate(self.prompts):
            lines += [f"  {prompt}"] * (len(self.prompts) > 1)
            for s, seed in enumerate(self.seeds if self.contents else ()):
                lines.append(f"  seed {seed}: {', '.join(self.contents[p][s]) or 'nothing'}" if self.contents else "")
        return lines

    def views(self) -> dict[str, np.ndarray]:
        return {str(p + 1): images for p, images in enumerate(self.images)}

    def file_names(self) -> dict[str, list[str]]:
        if len(self.prompts) > 1:
            return super().file_names()
        return {"1": [f"{seed}.png" for seed in self.seeds]}

    def data(self) -> dict[str, Any]:
        """`images` and `seen` are flat, prompt by prompt; `prompt` is the only one, or None."""
        flat = lambda parts: [one for part in parts for one in part]  # noqa: E731
        return {
            "prompt": self.prompts[0] if len(self.prompts) == 1 else None,
            "prompts": self.prompts,
            "model": self.model,
            "seeds": self.seeds,
            "settings": self.call,
            "images": flat(self.file_names().values()),
            "seen": None if self.contents is None else flat(self.contents),
        }


def generate(
    pipe: Any,
    prompts: str | Sequence[str],
    *,
    seeds: Seeds = 4,
    describe: Callable[[np.ndarray], list[list[str]]] | None = None,
    model: str = "",
    call: Mapping[str, Any] | None = None,
    truncate: bool = False,
    batch: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Images:
    """Draw prompts at seeds through the user's own pipeline, with whatever is attached to it.

    Image j of a prompt always comes from a CPU generator seeded with the j-th seed, whatever the batch.

    Args:
        prompts: one, or several.
        seeds: how many (0, 1, 2 ...), which, or text such as "0:4".
        describe: says what is in images [N, H, W, 3] uint8, a list of names each.
        model: its name, for the record. call: arguments of the pipeline (steps, guidance, size).
        truncate: draw a prompt although an encoder drops its end.
        batch: images in one call of the pipeline; default: about one megapixel, at most 32.
        progress: is told how many images each call made.

    Raises:
        BadInput, PromptTruncated: before anything is drawn. NotFinite: the pipeline returned NaN.
    """
    texts, numbers, call = list(each_prompt(prompts)), parse_seeds(seeds), dict(call or {})
    with contextlib.suppress(Conflict):  # inside `attach`, whose interventions see the prompts themselves
        for text in () if truncate else texts:
            rehearse(pipe, text, **call)
    images = drawing.generate(pipe, texts, numbers, batch, progress, **call)
    contents = None if describe is None else [describe(one) for one in images]
    return Images(texts, numbers, images, model, call, contents)
