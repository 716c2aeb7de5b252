"""Parity with golden tensors of the authors' released code: `pytest -m parity --oracle DIR`.

Every `DIR/cases/<method>/<case>/case.json` is a test (see `oracle.py`). A case of a method without any adapter is
skipped, by name; whatever a case of another method asks for is run.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from oracle import Case, compare, draw_case, find
from parity_guard import attenuation_schedule, guard_plain
from tiny import save_tiny, tiny
from unleak.copies.methods.attenuate import Attenuate

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
        pytest.skip(f"no adapter for method {case.spec['method']!r}")
    compare(case, run(case))


# -- the rule itself, on a folder made here ----------------------------------------------------------------------


@pytest.fixture
def case(tmp_path):
    """A `guard` case whose expected tensors come from a bare tiny pipeline."""
    folder = tmp_path / "cases" / "guard" / "some"
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


def test_any_folder_of_the_layout_will_do(case):
    compare(case, guard_plain(case))


@pytest.mark.parametrize("name", ["final_latents", "prompt_token_ids"])
def test_a_difference_beyond_the_tolerance_fails_and_so_does_a_missing_tensor(case, name):
    ours = {key: value.clone() for key, value in case.expected.items()}
    compare(case, ours)
    ours[name][0] += 1
    with pytest.raises(AssertionError, match=name):
        compare(case, ours)
    del ours[name]
    with pytest.raises(AssertionError, match=rf"returned no \['{name}'\]"):
        compare(case, ours)


def test_only_a_method_without_any_adapter_has_none(case):
    assert find(case.spec) is guard_plain
    assert find({"method": "some other", "params": {}}) is None
    with pytest.raises(LookupError, match="some other"):
        find({"method": "guard", "params": {"mode": "some other"}})


@pytest.mark.parametrize("steps", [2, 3, 10])
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.0, 0.7), (0.4, 0.7), (0.5, 1.0)])
def test_attenuation_acts_at_the_steps_of_the_release(steps, start, end):
    """From int(start T) to before int(end T), fading linearly over as many steps; window in words or in numbers."""
    words = {"bias_schedule": f"linear_fadeout {start} {end}"}
    numbers = {"bias_kind": "linear_fadeout", "bias_window": [start, end]}
    first, stop = int(start * steps), int(end * steps)
    for given in (words, numbers):
        if first == stop:
            with pytest.raises(AssertionError, match="no step"):
                attenuation_schedule({**given, "num_inference_steps": steps})
            continue
        method = Attenuate(alpha=0.0, **attenuation_schedule({**given, "num_inference_steps": steps}))
        assert method.window.among(steps) == list(range(first, stop))
        shares = [1 - method.attenuation.strength(i, steps, method.window) for i in range(first, stop)]
        assert shares == pytest.approx([1 - k / (stop - first) for k in range(stop - first)])
