"""A judge that points: an open-vocabulary detector finds the item, or does not.

As in TEBOpt's metric (arXiv 2410.00321) with OWLv2: every item is asked for alone, so that the items do not compete
for a box, and is present when some box scores at least the threshold.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from unleak.errors import NotFinite
from unleak.judges.asking import batches, check_length, intended_names, with_article
from unleak.text.items import Item

THRESHOLD = 0.25


class DetectorJudge:
    """See `unleak.judges.Judge`. `model` and `processor` detect objects that a text names; `threshold` is in 0..1."""

    def __init__(
        self, model: Any, processor: Any, name: str = "detector", threshold: float = THRESHOLD, batch: int = 8
    ) -> None:
        self.model, self.processor, self.name = model.eval(), processor, name
        self.threshold, self.batch = threshold, batch

    def senses(self, items: Sequence[Item]) -> list[str]:
        names = intended_names(items)
        for name in names:
            check_length(self.processor.tokenizer, with_article(name), self.name)
        return names

    def present(self, images: np.ndarray, items: Sequence[Item]) -> np.ndarray:
        names = self.senses(items)
        hits = [[self._detected(part, with_article(name)) for part in batches(images, self.batch)] for name in names]
        return np.stack([np.concatenate(parts) for parts in hits], 1)

    def _detected(self, images: Sequence[Any], phrase: str) -> np.ndarray:
        """[n] of bool: does some box of the image score the threshold?"""
        boxes_of_images = boxes(self.model, self.processor, images, phrase, self.threshold, self.name)
        return np.array([len(image_boxes) > 0 for image_boxes in boxes_of_images], bool)


@torch.no_grad()
def boxes(
    model: Any, processor: Any, images: Sequence[Any], phrase: str, threshold: float, name: str
) -> list[torch.Tensor]:
    """Where a detector sees a phrase: for each image, boxes [n, 4] of left, top, right, bottom in its pixels.

    Raises NotFinite: the detector returned NaN.
    """
    texts = [[phrase]] * len(images)
    inputs = processor(text=texts, images=images, return_tensors="pt")
    outputs = model(**inputs.to(model.device, model.dtype))
    if not torch.isfinite(outputs.logits.nan_to_num(posinf=0.0, neginf=0.0, nan=torch.inf)).all():
        raise NotFinite(f"{name} returned NaN; load it in float32 or bfloat16")
    read = processor.post_process_grounded_object_detection
    given = {"input_ids": inputs.get("input_ids"), "text_labels": texts}
    known = {k: v for k, v in given.items() if k in inspect.signature(read).parameters}
    sizes = [(image.height, image.width) for image in images]
    return [
        detections["boxes"] for detections in read(outputs=outputs, threshold=threshold, target_sizes=sizes, **known)
    ]
