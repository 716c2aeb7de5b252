"""Late guidance: stay out of a memorized image's basin of attraction first, follow the prompt afterwards.

The delayed and opposite guidance of the attraction-basin analysis (CVPR 2025): up to a transition the scale of
guidance is 0, or negative, and then the usual one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from unleak.copies.methods.gate import Gated
from unleak.core.predictions import guidance

if TYPE_CHECKING:
    from unleak.core.context import Context


@dataclass(frozen=True)
class DelayedGuidance(Gated):
    """``u + before * w (c - u)`` up to the trajectory fraction `until`, plain guidance after it.

    `before` is 0 for delayed and -1 for opposite guidance. Timestep 500 of 1000 is about the fraction 0.5.
    """

    until: float = 0.5
    before: float = 0.0
    scale: float | None = None

    def on_prediction(self, ctx: Context, preds: Mapping[str, Tensor]) -> Tensor | None:
        share = self.before if ctx.fraction < self.until else 1.0
        if share == 1.0 and not self.undecided(ctx):
            return None
        return self.guided(
            ctx, preds, lambda pair, w: guidance(pair.uncond, pair.cond, share * w), self.scale, lambda w: share * w
        )
