"""LPIPS (Zhang et al., arXiv 1801.03924) through torchmetrics: its weights are the user's to install."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from unleak.errors import BadInput


def squeeze_lpips() -> Callable[[np.ndarray, np.ndarray], float]:
    """A distance of two images [H, W, 3] of floats in -1..1, with the SqueezeNet that ALE-Bench takes.

    Raises BadInput: torchmetrics is not installed.
    """
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
    except ImportError:
        raise BadInput("LPIPS needs torchmetrics and torchvision: pip install 'unleak[metrics]'") from None
    network = LearnedPerceptualImagePatchSimilarity(net_type="squeeze").eval()

    def distance(image: np.ndarray, reference: np.ndarray) -> float:
        one, two = (torch.from_numpy(part).permute(2, 0, 1)[None].float() for part in (image, reference))
        with torch.no_grad():
            return float(network(one, two))

    return distance
