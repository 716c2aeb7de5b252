"""Find and stop leaks in text-to-image diffusion.

Importing this package does not import torch: the verbs below load what they need on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from unleak.core.result import Result

__version__ = "0.1.0"

# public name -> module that defines it
_VERBS = {
    "attach": "unleak.engine.session",
    "generate": "unleak.drawing.images",
    "Intervention": "unleak.core.intervention",
    "Window": "unleak.core.intervention",
    "Patch": "unleak.words.methods.patch",
    "Keep": "unleak.words.methods.probe",
    "Subset": "unleak.text.subsets",
    "Prune": "unleak.words.methods.prune",
    "tokens": "unleak.words.tokens.redundancy",
    "probe": "unleak.words.methods.probe",
    "diagnose": "unleak.words.diagnosis.diagnose",
    "repair": "unleak.words.repair.repair",
    "Maps": "unleak.words.methods.maps",
    "Boost": "unleak.words.methods.boost",
    "DeLeaker": "unleak.words.methods.deleaker",
    "StructureDiffusion": "unleak.words.methods.structure",
    "Cutoff": "unleak.words.methods.cutoff",
    "TEBOpt": "unleak.words.methods.tebopt",
    "doctor": "unleak.drawing.doctor",
    "lint": "unleak.words.lint.lint_file",
    "edit": "unleak.regions.edit",
    "Edit": "unleak.regions.plan",
    "regions": "unleak.regions.regional",
    "RegionPrompt": "unleak.regions.regional",
    "maps": "unleak.words.attention_maps",
    "scan": "unleak.copies.scan.scan",
    "calibrate": "unleak.copies.scan.fit",
    "Calibration": "unleak.copies.scan.calibrate",
    "audit": "unleak.copies.audit",
    "Attenuate": "unleak.copies.methods.attenuate",
    "Guard": "unleak.copies.methods.guard",
    "Detour": "unleak.copies.methods.detour",
}

Result.shown_by = "unleak.report"  # pages and pictures of results are loaded when one is shown or saved

__all__ = ["__version__", *_VERBS]


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return getattr(import_module(_VERBS[name]), name)
    raise AttributeError(f"module 'unleak' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
