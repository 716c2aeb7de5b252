"""Editing methods by name, with the paper's defaults and every point where the authors' release departs from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from torch import Tensor

from unleak.core.intervention import Intervention
from unleak.errors import BadInput
from unleak.generate import check_call
from unleak.regions.baselines.presets import Controlled, MutualAttention, PromptToPrompt
from unleak.regions.blend import Blend
from unleak.regions.ddcm import DDCM
from unleak.regions.rgbcam import RGBCAM
from unleak.regions.selfattn import SelfInjection

ALE_PAPER = "Mun et al., Addressing Text Embedding Leakage in Diffusion-based Image Editing (arXiv 2412.04715)"
POSTERIOR = ("mode", "sample")


@dataclass(frozen=True)
class Ale:
    """ALE: ORE + RGB-CAM + self-attention injection + background blending on DDCM.

    Attributes:
        steps: denoising steps. self_replace: share of them that injects the source's self-attention; the paper
            takes 1.0 for a change of colour, 0.6 of material, 0.5 of the object.
        source_guidance, target_guidance, eta: see `ddcm.DDCM`.
        dilation: by how much masks are widened, a fraction of the image's height.
        posterior: the source's latents are the ``"mode"`` of the autoencoder's posterior, or a ``"sample"``.
        base_index, key_embed, find: see `ore.ORE`. overlap, bias, masked_logit: see `rgbcam.RGBCAM`.
        foreground, bb_first_step, bb_final, feather: see `blend.Blend`.
    """

    steps: int = 15
    self_replace: float = 0.5
    source_guidance: float = 1.0
    target_guidance: float = 2.0
    eta: float = 1.0
    dilation: float = 0.04
    posterior: str = "mode"
    base_index: str = "paper"
    key_embed: str = "plain"
    find: str = "words"
    overlap: str = "smallest"
    bias: str = "region"
    masked_logit: float = -100.0
    foreground: str = "single"
    bb_first_step: bool = True
    bb_final: bool = True
    feather: float = 0.0
    citation: str = field(default=ALE_PAPER, init=False)

    def parts(
        self,
        source: tuple[str, Sequence[str]],
        target: tuple[str, Sequence[str]],
        masks: Tensor,
        clean: Tensor,
        noise: Tensor | None = None,
        negative: str | None = None,
    ) -> list[Intervention]:
        """The interventions, to be attached while the pipeline draws the target's prompt.

        Args:
            source: the source's prompt and its phrases that are edited.
            target: the target's prompt and what they became there, in the same order.
            masks: bool [K, H, W], widened already. clean: z0 [1, C, h, w]. noise: [steps, 1, C, h, w].
            negative: the source's negative prompt, where the target has another.
        """
        slots: dict[str, Any] = {"base_index": self.base_index, "find": self.find}
        return [
            DDCM(
                clean, source[0], tuple(source[1]), self.source_guidance, self.target_guidance, negative, self.eta,
                noise, **slots,
            ),
            SelfInjection(self.self_replace),
            RGBCAM(
                tuple(target[1]), masks, self.overlap, self.bias, key_embed=self.key_embed,
                masked_logit=self.masked_logit, **slots,
            ),
            Blend(masks, self.foreground, self.bb_first_step, self.bb_final, self.feather),
        ]  # fmt: skip


OFFICIAL = {
    "posterior": "sample",
    "base_index": "official",
    "find": "first",
    "overlap": "background",
    "bias": "mask",
    "foreground": "multiscale",
    "bb_first_step": False,
    "bb_final": False,
}
Method: TypeAlias = Ale | Controlled
PRESETS: dict[str, Method] = {
    "ale": Ale(),
    "ale-official": Ale(**OFFICIAL),  # type: ignore[arg-type]
    "p2p": PromptToPrompt(),
    "masactrl": MutualAttention(),
}


def preset(name: str, **options: Any) -> Method:
    """A method by name, with some of its options changed. Raises BadInput: an unknown name or option, NaN."""
    check_call(options)
    if name not in PRESETS:
        raise BadInput(f"no editing preset {name!r}; choose from {', '.join(PRESETS)}")
    try:
        return replace(PRESETS[name], **options)
    except (TypeError, ValueError):
        known = [f for f in PRESETS[name].__dataclass_fields__ if f != "citation"]
        raise BadInput(f"preset {name!r} has no {', '.join(sorted(options.keys() - set(known)))}: {known}") from None
