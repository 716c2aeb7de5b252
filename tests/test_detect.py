"""Detectors of memorized prompts: the equations, and the same laws on every layout."""

from __future__ import annotations

import math
from dataclasses import dataclass

import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference import full_map
from tiny import draw, tiny
from unleak.copies.detect import detect
from unleak.copies.detect.detectors import (
    Agreement,
    BrightEnding,
    Collapse,
    Entropy,
    LateEntropy,
    Magnitude,
    SiteEntropy,
)
from unleak.copies.detect.significance import Significance, token_significance
from unleak.copies.presets import DETECTORS
from unleak.copies.scan.scan import each_once
from unleak.core.intervention import Intervention, Window
from unleak.core.predictions import clean_latents
from unleak.core.rows import Branch
from unleak.drawing.first_steps import first_steps
from unleak.engine.session import attach
from unleak.errors import BadInput, NotFinite, PromptTruncated, UnsupportedModel
from unleak.text.positions import summary_rows

SMALL = {"height": 64, "width": 64, "num_inference_steps": 3}
CAT, MOUSE = "a red cat", "a mouse and a laptop"


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def call(pipe, *prompts, seeds=(0, 1), **more):
    """Arguments of a call for every prompt at every seed."""
    short = {"max_sequence_length": 32} if hasattr(pipe, "transformer") else {}
    jobs = [(p, s) for p in prompts for s in seeds]
    generators = [torch.Generator().manual_seed(s) for _, s in jobs]
    return {"prompt": [p for p, _ in jobs], "generator": generators, **SMALL, **short, **more}


def guided(pipe):
    return not isinstance(pipe, diffusers.FluxPipeline)


# -- equations -------------------------------------------------------------------------------------------------


@given(st.floats(0, 1e3))
def test_magnitude_is_nothing_without_text_and_grows_with_it(factor):
    u, v = noise(3, 4, 8, 8), noise(3, 4, 8, 8, seed=1)
    assert detect.magnitude(u, u).eq(0).all()
    scaled = detect.magnitude(u + factor * v, u)
    assert torch.allclose(scaled, factor * v.flatten(1).norm(dim=1), rtol=1e-3, atol=1e-3)


def test_agreement_is_one_for_equal_images_and_nothing_for_unrelated_ones():
    one = noise(1, 4, 8, 8).expand(5, -1, -1, -1)
    assert torch.allclose(detect.agreement(one), torch.ones(5), atol=1e-5)
    assert detect.agreement(torch.eye(6).reshape(6, 6, 1)).abs().max() == 0
    assert torch.allclose(detect.agreement(7 * noise(4, 9)), detect.agreement(noise(4, 9)), atol=1e-6)
    assert torch.isfinite(detect.agreement(torch.zeros(2, 3))).all()
    with pytest.raises(BadInput, match="two seeds"):
        detect.agreement(noise(1, 4))


@pytest.mark.parametrize("seeds", [2, 4, 16])
def test_agreement_does_not_depend_on_the_number_of_seeds(seeds):
    """Half of the power is common to all seeds: the expectation is a half for any number of them."""
    common = noise(2000, 1, 16)
    x = common + noise(2000, seeds, 16, seed=1)
    mean = torch.stack([detect.agreement(images) for images in x]).mean()
    assert abs(mean - 0.5) < 0.03


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow_prediction"])
def test_the_clean_image_is_found_from_a_perfect_prediction(kind):
    x, e, t = noise(2, 4, 8, 8), noise(2, 4, 8, 8, seed=1), 300
    if kind == "flow_prediction":
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
        z, prediction = 0.7 * x + 0.3 * e, e - x
    else:
        scheduler = diffusers.DDIMScheduler(prediction_type=kind)
        z = scheduler.add_noise(x, e, torch.tensor([t]))
        velocity = scheduler.get_velocity(x, e, torch.tensor([t]))
        prediction = {"epsilon": e, "sample": x, "v_prediction": velocity}[kind]
    assert torch.allclose(clean_latents(scheduler, z, prediction, t), x, atol=1e-4)


def test_a_parametrisation_that_nobody_knows_is_refused():
    scheduler = diffusers.DDIMScheduler()
    scheduler.register_to_config(prediction_type="magic")
    with pytest.raises(UnsupportedModel, match="magic"):
        clean_latents(scheduler, noise(1, 4), noise(1, 4), 3)


@given(st.lists(st.floats(0, 1), min_size=77, max_size=77).filter(lambda x: sum(x) > 0))
def test_entropy_lies_between_certainty_and_the_uniform(weights):
    p = torch.tensor(weights, dtype=torch.float64)
    value = detect.entropy(p / p.sum())
    assert -1e-9 <= value <= math.log(77) + 1e-9


def test_entropy_of_the_extremes_and_its_summary_part():
    uniform, certain = torch.full((77,), 1 / 77), torch.eye(77)[3]
    assert math.isclose(float(detect.entropy(uniform)), 4.3438, abs_tol=1e-4)
    assert detect.entropy(certain) == 0
    summary = torch.arange(77) >= 7
    parts = detect.summary_entropy(uniform, summary) + detect.summary_entropy(uniform, ~summary)
    assert torch.allclose(parts, detect.entropy(uniform))


def test_late_entropy_reads_the_last_fifth_and_the_first_step_only():
    assert list(detect.late_steps(50)) == list(range(40, 50)) and list(detect.late_steps(3)) == [2]
    p, summary = noise(50, 2, 77).softmax(-1), torch.arange(77) >= torch.tensor([[5], [9]])
    metric = detect.late_entropy(p, summary, detect.late_steps(50))
    changed = p.clone()
    changed[1:40] = 1 / 77
    assert torch.equal(detect.late_entropy(changed, summary, detect.late_steps(50)), metric)
    e, s = detect.entropy(p), detect.summary_entropy(p, summary)
    assert torch.allclose(metric, e[40:].mean(0) + s[40:].mean(0) - s[0])


@given(st.floats(1e-3, 1e3))
def test_a_constant_mask_localises_nothing(level):
    c, u = noise(2, 4, 8, 8), noise(2, 4, 8, 8, seed=1)
    assert torch.allclose(
        detect.localised_magnitude(c, u, torch.full((2, 8, 8), level)), detect.magnitude(c, u), rtol=1e-4
    )
    packed = [x.flatten(2).mT for x in (c, u)]
    spot = noise(2, 8, 8, seed=2).abs()
    assert torch.allclose(detect.localised_magnitude(*packed, spot), detect.localised_magnitude(c, u, spot), rtol=1e-4)


# -- on every layout -------------------------------------------------------------------------------------------


def test_detectors_change_no_bit_and_leave_nothing_behind(any_pipe):
    bare = draw(any_pipe, seeds=(0, 1), prompt=[CAT, CAT])
    mine = (Magnitude(), Agreement()) if guided(any_pipe) else ()
    with attach(any_pipe, *mine, Collapse(), Entropy(), SiteEntropy(site=1), LateEntropy()):
        assert torch.equal(draw(any_pipe, seeds=(0, 1), prompt=[CAT, CAT]), bare)
    assert torch.equal(draw(any_pipe, seeds=(0, 1), prompt=[CAT, CAT]), bare)


def test_one_step_is_all_that_is_paid_for(any_pipe):
    bare = draw(any_pipe)
    names = ["magnitude", "agreement"] if guided(any_pipe) else []
    chosen = each_once([*names, "collapse", "entropy"])
    run = first_steps(any_pipe, 1, *chosen, **call(any_pipe, CAT, MOUSE))
    assert run.log[0]["denoiser_calls"] == 1 and run.log[0]["steps"] == 0
    assert run.log[0]["denoiser_rows"] == (8 if guided(any_pipe) else 4)
    for detector in chosen:
        assert detector.scores(run).shape == (4,) and list(run.results[detector.name]) == [0]
    assert (Entropy().scores(run) <= math.log(run.encoded.cond.shape[1]) + 1e-4).all()
    assert torch.equal(draw(any_pipe), bare)
    assert first_steps(any_pipe, 0, **call(any_pipe, CAT)).log[0]["denoiser_calls"] == 0


def test_a_score_does_not_depend_on_its_batch(any_pipe):
    chosen = each_once(["magnitude", "agreement", "entropy"] if guided(any_pipe) else ["collapse", "entropy"])
    together = first_steps(any_pipe, 2, *chosen, **call(any_pipe, CAT, MOUSE, "a dog"))
    alone = first_steps(any_pipe, 2, *chosen, **call(any_pipe, MOUSE))
    for detector in chosen:
        a, b = detector.scores(together)[2:4], detector.scores(alone)
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-3), detector.name


def test_what_needs_guidance_says_so_and_names_what_works_without(any_pipe):
    off = {"guidance_scale": 1.0}
    for detector in (Magnitude(), Agreement(), BrightEnding()):
        with pytest.raises(UnsupportedModel, match=f"{detector.name} needs classifier-free guidance.*collapse"):
            first_steps(any_pipe, None, detector, **call(any_pipe, CAT, **off))
    with pytest.raises(UnsupportedModel, match="significance needs classifier-free guidance"):
        first_steps(any_pipe, 1, Significance(), **call(any_pipe, CAT, **off))
    run = first_steps(any_pipe, 1, Collapse(), Entropy(), **call(any_pipe, CAT, **off))
    assert torch.isfinite(Collapse().scores(run)).all() and torch.isfinite(Entropy().scores(run)).all()
    assert [n for n, d in DETECTORS.items() if not d.guided] == ["collapse", "entropy", "site-entropy", "late-entropy"]


def test_attention_to_the_text_is_shared_out_completely(any_pipe):
    @dataclass(frozen=True)
    class Compare(Intervention):
        def on_attention(self, ctx, site):
            if site.kind == "self":
                return
            shares = site.text_shares("cond")
            assert torch.allclose(shares.sum(-1), torch.ones_like(shares[..., 0]), atol=1e-4)
            text = full_map(site, "cond")[:, :, site.layout.image_queries, site.layout.text_keys].mean(2)
            assert torch.allclose(shares, text / text.sum(-1, keepdim=True), atol=1e-4)
            ctx.results["compared"] = True

    assert first_steps(any_pipe, 1, Compare(), **call(any_pipe, CAT)).results["compared"]


def test_summary_tokens_are_each_encoders_eos_and_pads(any_pipe):
    @dataclass(frozen=True)
    class Look(Intervention):
        def on_latents(self, ctx, latents):
            ctx.results["summary"] = summary_rows(ctx.encoded)

    run = first_steps(any_pipe, None, Look(), **call(any_pipe, CAT, MOUSE, num_inference_steps=1))
    found, encoded = run.results["summary"], run.encoded
    name, ids = next((n, c.ids) for n, c in encoded.calls.items() if encoded.columns(n) is not None)
    tokenizer, place = encoded.calls[name].tokenizer, encoded.columns(name)
    for row, mask in zip(ids, found[:, place], strict=True):
        first = int(mask.int().argmax())
        assert row[first] == tokenizer.eos_token_id and mask[first:].all() and not mask[:first].any()


# -- on one layout ---------------------------------------------------------------------------------------------


def test_images_of_one_prompt_are_compared_however_they_were_asked_for(sd1):
    listed = first_steps(sd1, 1, Agreement(), **call(sd1, CAT, MOUSE))
    generators = [torch.Generator().manual_seed(s) for s in (0, 1, 0, 1)]
    repeated = first_steps(
        sd1, 1, Agreement(), prompt=[CAT, MOUSE], num_images_per_prompt=2, generator=generators, **SMALL
    )
    assert torch.allclose(Agreement().scores(listed), Agreement().scores(repeated), atol=1e-4)
    with pytest.raises(BadInput, match="two seeds"):
        first_steps(sd1, 1, Collapse(), **call(sd1, CAT, seeds=(0,)))


def test_the_window_chooses_the_steps(sd1):
    every = first_steps(sd1, None, Magnitude(), **call(sd1, CAT)).results["magnitude"]
    last = first_steps(sd1, None, Magnitude(window=Window(1.0, 1.0)), **call(sd1, CAT)).results["magnitude"]
    assert list(every) == [0, 1, 2] and list(last) == [2]
    assert torch.allclose(every[2], last[2])
    outside = Magnitude(window=Window(0.5, 1.0))
    with pytest.raises(UnsupportedModel, match="saw no step"):
        outside.scores(first_steps(sd1, 1, outside, **call(sd1, CAT)))


def test_results_are_those_of_the_last_call(sd1):
    with attach(sd1, Magnitude()) as run:
        sd1(**call(sd1, MOUSE), output_type="latent")
        sd1(**call(sd1, CAT), output_type="latent")
    alone = first_steps(sd1, None, Magnitude(), **call(sd1, CAT))
    assert torch.equal(Magnitude().scores(run), Magnitude().scores(alone))


def test_a_sampler_that_predicts_a_step_twice_is_noted_once(sd1):
    pipe = tiny("sd1")
    pipe.scheduler = diffusers.HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    run = first_steps(pipe, None, Magnitude(), **call(pipe, CAT))
    assert list(run.results["magnitude"]) == [0, 1, 2]


def test_one_site_of_the_entropy_by_its_order(sd1):
    names = [f"down_blocks.{b}.attentions.{a}.*attn2" for b in range(3) for a in range(2)]
    by_name = first_steps(sd1, 1, Entropy(sites=names[3]), **call(sd1, CAT))
    by_order = first_steps(sd1, 1, SiteEntropy(), **call(sd1, CAT))
    assert torch.allclose(Entropy().scores(by_name), SiteEntropy().scores(by_order))
    with pytest.raises(BadInput, match="site 99 of 16"):
        first_steps(sd1, 1, SiteEntropy(site=99), **call(sd1, CAT))


def test_bright_ending_is_the_magnitude_under_the_end_tokens_mask(sd1):
    run = first_steps(sd1, None, BrightEnding(), Magnitude(), **call(sd1, CAT, MOUSE))
    mask = run.results["bright-ending/mask"]
    assert mask.shape == (4, 8, 8) and (mask > 0).all() and (mask < 1).all()
    assert list(run.results["bright-ending"]) == [0, 1, 2]
    weight = mask / mask.flatten(1).mean(1)[:, None, None]
    low, high = weight.flatten(1).min(1).values, weight.flatten(1).max(1).values
    plain, local = Magnitude().scores(run), BrightEnding().scores(run)
    assert ((low * plain <= local) & (local <= high * plain)).all()
    some = first_steps(sd1, None, BrightEnding(looked_at=(1,)), **call(sd1, CAT, MOUSE))
    assert list(some.results["bright-ending"]) == [1]
    with pytest.raises(UnsupportedModel, match="resolution of the latents"):
        first_steps(sd1, None, BrightEnding(sites="mid_block*"), **call(sd1, CAT))


def test_significance_is_the_gradient_of_the_magnitude(sd1):
    """Against central differences along every dimension of one token's row, in double precision."""
    pipe, token, h = tiny("sd1").to(torch.float64), 2, 1e-4

    @dataclass(frozen=True)
    class Differences(Intervention):
        def on_prediction(self, ctx, preds):
            def length(shift):
                rows = ctx.encoded.cond[0].clone()
                rows[token] += shift
                cond = ctx.predict([Branch("moved", text=rows)])["moved"]
                return (cond - preds["uncond"]).norm()

            axes = h * torch.eye(ctx.encoded.cond.shape[-1], dtype=torch.float64)
            ctx.results["d"] = torch.stack([(length(a) - length(-a)) / (2 * h) for a in axes]).norm()

    run = first_steps(pipe, 1, Significance(), Differences(), **call(pipe, CAT, seeds=(0,)))
    found = run.results["significance"][0]
    assert found.shape == (1, 77)
    assert math.isclose(float(found[0, token]), float(run.results["d"]), rel_tol=1e-3)


def test_significance_names_the_tokens_and_is_the_same_in_a_batch(sd1):
    alone = token_significance(sd1, CAT, seeds=(0, 1), height=64, width=64)
    tokens = [token for token, _ in alone]
    assert "".join(tokens).replace("</w>", " ") == "a red cat <|endoftext|>"
    assert all(value > 0 for _, value in alone)
    batch = first_steps(sd1, 1, Significance(), **call(sd1, MOUSE, CAT, num_inference_steps=50))
    rows = batch.results["significance"][0]
    assert rows.shape == (2, 77)
    assert torch.allclose(rows[1, 1 : 1 + len(alone)], torch.tensor([v for _, v in alone]), rtol=1e-3)


def test_numbers_that_are_no_numbers_are_an_error():
    pipe = tiny("sd1")
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(NotFinite):
        first_steps(pipe, 1, Magnitude(), **call(pipe, CAT))


def test_a_prompt_that_does_not_fit_is_an_error(sd1):
    with pytest.raises(PromptTruncated):
        first_steps(sd1, 1, Magnitude(), **call(sd1, "a mouse " * 60))


@pytest.mark.parametrize(
    ("names", "says"), [(["magic"], "Choose from"), (["collapse", "collapse"], "once"), ([], "none")]
)
def test_detectors_by_name(names, says):
    with pytest.raises(BadInput, match=says):
        each_once(names)
