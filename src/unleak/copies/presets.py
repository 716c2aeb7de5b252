"""The mitigations and the detectors of this room by name, each with the defaults of its source.

The command line, benchmarks, `unleak.scan`, `unleak.methods()`, help and docs read these two tables. A new mitigation
or detector is its file in `methods/` or `detect/` and one line here. A mitigation that a gate can hold back is a
`Gated`; a detector says in its class what it needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unleak.copies.detect.detectors import (
    Agreement,
    BrightEnding,
    Collapse,
    Entropy,
    LateEntropy,
    Magnitude,
    SiteEntropy,
)
from unleak.copies.methods.attenuate import Attenuate
from unleak.copies.methods.delayed import DelayedGuidance
from unleak.copies.methods.detour import Detour
from unleak.copies.methods.gate import Gated
from unleak.copies.methods.guard import OFFICIAL, Guard
from unleak.copies.methods.neurons import PruneNeurons
from unleak.copies.methods.noise import NoisyRows
from unleak.copies.methods.optimise import OptimiseRows
from unleak.copies.methods.pads import PadSwap
from unleak.copies.methods.prss import PRSS
from unleak.copies.methods.repulsion import RepulsionOnly
from unleak.copies.methods.summary import MaskSummary
from unleak.copies.methods.words import InsertWords
from unleak.core.presets import Preset, Presets
from unleak.errors import BadInput


@dataclass(frozen=True)
class MitigationPreset(Preset):
    """A named mitigation."""

    hidden: tuple[str, ...] = ("reads", "made_at")

    @property
    def gated(self) -> bool:
        """Whether a gate can hold it back, so that prompts that copy nothing stay what they are."""
        return issubclass(self.method, Gated)

    def make(self, *args: Any, gate: Any = None, **changes: Any) -> Any:
        """The mitigation, behind a gate if one is given: a `Calibration`, or a threshold.

        Raises BadInput: no such parameter, a value that the method refuses, or a gate for what cannot be gated.
        """
        if gate is None:
            return super().make(*args, **changes)
        if not self.gated:
            raise BadInput(
                f"{self.name} acts before the first step, where there is nothing to gate by: leave the gate out"
            )
        return super().make(*args, gate=gate, **changes)


@dataclass(frozen=True)
class DetectorPreset(Preset):
    """A named detector."""

    @property
    def guided(self) -> bool:
        """Whether it needs classifier-free guidance."""
        return bool(self.method.guided)

    @property
    def whole(self) -> bool:
        """Whether it needs the whole trajectory, not its first steps."""
        return bool(self.method.whole)


GUARD = "Zhao et al., GUARD, ICML 2026, arXiv 2603.00133"
SOMEPALLI = "Somepalli et al., NeurIPS 2023"
BASINS = "attraction basins, CVPR 2025"
REN = "Ren et al., ECCV 2024"
OURS = "this project"

MITIGATIONS: Presets[MitigationPreset] = Presets(
    "mitigation",
    (
        MitigationPreset("detour", Detour, "Follow another text while the prompt leads to the copy.", OURS),
        MitigationPreset(
            "guard", Guard, "Attenuate attention spikes, and push away from the prompt as it is.", f"{GUARD}, section 3"
        ),
        MitigationPreset(
            "guard-official", Guard, "GUARD as the authors' release computes it.", f"{GUARD}, released code", OFFICIAL
        ),
        MitigationPreset("attenuate", Attenuate, "Attenuate attention spikes alone.", f"{GUARD}, attenuation only"),
        MitigationPreset("random-token", InsertWords, "Insert random tokens in the prompt.", f"{SOMEPALLI}, RTA"),
        MitigationPreset(
            "random-number", InsertWords, "Insert random numbers in the prompt.", f"{SOMEPALLI}, RNA",
            {"kind": "number"},
        ),
        MitigationPreset(
            "word-repetition", InsertWords, "Repeat words of the prompt.", f"{SOMEPALLI}, CWR", {"kind": "word"}
        ),
        MitigationPreset("noisy-rows", NoisyRows, "Add noise to the prompt's rows.", f"{SOMEPALLI}, GN"),
        MitigationPreset(
            "optimise-rows", OptimiseRows, "Optimise the prompt's rows until they say less.", "Wen et al., ICLR 2024"
        ),
        MitigationPreset("mask-summary", MaskSummary, "Hide pads and strengthen the begin of text.", REN),
        MitigationPreset("delayed-guidance", DelayedGuidance, "No guidance in the first half.", BASINS),
        MitigationPreset(
            "opposite-guidance", DelayedGuidance, "Guide away from the prompt in the first half.", BASINS,
            {"before": -1.0},
        ),
        MitigationPreset("repulsion-only", RepulsionOnly, "Weaker guidance at first.", f"{GUARD}, its schedule alone"),
        MitigationPreset("pad-swap", PadSwap, "Pads that do not repeat the prompt.", "arXiv 2605.02908"),
        MitigationPreset(
            "prss", PRSS, "Anchored at the prompt: one of the given `paraphrases`, or without any itself.",
            "Chen et al., CVPR 2025",
        ),
        MitigationPreset(
            "nemo", PruneNeurons, "Switch off neurons that the prompt excites unusually.",
            "Hintersdorf et al., Finding NeMo, NeurIPS 2024",
        ),
    ),
)  # fmt: skip

DETECTORS: Presets[DetectorPreset] = Presets(
    "detector",
    (
        DetectorPreset("magnitude", Magnitude, "The norm of the text-conditional noise.", "Wen et al., ICLR 2024"),
        DetectorPreset("agreement", Agreement, "How far the text pushes all seeds the same way.", OURS),
        DetectorPreset("collapse", Collapse, "How far all seeds head for the same clean image.", OURS),
        DetectorPreset("entropy", Entropy, "The entropy of attention to the text, over all sites.", REN),
        DetectorPreset("site-entropy", SiteEntropy, "The same at one site.", f"{REN}, metric E"),
        DetectorPreset(
            "late-entropy", LateEntropy, "How the entropy of the last steps departs from the first's.",
            f"{REN}, metric D",
        ),
        DetectorPreset(
            "bright-ending", BrightEnding, "The magnitude where the end of text looks at the last step.",
            "Chen et al., ICLR 2025",
        ),
    ),
)  # fmt: skip
