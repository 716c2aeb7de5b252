"""Adapters of the `p2p` cases: the tables between prompts, and runs under attention control."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from oracle import Case, Record, adapter, draw_prompts
from reference import full_map
from unleak.core.intervention import Intervention
from unleak.engine.execute import execute
from unleak.engine.session import attach
from unleak.errors import BadInput
from unleak.regions.methods import alignment
from unleak.regions.methods.local_blend import LocalBlend
from unleak.regions.methods.p2p import P2P


def tables(tokenizer: Any, spec: dict[str, Any], steps: int) -> dict[str, Tensor]:
    """Every table of the prompts and parameters of a case; without the replacement where there is none."""
    params = spec["params"]
    source, *targets = alignment.cut(tokenizer, spec["prompts"], params.get("max_len"))
    scores = {name: params[name] for name in ("gap", "match", "mismatch") if name in params}
    mapper = torch.tensor([alignment.refinement(source, target, **scores) for target in targets])
    found = {
        "refinement_mapper": mapper,
        "refinement_alphas": (mapper >= 0).float(),
        "time_word_alphas": alignment.shares(targets, params["cross_replace_steps"], steps),
    }
    if "equalizer_words" in params:
        values = params["equalizer_values"]
        found["equalizer"] = alignment.equalizer(targets[-1], params["equalizer_words"], values)
    with contextlib.suppress(BadInput):
        found["replacement_mapper"] = torch.stack([alignment.replacement(source, t, shifted=False) for t in targets])
    return found


def only(found: dict[str, Tensor], case: Case) -> dict[str, Tensor]:
    return {name: value for name, value in found.items() if name in case.expected}


@adapter("p2p")
def p2p(case: Case) -> dict[str, Tensor]:
    return controlled(case) if "initial_latent" in case.inputs else aligned(case)


def aligned(case: Case) -> dict[str, Tensor]:
    from transformers import AutoTokenizer

    spec = case.spec
    folder = case.folder.parents[2] / "pipelines" / spec["pipeline"].split(" ")[0] / "tokenizer"
    return only(tables(AutoTokenizer.from_pretrained(folder), spec, spec["params"]["num_steps"]), case)


@dataclass(frozen=True, eq=False)
class Maps(Intervention):
    """Keeps the mid block's cross-attention maps before and after `method`, by step.

    The map after is what the executor gives for values that are the unit vectors: A 1 = A.
    """

    method: P2P | None = None

    def on_attention(self, ctx, site):
        if site.kind != "cross" or not site.name.startswith("mid_block"):
            return
        before = full_map(site, None)
        mix = self.method.on_attention(ctx, site)
        unit = torch.eye(site.text_length).expand(*site.v.shape[:2], -1, -1)
        after = before
        if mix is not None:
            after = execute(replace(site, v=unit), [mix], partial(F.scaled_dot_product_attention, scale=site.scale))
        ctx.results.setdefault("maps", []).append((before.flatten(0, 1), after.flatten(0, 1)))


def controlled(case: Case) -> dict[str, Tensor]:
    """A run of [source, target, ...] under attention control, beside a plain one."""
    spec, pipe = case.spec, case.pipeline()
    params, steps = spec["params"], spec["params"]["num_inference_steps"]
    found = tables(pipe.tokenizer, spec, steps)
    kinds = {"replace": "replace", "refine": "refine", "reweight": "same"}
    first, *rest = params["kind"].split("+")
    assert first in kinds and set(rest) <= {"reweight"}, f"the kind {params['kind']!r} is not described"
    share = params["self_replace_steps"]
    ends = share if isinstance(share, list) else (0.0, share)
    own_range = [int(end * steps) for end in ends]
    assert params.get("self_replace_step_range", own_range) == own_range
    method = P2P(
        spec["prompts"],
        kinds[first],
        params["cross_replace_steps"],
        share,
        params.get("self_replace_max_queries", 32 * 32),
        found.get("equalizer", {}),
        shifted=False,
    )
    bare = draw_prompts(pipe, case)
    with attach(pipe, Maps(method), method, *blends(spec, method), Record()) as run:
        final = draw_prompts(pipe, case)
    found |= {
        "final_latents": final,
        "final_latents_without_control": bare,
        "latents_per_step": torch.stack(run.results["latents"]),
    }
    for name in case.expected:
        if at := re.fullmatch(r"mid_cross_attention_step(\d+)_(before|after)", name):
            found[name] = run.results["maps"][int(at[1])][at[2] == "after"]
        if at := re.fullmatch(r"unet_output_step(\d+)", name):
            preds = run.results["preds"][int(at[1])]
            found[name] = torch.cat([preds[label] for label in ("uncond", "cond") if label in preds])
    return only(found, case)


def blends(spec: dict[str, Any], method: P2P) -> list[LocalBlend]:
    """The local blend of a case, if it has one, over the maps that the control leaves, as in the release."""
    given = dict(spec["params"].get("local_blend") or {})
    if not given:
        return []
    words, without = given.pop("words"), given.pop("substruct_words", None) or ()
    threshold, start = given.pop("threshold", 0.3), given.pop("start_blend", 0.2)
    assert not given, f"a local blend with {sorted(given)} is not described"
    return [LocalBlend(tuple(spec["prompts"]), each(words), each(without), threshold, start, method)]


def each(words: Any) -> tuple[tuple[str, ...], ...]:
    """The words of every prompt, where one of them may be given bare."""
    return tuple((some,) if isinstance(some, str) else tuple(some) for some in words)
