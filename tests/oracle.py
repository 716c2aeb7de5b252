"""The parity harness: cases of an oracle folder, the adapters that answer them, and the rule that compares.

An adapter runs our implementation on a case's inputs and returns tensors under the names of its expected outputs.
Every `parity_*.py` beside this file registers adapters of one method.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from unleak.core.intervention import Intervention


@dataclass(frozen=True)
class Case:
    """One case: its description and its tensors. `oracle` is the folder of all."""

    folder: Path

    @property
    def spec(self) -> dict[str, Any]:
        return json.loads((self.folder / "case.json").read_text())

    @property
    def inputs(self) -> dict[str, Tensor]:
        return load_file(self.folder / "inputs.safetensors")

    @property
    def expected(self) -> dict[str, Tensor]:
        return load_file(self.folder / "expected.safetensors")

    def pipeline(self) -> Any:
        from diffusers import DiffusionPipeline

        folder = self.folder.parents[2] / "pipelines" / self.spec["pipeline"]
        optional = {"safety_checker": None} if (folder / "unet").exists() else {}
        pipe = DiffusionPipeline.from_pretrained(folder, **optional)
        pipe.set_progress_bar_config(disable=True)
        return pipe


Adapter = Callable[[Case], dict[str, Tensor]]
ADAPTERS: list[tuple[str, dict[str, Any], Adapter]] = []


def adapter(method: str, **params: Any) -> Callable[[Adapter], Adapter]:
    """Register the adapter of a method's cases whose `params` hold these values."""

    def register(function: Adapter) -> Adapter:
        ADAPTERS.append((method, params, function))
        return function

    return register


def find(spec: dict[str, Any]) -> Adapter | None:
    """The adapter of a case; None for a method that has none.

    Raises LookupError: the method has adapters, and none knows these params.
    """
    given = spec.get("params", {})
    of_method = [(params, function) for method, params, function in ADAPTERS if method == spec["method"]]
    for params, function in of_method:
        if all(given.get(name) == value for name, value in params.items()):
            return function
    if of_method:
        raise LookupError(f"no adapter of {spec['method']!r} for {given}; they know {[p for p, _ in of_method]}")
    return None


def compare(case: Case, ours: dict[str, Tensor]) -> None:
    """Every expected tensor within the case's `tolerance`; what an adapter returns beyond them is not looked at.

    Integers and masks are exact. Floats may be off by `atol` in the first of them, and by the same share of its own
    largest value in every other.
    """
    expected, tolerance = case.expected, case.spec["tolerance"]
    missing = sorted(expected.keys() - ours.keys())
    assert not missing, f"the adapter returned no {missing}; it has {sorted(ours)}"
    floats = [name for name in case.spec["tensors"]["expected"] if expected[name].is_floating_point()]
    relative = tolerance["atol"] / expected[floats[0]].abs().max() if floats else 0.0
    for name, theirs in expected.items():
        mine = ours[name]
        assert mine.shape == theirs.shape, f"{name}: {tuple(mine.shape)} instead of {tuple(theirs.shape)}"
        if not theirs.is_floating_point():
            assert torch.equal(mine.to(theirs.dtype), theirs), f"{name} is not exact"
            continue
        error, limit = (mine - theirs).abs().max(), relative * theirs.abs().max()
        assert error <= limit, f"{name} is off by {error:.3g}, allowed {limit:.3g}"


@dataclass(frozen=True)
class Record(Intervention):
    """Keeps what the core hands out: predictions of every branch, latents after every step, token ids."""

    def on_text(self, ctx, call):
        ctx.results["ids"] = call.ids

    def on_prediction(self, ctx, preds):
        ctx.results.setdefault("preds", []).append(dict(preds))

    def on_latents(self, ctx, latents):
        ctx.results.setdefault("latents", []).append(latents)


def draw_case(pipe: Any, case: Case, moved: float = 0.0) -> Tensor:
    """Final latents of a text-to-image case, from its initial latents, or from some moved by Gaussian noise."""
    spec, latents = case.spec, case.inputs["initial_latents"]
    latents = latents + moved * torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    names = ("num_inference_steps", "num_images_per_prompt", "guidance_scale", "eta")
    params = {name: spec["params"][name] for name in names if name in spec["params"]}
    side = [n * pipe.vae_scale_factor for n in latents.shape[-2:]]
    return pipe(
        spec["prompt"],
        negative_prompt=spec.get("negative_prompt"),
        latents=latents.clone(),
        height=side[0],
        width=side[1],
        output_type="latent",
        **params,
    ).images


def draw_prompts(pipe: Any, case: Case) -> Tensor:
    """Final latents [prompts, C, h, w] of a case whose prompts share one initial latent and one call."""
    spec, start = case.spec, case.inputs["initial_latent"]
    names = ("num_inference_steps", "guidance_scale", "eta")
    params = {name: spec["params"][name] for name in names if name in spec["params"]}
    height, width = (n * pipe.vae_scale_factor for n in start.shape[-2:])
    return pipe(
        spec["prompts"],
        negative_prompt=[spec.get("negative_prompt") or ""] * len(spec["prompts"]),
        latents=start.repeat(len(spec["prompts"]), 1, 1, 1),
        height=height,
        width=width,
        output_type="latent",
        **params,
    ).images
