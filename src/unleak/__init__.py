"""Find and stop leaks in text-to-image diffusion.

Importing this package does not import torch: the verbs below load what they need on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# public name -> module that defines it
_VERBS = {
    "attach": "unleak.core.session",
    "Intervention": "unleak.core.intervention",
    "Window": "unleak.core.intervention",
    "Patch": "unleak.words.repairs",
    "Keep": "unleak.words.probe",
    "Subset": "unleak.text.subsets",
    "Prune": "unleak.words.redundancy",
    "tokens": "unleak.words.redundancy",
    "probe": "unleak.words.probe",
    "diagnose": "unleak.words.diagnose",
    "repair": "unleak.words.repair",
    "Maps": "unleak.words.maps",
    "Boost": "unleak.words.boost",
    "DeLeaker": "unleak.words.deleaker",
    "StructureDiffusion": "unleak.words.baselines.structure",
    "Cutoff": "unleak.words.baselines.cutoff",
    "TEBOpt": "unleak.words.baselines.tebopt",
    "doctor": "unleak.core.doctor",
    "lint": "unleak.words.lint",
    "edit": "unleak.regions.edit",
    "Edit": "unleak.regions.plan",
    "scan": "unleak.copies.scan",
    "calibrate": "unleak.copies.fit",
    "Calibration": "unleak.copies.calibrate",
    "audit": "unleak.copies.audit",
    "Attenuate": "unleak.copies.attenuate",
    "Guard": "unleak.copies.guard",
    "Detour": "unleak.copies.detour",
}

__all__ = ["__version__", *_VERBS]


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return getattr(import_module(_VERBS[name]), name)
    raise AttributeError(f"module 'unleak' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
