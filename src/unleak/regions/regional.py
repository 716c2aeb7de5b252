"""`unleak.regions`: regional prompts in plain generation; each phrase of the prompt acts in its own region.

Source: the cross-attention of ALE (arXiv 2412.04715), see `unleak.regions.methods.rgbcam`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from unleak.core.result import Result
from unleak.drawing.generate import Seeds, generate, image_size, parse_seeds, rehearse
from unleak.engine.session import attach
from unleak.errors import BadInput
from unleak.regions.masks import masks as masking
from unleak.regions.methods.rgbcam import RGBCAM
from unleak.text.items import Item, find_all
from unleak.text.prompt import check_prompt


@dataclass(frozen=True, eq=False)
class RegionPrompt:
    """A phrase of the prompt and where it acts.

    Attributes:
        phrase: "red car", or "red car#2" for its second occurrence.
        where: (x0, y0, x1, y1), a box in shares of width and height from the top left corner; or a mask: a file, an
            image, or an array [H, W] of the image's proportions.
    """

    phrase: str
    where: Any

    def __post_init__(self) -> None:
        if not isinstance(self.phrase, str) or not self.phrase.strip():
            raise BadInput("the phrase of a region is empty: name what stands there")
        if self.is_box:
            x0, y0, x1, y1 = self.where
            if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
                raise BadInput(f"the box {self.where} of {self.phrase!r} needs 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1")

    @classmethod
    def parse(cls, text: str) -> RegionPrompt:
        """``"red car@0,0,0.5,1"`` or ``"red car@mask.png"``. Raises BadInput."""
        phrase, at, where = text.rpartition("@")
        if not (at and phrase.strip() and where.strip()):
            raise BadInput(f"cannot read the region {text!r}: write 'red car@0,0,0.5,1' or 'red car@mask.png'")
        try:
            box = tuple(float(x) for x in where.split(","))
        except ValueError:
            return cls(phrase.strip(), where.strip())
        if len(box) != 4:
            raise BadInput(f"the box of {text!r} has {len(box)} numbers: write left, top, right and bottom")
        return cls(phrase.strip(), box)

    @property
    def is_box(self) -> bool:
        return isinstance(self.where, tuple | list) and len(self.where) == 4 and all(
            isinstance(x, int | float) for x in self.where
        )  # fmt: skip

    def mask(self, size: tuple[int, int]) -> Tensor:
        """Bool [H, W] at (height, width). Raises BadInput, EmptyMask."""
        if not self.is_box:
            return masking.read_mask(self.where, size, f"the mask of {self.phrase!r}")
        (height, width), (x0, y0, x1, y1) = size, self.where
        mask = torch.zeros(size, dtype=torch.bool)
        mask[round(y0 * height) : round(y1 * height), round(x0 * width) : round(x1 * width)] = True
        return mask


@dataclass(repr=False, eq=False)
class RegionalImages(Result):
    """Images [S, H, W, 3] uint8 of a prompt whose phrases act in their regions, `masks` bool [K, H, W]."""

    verb: ClassVar[str] = "regions"
    prompt: str
    phrases: list[str]
    masks: Tensor
    seeds: list[int]
    images: np.ndarray
    parameters: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    call: dict[str, Any] = field(default_factory=dict)

    def areas(self) -> list[float]:
        """The share of the image that each region covers."""
        return [float(mask.float().mean()) for mask in self.masks]

    def lines(self) -> list[str]:
        lines = [self.prompt, f"  {len(self.seeds)} images; each phrase acts in its region alone:"]
        return lines + [f"  {p}: {100 * a:.0f} % of the image" for p, a in zip(self.phrases, self.areas(), strict=True)]

    def views(self) -> dict[str, np.ndarray]:
        return {"images": self.images}

    def file_names(self) -> dict[str, list[str]]:
        masks = [f"mask-{i + 1}.png" for i in range(len(self.phrases))]
        return {"images": [f"{seed}.png" for seed in self.seeds], "masks": masks}

    def data(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt, "model": self.model, "seeds": self.seeds,
            "settings": {"call": self.call, **self.parameters},
            "regions": [{"phrase": p, "area": a} for p, a in zip(self.phrases, self.areas(), strict=True)],
            "images": self.file_names(),
        }  # fmt: skip


def regions(
    pipe: Any,
    prompt: str,
    where: Sequence[RegionPrompt],
    *,
    seeds: Seeds = 4,
    model: str = "",
    call: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
    **parameters: Any,
) -> RegionalImages:
    """Draw a prompt with regional prompts: every phrase of `where` acts in its region, with an embedding of its own.

    Args:
        where: the phrases and their regions; what no region covers reads the whole prompt.
        seeds: how many, which, or text such as "0:4".
        model: its name, for the record. call: arguments of the pipeline. progress: is told of every call's images.
        parameters: of `RGBCAM`, such as ``overlap="order"``.

    Raises:
        BadInput, ItemNotFound, AmbiguousItem, EmptyMask, PromptTruncated: before anything is drawn.
        UnsupportedModel: text and image attend jointly, or the pipeline does not tell its size.
    """
    check_prompt(prompt)
    numbers, call, phrases = parse_seeds(seeds), dict(call or {}), [one.phrase for one in where]
    if not where:
        raise BadInput("no region is given: name at least one phrase and where it acts")
    find_all(prompt, [Item.of(phrase) for phrase in phrases])
    size = image_size(pipe, call)
    if size is None:
        raise BadInput("this pipeline does not tell the size of its images: give height and width in call=")
    masks = torch.stack([one.mask(size) for one in where])
    method = RGBCAM(phrases, masks, **parameters)
    rehearse(pipe, prompt, method, **call)
    with attach(pipe, method):
        images = generate(pipe, prompt, numbers, progress=progress, **call)[0]
    return RegionalImages(prompt, phrases, masks, numbers, images, parameters, model, call)
