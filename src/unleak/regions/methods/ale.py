"""ALE: object-restricted embeddings, region-guided cross-attention, injected self-attention and a blended background.

Source: Mun et al., Addressing Text Embedding Leakage in Diffusion-based Image Editing (arXiv 2412.04715). The equations
stand where each part is: `ddcm`, `ore`, `rgbcam`, `selfattn`, `blend`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from unleak.core.intervention import CROSS, JOINT, Intervention
from unleak.regions.method import ALPHAS, FLOW, Method, PromptObjects
from unleak.regions.methods.blend import Blend
from unleak.regions.methods.ddcm import DDCM
from unleak.regions.methods.images import Phrases
from unleak.regions.methods.ore import ORE
from unleak.regions.methods.rgbcam import RGBCAM
from unleak.regions.methods.selfattn import SelfInjection

PAPER = "Mun et al., Addressing Text Embedding Leakage in Diffusion-based Image Editing (arXiv 2412.04715)"
SELF_REPLACE = {"colour": 1.0, "material": 0.6, "object": 0.5, "colour+object": 0.5, "object+material": 0.5}
"""The paper's `self_replace` by what changes."""


@dataclass(frozen=True)
class Ale(Method):
    """ALE: ORE + RGB-CAM + self-attention injection + background blending on DDCM.

    Attributes:
        self_replace: share of the steps that injects the source's self-attention; the paper takes 1.0 for a change
            of colour, 0.6 of material, 0.5 of the object.
        source_guidance, eta, memory: see `ddcm.DDCM`. base_index, key_embed, find: see `ore.ORE`.
        rest: ``"neutral"``: EOS and pads of each object come from the prompt with a thing in the place of every other
            object, a departure from the paper, whose ``"alone"`` loses objects where there are three. See `ore`.
        bias, masked_logit: see `rgbcam.RGBCAM`.
        foreground, bb_first_step, bb_final, feather: see `blend.Blend`.
        ore, rgbcam, blend: whether these parts act. Without `rgbcam`, ORE alone gives every cell the objects' own rows;
            without `ore`, RGB-CAM alone shuts out words and leaves their values as they are.
    """

    self_replace: float = 0.5
    source_guidance: float = 1.0
    eta: float = 1.0
    memory: float = 0.0
    base_index: str = "paper"
    key_embed: str = "plain"
    find: str = "words"
    rest: str = "neutral"
    bias: str = "region"
    masked_logit: float = -100.0
    foreground: str = "single"
    bb_first_step: bool = True
    bb_final: bool = True
    feather: float = 0.0
    ore: bool = True
    rgbcam: bool = True
    blend: bool = True
    citation: str = field(default=PAPER, init=False)

    noise: ClassVar[tuple[str, ...]] = (ALPHAS, FLOW)
    layouts: ClassVar[tuple[str, ...]] = (CROSS, JOINT)

    @property
    def guided(self) -> bool:
        return (self.target_guidance, self.source_guidance) != (1.0, 1.0)

    def parts(
        self,
        source: PromptObjects,
        target: PromptObjects,
        masks: Tensor,
        clean: Tensor,
        trajectory: Any = None,
        negative: str | None = None,
    ) -> list[Intervention]:
        slots: dict[str, Any] = {"base_index": self.base_index, "find": self.find}
        own = source[1] if self.ore else ()
        return [
            DDCM(
                clean,
                source[0],
                own,
                self.source_guidance,
                self.target_guidance,
                negative,
                self.eta,
                trajectory,
                memory=self.memory,
                **slots,
            ),
            SelfInjection(self.self_replace),
            *self._cross(target[1], masks, {"key_embed": self.key_embed, **slots}),
            *self._background(masks),
        ]

    def _cross(self, objects: Phrases, masks: Tensor, slots: dict[str, Any]) -> list[Intervention]:
        """What becomes of cross-attention."""
        if not self.rgbcam:
            return [ORE(objects, **slots)] if self.ore else []
        values = "restricted" if self.ore else "plain"
        return [
            RGBCAM(objects, masks, self.overlap, self.bias, values, self.rest, masked_logit=self.masked_logit, **slots)
        ]

    def _background(self, masks: Tensor) -> list[Intervention]:
        blend = Blend(masks, self.foreground, self.bb_first_step, self.bb_final, self.feather)
        return [blend] if self.blend else []
