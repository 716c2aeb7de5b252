"""Both embedded models take every detector and every mitigation, or say what of their architecture forbids it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import unleak
from unleak import models
from unleak.cli import app
from unleak.copies.detect.detectors import Detector
from unleak.copies.presets import DETECTORS, MITIGATIONS
from unleak.core.predictions import Combination, combination_of, guidance
from unleak.errors import BadInput, PromptTruncated, UnsupportedModel
from unleak.world import load

STEPS = 3
MODELS = ("emoji-sd", "emoji-flux")
#: what joint attention, or a T5 with its vocabulary, does not allow
REFUSED = {
    ("emoji-flux", "guard-official"): "site",
    ("emoji-flux", "optimise-rows"): "joins text and image",
    ("emoji-flux", "nemo"): "joins text and image",
    ("emoji-flux", "pad-swap"): "2 tokens",
    ("emoji-flux", "random-number"): "reads 32 tokens",
}


@cache
def opened(model: str) -> tuple[Any, dict[str, Any]]:
    return models.load(model), {**models.settings(model), "num_inference_steps": STEPS}


@cache
def caption() -> str:
    return min((c.text for c in load().memorized if c.kind == "verbatim"), key=len)


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("model", MODELS)
def test_every_detector_scores_on_the_models_that_ship(model: str, name: str) -> None:
    pipe, call = opened(model)
    steps = None if Detector.named(name).whole else 1
    found = unleak.scan(pipe, [caption(), "a cat"], seeds=2, first_steps=steps, detectors=[name], call=call)
    assert np.isfinite(found.images[name]).all() and found.images[name].shape == (2, 2)


@pytest.mark.parametrize("name", MITIGATIONS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.filterwarnings("ignore")
def test_every_mitigation_guards_the_models_that_ship_or_says_why_not(model: str, name: str) -> None:
    pipe, call = opened(model)
    if says := REFUSED.get((model, name)):
        with pytest.raises((UnsupportedModel, BadInput, PromptTruncated), match=says):
            unleak.guard(pipe, caption(), name, seeds=2, call=call)
        return
    result = unleak.guard(pipe, caption(), name, seeds=2, call=call)
    assert result.before.shape == result.after.shape and result.before.std() > 0 and result.after.std() > 0


def test_the_scale_that_a_pipeline_shows_is_the_one_it_was_given() -> None:
    pipe, call = opened("emoji-flux")
    shown, given = (
        unleak.guard(pipe, caption(), "guard", seeds=2, call=call, **more).after
        for more in ({}, {"scale": call["true_cfg_scale"]})
    )
    assert np.abs(shown.astype(int) - given).max() <= 1  # solved from the predictions, to rounding


@pytest.mark.parametrize("w", [0.0, 1.0, 3.5, -2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_scale_of_guidance_is_solved_and_another_combination_is_told(w: float, dtype: torch.dtype) -> None:
    u, c = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    combined = guidance(u, c, w)
    for sign in (1, -1):
        shown = combination_of(sign * combined, u, c)
        assert shown == Combination(pytest.approx(w, abs=2e-2 if dtype == torch.bfloat16 else 1e-5), sign)
        rescaled = Combination(w, sign, rescaled=True).finish(combined, c)
        shown = combination_of(rescaled, u, c)
        assert shown == Combination(pytest.approx(w, abs=5e-2), sign, rescaled=w != 1)
        assert torch.allclose(shown.finish(combined, c), rescaled, atol=1e-4 if dtype == torch.float32 else 0.1)
    assert combination_of(combined + u.square(), u, c) is None
    assert combination_of(u, u, u) == Combination(1.0) and combination_of(-u, u, u) == Combination(1.0, -1)


@pytest.mark.parametrize("model", MODELS)
def test_a_calibration_comes_with_each_model_and_scan_and_guard_use_it(
    model: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*args: str) -> Any:
        done = CliRunner().invoke(app, [*args, "-m", model])
        assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
        return done.exit_code, done.stdout, " ".join(done.stderr.split())

    (tmp_path / "p.txt").write_text(f"{caption()}\na cat and a boat\n")
    monkeypatch.chdir(tmp_path)
    code, _, says = run("scan", "p.txt", "-o", "s.jsonl", "--fail-over", "threshold")
    assert code == 3 and "calibrated by" in says and "1 of 2 prompts" in says
    code, _, says = run("scan", "p.txt", "-o", "t.jsonl", "--seeds", "0:2")
    assert code == 0 and "is not used" in says and "seeds" in says and "uncalibrated" in says
    assert run("scan", "p.txt", "-o", "u", "--seeds", "0:2", "--fail-over", "threshold")[0] == 2
    code, out, _ = run("guard", "a cat and a boat", "--gate", "auto", "-o", "g")
    assert code == 0 and "acted on 0 of 4" in out


def test_a_folder_may_bring_no_file_of_another_folder_as_its_calibration(tmp_path: Any) -> None:
    for name in ("../c.json", "/etc/passwd", "a/b.json", ".."):
        (tmp_path / "unleak.json").write_text(f'{{"calibration": "{name}"}}')
        with pytest.raises(BadInput, match="name of a file"):
            models.FILE.load(tmp_path / "unleak.json")
