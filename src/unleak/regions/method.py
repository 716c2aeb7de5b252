"""What every editing method tells `unleak.edit`: how it begins, and what is attached while the target is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unleak.core.intervention import Intervention

Side = tuple[str, Sequence[str]]
"""A prompt, and its phrases that are edited."""


@dataclass(frozen=True)
class Method:
    """A method and its options. Made by `presets.preset`.

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

    inverts: ClassVar[bool] = False
    """Whether it walks the noise schedule backwards from the source, so that it needs DDIM's timesteps."""

    @property
    def guided(self) -> bool:
        """Whether any guidance needs unconditional rows."""
        return self.target_guidance != 1.0

    def begin(self, pipe: Any, clean: Tensor, side: Side, size: tuple[int, int], random: Any) -> tuple[Tensor, Any]:
        """The latents [1, C, h, w] that the pipeline starts from, and the way that `parts` follows.

        Here they are noise, and the way is the noise of every step, [steps, 1, C, h, w]. A method that `inverts` runs
        the pipeline on the source first.

        Args:
            clean: z0, the source's latents [1, C, h, w]. side: the source's prompt and phrases.
            size: (height, width) in pixels. random: the generator of all noise.
        """
        start, *noise = (torch.randn(clean.shape, generator=random) for _ in range(self.steps + 1))
        return start, torch.stack(noise)

    def parts(
        self, source: Side, target: Side, masks: Tensor, clean: Tensor, way: Any = None, negative: str | None = None
    ) -> list[Intervention]:
        """The interventions, to be attached while the pipeline draws the target's prompt.

        Args:
            source: the source's prompt and its phrases that are edited.
            target: the target's prompt and what they became there, in the same order.
            masks: bool [K, H, W], widened already. clean: z0 [1, C, h, w]. way: as `begin` gives it.
            negative: the source's negative prompt, where the target has another.
        """
        raise NotImplementedError
