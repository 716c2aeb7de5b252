"""Modular pipelines under `attach`: prompts learned at the block that encodes them, every guider, exact restore."""

from __future__ import annotations

import copy
import warnings

import diffusers
import numpy as np
import pytest
import torch

import unleak
from conformance import family
from conformance.modular import BLOCKS, draw_modular, guiders, modular, modular_of
from tiny import draw, tiny
from unleak.engine.undo import Undo
from unleak.errors import BadInput, UnleakError, UnsupportedModel
from unleak.text.encoder_calls import encoder_calls

diffusers.utils.logging.set_verbosity(100)  # a block logs the traceback of every error that passes it
ITEMS = ["mouse", "laptop"]
OF_FAMILIES = {
    "qwen-image": (diffusers.QwenImageAutoBlocks, {"negative_prompt": " "}),
    "flux.2-klein": (diffusers.Flux2KleinAutoBlocks, {}),
}
GUIDED = {"sd3": {"negative_prompt": "blue"}}
"""What a pipeline must be given to draw with guidance."""


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(params=BLOCKS)
def name(request):
    return request.param


def classes(block) -> list[type]:
    """The class of every block of a tree."""
    inner = getattr(block, "sub_blocks", None) or {}
    return [type(block), *(kind for part in inner.values() for kind in classes(part))]


def test_maps_are_seen_and_change_nothing(name):
    pipe = modular(name)
    kinds, bare = classes(pipe._blocks), draw_modular(pipe)
    with unleak.attach(pipe, unleak.Maps(ITEMS)) as run:
        assert torch.equal(draw_modular(pipe), bare)
    mouse, laptop = (run.results["maps"][0].map(item) for item in ITEMS)
    assert mouse.shape == laptop.shape and not torch.equal(torch.as_tensor(mouse), torch.as_tensor(laptop))
    assert classes(pipe._blocks) == kinds
    assert torch.equal(draw_modular(pipe), bare)


def test_rows_are_patched_as_in_the_classic_pipeline(name):
    classic, pipe = tiny(name), modular(name)
    with unleak.attach(classic, unleak.Patch(ITEMS)) as expected:
        draw(classic, steps=1)
    with unleak.attach(pipe, unleak.Patch(ITEMS)) as run:
        patched = draw_modular(pipe, steps=1)
    assert run.log[-1]["text"] == expected.log[-1]["text"]
    assert torch.equal(run.encoded.cond, expected.encoded.cond)
    assert not torch.equal(patched, draw_modular(pipe, steps=1))


def test_an_edit_acts_at_every_site_of_the_prompts_rows(name):
    pipe = modular(name)

    def mute(ctx, site):
        return None if site.kind == "self" else unleak.KeyScale([2, 3], 0.0, rows="cond")

    with unleak.attach(pipe, unleak.hook(on_attention=mute)) as run:
        edited = draw_modular(pipe, **GUIDED.get(name, {}))
    assert not torch.equal(edited, draw_modular(pipe, **GUIDED.get(name, {})))
    calls = run.log[-1]["denoiser_calls"]
    assert set(run.log[-1]["edits"]["0.Hook"]["KeyScale"].values()) == {calls}


@pytest.mark.parametrize("prompt, images", [("a red mouse and a laptop", 2), (["a red mouse", "a cat"], 2)])
def test_every_image_has_its_prompt(name, prompt, images):
    pipe, seen = modular(name), set()
    look = unleak.hook(on_prediction=lambda ctx, preds: seen.add((ctx.rows.labels, ctx.rows.images)))
    with unleak.attach(pipe, look) as run:
        draw_modular(pipe, prompt, steps=1, num_images_per_prompt=images)
    prompts = [prompt] if isinstance(prompt, str) else prompt
    assert run.encoded.image_prompts == [text for text in prompts for _ in range(images)]
    (labels, numbers), *_ = seen
    assert len(seen) == 1 and set(labels) <= {"cond", "uncond"}
    assert numbers == tuple(range(images * len(prompts)))


@pytest.mark.parametrize("kind", OF_FAMILIES)
def test_language_models_as_encoders(kind):
    blocks, call = OF_FAMILIES[kind]
    pipe = modular_of(family(kind).pipe(), blocks())
    bare = draw_modular(pipe, steps=2, output_type="pt", **call)
    with unleak.attach(pipe, unleak.Maps(ITEMS)) as run:
        assert torch.equal(draw_modular(pipe, steps=2, output_type="pt", **call), bare)
    mouse, laptop = (run.results["maps"][0].map(item) for item in ITEMS)
    assert not torch.equal(mouse, laptop)
    with unleak.attach(pipe, unleak.Patch(ITEMS)) as run:
        assert not torch.equal(draw_modular(pipe, steps=2, output_type="pt", **call), bare)
    assert run.log[-1]["text"][0]["rows"][0]


def test_each_call_is_a_generation_of_its_own():
    pipe = modular("sdxl")
    with unleak.attach(pipe, unleak.Maps(["cat"])) as run:
        draw_modular(pipe, "a red cat", steps=1)
        draw_modular(pipe, "a cat and a dog", steps=2)
    assert [entry["prompts"] for entry in run.log] == [["a red cat"], ["a cat and a dog"]]
    assert [entry["steps"] for entry in run.log] == [1, 2]


def test_other_texts_are_encoded_as_the_block_does(name):
    pipe, rows = modular(name), []
    ask = unleak.hook(branches=lambda ctx: rows.append(ctx.encode(["a cat"])))
    with unleak.attach(pipe, ask):
        draw_modular(pipe, steps=1)
    with unleak.attach(pipe, unleak.Maps(["cat"])) as run:
        draw_modular(pipe, "a cat", steps=1)
    assert torch.equal(rows[0].rows, run.encoded.cond)


def test_encoders_are_known_without_a_drawing(name):
    expected, calls = (encoder_calls(pipe, "a cat", max_sequence_length=32) for pipe in (tiny(name), modular(name)))
    assert [c.call.name for c in calls] == [c.call.name for c in expected]
    for here, there in zip(calls, expected, strict=True):
        assert torch.equal(here.layer(here.call.output), there.layer(there.call.output))


# -- guiders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", guiders())
def test_a_guider_combines_what_interventions_leave_it(kind):
    pipe = modular("sdxl", guiders()[kind])
    bare = draw_modular(pipe)
    same = unleak.hook(on_prediction=lambda ctx, preds: {"cond": preds["cond"] * 1})
    with unleak.attach(pipe, unleak.Maps(ITEMS), same):
        assert torch.equal(draw_modular(pipe), bare)
    other = unleak.hook(on_prediction=lambda ctx, preds: {"cond": preds["cond"] * 1.5})
    with unleak.attach(pipe, other):
        assert not torch.equal(draw_modular(pipe), bare)
    assert torch.equal(draw_modular(pipe), bare)


def test_changed_predictions_are_combined_by_the_guiders_own_equation():
    """The momentum of adaptive projected guidance is part of it, and is moved once a step."""

    class Louder(diffusers.AdaptiveProjectedGuidance):
        def forward(self, pred_cond, pred_uncond=None):
            return super().forward(pred_cond * 1.5, pred_uncond)

    scale = {"guidance_scale": 4.0, "adaptive_projected_guidance_momentum": -0.5}
    expected = draw_modular(modular("sdxl", Louder(**scale)))
    pipe = modular("sdxl", diffusers.AdaptiveProjectedGuidance(**scale))
    with unleak.attach(pipe, unleak.hook(on_prediction=lambda ctx, preds: {"cond": preds["cond"] * 1.5})):
        assert torch.equal(draw_modular(pipe), expected)


def test_a_change_that_a_guider_cannot_be_given_is_refused():
    """A pipeline that hands its guider something else than what the denoiser predicted."""

    class Halved(diffusers.ClassifierFreeGuidance):
        def __call__(self, data):
            for one in data:
                one.noise_pred = one.noise_pred / 2
            return super().__call__(data)

    pipe = modular("sdxl", Halved(guidance_scale=4.0))
    change = unleak.hook(on_prediction=lambda ctx, preds: {"cond": preds["cond"] * 1.5})
    with pytest.raises(UnsupportedModel, match="Halved is not given"), unleak.attach(pipe, change):
        draw_modular(pipe)


def test_the_scale_of_guidance_is_seen_in_the_guiders_combination(name):
    pipe, call = modular(name), GUIDED.get(name, {})
    if name == "flux":  # its blocks have no guider
        with unleak.attach(pipe, unleak.Guard()), pytest.raises(BadInput, match="classifier-free guidance"):
            draw_modular(pipe, **call)
        return
    pictures = []
    for scale in (None, 4.0):
        with unleak.attach(pipe, unleak.Guard(scale=scale)):
            pictures.append(draw_modular(pipe, **call))
    assert torch.allclose(*pictures, atol=1e-3) and not torch.equal(pictures[0], draw_modular(pipe, **call))


def test_a_guider_that_is_interrupted_leaves_no_hook_behind():
    pipe = modular("sdxl", guiders()["PerturbedAttentionGuidance"])
    bare, calls = draw_modular(pipe), []

    def fail(ctx, site):
        calls.append(site)
        if len(calls) > 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), unleak.attach(pipe, unleak.hook(on_attention=fail)):
        draw_modular(pipe)
    assert torch.equal(draw_modular(pipe), bare)


# -- verbs ---------------------------------------------------------------------------------------------------


def test_verbs_draw_through_blocks():
    pipe, call = modular("sdxl"), {"num_inference_steps": 2, "height": 64, "width": 64}
    images = unleak.generate(pipe, ["a red mouse", "a cat"], seeds=[0, 7], call=call)
    assert np.asarray(images.images).shape[:2] == (2, 2)
    shown = unleak.maps(pipe, "a mouse and a laptop", ITEMS, seeds=[0], call=call)
    assert not np.array_equal(shown.heat(0, 0), shown.heat(1, 0))
    with pytest.raises(BadInput, match="takes no guidance_scale"):
        unleak.generate(pipe, "a cat", seeds=[0], call={**call, "guidance_scale": 3.0})


# -- restore ---------------------------------------------------------------------------------------------------------


def test_copies_made_inside_a_session_are_plain():
    pipe = modular("sdxl")
    kinds = classes(pipe._blocks)
    with unleak.attach(pipe, unleak.Patch(ITEMS)):
        assert classes(pipe.blocks) == kinds
        assert classes(copy.deepcopy(pipe._blocks)) == kinds
        assert [kind.__name__ for kind in classes(pipe._blocks)] == [kind.__name__ for kind in kinds]


def test_an_error_in_a_block_leaves_the_pipeline_as_it_was(name):
    pipe = modular(name)
    kinds, bare = classes(pipe._blocks), draw_modular(pipe)
    with pytest.raises(UnleakError), unleak.attach(pipe, unleak.Patch(["zebra"])):
        draw_modular(pipe)
    assert classes(pipe._blocks) == kinds
    assert torch.equal(draw_modular(pipe), bare)


def test_calls_are_restored_in_any_order():
    class Adder:
        def __call__(self, x):
            return x + 1

    adder, first, second = Adder(), Undo(), Undo()
    first.shadow_call(adder, lambda original, args, kwargs: 10 * original(*args))
    second.shadow_call(adder, lambda original, args, kwargs: -original(*args))
    assert adder(1) == -20
    assert type(copy.deepcopy(adder)) is Adder and copy.deepcopy(adder)(1) == 2
    first.run()
    assert adder(1) == -2
    second.run()
    assert type(adder) is Adder and adder(1) == 2
