"""Parity with golden tensors of the authors' released code: `pytest -m parity --oracle DIR`.

Every `DIR/cases/<method>/<case>/case.json` is a test (see `oracle.py`). A case without an adapter is skipped, by name.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from oracle import Case, compare, draw_case, find
from parity_guard import guard_plain
from tiny import save_tiny, tiny

for path in sorted(Path(__file__).parent.glob("parity_*.py")):  # every method's adapters register on import
    importlib.import_module(path.stem)


@pytest.fixture
def one_thread():
    """Sums are made in one order: on several threads rounding alone can reach a case's tolerance."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parity
def test_case(oracle_case: Path, one_thread: None) -> None:
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
