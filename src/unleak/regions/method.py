"""What every editing method tells `unleak.edit`: how it begins, and what is attached while the target is drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from unleak.core.intervention import CROSS, Intervention
from unleak.errors import BadInput, choose
from unleak.regions.methods.images import Phrases, Prompts
from unleak.text.prompt import each_prompt

POSTERIOR = ("mode", "sample")
PromptObjects: TypeAlias = tuple[Prompts, Phrases]
"""A prompt, and its phrases that are edited; or the prompt of each image, and the phrases of each."""


def both(source: PromptObjects, target: PromptObjects) -> tuple[tuple[str, ...], ...]:
    """Of each image, the source's and the target's prompt."""
    return tuple(zip(each_prompt(source[0]), each_prompt(target[0]), strict=True))


@dataclass(frozen=True)
class Method:
    """An editing method and its parameters. The table `presets.EDITORS` makes it by name.

    Attributes:
        steps: denoising steps. target_guidance: guidance scale of the target.
        dilation: by how much masks are widened, a fraction of the image's height.
        posterior: the source's latents are the ``"mode"`` of the autoencoder's posterior, or a ``"sample"``.
        overlap: who owns a pixel under several masks, see `masks.partition`.
    """

    steps: int = 15
    target_guidance: float = 2.0
    dilation: float = 0.04
    posterior: str = "mode"
    overlap: str = "smallest"

    def __post_init__(self) -> None:
        """Raises BadInput: a number that is not finite, less than one step, an unknown posterior."""
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise BadInput(f"{name} is {value}: give a finite number")
        if not isinstance(self.steps, int) or self.steps < 1:
            raise BadInput(f"steps={self.steps}: give 1 or more")
        choose("posterior", self.posterior, POSTERIOR)

    layouts: ClassVar[tuple[str, ...]] = (CROSS,)
    inverts: ClassVar[bool] = False
    """Whether it walks the noise schedule backwards from the source, so that it needs DDIM's timesteps."""
    together: ClassVar[bool] = True
    """Whether several images, each with its prompts and masks, can be drawn in one call."""

    @property
    def guided(self) -> bool:
        """Whether any guidance needs unconditional rows."""
        return self.target_guidance != 1.0

    def begin(
        self, pipe: Any, clean: Tensor, source: PromptObjects, size: tuple[int, int], random: Any
    ) -> tuple[Tensor, Any]:
        """The latents [images, C, h, w] that the pipeline starts from, and the trajectory that `parts` follows.

        Here they are noise, and the trajectory is the noise of every step, [steps, 1, C, h, w], alike for all images.
        A method that `inverts` runs the pipeline on the source first.

        Args:
            clean: z0, the source's latents [images, C, h, w]. source: its prompt and phrases.
            size: (height, width) in pixels. random: the generator of all noise.
        """
        start, *noise = (torch.randn(1, *clean.shape[1:], generator=random) for _ in range(self.steps + 1))
        return start.expand(clean.shape), torch.stack(noise)

    def parts(
        self,
        source: PromptObjects,
        target: PromptObjects,
        masks: Tensor,
        clean: Tensor,
        trajectory: Any = None,
        negative: str | None = None,
    ) -> list[Intervention]:
        """The interventions, to be attached while the pipeline draws the target's prompt.

        Args:
            source: the source's prompt and its phrases that are edited.
            target: the target's prompt and what they became there, in the same order.
            masks: bool [K, H, W], or [images, K, H, W], widened already.
            clean: z0 [images, C, h, w]. trajectory: as `begin` gives it.
            negative: the source's negative prompt, where the target has another.
        """
        raise NotImplementedError
