"""MasaCtrl: from some step and some layer on, the target looks for its content in the source.

Source: Cao et al., MasaCtrl (arXiv 2304.08465). Mutual self-attention, ``Attn(Q_target, K_source, V_source)``, for
conditional and unconditional rows apart, so that a new prompt changes the layout and the source lends what it shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from unleak.core.edits import KeyValueSwap, RowSwap
from unleak.core.intervention import Intervention
from unleak.errors import BadInput
from unleak.regions.baselines.sides import sides
from unleak.regions.ore import reads_text

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context


@dataclass(frozen=True)
class MasaCtrl(Intervention):
    """Runs beside `DDCM`, or in a call with [source, target, ...] prompts.

    Attributes:
        start_step, stop_step: denoising steps that are controlled, half-open, from 0; no stop: to the last.
        start_layer, stop_layer: self-attention layers that are controlled, half-open, counted from 0 in the order
            in which the denoiser runs them: 16 in SD1, where 10 is in the decoder. No start: the same share, 5/8, of
            as many layers as there are, which the first step counts; no stop: to the last.
    """

    start_step: int = 4
    start_layer: int | None = 10
    stop_step: int | None = None
    stop_layer: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start_layer is None and self.start_step < 1:
            raise BadInput("without start_layer the first step counts the layers: give start_step=1 or more")
        for name in ("step", "layer"):
            start, stop = getattr(self, f"start_{name}") or 0, getattr(self, f"stop_{name}")
            if start < 0 or (stop is not None and stop < start):
                raise BadInput(f"{name}s {start} to {stop}: give 0 or more, and an end that is not before the start")

    def on_attention(self, ctx: Context, site: AttentionCall) -> list[RowSwap] | None:
        if reads_text(site):
            return None
        order = ctx.state.setdefault("order", {})
        layer = order.setdefault(site.name, len(order))
        first = len(order) * 5 // 8 if self.start_layer is None else self.start_layer
        if not _inside(ctx.step, self.start_step, self.stop_step) or not _inside(layer, first, self.stop_layer):
            return None
        found = [sides(ctx, label) for label in ("uncond", "cond")]
        return [KeyValueSwap(side.targets, side.sources) for side in found if side.targets]

    def on_latents(self, ctx: Context, latents: object) -> None:
        """Raises BadInput: the denoiser has no such layer."""
        layers = len(ctx.state["order"])
        if self.start_layer is not None and self.start_layer >= layers:
            raise BadInput(f"start_layer={self.start_layer}: this denoiser has {layers} self-attention layers")


def _inside(number: int, start: int, stop: int | None) -> bool:
    return number >= start and (stop is None or number < stop)
