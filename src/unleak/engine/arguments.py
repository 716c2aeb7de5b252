"""What a denoiser is called with, told by content: which argument holds the latents, the prompt's rows, the timestep.

Denoisers give their arguments different names, and some take lists with one tensor for each image. Latents come first.
The prompt's rows are those that the pipeline encoded. The timestep is a number of the scheduler's table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unleak.core.rows import MASK, POOLED, Rows
from unleak.engine.batch import Arguments, label_rows
from unleak.errors import UnsupportedModel
from unleak.text.call import Encoded, text_rows


def rows_of(value: Any) -> list[Tensor]:
    """The rows of a batched argument: [B, ...], or a list with one tensor for each; [] of anything else."""
    if isinstance(value, Tensor) and value.ndim > 0:
        return list(value.unbind(0))
    if isinstance(value, list | tuple) and value and all(isinstance(item, Tensor) for item in value):
        return list(value)
    return []


def stacked(value: Any) -> Any:
    """A list of tensors of one shape as one tensor; anything else as it is."""
    rows = [] if isinstance(value, Tensor) else rows_of(value)
    return torch.stack(rows) if rows else value


def find(inputs: Mapping[str, Any], latents: str, encoded: Encoded, before: str | None = None) -> tuple[str, Rows]:
    """Which argument holds the prompt's rows, and whose each one is.

    Args:
        inputs: the call's arguments by name.
        latents: the name of that with the latents.
        encoded: what the pipeline encoded.
        before: the argument of the calls before, where nothing equals what was encoded.

    Raises:
        UnsupportedModel: no argument, or several, may hold text rows.
    """
    texts = {name: rows for name, rows in _texts(inputs) if name != latents}
    labelled = {
        name: label_rows(rows, encoded.cond, encoded.uncond, encoded.images_per_prompt) for name, rows in texts.items()
    }
    known = {name: sum(label != "unknown" for label in rows.labels) for name, rows in labelled.items()}
    name = max(known, key=known.__getitem__, default=None)
    if name is not None and known[name]:
        return name, labelled[name]
    if before in labelled:
        return before, labelled[before]
    if len(labelled) == 1:
        return labelled.popitem()
    raise UnsupportedModel(
        f"no argument of the denoiser holds the rows that `encode_prompt` returned; it is called with "
        f"{', '.join(sorted(inputs))}. Give `prompt`, and leave callbacks out that change its rows"
    )


def _texts(inputs: Mapping[str, Any]) -> Iterator[tuple[str, list[Tensor]]]:
    """Arguments that may hold text: rows [L, D] of numbers with a fraction."""
    for name, value in inputs.items():
        rows = rows_of(value)
        if rows and all(row.ndim == 2 and row.is_floating_point() for row in rows):
            yield name, rows


def beside(inputs: Mapping[str, Any], text: str, encoded: Encoded, rows: Rows) -> Arguments:
    """Which arguments hold what goes with the prompt's rows in this call: the pooled vectors that were encoded with
    them, and their mask. The mask may go on with ones for the picture.

    No argument holds a mask, (), where the denoiser is given none although some rows are masked, or takes lists.

    Raises UnsupportedModel: another argument holds further rows of the prompt, and other texts have others there.
    """
    named = {**inputs, **{n: v for item in inputs.values() if isinstance(item, Mapping) for n, v in item.items()}}
    flat = {name: v for name, v in named.items() if isinstance(v, Tensor) and v.ndim == 2 and len(v) == len(rows)}
    at = [i for i, label in enumerate(rows.labels) if label == "cond"] or list(range(len(rows)))
    for name, value in named.items() if encoded.others_have_more else ():
        further = None if name == text else text_rows(value, len(rows))
        if further is not None and len(further) == len(rows) and _holds(further[at], encoded.more):
            raise UnsupportedModel(
                f"the denoiser is given the prompt twice, as {text} and as {name}, and another text would replace one: "
                "use a method that needs no other text"
            )
    flat = {name: value[at] for name, value in flat.items()}
    pooled = [name for name, value in flat.items() if value.is_floating_point() and _holds(value, encoded.pooled)]
    masks = [name for name, value in flat.items() if _holds(value, encoded.masks)]
    found = {POOLED: tuple(pooled), MASK: tuple(masks)}
    unread = not isinstance(inputs[text], Tensor) or any(not bool(mask.all()) for mask in encoded.masks)
    return {role: names for role, names in found.items() if names or (role == MASK and unread)}


def _holds(value: Tensor, parts: Sequence[Tensor]) -> bool:
    """Whether each row [M] of a value begins with the numbers of some row [K] of the parts; what follows is ones."""
    own = [part for rows in parts if rows.shape[1] <= value.shape[1] for part in rows]
    return bool(own) and all(
        any(torch.equal(row[: len(part)], part.to(row)) and bool((row[len(part) :] == 1).all()) for part in own)
        for row in value
    )


def timestep(inputs: Mapping[str, Any], table: Sequence[float], units: float = 1000.0) -> float | None:
    """The timestep of a call, in the units of the scheduler's table.

    It is the first number, or vector of equal numbers, that is in the table: as it stands, divided by `units`, or
    counted from the other end. Where none is, the first number of all; None where there is no number.
    """
    numbers = [number for value in inputs.values() if (number := _number(value)) is not None]
    readings: tuple[Callable[[float], float], ...] = (
        lambda x: x, lambda x: x * units, lambda x: units - x, lambda x: units * (1 - x)
    )  # fmt: skip
    for reading in readings if table else ():
        for number in map(reading, numbers):
            near = table[int(np.abs(np.subtract(table, number)).argmin())]
            if abs(near - number) <= 1e-3 * max(1.0, abs(near)):
                return near
    return numbers[0] if numbers else None


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor) and value.ndim < 2 and value.numel() and value.dtype != torch.bool:
        return float(value.flatten()[0])
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
