"""Structure distance: do the parts of two images relate to each other in the same way?

Source: Tumanyan et al., Splicing ViT Features for Semantic Appearance Transfer (arXiv 2201.00424), as ALE-Bench and
PIE-Bench use it: the mean squared difference of the two self-similarity matrices, cosines between all patches of one
image. There the features are the keys of DINO's 11th layer (`features.DinoKeys`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

Features: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""Images [N, H, W, 3] uint8 -> features of their patches [N, P, D]."""


def self_similarity(features: np.ndarray) -> np.ndarray:
    """Cosines between all patches, [N, P, P], of features [N, P, D]."""
    length = np.linalg.norm(features, axis=-1, keepdims=True)
    unit = features / np.maximum(length, 1e-8)
    return unit @ unit.swapaxes(-1, -2)


def structure_distance(image: np.ndarray, reference: np.ndarray, features: Features) -> float:
    """Mean squared difference of the two self-similarities; 0 for equal images."""
    one, two = self_similarity(features(np.stack([image, reference])))
    return float(((one - two) ** 2).mean())
