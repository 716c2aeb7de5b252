"""A judge that compares: does a contrastive image-text model place the image nearer to the item than to anything else?

Zero-shot classification (CLIP, arXiv 2103.00020, section 3.1): an item is present when the logit of its text exceeds
that of every alternative, ``min_k l(item) - l(alternative_k) > 0``. The alternatives are texts that name no object,
and the item's other senses, where they are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from unleak.errors import NotFinite
from unleak.judges.asking import batches, check_length, intended_names, with_article
from unleak.text.items import Item

NEUTRAL = ("a picture", "a picture of a thing", "a picture of a plain background")


class ClipJudge:
    """See `unleak.judges.Judge`.

    Args:
        model: gives `logits_per_image`. processor: of its texts and images.
        others: name of a sense -> names of the same word's other senses ("furry mouse" -> ["computer mouse"]).
        template: the sentence into which the item's phrase is put.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        name: str = "clip",
        others: Mapping[str, Sequence[str]] | None = None,
        template: str = "a picture of {}",
        batch: int = 16,
    ) -> None:
        self.model, self.processor, self.name = model.eval(), processor, name
        self.others, self.template, self.batch = dict(others or {}), template, batch

    def senses(self, items: Sequence[Item]) -> list[str]:
        names = intended_names(items)
        for name in names:
            for text in self._texts(name):
                check_length(self.processor.tokenizer, text, self.name)
        return names

    def present(self, images: np.ndarray, items: Sequence[Item]) -> np.ndarray:
        return self.margins(images, items) > 0

    def margins(self, images: np.ndarray, items: Sequence[Item]) -> np.ndarray:
        """Logit of the item minus that of its strongest alternative, [N, items]."""
        texts = [self._texts(name) for name in self.senses(items)]
        unique = list(dict.fromkeys(text for row in texts for text in row))
        logits = np.concatenate([self._logits(part, unique) for part in batches(images, self.batch)])
        columns = [logits[:, [unique.index(text) for text in row]] for row in texts]
        return np.stack([c[:, 0] - c[:, 1:].max(1) for c in columns], 1)

    def _texts(self, name: str) -> list[str]:
        """The item's text, then its alternatives."""
        return [*(self.template.format(with_article(n)) for n in (name, *self.others.get(name, ()))), *NEUTRAL]

    @torch.no_grad()
    def _logits(self, images: Sequence[Any], texts: list[str]) -> np.ndarray:
        inputs = self.processor(text=texts, images=images, return_tensors="pt", padding="max_length")
        logits = self.model(**inputs.to(self.model.device, self.model.dtype)).logits_per_image.float().cpu().numpy()
        if not np.isfinite(logits).all():
            raise NotFinite(f"{self.name} returned NaN; load it in float32 or bfloat16")
        return logits
