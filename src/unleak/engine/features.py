"""Outputs of whole blocks of the denoiser, exchanged between rows of its batch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from unleak.core.edits import FeatureSwap
from unleak.core.rows import Rows
from unleak.engine.effects import paired
from unleak.errors import UnsupportedModel


def swap_features(output: Tensor, rows: Rows, swaps: Sequence[FeatureSwap]) -> Tensor:
    """A block's output [R, ...] after the swaps, each reading what the block itself computed.

    Raises UnsupportedModel: the output is no batch of `rows`.
    """
    if not isinstance(output, Tensor) or len(output) != len(rows):
        raise UnsupportedModel(f"a block's output is no tensor of the denoiser's {len(rows)} rows")
    out = output.clone()
    for swap in swaps:
        for target, source in paired(rows.of(swap.target), rows.of(swap.source)):
            out[target] = output[source]
    return out
