"""What the denoiser reads of prompts: per text encoder, its rows as they reach the denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unleak.core.intervention import Intervention
from unleak.drawing.generate import rehearse
from unleak.errors import UnsupportedModel
from unleak.text.positions import own_columns

if TYPE_CHECKING:
    from unleak.core.context import Context


@dataclass(frozen=True)
class _CollectRows(Intervention):
    """Collects the rows when the denoiser would run."""

    by_token: bool
    rows_of: dict[str, Tensor] = field(default_factory=dict)

    def branches(self, ctx: Context) -> None:
        encoded = ctx.encoded
        if encoded.cond is None:
            raise UnsupportedModel(
                f"{type(ctx.pipe).__name__} does not encode its prompt by `encode_prompt`, so its words have no rows"
            )
        for name, call in encoded.calls.items():
            if (place := encoded.place(name)) is not None:
                columns = own_columns(call, place) if self.by_token else place.columns
                self.rows_of[name] = encoded.cond[:, columns]


def rows_read(
    pipe: Any, prompts: Sequence[str], batch: int = 32, by_token: bool = False, **call: Any
) -> dict[str, Tensor]:
    """Rows [P, L, D] of P prompts by encoder, in the pipeline's order; nothing is drawn.

    An encoder of which only the pooled vector is used has none. Where encoders are joined on channels, each
    has the joined rows. `by_token`: row i must be that of token i of the prompt alone. Errors are those of `rehearse`,
    and then UnsupportedModel where a template stands around the prompt.
    """
    parts: dict[str, list[Tensor]] = {}
    for start in range(0, len(prompts), batch):
        reader = _CollectRows(by_token)
        rehearse(pipe, list(prompts[start : start + batch]), reader, **call)
        for name, rows in reader.rows_of.items():
            parts.setdefault(name, []).append(rows)
    return {name: torch.cat(rows) for name, rows in parts.items()}
