"""Edits of a benchmark's cases, several in one call of the pipeline, where a case may have no mask."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from unleak.errors import EmptyMask
from unleak.regions.edit import edit
from unleak.regions.edited import Edited
from unleak.regions.plan import Edit


def edit_each(
    pipe: Any, images: Sequence[Any], edits: Sequence[Sequence[Edit]], captions: Sequence[str | None], **options: Any
) -> list[Edited | None]:
    """`edit` of every image with its own edits and caption; None where no mask of an object was found.

    Where there is such a case, the halves are drawn by themselves. Notes on masks that meet are not repeated here.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return list(edit(pipe, list(images), list(edits), source_prompt=list(captions), **options))
    except EmptyMask:
        if len(images) == 1:
            return [None]
    half = len(images) // 2
    sides = (slice(None, half), slice(half, None))
    return [one for at in sides for one in edit_each(pipe, images[at], edits[at], captions[at], **options)]
