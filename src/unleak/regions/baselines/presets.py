"""Other editing methods under the interface of `unleak.edit`: their attention control beside the same exact source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from unleak.core.intervention import Intervention
from unleak.regions.baselines.masactrl import MasaCtrl
from unleak.regions.baselines.p2p import P2P
from unleak.regions.blend import Blend
from unleak.regions.ddcm import DDCM


@dataclass(frozen=True)
class Controlled:
    """A method that only controls attention, on `DDCM` with ALE's steps and guidance, so that all are compared alike.

    Attributes:
        steps, source_guidance, target_guidance, eta, dilation, posterior, overlap: see `presets.Ale`.
        blend: also blend the background with the same masks (`blend.Blend`), which the method itself does not.
    """

    steps: int = 15
    source_guidance: float = 1.0
    target_guidance: float = 2.0
    eta: float = 1.0
    dilation: float = 0.04
    posterior: str = "mode"
    overlap: str = "smallest"
    blend: bool = False

    def control(self, source: str, target: str) -> Intervention:
        """The method itself, between two prompts."""
        raise NotImplementedError

    def parts(
        self,
        source: tuple[str, Sequence[str]],
        target: tuple[str, Sequence[str]],
        masks: Tensor,
        clean: Tensor,
        noise: Tensor | None = None,
        negative: str | None = None,
    ) -> list[Intervention]:
        """The interventions, as `presets.Ale.parts` gives them."""
        tracked = DDCM(
            clean, source[0], (), self.source_guidance, self.target_guidance, negative, self.eta, noise
        )  # fmt: skip
        background = [Blend(masks)] if self.blend else []
        return [tracked, self.control(source[0], target[0]), *background]


@dataclass(frozen=True)
class PromptToPrompt(Controlled):
    """Prompt-to-Prompt. `kind`, `cross_steps`, `self_steps`, `self_cells`: see `p2p.P2P`."""

    kind: str = "refine"
    cross_steps: float = 0.8
    self_steps: float = 0.4
    self_cells: int = 32 * 32
    citation: str = field(default="Hertz et al., Prompt-to-Prompt (arXiv 2208.01626)", init=False)

    def control(self, source: str, target: str) -> P2P:
        return P2P((source, target), self.kind, self.cross_steps, self.self_steps, self.self_cells)


@dataclass(frozen=True)
class MutualAttention(Controlled):
    """MasaCtrl. `start_step`, `start_layer`: see `masactrl.MasaCtrl`."""

    start_step: int = 4
    start_layer: int | None = None
    citation: str = field(default="Cao et al., MasaCtrl (arXiv 2304.08465)", init=False)

    def control(self, source: str, target: str) -> MasaCtrl:
        return MasaCtrl(self.start_step, self.start_layer)
