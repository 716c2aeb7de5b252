"""Parity with golden tensors of the authors' released code: `pytest -m parity --oracle DIR`.

Every `DIR/cases/<method>/<case>/case.json` is a test. An adapter runs our implementation on a case's inputs and
returns tensors under the names of its expected outputs. A case without an adapter is skipped, by name.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from parity_ren import ren
from tiny import save_tiny, tiny
from unleak.core.intervention import Intervention
from unleak.core.session import attach


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
    given = spec.get("params", {})
    for method, params, function in ADAPTERS:
        if method == spec["method"] and all(given.get(name) == value for name, value in params.items()):
            return function
    return None


def compare(case: Case, found: dict[str, Tensor]) -> None:
    """The rule of `tolerance`: relative to each float tensor's largest value; integers and masks exactly."""
    expected, tolerance = case.expected, case.spec["tolerance"]
    assert found.keys() & expected.keys(), f"the adapter returned none of {sorted(expected)}"
    assert found.keys() <= expected.keys(), f"the case has no {sorted(found.keys() - expected.keys())}"
    first = next(name for name in case.spec["tensors"]["expected"] if expected[name].is_floating_point())
    relative = tolerance["atol"] / expected[first].abs().max()
    for name, ours in found.items():
        theirs = expected[name]
        assert ours.shape == theirs.shape, f"{name}: {tuple(ours.shape)} instead of {tuple(theirs.shape)}"
        if not theirs.is_floating_point():
            assert torch.equal(ours.to(theirs.dtype), theirs), f"{name} is not exact"
            continue
        error, limit = (ours - theirs).abs().max(), relative * theirs.abs().max()
        assert error <= limit, f"{name} is off by {error:.3g}, allowed {limit:.3g}"


@pytest.mark.parity
def test_case(oracle_case: Path) -> None:
    case = Case(oracle_case)
    run = find(case.spec)
    if run is None:
        spec = case.spec
        variant = spec.get("variant") or spec.get("params", {}).get("mode") or oracle_case.name
        pytest.skip(f"no adapter for method {spec['method']!r}, variant {variant!r}")
    compare(case, run(case))


# -- the rule itself, on a folder made here ----------------------------------------------------------------------


@pytest.fixture
def made(tmp_path):
    """A `guard` case whose expected tensors come from a bare tiny pipeline."""
    folder = tmp_path / "cases" / "guard" / "made"
    folder.mkdir(parents=True)
    save_tiny("sd1", tmp_path / "pipelines" / "some")
    params = {"mode": "plain", "num_inference_steps": 2, "num_images_per_prompt": 2, "guidance_scale": 3.0, "eta": 0.0}
    spec = {"method": "guard", "variant": "plain", "pipeline": "some", "prompt": "a dog", "params": params}
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    save_file({"initial_latents": latents}, folder / "inputs.safetensors")
    spec["tolerance"] = {"atol": 1e-4}
    spec["tensors"] = {"expected": {"final_latents": {}, "prompt_token_ids": {}}}
    (folder / "case.json").write_text(json.dumps(spec))
    case, pipe = Case(folder), tiny("sd1")
    ids = pipe.tokenizer("a dog", padding="max_length", max_length=77, return_tensors="pt").input_ids[0]
    save_file({"final_latents": draw_case(pipe, case), "prompt_token_ids": ids.int()}, folder / "expected.safetensors")
    return case


def test_any_folder_of_the_layout_will_do(made):
    found = guard_plain(made)
    compare(made, {name: found[name] for name in made.expected})


@pytest.mark.parametrize("name", ["final_latents", "prompt_token_ids"])
def test_a_difference_beyond_the_tolerance_fails(made, name):
    wrong = {key: value.clone() for key, value in made.expected.items()}
    compare(made, wrong)
    wrong[name][0] += 1
    with pytest.raises(AssertionError, match=name):
        compare(made, wrong)


def test_a_variant_without_an_adapter_has_none(made):
    assert find(made.spec) is guard_plain
    assert find({"method": "guard", "params": {"mode": "some other"}}) is None
    assert find({"method": "some other", "params": {}}) is None
    with pytest.raises(AssertionError, match="none of"):
        compare(made, {})


# -- adapters --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record(Intervention):
    """Keeps what the core hands out: predictions of every branch, latents after every step, token ids."""

    def on_text(self, ctx, call):
        ctx.run.results["ids"] = call.ids

    def on_prediction(self, ctx, preds):
        ctx.run.results.setdefault("preds", []).append(dict(preds))

    def on_latents(self, ctx, latents):
        ctx.run.results.setdefault("latents", []).append(latents)


@adapter("guard", mode="plain")
def guard_plain(case: Case) -> dict[str, Tensor]:
    spec, pipe = case.spec, case.pipeline()
    with attach(pipe, Record()) as run:
        final = draw_case(pipe, case)
    with attach(pipe):
        assert torch.equal(draw_case(pipe, case), final), "recording changed the run"
    scale, preds = spec["params"]["guidance_scale"], run.results["preds"]
    guided = [p["uncond"] + scale * (p["cond"] - p["uncond"]) for p in preds]
    return {
        "final_latents": final,
        "latents_per_step": torch.stack(run.results["latents"]),
        "guided_noise_per_step": torch.stack(guided),
        "unet_output_step0": torch.cat([preds[0]["uncond"], preds[0]["cond"]]),
        "prompt_token_ids": run.results["ids"][0].to(torch.int32),
    }


adapter("ren")(ren)


def draw_case(pipe: Any, case: Case) -> Tensor:
    """Final latents of a text-to-image case, from its initial latents."""
    spec, latents = case.spec, case.inputs["initial_latents"]
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


for path in sorted(Path(__file__).parent.glob("parity_*.py")):  # adapters of their own file register on import
    importlib.import_module(path.stem)
