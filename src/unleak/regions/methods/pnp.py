"""Plug-and-Play: the target is drawn from the source's features and looks where the source looks.

Source: Tumanyan et al., Plug-and-Play Diffusion Features (arXiv 2211.12572). Beside inverted latents of the source, in
early steps, both target rows take the output of one residual block of the decoder from the source, ``f_t <- f_s``,
and queries and keys, ``q_t <- q_s, k_t <- k_s``, at all self-attention sites behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from unleak.core.anatomy import Anatomy, eager
from unleak.core.edits import QueryKeySwap, RowSwap
from unleak.core.intervention import Intervention
from unleak.errors import BadInput, EmptyWindow, NoSite, UnsupportedModel
from unleak.regions.method import PromptObjects
from unleak.regions.methods.inversion import Inversion, ReplayInversion

if TYPE_CHECKING:
    from torch import Tensor

    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context

DECODER = "up_blocks."


@dataclass(frozen=True)
class PlugAndPlay(Intervention):
    """Stands after `ReplayInversion` with the source's prompt, whose row "source_cond" it reads.

    Attributes:
        features, attention: the share of the steps, from the first on, that takes the source's features, and its
            queries and keys; 0 for never.
        block: name of the residual block; default: the one that a third of the decoder's stand before, as in the
            paper (the 5th of Stable Diffusion's 12, ``up_blocks.1.resnets.1``).
    """

    features: float = 0.8
    attention: float = 0.5
    block: str | None = None

    uses_self_attention: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0.0 <= self.features <= 1.0 and 0.0 <= self.attention <= 1.0):
            raise BadInput(f"features={self.features}, attention={self.attention}: give shares of the steps, 0 to 1")

    def modules(self, anatomy: Anatomy) -> Sequence[str]:
        """Raises NoSite: the denoiser has no decoder of residual blocks (a transformer)."""
        if self.block is not None:
            return (self.block,)
        named = eager(anatomy.denoiser).named_modules()
        residual = [name for name, module in named if hasattr(module, "conv1") and hasattr(module, "conv_shortcut")]
        decoder = [name for name in residual if name.startswith(DECODER)]
        if not decoder:
            raise NoSite(f"the {anatomy.denoiser_name} has no residual blocks called {DECODER}*: name one with `block`")
        return (decoder[len(decoder) // 3],)

    def on_module(self, ctx: Context, name: str, output: Tensor) -> Tensor | None:
        """``f_t <- f_s`` for the output [rows, ...] of the block, at the first steps."""
        ctx.state["passed"] = True
        if ctx.step >= _first(self.features, ctx.steps):
            return None
        if len(output) != len(ctx.rows):
            raise UnsupportedModel(f"{name} gives {len(output)} rows, and the denoiser has {len(ctx.rows)}")
        swapped = output.clone()
        for target in ("cond", "uncond"):
            for t, s in ctx.rows.pairs(target, "source_cond"):
                swapped[t] = output[s]
        return swapped

    def on_attention(self, ctx: Context, site: AttentionCall) -> list[RowSwap] | None:
        before = ctx.state.setdefault("before", set())
        if site.kind != "self":
            return None
        if "passed" not in ctx.state:  # the first call tells which sites run before the block
            before.add(site.name)
        if site.name in before or ctx.step >= _first(self.attention, ctx.steps):
            return None
        ctx.state["behind"] = True
        return [QueryKeySwap("cond", "source_cond"), QueryKeySwap("uncond", "source_cond")]

    def on_latents(self, ctx: Context, latents: Tensor) -> None:
        """Raises NoSite: no self-attention runs behind the block."""
        if self.attention and "behind" not in ctx.state:
            raise NoSite("no self-attention site runs behind the block: choose an earlier one")


def _first(share: float, steps: int) -> int:
    """How many steps a share of them is. Raises EmptyWindow where it is none, though some were asked for."""
    number = int(share * steps)
    if share and not number:
        raise EmptyWindow(f"{share:g} of {steps} steps is no step: take more steps, or 0")
    return number


@dataclass(frozen=True)
class PlugAndPlayFeatures(Inversion):
    """Plug-and-Play. `features`, `attention`: see `pnp.PlugAndPlay`."""

    features: float = 0.8
    attention: float = 0.5
    citation: str = field(default="Tumanyan et al., Plug-and-Play Diffusion Features (arXiv 2211.12572)", init=False)

    def control(self, source: PromptObjects, target: PromptObjects, trajectory: Any) -> list[Intervention]:
        return [
            ReplayInversion(trajectory, self.target_guidance, source[0]),
            PlugAndPlay(self.features, self.attention),
        ]
