"""Methods that control attention beside an exact source, so that they are compared and not their inversions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from unleak.core.intervention import Intervention
from unleak.regions.method import Method, PromptObjects
from unleak.regions.methods.blend import Blend
from unleak.regions.methods.ddcm import DDCM


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

    def control(self, source: PromptObjects, target: PromptObjects) -> Sequence[Intervention]:
        """The method itself."""
        raise NotImplementedError

    def parts(
        self,
        source: PromptObjects,
        target: PromptObjects,
        masks: Tensor,
        clean: Tensor,
        trajectory: Any = None,
        negative: str | None = None,
    ) -> list[Intervention]:
        tracked = DDCM(
            clean, source[0], (), self.source_guidance, self.target_guidance, negative, self.eta, trajectory,
            followers=self.followers,
        )  # fmt: skip
        return [tracked, *self.control(source, target), *([Blend(masks)] if self.blend else [])]
