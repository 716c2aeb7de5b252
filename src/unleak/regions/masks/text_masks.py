"""Masks from the name of an object, through `transformers` models that the user chooses.

Either one model that segments by text (CLIPSeg, arXiv 2112.10003), or an open-vocabulary detector (Grounding DINO,
arXiv 2303.05499) whose boxes a promptable segmenter (SAM, arXiv 2304.02643) fills. Every object is asked for alone, so
that no answer has to be matched to an object by its wording.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from unleak.errors import BadInput, EmptyMask, NotFinite
from unleak.judges.asking import check_length, with_article
from unleak.judges.detector import boxes
from unleak.judges.load import load_model
from unleak.regions.plan import without_article
from unleak.text.items import Item

PIXEL = 0.5
"""Probability from which on a pixel belongs to what a text says."""
BOX = 0.45
"""Score from which on a box counts; ALE's setting."""


class Masker(Protocol):
    """Finds objects in a picture."""

    name: str

    def masks(self, picture: Image.Image, objects: Sequence[str]) -> Tensor:
        """Where each object is, bool [K, H, W] at the picture's size.

        Args:
            objects: phrases as `Item.of` reads them; articles are not looked for.

        Raises:
            EmptyMask: an object is nowhere. BadInput: a name is too long, or two objects have the same name, which
            nobody can tell apart. NotFinite.
        """
        ...


class TextSegmenter:
    """See `Masker`. `model` gives `logits` [n, h, w] for n texts, each with a picture."""

    def __init__(self, model: Any, processor: Any, name: str = "segmenter", threshold: float = PIXEL) -> None:
        self.model, self.processor, self.name, self.threshold = model.eval(), processor, name, threshold

    @torch.no_grad()
    def masks(self, picture: Image.Image, objects: Sequence[str]) -> Tensor:
        texts = _names(self.processor.tokenizer, objects, self.name)
        pictures = [picture] * len(texts)
        inputs = self.processor(text=texts, images=pictures, padding=True, return_tensors="pt")
        logits = self.model(**inputs.to(self.model.device)).logits.float().cpu()
        logits = logits.reshape(len(texts), 1, *logits.shape[-2:])  # a single text loses its axis
        if not torch.isfinite(logits).all():
            raise NotFinite(f"{self.name} returned NaN; load it in float32 or bfloat16")
        size = picture.height, picture.width
        level = F.interpolate(logits.sigmoid(), size=size, mode="bilinear", align_corners=False)[:, 0]
        return torch.stack(
            [_not_empty(mask, text, self.name) for mask, text in zip(level >= self.threshold, texts, strict=True)]
        )


class BoxSegmenter:
    """See `Masker`. `detector` finds boxes that score `threshold`, `segmenter` what is in them; all of them count."""

    def __init__(
        self, detector: tuple[Any, Any], segmenter: tuple[Any, Any], name: str = "boxes", threshold: float = BOX
    ) -> None:
        self.detector, self.segmenter, self.name, self.threshold = detector, segmenter, name, threshold

    def masks(self, picture: Image.Image, objects: Sequence[str]) -> Tensor:
        model, processor = self.detector
        masks = []
        for text in _names(processor.tokenizer, objects, self.name):
            (where,) = boxes(model, processor, [picture], with_article(text), self.threshold, self.name)
            if not len(where):
                raise EmptyMask(f"{self.name} does not find {text!r} in the image: give a mask, or another name")
            masks.append(_not_empty(self._fill(picture, where), text, self.name))
        return torch.stack(masks)

    @torch.no_grad()
    def _fill(self, picture: Image.Image, where: Tensor) -> Tensor:
        """What the segmenter sees in boxes [n, 4], all together: bool [H, W]."""
        model, processor = self.segmenter
        inputs = processor(images=picture, input_boxes=[where.tolist()], return_tensors="pt")
        sizes = [inputs[key] for key in ("original_sizes", "reshaped_input_sizes") if key in inputs]
        logits = model(**inputs.to(model.device), multimask_output=False).pred_masks.cpu()
        if not torch.isfinite(logits).all():
            raise NotFinite(f"{self.name} returned NaN; load it in float32 or bfloat16")
        (filled,) = processor.post_process_masks(logits, *sizes)  # [n, 1, H, W]
        return torch.as_tensor(np.asarray(filled), dtype=torch.bool).flatten(0, -3).any(0)


def load_masker(*where: str | Path, device: str | None = None) -> Masker:
    """A masker from folders or hub ids: one model that segments by text, or a detector and a segmenter.

    Weights are safetensors, and no code of a model's own is run. Some of these models prepare pictures with
    torchvision: ``pip install unleak[masks]``.

    Raises:
        BadInput: no such folder or id; no safetensors in it; neither one nor two models.
        UnsupportedModel: transformers cannot load a model, or it is none of these.
    """
    name = " + ".join(map(str, where))
    if len(where) == 1:
        kind = "a model that segments by text (CLIPSeg), or a detector and a segmenter,"
        model, processor, _ = load_model(where[0], ["CLIPSegForImageSegmentation"], "text segmenter", kind, device)
        return TextSegmenter(model, processor, name)
    if len(where) != 2:
        raise BadInput(f"masks come from one model or from two, a detector and a segmenter, not from {len(where)}")
    kinds = ("AutoModelForZeroShotObjectDetection", "detector", "a zero-shot object detector"), (
        "AutoModelForMaskGeneration", "segmenter", "a promptable segmenter (SAM)",
    )  # fmt: skip
    detector, segmenter = (
        load_model(one, [auto], role, kind, device)[:2] for one, (auto, role, kind) in zip(where, kinds, strict=True)
    )
    return BoxSegmenter(detector, segmenter, name)


def _names(tokenizer: Any, objects: Sequence[str], who: str) -> list[str]:
    """What each object is asked for as. Raises BadInput."""
    names = [without_article(Item.of(one).text) for one in objects]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadInput(f"two objects are called {twice!r}, which {who} cannot tell apart: give masks, or other names")
    for name in names:
        check_length(tokenizer, with_article(name), who)
    return names


def _not_empty(mask: Tensor, text: str, who: str) -> Tensor:
    if not mask.any():
        raise EmptyMask(f"{who} does not see {text!r} in the image: give a mask, or another name")
    return mask
