"""Judges answer one question: is this item, in the sense that is meant, in the image?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from unleak.text.items import Item


class Judge(Protocol):
    """What every judge offers. `name` is printed with every figure that it decided."""

    name: str

    def senses(self, items: Sequence[Item]) -> list[str]:
        """What the judge will look for, one name per item. Raises BadInput for an item it cannot read."""
        ...

    def present(self, images: np.ndarray, items: Sequence[Item]) -> np.ndarray:
        """Images [N,H,W,3] uint8 -> [N, items] of bool: is the item there, in the sense that is meant?"""
        ...


__all__ = ["Judge"]
