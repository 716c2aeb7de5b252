"""What judges that read text share: the name an item is looked for by, its phrase, images in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from unleak.errors import BadInput
from unleak.text.items import Item


def intended_names(items: Sequence[Item]) -> list[str]:
    """What each item is looked for as: its sense, or else its own words."""
    return [item.sense or item.text for item in items]


def with_article(name: str) -> str:
    """``"owl"`` -> ``"an owl"``; a name that has an article keeps it."""
    if name.split()[0].lower() in {"a", "an", "the", "some"}:
        return name
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def check_length(tokenizer: Any, text: str, name: str, limit: int | None = None) -> None:
    """Raise BadInput for a text that the model would read only in part."""
    limit = limit or tokenizer.model_max_length
    size = len(tokenizer(text, truncation=False, verbose=False).input_ids)
    if size > limit:
        raise BadInput(f"{name} reads {limit} tokens and {text[:80]!r} has {size}: name the item in fewer words")


def batches(images: np.ndarray, size: int) -> Iterator[list[Image.Image]]:
    """Images [N,H,W,3] uint8 as lists of at most `size` pictures. Raises BadInput for anything else."""
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise BadInput(f"judges read images [N, H, W, 3] of uint8, not {images.shape} of {images.dtype}")
    for start in range(0, len(images), size):
        yield [Image.fromarray(image) for image in images[start : start + size]]
