"""Where an item is: the cells of the picture that attend to it clearly more than the others do.

Source: DeLeaker (arXiv 2510.15015), ``m = a > mean(a) + beta std(a)``, then an opening and a closing.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def item_masks(a: Tensor, items: Sequence[str], std_threshold: float = 1.0, morphology: bool = True) -> Tensor:
    """The masks of items [..., items, h, w], bool, from their attention maps in 0..1, each map for itself.

    Args:
        std_threshold: ``beta``, in standard deviations. morphology: remove specks and fill holes.

    Warns where an item has no mask: no cell is above the threshold, or those that are too scattered.
    """
    masks = above_threshold(a, std_threshold)
    masks = opened_and_closed(masks) if morphology else masks
    filled = masks.flatten(-2).any(-1).reshape(-1, len(items)).all(0)
    for item, everywhere in zip(items, filled.tolist(), strict=True):
        if not everywhere:
            warnings.warn(f"{item!r} stands out nowhere at some step, so nothing is done for it there.", stacklevel=3)
    return masks


def above_threshold(a: Tensor, std_threshold: float) -> Tensor:
    """``a > mean(a) + beta std(a)`` over the cells of each plane [..., h, w]; unbiased deviation."""
    cells = a.flatten(-2)
    return a > (cells.mean(-1) + std_threshold * cells.std(-1))[..., None, None]


def opened_and_closed(masks: Tensor) -> Tensor:
    """A 3x3 opening, then a closing of two iterations; what lies outside of [..., h, w] counts for nothing."""
    m = masks.float().reshape(-1, 1, *masks.shape[-2:])
    m = _dilated(_eroded(m))
    m = _eroded(_eroded(_dilated(_dilated(m))))
    return m.reshape(masks.shape) > 0.5


def _dilated(m: Tensor) -> Tensor:
    return F.max_pool2d(m, 3, stride=1, padding=1)  # pads with -inf


def _eroded(m: Tensor) -> Tensor:
    return -_dilated(-m)
