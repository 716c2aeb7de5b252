"""The table of editors: `unleak.edit`, the command line, benchmarks, help and docs know those that stand here.

A new editor is a file in `methods/` with its dataclass, a `Method`, and a line here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unleak.core.presets import Preset, Presets
from unleak.errors import BadInput
from unleak.regions.methods.ale import Ale
from unleak.regions.methods.direct import DirectInversion
from unleak.regions.methods.flowedit import FlowAlign, FlowEdit
from unleak.regions.methods.infedit import UnifiedAttentionControl
from unleak.regions.methods.inversion import Inversion
from unleak.regions.methods.masactrl import MutualAttention
from unleak.regions.methods.null_text import NullTextInversion
from unleak.regions.methods.p2p import PromptToPrompt
from unleak.regions.methods.pnp import PlugAndPlayFeatures
from unleak.regions.methods.rf_inversion import RFInversion

OFFICIAL = {
    "posterior": "sample",
    "base_index": "official",
    "find": "first",
    "rest": "alone",
    "overlap": "background",
    "bias": "mask",
    "foreground": "multiscale",
    "bb_first_step": False,
    "bb_final": False,
}
"""Where the authors' release of ALE departs from the paper."""

EDITORS = Presets(
    "editor",
    [
        Preset("ale", Ale, "Each region reads its own object alone; the background is the source's.", Ale.citation),
        Preset("ale-official", Ale, "ALE as the authors' release computes it.", Ale.citation, OFFICIAL),
        Preset(
            "infedit",
            UnifiedAttentionControl,
            "Cross- and self-attention controlled together, over a third branch for the layout.",
            UnifiedAttentionControl.citation,
        ),
        Preset("p2p", PromptToPrompt, "The target attends where the source attends.", PromptToPrompt.citation),
        Preset("masactrl", MutualAttention, "The target reads the source's keys and values.", MutualAttention.citation),
        Preset(
            "pnp",
            PlugAndPlayFeatures,
            "The source's features, queries and keys, beside its inverted latents.",
            PlugAndPlayFeatures.citation,
        ),
        Preset(
            "flowedit",
            FlowEdit,
            "Along a flow, the difference of what target and source predict; no inversion.",
            FlowEdit.citation,
        ),
        Preset(
            "flowalign",
            FlowAlign,
            "FlowEdit guided against the source's prompt, and pulled towards the source.",
            FlowAlign.citation,
        ),
        Preset(
            "rf-inversion",
            RFInversion,
            "The target's prompt, from the source's noise along a flow, drawn to both.",
            RFInversion.citation,
        ),
        Preset("ddim", Inversion, "The target's prompt, from the source's inverted noise.", Inversion.citation),
        Preset(
            "direct",
            DirectInversion,
            "Prompt-to-Prompt beside a source that keeps to its inverted latents.",
            DirectInversion.citation,
        ),
        Preset(
            "null-text",
            NullTextInversion,
            "Prompt-to-Prompt under unconditional rows that lead back to the source.",
            NullTextInversion.citation,
        ),
    ],
)


def known_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some options that an editor has as parameters."""
    known = {parameter.name for parameter in EDITORS[name].parameters}
    return {key: value for key, value in options.items() if key in known}


def recommended(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a model recommends, as far as it concerns an editor; under its name stands what is for it alone.

    An editor that inverts keeps its published steps and guidance unless it is named: the few steps that suffice from
    noise do not lead back to a source. Raises BadInput: what stands under the name is no mapping.
    """
    kept = ("steps", "target_guidance") if EDITORS[name].method.inverts else ()
    general = {key: value for key, value in known_options(name, options).items() if key not in kept}
    own = options.get(name, {})
    if not isinstance(own, Mapping):
        raise BadInput(f'what a model recommends for {name} must look like {{"{name}": {{"target_guidance": 2.0}}}}')
    return {**general, **known_options(name, own)}
