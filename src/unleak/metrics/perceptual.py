"""LPIPS (Zhang et al., arXiv 1801.03924): torchmetrics' network with weights from the user's safetensors file.

torchmetrics by itself unpickles its linear layers and lets torchvision fetch the backbone, a pickle too. Neither
happens here. Whoever trusts both makes the file once, on any machine:

    from safetensors.torch import save_model
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
    save_model(LearnedPerceptualImagePatchSimilarity("squeeze").net, "lpips.safetensors")
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_model

from unleak.errors import BadInput


def squeeze_lpips(weights: str | Path) -> Callable[[np.ndarray, np.ndarray], float]:
    """A distance of two images [H, W, 3] of floats in -1..1, with the SqueezeNet that ALE-Bench takes.

    Raises BadInput: torchmetrics is not installed, or the file does not hold this network.
    """
    try:
        from torchmetrics.functional.image.lpips import _LPIPS
    except ImportError:
        raise BadInput("LPIPS needs torchmetrics and torchvision: pip install 'unleak[metrics]'") from None
    network = _LPIPS(pretrained=False, net="squeeze", pnet_rand=True).eval()
    try:
        load_model(network, weights)
    except (OSError, SafetensorError, RuntimeError) as e:
        reason = str(e).strip().splitlines()[0]
        raise BadInput(f"{weights} is no LPIPS network (see unleak.metrics.perceptual): {reason}") from e

    def distance(image: np.ndarray, reference: np.ndarray) -> float:
        one, two = (torch.from_numpy(part).permute(2, 0, 1)[None].float() for part in (image, reference))
        with torch.no_grad():
            return float(network(one, two))

    return distance
