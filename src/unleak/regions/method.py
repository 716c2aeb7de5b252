"""What every editing method tells `unleak.edit`: how it begins, and what is attached while the target is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from unleak.core.intervention import CROSS, Intervention
from unleak.core.predictions import Level
from unleak.errors import BadInput, choose
from unleak.regions.methods.images import Phrases, Prompts
from unleak.text.prompt import each_prompt

POSTERIOR = ("mode", "sample")
ALPHAS, FLOW = "alphas", "flow"
"""How a model's noise levels are given, see `schedule`."""
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
    noise: ClassVar[tuple[str, ...]] = (ALPHAS,)
    """Of which models it follows the noise."""
    inverts: ClassVar[bool] = False
    """Whether it walks the noise schedule backwards from the source, so that it needs DDIM's timesteps."""
    together: ClassVar[bool] = True
    """Whether several images, each with its prompts and masks, can be drawn in one call."""

    @property
    def guided(self) -> bool:
        """Whether any guidance needs unconditional rows."""
        return self.target_guidance != 1.0

    @property
    def scale(self) -> float:
        """The scale of guidance that the pipeline is called with. The method guides rows by itself, and this only says
        whether there are unconditional ones; a denoiser that reads the scale as a number reads this one."""
        return max(self.target_guidance, 2.0) if self.guided else 1.0

    @property
    def skipped(self) -> int:
        """How many of the first steps are left out."""
        return 0

    def begin(
        self, pipe: Any, clean: Tensor, source: PromptObjects, call: Mapping[str, Any], random: Any, level: Level
    ) -> tuple[Tensor, Any]:
        """The latents that the pipeline starts from, [images, C, h, w] or packed as `clean` is, and the trajectory that
        `parts` follows.

        Here they are noise (and the source under it, where steps are left out), and the trajectory is the noise of
        every step, [steps, 1, C, h, w], alike for all images. A method that `inverts` runs the pipeline on the source
        first.

        Args:
            clean: z0, the source's latents. source: its prompt and phrases. call: arguments of the pipeline.
            random: the generator of all noise. level: of the first step.
        """
        steps = self.steps - self.skipped
        n, *noise = (torch.randn(1, *clean.shape[1:], generator=random) for _ in range(steps + 1))
        start = level.signal * clean.to(n) + level.noise * n if self.skipped else n.expand(clean.shape)
        return start, torch.stack(noise)

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
