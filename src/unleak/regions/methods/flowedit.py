"""FlowEdit and FlowAlign: edit along a flow, without inversion and without masks.

Sources: Kulikov et al., FlowEdit (arXiv 2412.08629); Kim et al., FlowAlign (arXiv 2505.23145). With Z the edited
latents, from z0 at the noise level of step T - n_max on, fresh noise n in every step, p = (1 - sigma) z0 + sigma n and
q = Z + p - z0,

    FlowEdit     Z' = Z + (sigma' - sigma) (v_w(q; target) - v_w(p; source))
    FlowAlign    Z' = Z + (sigma' - sigma) (v(q; source) + w (v(q; target) - v(q; source)) - v(p; source))
                    + pull (z(p) - z(q))

In the last n_min steps of FlowEdit q goes on as a plain generation of the target. Both are `DDCM` with ``memory=1``, as
told there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from unleak.core.intervention import CROSS, JOINT, Intervention
from unleak.errors import BadInput
from unleak.regions.method import FLOW, Method, PromptObjects
from unleak.regions.methods.blend import Blend
from unleak.regions.methods.ddcm import DDCM


@dataclass(frozen=True)
class FlowEdit(Method):
    """FlowEdit. The defaults are the paper's for FLUX: T 28, n_max 24; for SD3 50, 33, guidance 3.5 and 13.5.

    Attributes:
        steps: T. n_max: the share of them, the last ones, that edit. n_min: the share of them, the last ones, that are
            plain.
        source_guidance: scale of the source.
        blend: also blend the background with the same masks (`blend.Blend`), which the method itself does not.
    """

    steps: int = 28
    target_guidance: float = 5.5
    source_guidance: float = 1.5
    n_max: float = 24 / 28
    n_min: float = 0.0
    blend: bool = False
    citation: str = field(default="Kulikov et al., FlowEdit (arXiv 2412.08629)", init=False)

    noise: ClassVar[tuple[str, ...]] = (FLOW,)
    layouts: ClassVar[tuple[str, ...]] = (CROSS, JOINT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.n_min < self.n_max <= 1 or self.skipped >= self.steps - self.plain:
            raise BadInput(
                f"n_min={self.n_min:g} and n_max={self.n_max:g} of {self.steps} steps leave none that edits: give"
                " shares with 0 <= n_min < n_max <= 1, and steps enough"
            )

    @property
    def guided(self) -> bool:
        return (self.target_guidance, self.source_guidance) != (1.0, 1.0)

    @property
    def skipped(self) -> int:
        return self.steps - round(self.n_max * self.steps)

    @property
    def plain(self) -> int:
        """How many of the last steps are plain."""
        return round(self.n_min * self.steps)

    def parts(
        self,
        source: PromptObjects,
        target: PromptObjects,
        masks: Tensor,
        clean: Tensor,
        trajectory: Any = None,
        negative: str | None = None,
    ) -> list[Intervention]:
        return [self.followed(clean, source[0], trajectory, negative), *([Blend(masks)] if self.blend else [])]

    def followed(self, clean: Tensor, prompt: Any, noise: Any, negative: str | None) -> DDCM:
        """The two branches."""
        return DDCM(
            clean, prompt, (), self.source_guidance, self.target_guidance, negative, noise=noise, memory=1.0,
            plain=self.plain,
        )  # fmt: skip


@dataclass(frozen=True)
class FlowAlign(FlowEdit):
    """FlowAlign: the target is guided against the source's prompt, and pulled towards the source; 3 rows a step.

    `pull`: how strongly; the paper's 0.01.
    """

    steps: int = 33
    target_guidance: float = 13.5
    source_guidance: float = 1.0
    n_max: float = 1.0
    pull: float = 0.01
    citation: str = field(default="Kim et al., FlowAlign (arXiv 2505.23145)", init=False)

    @property
    def guided(self) -> bool:
        return False

    def followed(self, clean: Tensor, prompt: Any, noise: Any, negative: str | None) -> DDCM:
        return DDCM(
            clean, prompt, (), self.source_guidance, self.target_guidance, noise=noise, memory=1.0, pull=self.pull,
            contrast="source", plain=self.plain,
        )  # fmt: skip
