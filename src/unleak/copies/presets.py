"""Mitigations by name, each with the defaults of its source: for the command line and for benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from unleak.copies.methods.attenuate import Attenuate
from unleak.copies.methods.delayed import DelayedGuidance
from unleak.copies.methods.detour import Detour
from unleak.copies.methods.gate import Gated
from unleak.copies.methods.guard import Guard
from unleak.copies.methods.neurons import PruneNeurons
from unleak.copies.methods.noise import NoisyRows
from unleak.copies.methods.optimise import OptimiseRows
from unleak.copies.methods.pads import PadSwap
from unleak.copies.methods.prss import PRSS
from unleak.copies.methods.repulsion import RepulsionOnly
from unleak.copies.methods.summary import MaskSummary
from unleak.copies.methods.words import InsertWords
from unleak.core.intervention import Intervention
from unleak.errors import BadInput, choose

PRESETS: dict[str, Callable[[], Intervention]] = {
    "detour": Detour,
    "guard": Guard,
    "guard-official": Guard.official,
    "attenuate": Attenuate,
    "random-token": InsertWords,
    "random-number": lambda: InsertWords("number"),
    "word-repetition": lambda: InsertWords("word"),
    "noisy-rows": NoisyRows,
    "optimise-rows": OptimiseRows,
    "mask-summary": MaskSummary,
    "delayed-guidance": DelayedGuidance,
    "opposite-guidance": lambda: DelayedGuidance(before=-1.0),
    "repulsion-only": RepulsionOnly,
    "pad-swap": PadSwap,
    "prss": PRSS,
    "nemo": PruneNeurons,
}


def preset(name: str, gate: Any = None) -> Intervention:
    """A mitigation, behind a gate if one is given.

    Raises:
        BadInput: no such preset, or it works on the prompt, before there is anything to gate by.
    """
    made = PRESETS[choose("mitigation", name, PRESETS)]()
    if gate is None:
        return made
    if not isinstance(made, Gated):
        raise BadInput(f"{name} acts before the first step, where there is nothing to gate by: leave the gate out")
    return replace(made, gate=gate)
