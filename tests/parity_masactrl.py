"""Adapter of the `masactrl` cases: mutual self-attention in a run of [source, target, ...] prompts."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from oracle import Case, Record, adapter, draw_prompts
from unleak.core.intervention import Window
from unleak.engine.session import attach
from unleak.regions.methods.masactrl import MasaCtrl


@adapter("masactrl")
def masactrl(case: Case) -> dict[str, Tensor]:
    spec, pipe = case.spec, case.pipeline()
    params, module = spec["params"], pipe.unet.get_submodule(spec["first_controlled_module"])
    method, steps = control(params)
    plain, calls = draw_prompts(pipe, case), []
    watch = module.register_forward_hook(lambda _, args, out: calls.append((args[0].clone(), out.clone())))
    with attach(pipe, method, Record()) as run:
        final = draw_prompts(pipe, case)
    watch.remove()
    swaps = run.log[0]["edits"].get("0.MasaCtrl", {}).get("RowSwap", {})
    assert sorted(swaps) == sorted(spec["controlled_modules"]), f"other layers are controlled: {sorted(swaps)}"
    halves = len(run.results["preds"][0])  # uncond and cond, each swapped by itself
    assert set(swaps.values()) == {halves * len(steps)}, "other steps are controlled"
    tensors = {
        "final_latents": final,
        "final_latents_without_control": plain,
        "latents_per_step": torch.stack(run.results["latents"]),
        "selfattn_input_first_controlled": calls[params["start_step"]][0],
        "selfattn_output_first_controlled": calls[params["start_step"]][1],
    }
    for name in case.expected:
        if at := re.fullmatch(r"unet_output_(?:step(\d+)|first_controlled_step)", name):
            preds = run.results["preds"][int(at[1] or params["start_step"])]
            tensors[name] = torch.cat([preds[label] for label in ("uncond", "cond") if label in preds])
    return {name: tensor for name, tensor in tensors.items() if name in case.expected}


def control(params: dict[str, Any]) -> tuple[MasaCtrl, list[int]]:
    """The method of a case, and the steps that it controls.

    Steps and layers are listed, or go from a first one to the end of what the release counts. Where they reach to the
    end of the run they are a window of ours, too.
    """
    total = {"step": params["num_inference_steps"], "layer": params["total_layers"]}
    which: dict[str, Any] = {}
    for kind, n in total.items():
        from_start = list(range(params[f"start_{kind}"], min(params.get(f"total_{kind}s", n), n)))
        which[kind] = params.get(f"controlled_{kind}s", from_start)
    steps = which["step"]
    for kind, n in total.items():
        first = which[kind][0]
        window = Window(first / (n - 1), 1.0) if n > 1 else Window()
        if which[kind] == window.among(n) and (kind == "step" or steps[0] > 0):
            which[kind] = window
    return MasaCtrl(which["step"], which["layer"]), steps
