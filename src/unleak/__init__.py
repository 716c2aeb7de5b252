"""Find and stop leaks in text-to-image diffusion.

Importing this package does not import torch: what stands below is loaded on first use. `dir(unleak)` lists it in four
groups: verbs, methods, results, and what authors of methods need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from unleak.core.result import Result as Result

__version__ = "0.2.0"

Result.shown_by = "unleak.report"  # pages and pictures of results are loaded when one is shown or saved

if TYPE_CHECKING:  # what editors and type checkers see; tests/test_face.py keeps both lists alike
    from unleak import errors as errors
    from unleak import judges as judges
    from unleak import metrics as metrics
    from unleak import models as models
    from unleak.copies.audit import Audit as Audit
    from unleak.copies.audit import audit as audit
    from unleak.copies.detect.detectors import Agreement as Agreement
    from unleak.copies.detect.detectors import BrightEnding as BrightEnding
    from unleak.copies.detect.detectors import Collapse as Collapse
    from unleak.copies.detect.detectors import Entropy as Entropy
    from unleak.copies.detect.detectors import LateEntropy as LateEntropy
    from unleak.copies.detect.detectors import Magnitude as Magnitude
    from unleak.copies.detect.detectors import SiteEntropy as SiteEntropy
    from unleak.copies.methods.attenuate import Attenuate as Attenuate
    from unleak.copies.methods.delayed import DelayedGuidance as DelayedGuidance
    from unleak.copies.methods.detour import Detour as Detour
    from unleak.copies.methods.guard import Guard as Guard
    from unleak.copies.methods.neurons import PruneNeurons as PruneNeurons
    from unleak.copies.methods.noise import NoisyRows as NoisyRows
    from unleak.copies.methods.optimise import OptimiseRows as OptimiseRows
    from unleak.copies.methods.pads import PadSwap as PadSwap
    from unleak.copies.methods.prss import PRSS as PRSS
    from unleak.copies.methods.repulsion import RepulsionOnly as RepulsionOnly
    from unleak.copies.methods.summary import MaskSummary as MaskSummary
    from unleak.copies.methods.words import InsertWords as InsertWords
    from unleak.copies.protect import Protection as Protection
    from unleak.copies.protect import guard as guard
    from unleak.copies.scan.calibrate import Calibration as Calibration
    from unleak.copies.scan.fit import calibrate as calibrate
    from unleak.copies.scan.scan import Scan as Scan
    from unleak.copies.scan.scan import scan as scan
    from unleak.core.attention import AttentionCall as AttentionCall
    from unleak.core.context import Context as Context
    from unleak.core.edits import Bias as Bias
    from unleak.core.edits import KeyScale as KeyScale
    from unleak.core.edits import KeyValueSwap as KeyValueSwap
    from unleak.core.edits import MapMix as MapMix
    from unleak.core.edits import Mask as Mask
    from unleak.core.edits import Partition as Partition
    from unleak.core.edits import QueryKeySwap as QueryKeySwap
    from unleak.core.edits import Region as Region
    from unleak.core.edits import RowSwap as RowSwap
    from unleak.core.edits import ValueSwap as ValueSwap
    from unleak.core.hook import hook as hook
    from unleak.core.intervention import Intervention as Intervention
    from unleak.core.intervention import SiteFilter as SiteFilter
    from unleak.core.intervention import Window as Window
    from unleak.core.presets import Preset as Preset
    from unleak.drawing.doctor import Report as Report
    from unleak.drawing.images import Images as Images
    from unleak.drawing.images import generate as generate
    from unleak.engine.session import attach as attach
    from unleak.regions.edit import edit as edit
    from unleak.regions.edited import Edited as Edited
    from unleak.regions.methods.ale import Ale as Ale
    from unleak.regions.methods.direct import DirectInversion as DirectInversion
    from unleak.regions.methods.flowedit import FlowAlign as FlowAlign
    from unleak.regions.methods.flowedit import FlowEdit as FlowEdit
    from unleak.regions.methods.infedit import UnifiedAttentionControl as UnifiedAttentionControl
    from unleak.regions.methods.inversion import Inversion as Inversion
    from unleak.regions.methods.masactrl import MutualAttention as MutualAttention
    from unleak.regions.methods.null_text import NullTextInversion as NullTextInversion
    from unleak.regions.methods.ore import ORE as ORE
    from unleak.regions.methods.p2p import PromptToPrompt as PromptToPrompt
    from unleak.regions.methods.pnp import PlugAndPlayFeatures as PlugAndPlayFeatures
    from unleak.regions.methods.rf_inversion import RFInversion as RFInversion
    from unleak.regions.methods.rgbcam import RGBCAM as RGBCAM
    from unleak.regions.plan import Edit as Edit
    from unleak.regions.regional import RegionalImages as RegionalImages
    from unleak.regions.regional import RegionPrompt as RegionPrompt
    from unleak.regions.regional import regions as regions
    from unleak.report.catalogue import Methods as Methods
    from unleak.report.catalogue import methods as methods
    from unleak.report.catalogue import preset as preset
    from unleak.report.verbs import doctor as doctor
    from unleak.text.items import Item as Item
    from unleak.text.subsets import Subset as Subset
    from unleak.words.attention_maps import AttentionMaps as AttentionMaps
    from unleak.words.attention_maps import maps as maps
    from unleak.words.diagnosis.diagnose import diagnose as diagnose
    from unleak.words.diagnosis.diagnosis import Diagnosis as Diagnosis
    from unleak.words.lint.calibration import RiskCalibration as RiskCalibration
    from unleak.words.lint.lint_file import Lint as Lint
    from unleak.words.lint.lint_file import lint as lint
    from unleak.words.methods.boost import Boost as Boost
    from unleak.words.methods.contextless import Contextless as Contextless
    from unleak.words.methods.cutoff import Cutoff as Cutoff
    from unleak.words.methods.deleaker import DeLeaker as DeLeaker
    from unleak.words.methods.lens import Lens as Lens
    from unleak.words.methods.maps import Maps as Maps
    from unleak.words.methods.patch import Patch as Patch
    from unleak.words.methods.probe import Keep as Keep
    from unleak.words.methods.probe import probe as probe
    from unleak.words.methods.prune import Prune as Prune
    from unleak.words.methods.structure import StructureDiffusion as StructureDiffusion
    from unleak.words.methods.taca import TACA as TACA
    from unleak.words.methods.tebopt import TEBOpt as TEBOpt
    from unleak.words.methods.weight import Weight as Weight
    from unleak.words.methods.weight import weighted as weighted
    from unleak.words.repair.repair import Repaired as Repaired
    from unleak.words.repair.repair import repair as repair
    from unleak.words.tokens.redundancy import TokenStudy as TokenStudy
    from unleak.words.tokens.redundancy import tokens as tokens
else:
    _MODULES = {
        # verbs: what one does with a pipeline, and what the verbs take
        "attach": "unleak.engine.session",
        "generate": "unleak.drawing.images",
        "diagnose": "unleak.words.diagnosis.diagnose",
        "repair": "unleak.words.repair.repair",
        "tokens": "unleak.words.tokens.redundancy",
        "lint": "unleak.words.lint.lint_file",
        "edit": "unleak.regions.edit",
        "regions": "unleak.regions.regional",
        "scan": "unleak.copies.scan.scan",
        "calibrate": "unleak.copies.scan.fit",
        "guard": "unleak.copies.protect",
        "audit": "unleak.copies.audit",
        "doctor": "unleak.report.verbs",
        "maps": "unleak.words.attention_maps",
        "probe": "unleak.words.methods.probe",
        "methods": "unleak.report.catalogue",
        "preset": "unleak.report.catalogue",
        "Item": "unleak.text.items",
        "Subset": "unleak.text.subsets",
        "Edit": "unleak.regions.plan",
        "RegionPrompt": "unleak.regions.regional",
        # methods: room by room: words, regions, copies
        "Patch": "unleak.words.methods.patch",
        "Prune": "unleak.words.methods.prune",
        "Boost": "unleak.words.methods.boost",
        "StructureDiffusion": "unleak.words.methods.structure",
        "Contextless": "unleak.words.methods.contextless",
        "Cutoff": "unleak.words.methods.cutoff",
        "TEBOpt": "unleak.words.methods.tebopt",
        "DeLeaker": "unleak.words.methods.deleaker",
        "Weight": "unleak.words.methods.weight",
        "weighted": "unleak.words.methods.weight",
        "TACA": "unleak.words.methods.taca",
        "Keep": "unleak.words.methods.probe",
        "Maps": "unleak.words.methods.maps",
        "Lens": "unleak.words.methods.lens",
        "RGBCAM": "unleak.regions.methods.rgbcam",
        "ORE": "unleak.regions.methods.ore",
        "Ale": "unleak.regions.methods.ale",
        "UnifiedAttentionControl": "unleak.regions.methods.infedit",
        "PromptToPrompt": "unleak.regions.methods.p2p",
        "MutualAttention": "unleak.regions.methods.masactrl",
        "PlugAndPlayFeatures": "unleak.regions.methods.pnp",
        "FlowEdit": "unleak.regions.methods.flowedit",
        "FlowAlign": "unleak.regions.methods.flowedit",
        "RFInversion": "unleak.regions.methods.rf_inversion",
        "Inversion": "unleak.regions.methods.inversion",
        "DirectInversion": "unleak.regions.methods.direct",
        "NullTextInversion": "unleak.regions.methods.null_text",
        "Detour": "unleak.copies.methods.detour",
        "Guard": "unleak.copies.methods.guard",
        "Attenuate": "unleak.copies.methods.attenuate",
        "InsertWords": "unleak.copies.methods.words",
        "NoisyRows": "unleak.copies.methods.noise",
        "OptimiseRows": "unleak.copies.methods.optimise",
        "MaskSummary": "unleak.copies.methods.summary",
        "DelayedGuidance": "unleak.copies.methods.delayed",
        "RepulsionOnly": "unleak.copies.methods.repulsion",
        "PadSwap": "unleak.copies.methods.pads",
        "PRSS": "unleak.copies.methods.prss",
        "PruneNeurons": "unleak.copies.methods.neurons",
        "Magnitude": "unleak.copies.detect.detectors",
        "Agreement": "unleak.copies.detect.detectors",
        "Collapse": "unleak.copies.detect.detectors",
        "Entropy": "unleak.copies.detect.detectors",
        "SiteEntropy": "unleak.copies.detect.detectors",
        "LateEntropy": "unleak.copies.detect.detectors",
        "BrightEnding": "unleak.copies.detect.detectors",
        # results: what the verbs give back
        "Result": "unleak.core.result",
        "Images": "unleak.drawing.images",
        "Diagnosis": "unleak.words.diagnosis.diagnosis",
        "Repaired": "unleak.words.repair.repair",
        "TokenStudy": "unleak.words.tokens.redundancy",
        "Lint": "unleak.words.lint.lint_file",
        "RiskCalibration": "unleak.words.lint.calibration",
        "Edited": "unleak.regions.edited",
        "RegionalImages": "unleak.regions.regional",
        "Scan": "unleak.copies.scan.scan",
        "Calibration": "unleak.copies.scan.calibrate",
        "Protection": "unleak.copies.protect",
        "Audit": "unleak.copies.audit",
        "Report": "unleak.drawing.doctor",
        "AttentionMaps": "unleak.words.attention_maps",
        "Methods": "unleak.report.catalogue",
        # for authors: what a method of one's own is written with
        "hook": "unleak.core.hook",
        "Intervention": "unleak.core.intervention",
        "Window": "unleak.core.intervention",
        "SiteFilter": "unleak.core.intervention",
        "Context": "unleak.core.context",
        "AttentionCall": "unleak.core.attention",
        "KeyScale": "unleak.core.edits",
        "Bias": "unleak.core.edits",
        "Mask": "unleak.core.edits",
        "Region": "unleak.core.edits",
        "Partition": "unleak.core.edits",
        "RowSwap": "unleak.core.edits",
        "QueryKeySwap": "unleak.core.edits",
        "KeyValueSwap": "unleak.core.edits",
        "ValueSwap": "unleak.core.edits",
        "MapMix": "unleak.core.edits",
        "Preset": "unleak.core.presets",
    }
    """Public name -> the module that defines it."""
    _ROOMS = ("errors", "judges", "metrics", "models", "regions")
    """Modules that are public as they are. `unleak.regions` is the room, which is the verb, too."""
    __all__ = ["__version__", *_MODULES, *_ROOMS[:-1]]

    def __getattr__(name: str) -> Any:
        if name in _ROOMS:
            return import_module(f"unleak.{name}")
        if name in _MODULES:
            return getattr(import_module(_MODULES[name]), name)
        raise AttributeError(f"module 'unleak' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return list(__all__)
