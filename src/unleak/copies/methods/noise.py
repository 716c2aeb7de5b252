"""Gaussian noise on the prompt's rows (GN of Somepalli et al., NeurIPS 2023): ``c + strength * n``, n ~ N(0, 1)."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unleak.core.intervention import Intervention
from unleak.drawing.generate import check_seed
from unleak.text.rows import each_layer

if TYPE_CHECKING:
    from unleak.core.context import Context
    from unleak.text.call import TextCall


@dataclass(frozen=True)
class NoisyRows(Intervention):
    """Noise of standard deviation `strength` on every row of the positive prompt, the same for equal prompts.

    The released code also disturbs the rows of the empty prompt.
    """

    strength: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed, 2**32)

    def on_text(self, ctx: Context, call: TextCall) -> Any:
        if not self.strength:
            return None

        def noisy(layer: Any) -> Tensor:
            rows: Tensor = layer(call.output)
            return torch.stack(
                [row + self.strength * self._noise(p, row) for p, row in zip(call.prompts, rows, strict=True)]
            )

        return each_layer(noisy, call.output)

    def _noise(self, prompt: str, like: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed((self.seed << 32) + zlib.crc32(prompt.encode()))
        return torch.randn(like.shape, generator=generator).to(like)
