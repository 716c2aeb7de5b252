"""Parity adapter of DeLeaker: the released edits, pair by pair, on a FLUX pipeline: masks and latents.

Any number of items, blocks and steps, either history and every switch of the release is described by `case.json`.
"""

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
from unleak.words.methods.deleaker import DeLeaker, call_fraction
from unleak.words.methods.item_masks import above_threshold


@dataclass(frozen=True)
class Recorded(DeLeaker):
    """Keeps the masks of every call that makes some for its edits, before and after smoothing.

    With its binary history the release makes masks in every call, also where it edits nothing.
    """

    def needs_masks(self, now):
        return self.history == "earlier" or super().needs_masks(now)

    def masks(self, ctx, site, positions):
        masks = super().masks(ctx, site, positions)
        if masks is not None and (self.history == "earlier" or call_fraction(ctx, site) in self.act):
            ctx.results.setdefault("masks", []).append(masks[0].flatten(1))
            ctx.results.setdefault("raw", []).append(ctx.state["raw"])
        return masks

    def masks_of(self, ctx, a):
        ctx.state["raw"] = above_threshold(a, self.std_threshold)[0].flatten(1)
        return super().masks_of(ctx, a)


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
    return Window(max(0.0, (inside[0] - 0.5) / len(numbers)), min(1.0, (inside[-1] + 0.5) / len(numbers)))


def method_of(spec: dict[str, Any]) -> Recorded | None:
    """The release's settings as ours; None where it edits nothing."""
    params, config, prompt = spec["params"], spec["params"]["config"], spec["prompt"]
    assert config["num_text_tokens"] == params["max_sequence_length"], "the release would take text for image"
    numbers, binary, start = call_numbers(params), config["use_binary_history"], config["start_aggregating_from"]
    # without the binary history nothing is edited before maps are gathered
    first = config["start_intervention_from"] if binary else max(config["start_intervention_from"], start)
    gather = window(numbers, start, max(start, config["stop_aggregating_at"] - 1))
    act = window(numbers, first, config["stop_intervention_at"])
    if not config["use_deleaker"] or act is None:
        return None
    names = [name if occurrences(prompt, name) else name.lower() for name in spec["entities"]]
    history = "none" if not config["use_history"] or gather is None else "earlier" if binary else "mean"
    return Recorded(
        [Item(name, 1 if len(occurrences(prompt, name)) > 1 else None) for name in names],
        gain=config["k_strength"] if config["do_image_text_strengthening"] else 1.0,
        weaken=config["do_image_text_weakening"],
        image_image=config["do_image_image"],
        text_text=config["do_text_text_weakening"],
        std_threshold=config["std_mul_text"],
        link_threshold=config["std_mul_image_image"],
        morphology=config["do_smoothing"] and params["height"] == params["width"],  # the release smooths squares only
        history=history,
        pairwise=True,
        gather=gather or Window(),
        act=act,
    )


@adapter("deleaker")
def deleaker(case: Case) -> dict[str, Tensor]:
    method, pipe = method_of(case.spec), case.pipeline()
    without_control = draw_case(pipe, case)
    with attach(pipe, *([method] if method else []), Trace()) as run:
        final = draw_case(pipe, case)
    tensors = {
        "final_latents": final,
        "final_latents_without_control": without_control,
        "latents_per_step": torch.stack(run.results["latents"]),
        "transformer_output_per_step": torch.stack(run.results["preds"]),
        "t5_token_ids": run.results["text_encoder_2"][0].to(torch.int32),
    }
    if method:
        tensors["entity_masks"] = torch.stack(run.results["masks"])
        tensors["entity_masks_before_smoothing"] = torch.stack(run.results["raw"])
    return tensors


def draw_case(pipe: Any, case: Case) -> Tensor:
    params = case.spec["params"]
    names = ("num_inference_steps", "guidance_scale", "height", "width", "max_sequence_length")
    call = {name: params[name] for name in names}
    latents = case.inputs["initial_latents"].clone()
    return pipe(case.spec["prompt"], latents=latents, output_type="latent", **call).images
