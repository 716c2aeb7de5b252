"""Adapter of the `masactrl` cases: mutual self-attention in a run of [source, target] prompts."""

from __future__ import annotations

import torch
from torch import Tensor

from oracle import Case, Record, adapter, draw_prompts
from unleak.core.intervention import Window
from unleak.engine.session import attach
from unleak.regions.methods.masactrl import MasaCtrl


@adapter("masactrl")
def masactrl(case: Case) -> dict[str, Tensor]:
    spec, pipe = case.spec, case.pipeline()
    params, start = spec["params"], spec["params"]["start_step"]
    steps, layers = params["num_inference_steps"], params["total_layers"]
    stop = min(params["total_steps"], steps)  # the release counts steps and layers
    method = MasaCtrl(
        Window(start / (steps - 1), (stop - 1) / (steps - 1)), Window(params["start_layer"] / (layers - 1), 1.0)
    )
    bare, seen = draw_prompts(pipe, case), []
    module = pipe.unet.get_submodule(spec["first_controlled_module"])
    watch = module.register_forward_hook(lambda _, args, out: seen.append((args[0].clone(), out.clone())))
    with attach(pipe, method, Record()) as run:
        final = draw_prompts(pipe, case)
    watch.remove()
    swaps = run.log[0]["edits"].get("0.MasaCtrl", {}).get("RowSwap", {})
    assert sorted(swaps) == sorted(spec["controlled_modules"]), f"other layers are controlled: {sorted(swaps)}"
    assert set(swaps.values()) == {2 * len(params["controlled_steps"])}, "other steps are controlled"
    outputs = [torch.cat([preds["uncond"], preds["cond"]]) for preds in run.results["preds"]]
    found = {
        "final_latents": final,
        "final_latents_without_control": bare,
        "latents_per_step": torch.stack(run.results["latents"]),
        "unet_output_step0": outputs[0],
        "unet_output_first_controlled_step": outputs[start],
        "selfattn_input_first_controlled": seen[start][0],
        "selfattn_output_first_controlled": seen[start][1],
    }
    return {name: value for name, value in found.items() if name in case.expected}
