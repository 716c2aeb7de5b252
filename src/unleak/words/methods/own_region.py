"""Where an item is: the cells of the picture that attend to it clearly more than the others do.

Source: DeLeaker (arXiv 2510.15015), ``m = a > mean(a) + beta std(a)``, then an opening and a closing.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def own_regions(a: Tensor, items: Sequence[str], spread: float = 1.0, smooth: bool = True) -> Tensor:
    """The regions of items [..., items, h, w] from their attention maps, each map for itself.

    Warns where an item has no region: no cell stands out, or those that do are too scattered.
    """
    masks = standing_out(a, spread)
    masks = smoothed(masks) if smooth else masks
    filled = masks.flatten(-2).any(-1).reshape(-1, len(items)).all(0)
    for item, everywhere in zip(items, filled.tolist(), strict=True):
        if not everywhere:
            warnings.warn(f"{item!r} stands out nowhere at some step, so nothing is done for it there.", stacklevel=3)
    return masks


def standing_out(a: Tensor, spread: float) -> Tensor:
    """``a > mean(a) + spread std(a)`` over the cells of each plane [..., h, w]; unbiased deviation."""
    cells = a.flatten(-2)
    return a > (cells.mean(-1) + spread * cells.std(-1))[..., None, None]


def smoothed(masks: Tensor) -> Tensor:
    """A 3x3 opening, then a closing of two iterations: no specks, no holes. What lies outside counts for nothing."""
    m = masks.float().reshape(-1, 1, *masks.shape[-2:])
    m = _grown(_shrunk(m))
    m = _shrunk(_shrunk(_grown(_grown(m))))
    return m.reshape(masks.shape) > 0.5


def _grown(m: Tensor) -> Tensor:
    return F.max_pool2d(m, 3, stride=1, padding=1)  # pads with -inf


def _shrunk(m: Tensor) -> Tensor:
    return -_grown(-m)
