"""Direct inversion: the source keeps to the latents that inversion passed through, whatever guidance does.

Source: Ju et al., Direct Inversion: Boosting Diffusion-based Editing with 3 Lines of Code (arXiv 2310.01506).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from unleak.core.intervention import Intervention
from unleak.regions.method import PromptObjects, both
from unleak.regions.methods.inversion import Inversion, ReplayInversion
from unleak.regions.methods.p2p import P2P


@dataclass(frozen=True)
class DirectInversion(Inversion):
    """Direct inversion with Prompt-to-Prompt: the source keeps to the latents that inversion passed through.

    The paper adds to the source's guided step what it misses of those latents; the sum is the latents themselves, so
    the source costs no unconditional row. `kind`, `cross_steps`, `self_steps`, `self_cells`: see `p2p.P2P`.
    """

    kind: str = "refine"
    cross_steps: float = 0.8
    self_steps: float = 0.4
    self_cells: int = 32 * 32
    citation: str = field(default="Ju et al., Direct Inversion (arXiv 2310.01506)", init=False)

    def control(self, source: PromptObjects, target: PromptObjects, trajectory: Any) -> list[Intervention]:
        return [ReplayInversion(trajectory, self.target_guidance, source[0]), self.injection(source, target)]

    def injection(self, source: PromptObjects, target: PromptObjects) -> P2P:
        """Prompt-to-Prompt."""
        return P2P(both(source, target), self.kind, self.cross_steps, self.self_steps, self.self_cells)
