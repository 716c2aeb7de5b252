"""Both embedded models take every detector and every mitigation, or say what of their architecture forbids it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import unleak
from unleak import models
from unleak.copies.detect.detectors import Detector
from unleak.copies.presets import DETECTORS, MITIGATIONS
from unleak.core.predictions import guidance, scale_of_guidance
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
    assert scale_of_guidance(combined, u, c) == pytest.approx(w, abs=2e-2 if dtype == torch.bfloat16 else 1e-5)
    assert scale_of_guidance(combined + u.square(), u, c) is None
    assert scale_of_guidance(u, u, u) == 1.0
