"""Other editing methods under the interface of `unleak.edit`, each with its published defaults.

Those that only control attention run beside the same exact source as ALE (`Controlled`), so that the methods are
compared and not their inversions; the others begin from inverted latents (`Inversion`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from unleak.core.intervention import Intervention, Window
from unleak.regions.method import Method, Side, both
from unleak.regions.methods.blend import Blend
from unleak.regions.methods.ddcm import DDCM
from unleak.regions.methods.infedit import LAYOUT, LayoutBlend, UnifiedAttention
from unleak.regions.methods.inversion import Retrace, invert
from unleak.regions.methods.masactrl import MasaCtrl
from unleak.regions.methods.null_text import NullText, null_text
from unleak.regions.methods.p2p import P2P
from unleak.regions.methods.pnp import PlugAndPlay


@dataclass(frozen=True)
class Controlled(Method):
    """A method that controls attention, on `DDCM` with ALE's steps and guidance.

    Attributes:
        source_guidance, eta: see `ddcm.DDCM`.
        blend: also blend the background with the same masks (`blend.Blend`), which the method itself does not.
    """

    source_guidance: float = 1.0
    eta: float = 1.0
    blend: bool = False

    followers: ClassVar[tuple[str, ...]] = ()

    @property
    def guided(self) -> bool:
        return (self.target_guidance, self.source_guidance) != (1.0, 1.0)

    def control(self, source: Side, target: Side) -> Sequence[Intervention]:
        """The method itself."""
        raise NotImplementedError

    def parts(
        self, source: Side, target: Side, masks: Tensor, clean: Tensor, way: Any = None, negative: str | None = None
    ) -> list[Intervention]:
        tracked = DDCM(
            clean, source[0], (), self.source_guidance, self.target_guidance, negative, self.eta, way,
            followers=self.followers,
        )  # fmt: skip
        return [tracked, *self.control(source, target), *([Blend(masks)] if self.blend else [])]


@dataclass(frozen=True)
class PromptToPrompt(Controlled):
    """Prompt-to-Prompt. `kind`, `cross_steps`, `self_steps`, `self_cells`: see `p2p.P2P`."""

    kind: str = "refine"
    cross_steps: float = 0.8
    self_steps: float = 0.4
    self_cells: int = 32 * 32
    citation: str = field(default="Hertz et al., Prompt-to-Prompt (arXiv 2208.01626)", init=False)

    def control(self, source: Side, target: Side) -> list[Intervention]:
        return [P2P(both(source, target), self.kind, self.cross_steps, self.self_steps, self.self_cells)]


@dataclass(frozen=True)
class MutualAttention(Controlled):
    """MasaCtrl. `first_step`, `first_layer`: where `masactrl.MasaCtrl` begins, as fractions of all."""

    first_step: float = 0.08
    first_layer: float = 0.625
    citation: str = field(default="Cao et al., MasaCtrl (arXiv 2304.08465)", init=False)

    def control(self, source: Side, target: Side) -> list[Intervention]:
        return [MasaCtrl(Window(self.first_step, 1.0), Window(self.first_layer, 1.0))]


@dataclass(frozen=True)
class UnifiedAttentionControl(Controlled):
    """InfEdit. `kind`, `cross_steps`, `self_steps`: see `infedit.UnifiedAttention`; `threshold`: see
    `infedit.LayoutBlend`, which blends by words and not by masks."""

    kind: str = "refine"
    cross_steps: float = 0.7
    self_steps: float = 0.3
    threshold: float = 0.6
    citation: str = field(default="Xu et al., Inversion-Free Image Editing (arXiv 2312.04965)", init=False)

    followers: ClassVar[tuple[str, ...]] = (LAYOUT,)

    def control(self, source: Side, target: Side) -> list[Intervention]:
        attention = UnifiedAttention(both(source, target), self.kind, self.cross_steps, self.self_steps)
        return [attention, LayoutBlend(source[0], source[1], threshold=self.threshold)]


@dataclass(frozen=True)
class Inversion(Method):
    """DDIM inversion, and from its noise the target's prompt: no control at all.

    The source's prompt is inverted without guidance. `blend`: see `Controlled`.
    """

    steps: int = 50
    target_guidance: float = 7.5
    blend: bool = False
    citation: str = field(default="Song et al., Denoising Diffusion Implicit Models (arXiv 2010.02502)", init=False)

    inverts: ClassVar[bool] = True

    def begin(self, pipe: Any, clean: Tensor, side: Side, size: tuple[int, int], random: Any) -> tuple[Tensor, Any]:
        """The inverted noise, and the way there: latents [steps + 1, images, C, h, w]."""
        path = invert(pipe, clean, side[0], size, self.steps)
        return path[-1], path

    def parts(
        self, source: Side, target: Side, masks: Tensor, clean: Tensor, way: Any = None, negative: str | None = None
    ) -> list[Intervention]:
        return [*self.control(source, target, way), *([Blend(masks)] if self.blend else [])]

    def control(self, source: Side, target: Side, way: Any) -> list[Intervention]:
        return [Retrace(way, self.target_guidance)]


@dataclass(frozen=True)
class PlugAndPlayFeatures(Inversion):
    """Plug-and-Play. `features`, `attention`: see `pnp.PlugAndPlay`."""

    features: float = 0.8
    attention: float = 0.5
    citation: str = field(default="Tumanyan et al., Plug-and-Play Diffusion Features (arXiv 2211.12572)", init=False)

    def control(self, source: Side, target: Side, way: Any) -> list[Intervention]:
        return [Retrace(way, self.target_guidance, source[0]), PlugAndPlay(self.features, self.attention)]


@dataclass(frozen=True)
class DirectInversion(Inversion):
    """Direct inversion with Prompt-to-Prompt: the source keeps to the latents that inversion passed through.

    The paper adds to the source's guided step what it misses of those latents; the sum is the latents themselves, so
    the source costs no unconditional row. `kind`, `cross_steps`, `self_steps`, `self_cells`: see `p2p.P2P`.
    """

    kind: str = "refine"
    cross_steps: float = 0.8
    self_steps: float = 0.4
    self_cells: int = 32 * 32
    citation: str = field(default="Ju et al., Direct Inversion (arXiv 2310.01506)", init=False)

    def control(self, source: Side, target: Side, way: Any) -> list[Intervention]:
        return [Retrace(way, self.target_guidance, source[0]), self.injection(source, target)]

    def injection(self, source: Side, target: Side) -> P2P:
        """Prompt-to-Prompt."""
        return P2P(both(source, target), self.kind, self.cross_steps, self.self_steps, self.self_cells)


@dataclass(frozen=True)
class NullTextInversion(DirectInversion):
    """Null-text inversion with Prompt-to-Prompt. `iterations`: of the optimisation, at most, for each step."""

    iterations: int = 10
    citation: str = field(default="Mokady et al., Null-text Inversion (arXiv 2211.09794)", init=False)

    together: ClassVar[bool] = False

    def begin(self, pipe: Any, clean: Tensor, side: Side, size: tuple[int, int], random: Any) -> tuple[Tensor, Any]:
        """The inverted noise, and what `null_text.null_text` found."""
        path = invert(pipe, clean, side[0], size, self.steps)
        found = null_text(pipe, path, side[0], size, self.target_guidance, self.iterations)
        return path[-1], found

    def control(self, source: Side, target: Side, way: NullText) -> list[Intervention]:
        return [Retrace(way.path, self.target_guidance, source[0], way.empty), self.injection(source, target)]
