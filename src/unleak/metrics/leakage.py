"""Leakage and success of an edit by an image-text score: TELS, TILS and editing performance.

Source: ALE (arXiv 2412.04715) and its released evaluator. With x the edited image, m_j the soft masks of the K edits,
M = max_j m_j, y_i the targets' phrases and s(image, text) the score, a CLIP cosine times 100 that is never negative,

    TELS = mean_i s(x . (1 - M), y_i)                    as released: s(x . (1 - M), "y_1 and y_2 ...")
    TILS = mean over i != j of s(x . m_j, y_i)
    editing performance = mean_i s(x . m_i, y_i)

What a mask leaves out is black, and the image keeps its size. No score is 0 for an image that leaks nothing, so the
unedited source's belongs beside every TELS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from unleak.errors import BadInput
from unleak.metrics.background import weights

Score: TypeAlias = Callable[[np.ndarray, Sequence[str]], np.ndarray]
"""Images [N, H, W, 3] uint8 and T texts -> [N, T]."""


class Leakage(NamedTuple):
    """`tils` is nan for a single edit, `tels` and `tels_released` where the masks leave no background."""

    tels: float
    tels_released: float
    tils: float
    performance: float


def leakage(image: np.ndarray, masks: np.ndarray, targets: Sequence[str], score: Score) -> Leakage:
    """All four of an edited image [H, W, 3] uint8 with one mask [H, W] of 0..1 for each target."""
    masks = np.asarray(masks, np.float64)
    outside = weights(masks)
    if len(masks) != len(targets):
        raise BadInput(f"{len(masks)} masks and {len(targets)} targets: give one mask for each")
    k = len(targets)
    parts = np.stack([(image * part[..., None]).astype(np.uint8) for part in (*masks, outside)])
    scores = score(parts, [*targets, " and ".join(targets)])  # [K + 1, K + 1]
    own, inside = np.trace(scores[:k, :k]), scores[:k, :k].sum()
    nothing = not outside.any()
    return Leakage(
        float("nan") if nothing else float(scores[k, :k].mean()),
        float("nan") if nothing else float(scores[k, k]),
        float((inside - own) / (k * (k - 1))) if k > 1 else float("nan"),
        float(own / k),
    )
