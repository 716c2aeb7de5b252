"""What copies/ reads and changes under every kind of guidance: one call or two a step, perturbed, distilled."""

from __future__ import annotations

import math

import diffusers
import numpy as np
import pytest
import torch

from tiny import draw, tiny
from unleak.copies.detect.detect import agreement, magnitude
from unleak.copies.detect.detectors import Agreement, Magnitude
from unleak.copies.methods.attenuate import Attenuate
from unleak.copies.methods.delayed import DelayedGuidance
from unleak.copies.methods.detour import Detour
from unleak.copies.methods.guard import Guard
from unleak.copies.methods.prss import PRSS
from unleak.copies.methods.repulsion import RepulsionOnly
from unleak.copies.presets import DETECTORS
from unleak.copies.scan.scan import scan
from unleak.core.intervention import Intervention
from unleak.engine.session import attach
from unleak.errors import BadInput

TRUE = {"negative_prompt": "a cat", "true_cfg_scale": 3.0}  # two calls of the denoiser a step
MANY = {"seeds": (0, 1), "num_images_per_prompt": 2, "steps": 2}


def drawn(pipe, *methods, **call):
    """Latents, and the log of the generation."""
    with attach(pipe, *methods) as run:
        return draw(pipe, **{**MANY, **call}), run.log[-1]


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() < 1e-4 * b.abs().max())


METHODS = [
    (Guard, {}), (Guard, {"source": "clean"}), (Attenuate, {}), (Detour, {"near": -1.0}), (PRSS, {"loud": 0.1}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "fields"), METHODS, ids=str)
def test_a_gate_decides_where_the_denoiser_is_called_once_per_branch(flux, method, fields):
    bare = draw(flux, **MANY, **TRUE)
    ungated, _ = drawn(flux, method(**fields), **TRUE)
    opened, log = drawn(flux, method(**fields, gate=-math.inf), **TRUE)
    shut, plain = drawn(flux, method(**fields, gate=math.inf), **TRUE)
    assert near(opened, ungated) and not near(opened, bare) and log["denoiser_rows"] >= 8
    assert torch.equal(shut, bare) and plain["denoiser_rows"] == 8


def test_one_flagged_prompt_of_two_is_acted_on_where_branches_are_called_apart(flux):
    prompts = {"prompt": ["a red mouse and a dog", "a zebra"], "negative_prompt": ["a cat"] * 2, "true_cfg_scale": 3.0}
    call = {**prompts, "seeds": range(2), "num_images_per_prompt": 1}
    bare, (with_all, _) = draw(flux, **{**MANY, **call}), drawn(flux, Attenuate(), **call)
    with attach(flux, Attenuate(gate=math.inf)) as run:
        draw(flux, **{**MANY, **call})
    score = [decision["score"] for decision in run.results["gate"]]
    high = score.index(max(score))
    found, _ = drawn(flux, Attenuate(gate=sum(score) / 2), **call)
    assert near(found[high], with_all[high]) and near(found[1 - high], bare[1 - high])
    assert not near(found[high], bare[high])


# -- perturbed guidance: its batch has the prompt twice ---------------------------------------------------------


@pytest.fixture(scope="module")
def pag():
    pipe = diffusers.AutoPipelineForText2Image.from_pipe(tiny("sdxl"), enable_pag=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_clean_rows_tell_the_spikes_where_the_batch_repeats_the_prompt(pag):
    own, _ = drawn(pag, Guard())
    clean, log = drawn(pag, Guard(source="clean"))
    assert not near(clean, own) and log["edits"]["0.Guard"]["KeyScale"]
    assert near(drawn(pag, Guard(source="clean", gate=-math.inf))[0], clean)
    everything = Guard(source="clean", tau=math.inf), Guard(tau=math.inf)  # without a spike both are the same
    assert near(*(drawn(pag, method)[0] for method in everything))


@pytest.mark.parametrize("name", ["entropy", "late-entropy"])
def test_entropies_read_the_prompt_s_own_rows(pag, name):
    call = {"num_inference_steps": 2, "height": 64, "width": 64}
    plain = diffusers.StableDiffusionXLPipeline.from_pipe(pag)
    steps = None if name == "late-entropy" else 1
    found, expected = (
        scan(p, ["a red mouse"], 2, steps, [name], call=c).images[name]
        for p, c in ((pag, {**call, "pag_scale": 0.0}), (plain, call))
    )
    assert found.shape == expected.shape == (1, 2) and np.allclose(found, expected, rtol=1e-4)


# -- distilled guidance: the scale is the denoiser's input ------------------------------------------------------


def at_scale(pipe, w: float, **call):
    return draw(pipe, **{**MANY, **call}, guidance_scale=w)


@pytest.mark.parametrize(
    ("method", "scale"),
    [(Guard(alpha=1.0, repulsion_schedule="constant", rho=1.5), 2.0), (RepulsionOnly(schedule="constant"), 1.5),
     (DelayedGuidance(until=1.1, before=0.5), 1.75), (Guard(rho=0.0, alpha=1.0, schedule="rising"), 3.5)],
    ids=str,
)  # fmt: skip
def test_weaker_guidance_is_a_smaller_input(flux, method, scale):
    found, _ = drawn(flux, method, guidance_scale=3.5)
    assert near(found, at_scale(flux, scale)) and (scale == 3.5 or not near(found, at_scale(flux, 3.5)))


def test_guard_has_three_groups_of_rows_on_distilled_guidance(flux):
    bare = at_scale(flux, 3.5)
    found, log = drawn(flux, Guard(), guidance_scale=3.5)
    attenuated, _ = drawn(flux, Attenuate(tau=0.1), guidance_scale=3.5)
    assert log["denoiser_rows"] == 3 * 4 and not near(found, bare)
    assert near(drawn(flux, Guard(rho=0.0), guidance_scale=3.5)[0], attenuated)
    assert near(drawn(flux, Guard(gate=-math.inf), guidance_scale=3.5)[0], found)
    shut, log = drawn(flux, Guard(gate=math.inf), guidance_scale=3.5)
    assert torch.equal(shut, bare) and log["denoiser_rows"] == 4 + 2  # the gate's own look


@pytest.mark.parametrize("guidance", [{"guidance_scale": 3.5}, {"guidance_scale": 1.0}])
def test_a_detour_follows_the_other_text_on_one_row(flux, guidance):
    found, log = drawn(flux, Detour("a zebra", near=-1.0), **guidance)
    other = draw(flux, "a zebra", **MANY, **guidance)
    assert near(found, other) and log["denoiser_rows"] == 4 + 4


def test_detectors_on_distilled_guidance_take_two_scales(flux):
    class Keep(Intervention):
        def on_prediction(self, ctx, preds):
            ctx.results["preds"] = preds["cond"]

    def predicted(w: float) -> torch.Tensor:
        with attach(flux, Keep()) as run:
            at_scale(flux, w, steps=1)
        return run.results["preds"]

    v = (predicted(3.5) - predicted(1.0)) / 2.5
    with attach(flux, Magnitude(), Agreement()) as run:
        at_scale(flux, 3.5, steps=1)
    assert torch.allclose(run.results["magnitude"][0], magnitude(v, torch.zeros_like(v)), rtol=1e-3)
    assert torch.allclose(run.results["agreement"][0], agreement(v), atol=1e-3)
    assert run.log[0]["denoiser_rows"] == 4  # both read one more call
    with attach(flux, Magnitude()) as run:
        at_scale(flux, 1.25, steps=1)
    v = predicted(2.25) - predicted(1.25)
    assert torch.allclose(run.results["magnitude"][0], magnitude(v, torch.zeros_like(v)), rtol=1e-3)


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_works_on_distilled_guidance(flux, name):
    call = {"num_inference_steps": 2, "height": 64, "width": 64, "max_sequence_length": 32}
    steps = None if DETECTORS[name].whole else 1
    found = scan(flux, ["a red mouse", "a cat"], 2, steps, [name], call=call)
    assert np.isfinite(found.images[name]).all() and found.images[name].shape == (2, 2)


def test_without_any_guidance_it_is_said(sd1):
    with attach(sd1, Guard()), pytest.raises(BadInput, match="guidance"):
        draw(sd1, guidance_scale=1.0)
    bare = draw(sd1, guidance_scale=1.0, seeds=(0, 1), num_images_per_prompt=2)
    with attach(sd1, Attenuate(gate=-math.inf, reads=(("collapse", 1.0),))):  # a detector that needs none
        assert not near(draw(sd1, guidance_scale=1.0, seeds=(0, 1), num_images_per_prompt=2), bare)
