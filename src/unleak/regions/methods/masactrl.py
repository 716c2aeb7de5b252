"""MasaCtrl: from some step and some layer on, the target looks for its content in the source.

Source: Cao et al., MasaCtrl (arXiv 2304.08465). Mutual self-attention, ``Attn(Q_target, K_source, V_source)``, for
conditional and unconditional rows apart, so that a new prompt changes the layout and the source lends what it shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from unleak.core.edits import KeyValueSwap, RowSwap
from unleak.core.intervention import Intervention, Window
from unleak.errors import BadInput, EmptyWindow
from unleak.regions.method import PromptObjects
from unleak.regions.methods.controlled import Controlled
from unleak.regions.methods.ore import is_cross
from unleak.regions.methods.rows import source_and_target_rows

if TYPE_CHECKING:
    from torch import Tensor

    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context


@dataclass(frozen=True)
class MasaCtrl(Intervention):
    """Runs beside a method that follows the source, or in a call with [source, target, ...] prompts.

    Attributes:
        steps: denoising steps that are controlled: a window of the run, by default from the 5th of 50 on; or their
            numbers, counted from 0, as the authors' release lists them.
        layers: self-attention layers that are controlled, in the order in which the denoiser runs them: a window of
            all, by default from the 11th of SD1's 16 on, which is in the decoder; or their numbers. The first step
            counts the layers of a window.
    """

    steps: Window | Sequence[int] = field(default=Window(0.08, 1.0))
    layers: Window | Sequence[int] = field(default=Window(0.625, 1.0))

    uses_self_attention: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "layers"):
            which = getattr(self, name)
            if isinstance(which, Window):
                continue
            if not which or not all(isinstance(i, int) and i >= 0 for i in which):
                raise BadInput(f"{name}={which}: give a Window, or numbers counted from 0")
            object.__setattr__(self, name, tuple(which))
        first = 0.0 in self.steps if isinstance(self.steps, Window) else 0 in self.steps
        if first and isinstance(self.layers, Window) and self.layers != Window():
            raise BadInput("the first step counts the layers: let `steps` begin after 0, list or control all layers")

    def on_attention(self, ctx: Context, site: AttentionCall) -> list[RowSwap] | None:
        """Raises EmptyWindow: the run lacks a step that is asked for."""
        if is_cross(site):
            return None
        order = ctx.state.setdefault("order", {})
        layer = order.setdefault(site.name, len(order))
        if "steps" not in ctx.state:
            ctx.state["steps"] = _numbers(self.steps, ctx.steps, "steps")
        layers = ctx.state.get("layers", (layer,) if self.layers == Window() else self.layers)
        if ctx.step not in ctx.state["steps"] or layer not in layers:
            return None
        each = [source_and_target_rows(ctx, label) for label in ("uncond", "cond")]
        return [KeyValueSwap(rows.targets, rows.sources) for rows in each if rows.targets]

    def on_latents(self, ctx: Context, latents: Tensor) -> None:
        """Raises EmptyWindow: the denoiser lacks a layer that is asked for."""
        if "layers" not in ctx.state:
            ctx.state["layers"] = _numbers(self.layers, len(ctx.state["order"]), "layers")


def _numbers(which: Window | Sequence[int], n: int, what: str) -> Sequence[int]:
    """Which of n steps or layers. Raises EmptyWindow: a window holds none of them, or a listed one is not there."""
    if isinstance(which, Window):
        return which.need(n, "MasaCtrl", what)
    if missing := [i for i in which if i >= n]:
        raise EmptyWindow(f"MasaCtrl is to control the {what} {missing}, and there are {n}, counted from 0")
    return which


@dataclass(frozen=True)
class MutualAttention(Controlled):
    """MasaCtrl. `first_step`, `first_layer`: where `masactrl.MasaCtrl` begins, as fractions of all."""

    first_step: float = 0.08
    first_layer: float = 0.625
    citation: str = field(default="Cao et al., MasaCtrl (arXiv 2304.08465)", init=False)

    def control(self, source: PromptObjects, target: PromptObjects) -> list[Intervention]:
        return [MasaCtrl(Window(self.first_step, 1.0), Window(self.first_layer, 1.0))]
