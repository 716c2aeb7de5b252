"""GUARD's repulsion without its attraction: where attenuation does nothing, GUARD is guidance at w - rho(i).

How much of GUARD is this, a guidance that is weaker in the early steps? It costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from unleak.copies.methods.gate import Gated
from unleak.copies.methods.schedules import SCHEDULES
from unleak.core.predictions import guidance
from unleak.errors import choose

if TYPE_CHECKING:
    from unleak.core.context import Context


@dataclass(frozen=True)
class RepulsionOnly(Gated):
    """``u + (w - rho s(i/T)) (c - u)`` with a schedule s of `SCHEDULES`; as published, GUARD's cosine."""

    rho: float = 2.0
    schedule: str = "cosine"
    scale: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("schedule", self.schedule, SCHEDULES)

    def on_prediction(self, ctx: Context, preds: Mapping[str, Tensor]) -> Tensor | None:
        if not self.rho:
            return None
        rho = self.rho * SCHEDULES[self.schedule](ctx.step / ctx.steps)
        return self.guided(
            ctx, preds, lambda pair, w: guidance(pair.uncond, pair.cond, w - rho), self.scale, lambda w: w - rho
        )
