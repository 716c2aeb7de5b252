"""MasaCtrl: from some step and some layer on, the target looks for its content in the source.

Source: Cao et al., MasaCtrl (arXiv 2304.08465). Mutual self-attention, ``Attn(Q_target, K_source, V_source)``, for
conditional and unconditional rows apart, so that a new prompt changes the layout and the source lends what it shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from unleak.core.edits import KeyValueSwap, RowSwap
from unleak.core.intervention import Intervention, Window
from unleak.errors import BadInput
from unleak.regions.method import Side
from unleak.regions.methods.controlled import Controlled
from unleak.regions.methods.ore import reads_text
from unleak.regions.methods.sides import sides

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context


@dataclass(frozen=True)
class MasaCtrl(Intervention):
    """Runs beside a method that follows the source, or in a call with [source, target, ...] prompts.

    Attributes:
        steps: denoising steps that are controlled, as fractions of the run: from the 5th of 50 on.
        layers: self-attention layers that are controlled, as fractions of all of them in the order in which the
            denoiser runs them: from the 11th of SD1's 16 on, which is in the decoder. The first step counts them.
    """

    steps: Window = field(default=Window(0.08, 1.0))
    layers: Window = field(default=Window(0.625, 1.0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0.0 in self.steps and self.layers != Window():
            raise BadInput("the first step counts the layers: let `steps` begin after 0, or control all layers")

    def on_attention(self, ctx: Context, site: AttentionCall) -> list[RowSwap] | None:
        """Raises EmptyWindow: no step of this run, or no layer of this denoiser, would be controlled."""
        if reads_text(site):
            return None
        order = ctx.state.setdefault("order", {})
        layer = order.setdefault(site.name, len(order))
        if "steps" not in ctx.state:
            ctx.state["steps"] = self.steps.need(ctx.steps, "MasaCtrl")
        if ctx.step not in ctx.state["steps"]:
            return None
        if self.layers != Window() and layer not in self.layers.need(len(order), "MasaCtrl", "layers"):
            return None
        found = [sides(ctx, label) for label in ("uncond", "cond")]
        return [KeyValueSwap(side.targets, side.sources) for side in found if side.targets]


@dataclass(frozen=True)
class MutualAttention(Controlled):
    """MasaCtrl. `first_step`, `first_layer`: where `masactrl.MasaCtrl` begins, as fractions of all."""

    first_step: float = 0.08
    first_layer: float = 0.625
    citation: str = field(default="Cao et al., MasaCtrl (arXiv 2304.08465)", init=False)

    def control(self, source: Side, target: Side) -> list[Intervention]:
        return [MasaCtrl(Window(self.first_step, 1.0), Window(self.first_layer, 1.0))]
