"""Edits of a benchmark's cases, several in one call of the pipeline, where a case may have no mask."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

from unleak.bench.run import Run
from unleak.errors import EmptyMask
from unleak.models import edit_settings
from unleak.regions.edit import edit
from unleak.regions.edited import Edited
from unleak.regions.masks.own_masks import FROM
from unleak.regions.methods.ale import SELF_REPLACE
from unleak.regions.plan import Edit
from unleak.regions.presets import EDITORS, known_options, recommended

EXACT = "exact"  #: every edit has its true mask
MASKS = (EXACT, *FROM)
Chosen: TypeAlias = tuple[str, dict[str, Any]]
"""A preset by name, and options that a method of a benchmark gives it."""
EVERY_PRESET: dict[str, Chosen] = {
    **{name: (name, {}) for name in EDITORS},
    **{
        f"{name}+bb": (name, {"blend": True})
        for name, one in EDITORS.items()
        if any(parameter.name == "blend" and parameter.default is False for parameter in one.parameters)
    },
}
"""Methods of a benchmark: every preset, and with ALE's background blending those that do not blend by themselves."""


def all_options(run: Run, chosen: Chosen, change: str) -> Chosen:
    """The preset with all its options for one kind of change, a key of `SELF_REPLACE`.

    The later ones prevail: the paper's for the change, what the model recommends, the run's, the method's own.
    """
    name, own = chosen
    general = known_options(name, {"self_replace": SELF_REPLACE[change]})
    return name, {**general, **recommended(name, edit_settings(run.model)), **known_options(name, run.call), **own}


def settings(chosen: Chosen) -> dict[str, Any]:
    """All settings of a preset with these options, its defaults too: drawn alike is what has none changed."""
    name, given = chosen
    return asdict(EDITORS[name].make(**given))


def edit_each(
    pipe: Any, images: Sequence[Any], edits: Sequence[Sequence[Edit]], captions: Sequence[str | None], masks: str,
    **options: Any,
) -> list[Edited | None]:  # fmt: skip
    """`edit` of every image with its own edits and caption; None where no mask of an object was found.

    `masks` is one of `MASKS`: who finds those that the edits do not give. Where one is not found, the halves are
    drawn by themselves. Notes on masks that meet are not repeated here.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            who = FROM[0] if masks == EXACT else masks
            captions_and_masks: dict[str, Any] = {"source_prompt": list(captions), "masks_from": who}
            return list(edit(pipe, list(images), list(edits), **captions_and_masks, **options))
    except EmptyMask:
        if len(images) == 1:
            return [None]
    half = len(images) // 2
    sides = (slice(None, half), slice(half, None))
    return [one for at in sides for one in edit_each(pipe, images[at], edits[at], captions[at], masks, **options)]
