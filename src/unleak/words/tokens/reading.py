"""What the denoiser reads of prompts: per text encoder, its rows as they reach the denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unleak.core.intervention import Intervention
from unleak.drawing.generate import rehearse

if TYPE_CHECKING:
    from unleak.core.context import Context


@dataclass(frozen=True)
class _CollectRows(Intervention):
    """Collects the rows when the denoiser would run."""

    rows_of: dict[str, Tensor] = field(default_factory=dict)

    def branches(self, ctx: Context) -> None:
        assert ctx.encoded.cond is not None
        for name in ctx.encoded.calls:
            if (columns := ctx.encoded.columns(name)) is not None:
                self.rows_of[name] = ctx.encoded.cond[:, columns]


def rows_read(pipe: Any, prompts: Sequence[str], batch: int = 32, **call: Any) -> dict[str, Tensor]:
    """Rows [P, L, D] of P prompts by encoder, in the pipeline's order; nothing is drawn.

    An encoder of which only the pooled vector is used has none. Where encoders are joined on channels, each
    has the joined rows. Errors are those of `rehearse`.
    """
    parts: dict[str, list[Tensor]] = {}
    for start in range(0, len(prompts), batch):
        reader = _CollectRows()
        rehearse(pipe, list(prompts[start : start + batch]), reader, **call)
        for name, rows in reader.rows_of.items():
            parts.setdefault(name, []).append(rows)
    return {name: torch.cat(rows) for name, rows in parts.items()}
