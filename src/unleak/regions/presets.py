"""Editing methods by name, with the paper's defaults and every point where the authors' release departs from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from unleak.core.intervention import Intervention
from unleak.drawing.generate import check_call
from unleak.errors import BadInput, choose
from unleak.regions.method import Method, Side
from unleak.regions.methods.blend import Blend
from unleak.regions.methods.ddcm import DDCM
from unleak.regions.methods.images import Phrases
from unleak.regions.methods.ore import ORE
from unleak.regions.methods.rgbcam import RGBCAM
from unleak.regions.methods.selfattn import SelfInjection
from unleak.regions.published import (
    DirectInversion,
    Inversion,
    MutualAttention,
    NullTextInversion,
    PlugAndPlayFeatures,
    PromptToPrompt,
    UnifiedAttentionControl,
)

ALE_PAPER = "Mun et al., Addressing Text Embedding Leakage in Diffusion-based Image Editing (arXiv 2412.04715)"
POSTERIOR = ("mode", "sample")
SELF_REPLACE = {"colour": 1.0, "material": 0.6, "object": 0.5, "colour+object": 0.5, "object+material": 0.5}
"""The paper's `self_replace` by what changes."""


@dataclass(frozen=True)
class Ale(Method):
    """ALE: ORE + RGB-CAM + self-attention injection + background blending on DDCM.

    Attributes:
        self_replace: share of the steps that injects the source's self-attention; the paper takes 1.0 for a change
            of colour, 0.6 of material, 0.5 of the object.
        source_guidance, eta: see `ddcm.DDCM`. base_index, key_embed, find: see `ore.ORE`.
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
    citation: str = field(default=ALE_PAPER, init=False)

    @property
    def guided(self) -> bool:
        return (self.target_guidance, self.source_guidance) != (1.0, 1.0)

    def parts(
        self, source: Side, target: Side, masks: Tensor, clean: Tensor, way: Any = None, negative: str | None = None
    ) -> list[Intervention]:
        slots: dict[str, Any] = {"base_index": self.base_index, "find": self.find}
        own = source[1] if self.ore else ()
        return [
            DDCM(clean, source[0], own, self.source_guidance, self.target_guidance, negative, self.eta, way, **slots),
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


OFFICIAL = {
    "posterior": "sample",
    "base_index": "official",
    "find": "first",
    "rest": "alone",
    "overlap": "background",
    "bias": "mask",
    "foreground": "multiscale",
    "bb_first_step": False,
    "bb_final": False,
}
PRESETS: dict[str, Method] = {
    "ale": Ale(),
    "ale-official": Ale(**OFFICIAL),  # type: ignore[arg-type]
    "infedit": UnifiedAttentionControl(),
    "p2p": PromptToPrompt(),
    "masactrl": MutualAttention(),
    "pnp": PlugAndPlayFeatures(),
    "ddim": Inversion(),
    "direct": DirectInversion(),
    "null-text": NullTextInversion(),
}


def preset(name: str, **options: Any) -> Method:
    """A method by name, with some of its options changed. Raises BadInput: an unknown name or option, NaN."""
    check_call(options)
    choose("editing preset", name, PRESETS)
    try:
        return replace(PRESETS[name], **options)
    except (TypeError, ValueError):
        known = [f for f in PRESETS[name].__dataclass_fields__ if f != "citation"]
        raise BadInput(f"preset {name!r} has no {', '.join(sorted(options.keys() - set(known)))}: {known}") from None


def known_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some options that a method has."""
    return {key: value for key, value in options.items() if key in PRESETS[name].__dataclass_fields__}


def recommended(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a model recommends, as far as it concerns a method; under its name stands what is for it alone.

    A method that inverts keeps its published steps and guidance unless it is named: the few steps that suffice from
    noise do not lead back to a source. Raises BadInput: what stands under the name is no mapping.
    """
    kept = ("steps", "target_guidance") if PRESETS[name].inverts else ()
    general = {key: value for key, value in known_options(name, options).items() if key not in kept}
    own = options.get(name, {})
    if not isinstance(own, Mapping):
        raise BadInput(f'what a model recommends for {name} must look like {{"{name}": {{"target_guidance": 2.0}}}}')
    return {**general, **known_options(name, own)}
