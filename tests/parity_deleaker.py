"""Parity adapter of DeLeaker: the released pairwise edits on a FLUX pipeline, masks and latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oracle import Case, adapter
from unleak.core.intervention import Intervention, Window
from unleak.engine.session import attach
from unleak.text.items import Item
from unleak.text.match import occurrences
from unleak.words.methods.deleaker import DeLeaker, progress
from unleak.words.methods.item_columns import item_columns
from unleak.words.methods.own_region import standing_out


@dataclass(frozen=True)
class Recorded(DeLeaker):
    """Keeps the regions of every call that it acts on, before and after smoothing, and what the denoiser predicts."""

    def regions(self, ctx, site, found):
        masks = super().regions(ctx, site, found)
        if masks is not None and progress(ctx, site) in self.act:
            mean, key = ctx.state["mean"], (tuple(site.rows.images), site.grid)
            a = mean.mean(key) if mean.count(key) else item_columns(ctx, site, found)[1].mean(-1).movedim(-1, 1)
            ctx.results.setdefault("masks", []).append(masks[0].flatten(1))
            ctx.results.setdefault("raw", []).append(standing_out(a, self.spread)[0].flatten(1))
        return masks


@dataclass(frozen=True)
class Trace(Intervention):
    def on_text(self, ctx, call):
        ctx.results[call.name] = call.ids

    def on_prediction(self, ctx, preds):
        ctx.results.setdefault("preds", []).append(preds["cond"])

    def on_latents(self, ctx, latents):
        ctx.results.setdefault("latents", []).append(latents)


def call_numbers(params: dict[str, Any]) -> list[int]:
    """The release's number of every attention call that the pipeline makes, in order (see the case's notes)."""
    step, double = params["blocks_per_step_constant"], params["double_blocks_constant"]
    offsets = [*range(params["double_blocks"]), *(double + j for j in range(params["single_blocks"]))]
    return [t * step + offset for t in range(params["num_inference_steps"]) for offset in offsets]


def window(numbers: list[int], first: int, last: int) -> Window | None:
    """The calls numbered first..last, as progress of the run; its edges lie half-way between calls. None: no call."""
    inside = [i for i, number in enumerate(numbers) if first <= number <= last]
    if not inside:
        return None
    return Window(max(0.0, (inside[0] - 0.5) / len(numbers)), (inside[-1] + 0.5) / len(numbers))


@adapter("deleaker")
def deleaker(case: Case) -> dict[str, Tensor]:
    spec, pipe = case.spec, case.pipeline()
    params, config = spec["params"], spec["params"]["config"]
    assert not config["use_binary_history"], "the history of binary masks is not described"
    assert config["num_text_tokens"] == params["max_sequence_length"], "the release would take text for image"
    numbers, prompt = call_numbers(params), spec["prompt"]
    gather = window(numbers, config["start_aggregating_from"], config["stop_aggregating_at"] - 1)
    act = window(numbers, config["start_intervention_from"], config["stop_intervention_at"])
    several = {name: len(occurrences(prompt, name)) > 1 for name in spec["entities"]}
    method = Recorded(
        [Item(name, 1 if several[name] else None) for name in spec["entities"]],
        gain=config["k_strength"] if config["do_image_text_strengthening"] else 1.0,
        weaken=config["do_image_text_weakening"],
        image_image=config["do_image_image"],
        text_text=config["do_text_text_weakening"],
        spread=config["std_mul_text"],
        link=config["std_mul_image_image"],
        smooth=config["do_smoothing"] and params["height"] == params["width"],  # the release smooths squares only
        history=config["use_history"] and gather is not None,
        pairwise=True,
        gather=gather or Window(),
        act=act or Window(),
    )
    bare = draw_case(pipe, case)
    methods = [method] if config["use_deleaker"] and act is not None else []
    with attach(pipe, *methods, Trace()) as run:
        final = draw_case(pipe, case)
    found = {
        "final_latents": final,
        "final_latents_without_control": bare,
        "latents_per_step": torch.stack(run.results["latents"]),
        "transformer_output_per_step": torch.stack(run.results["preds"]),
        "t5_token_ids": run.results["text_encoder_2"][0].to(torch.int32),
    }
    if methods:
        found["entity_masks"] = torch.stack(run.results["masks"])
        found["entity_masks_before_smoothing"] = torch.stack(run.results["raw"])
    return {name: value for name, value in found.items() if name in case.expected}


def draw_case(pipe: Any, case: Case) -> Tensor:
    params = case.spec["params"]
    names = ("num_inference_steps", "guidance_scale", "height", "width", "max_sequence_length")
    given = {name: params[name] for name in names}
    latents = case.inputs["initial_latents"].clone()
    return pipe(case.spec["prompt"], latents=latents, output_type="latent", **given).images
