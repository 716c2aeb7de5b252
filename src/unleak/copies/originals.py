"""Who tells copies: a judge of the training images that a user gives, or of those of the embedded world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL.Image import Image

from unleak.drawing import photo
from unleak.drawing.generate import image_size
from unleak.errors import UnsupportedModel
from unleak.judges import Judge
from unleak.judges.copies import CopyJudge, PixelJudge, scene_judge
from unleak.judges.glyphs import GlyphJudge


def copy_judge(pipe: Any, originals: Sequence[Image], judge: Judge | None, call: Mapping[str, Any]) -> CopyJudge | None:
    """The judge of copies of some pictures; without any the world's, beside its judge; or none.

    Raises UnsupportedModel where the pipeline does not tell the size of its images.
    """
    if not originals:
        return scene_judge() if isinstance(judge, GlyphJudge) else None
    size = image_size(pipe, call)
    if size is None:
        raise UnsupportedModel(f"{type(pipe).__name__} does not tell the size of its images: give --size")
    return PixelJudge(np.stack([np.asarray(photo.resized(original, size)) for original in originals]))
