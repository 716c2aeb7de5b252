"""Self-attention injection: early on, the target's cells attend as the source's do, with their own values.

Source: ALE (arXiv 2412.04715), after InfEdit (arXiv 2312.04965). At step c of N, while (c + 1) / N < S,
``q_target <- q_source, k_target <- k_source`` at every self-attention site, conditional and unconditional rows apart.
The same as copying the source's attention map, without building it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from unleak.core.edits import QueryKeySwap, RowSwap
from unleak.core.intervention import Intervention
from unleak.errors import BadInput

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context


@dataclass(frozen=True)
class SelfInjection(Intervention):
    """Needs the source's rows beside the target's, as `DDCM` adds them.

    Attributes:
        until: S in 0..1; 0 injects at no step, 1 at all but the last.
    """

    until: float = 0.5

    uses_self_attention: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.until <= 1.0:
            raise BadInput(f"until={self.until}: give a share of the steps from 0 to 1")

    def on_attention(self, ctx: Context, site: AttentionCall) -> list[RowSwap] | None:
        if site.kind != "self" or (ctx.step + 1) / ctx.steps >= self.until:
            return None
        return [QueryKeySwap("cond", "source_cond"), QueryKeySwap("uncond", "source_uncond")]
