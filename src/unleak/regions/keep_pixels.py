"""The photo's own pixels outside the masks of an edit: what was drawn is laid into the photo, with a blended seam.

    out = w drawn + (1 - w) photo

w is 0 outside the masks, so that the photo is kept there to the last bit, and rises linearly to 1 inside them, over a
share of the height that is the width of the seam.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

from unleak.drawing import photo
from unleak.regions.masks.masks import foreground, to_grid

SEAM = 0.03
"""Width of the seam as a share of the photo's height."""


def lay_in(whole: Image.Image, drawn: np.ndarray, masks: Tensor, seam: float = SEAM) -> np.ndarray:
    """A photo of any size with what was drawn, [h, w, 3] uint8, inside the masks, bool [K, h, w]; [H, W, 3] uint8."""
    size = whole.height, whole.width
    weight = foreground(to_grid(masks, size), size, feather=seam).numpy()
    inside = Image.fromarray((weight * 255).round().astype(np.uint8))
    return np.asarray(Image.composite(photo.resized(Image.fromarray(drawn), size), whole, inside))
