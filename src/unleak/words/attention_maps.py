"""`unleak.maps`: draw a prompt and see where the picture reads each item."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from unleak.core.intervention import SiteLike
from unleak.core.result import Result
from unleak.drawing.generate import Seeds, generate, parse_seeds, rehearse
from unleak.engine.session import attach
from unleak.text.items import Item
from unleak.text.prompt import check_prompt
from unleak.words.methods.maps import Maps


@dataclass(repr=False, eq=False)
class AttentionMaps(Result):
    """Images [S, H, W, 3] uint8 and, of each, the mean attention of every cell to every item.

    Attributes:
        maps: [S, items, h, w], each cell's attention to one row of the item, in 0..1, at the denoiser's finest grid.
    """

    verb: ClassVar[str] = "maps"
    prompt: str
    items: list[str]
    seeds: list[int]
    images: np.ndarray
    maps: np.ndarray
    model: str = ""
    call: dict[str, Any] = field(default_factory=dict)

    def heat(self, item: int, image: int) -> np.ndarray:
        """[h, w]: a map stretched for the eye, from its least cell, 0, to its greatest, 1; a flat map is 0."""
        plane = self.maps[image, item]
        low, high = float(plane.min()), float(plane.max())
        return (plane - low) / (high - low) if high > low else np.zeros_like(plane)

    def centre(self, item: int, image: int) -> tuple[float, float]:
        """(x, y) in 0..1 of the cell that attends most to the item, from the left and the top."""
        h, w = self.maps.shape[2:]
        y, x = divmod(int(self.maps[image, item].argmax()), w)
        return (x + 0.5) / w, (y + 0.5) / h

    def lines(self) -> list[str]:
        lines = [self.prompt, "  where the picture reads each item most, from the left and the top:"]
        for i, item in enumerate(self.items):
            places = [f"seed {seed} at {x:.0%}, {y:.0%}" for s, seed in enumerate(self.seeds)
                      for x, y in [self.centre(i, s)]]  # fmt: skip
            lines.append(f"  {item}: {'; '.join(places)}")
        return lines

    def views(self) -> dict[str, np.ndarray]:
        return {"images": self.images}

    def file_names(self) -> dict[str, list[str]]:
        kinds = ["image", *(f"map-{i + 1}" for i in range(len(self.items)))]
        return {kind: [f"{kind}-{seed}.png" for seed in self.seeds] for kind in kinds}

    def data(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt, "model": self.model, "seeds": self.seeds, "settings": {"call": self.call},
            "items": [
                {"text": item, "centres": [self.centre(i, s) for s in range(len(self.seeds))],
                 "mean": [float(self.maps[s, i].mean()) for s in range(len(self.seeds))]}
                for i, item in enumerate(self.items)
            ],
            "images": self.file_names(),
        }  # fmt: skip


def maps(
    pipe: Any,
    prompt: str,
    items: str | Item | Iterable[str | Item],
    *,
    seeds: Seeds = 4,
    sites: SiteLike | None = None,
    model: str = "",
    call: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> AttentionMaps:
    """Draw a prompt and keep where the picture attends to each item. The images are what they are without it.

    Args:
        items: "mouse,laptop" or a list. seeds: how many, which, or text such as "0:4".
        sites: attention sites by name, glob or predicate; default: all that read text.
        model: its name, for the record. call: arguments of the pipeline. progress: is told of every call's images.

    Raises:
        BadInput, ItemNotFound, AmbiguousItem, PromptTruncated: before anything is drawn. NoSite: no site reads text.
    """
    check_prompt(prompt)
    numbers, call = parse_seeds(seeds), dict(call or {})
    method = Maps(items) if sites is None else Maps(items, sites=sites)
    rehearse(pipe, prompt, method, **call)
    with attach(pipe, method) as run:
        images = generate(pipe, prompt, numbers, progress=progress, **call)[0]
    planes = [part.planes(i).cpu().numpy() for part in run.results["maps"] for i in range(len(part.prompts))]
    return AttentionMaps(prompt, list(method.names), numbers, images, np.stack(planes), model, call)
