"""Attenuation and GUARD: the invariants of the method, and what the gate promises, on tiny pipelines."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import dense
from tiny import draw, tiny
from unleak.copies.methods.attenuate import ATTENUATED, Attenuate, spikes
from unleak.copies.methods.guard import Guard, orthogonal
from unleak.copies.methods.repulsion import RepulsionOnly
from unleak.core import scores
from unleak.core.intervention import ALL, Intervention, Window
from unleak.engine.session import attach
from unleak.errors import BadInput, NoSite, PromptTruncated, Unobservable

UNETS = ("sd1", "sdxl")
PROMPT = "a red mouse and a laptop"


@pytest.fixture(scope="module", params=UNETS)
def unet_pipe(request):
    return tiny(request.param)


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() < 1e-4 * b.abs().max())


@dataclass(frozen=True)
class Keep(Intervention):
    """Keeps the predictions of every step."""

    def on_prediction(self, ctx, preds):
        ctx.results.setdefault("preds", []).append(dict(preds))


def guidance(pipe, scale=4.0):
    flux = type(pipe).__name__.startswith("Flux")
    return {"negative_prompt": "a cat", "true_cfg_scale" if flux else "guidance_scale": scale}


# -- spikes ----------------------------------------------------------------------------------------------------

PEAKS = st.lists(st.floats(-20, 20, width=32), min_size=4, max_size=24).filter(lambda x: max(x[1:]) - min(x[1:]) > 0.5)


@settings(deadline=None, max_examples=30)
@given(PEAKS, st.floats(-5, 5), st.floats(0.5, 4), st.randoms())
def test_spikes_are_relative(values, shift, scale, random):
    m = torch.tensor(values, dtype=torch.float64)
    found = spikes(m, 0.3)
    order = [0, *random.sample(range(1, len(m)), len(m) - 1)]
    z = (m - m[1:].mean()) / (m[1:].std() + 1e-6)
    if (z - 0.3).abs().min() > 1e-3:
        assert torch.equal(spikes(m + shift, 0.3), found) and torch.equal(spikes(m * scale, 0.3), found)
        assert torch.equal(spikes(m[order], 0.3), found[order])
    assert not found[0] and not spikes(m, 1e9).any()


def test_a_spike_is_strictly_above_the_threshold():
    m = torch.tensor([50.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    z = float((3 - 2) / (1 + 1e-6))
    assert spikes(m, z - 1e-9).tolist() == [False, False, False, True]
    assert not spikes(m, z).any()


@pytest.mark.parametrize("mass", [False, True])
def test_peaks_do_not_depend_on_the_chunk(mass):
    q, k = torch.randn(2, 3, 40, 8), torch.randn(2, 3, 9, 8)
    logits = q @ k.mT * 0.3
    whole = (logits.softmax(-1) if mass else logits).amax(2)
    assert torch.allclose(scores.peaks(q, k, 0.3, mass, chunk=2 * 3 * 9 * 7), whole, atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
def test_less_of_a_positive_logit_is_less_mass_in_total(seed, one, two):
    logits = torch.randn(12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    flagged = spikes(logits, 0.1) & (logits > 0)
    mass = [
        float(torch.softmax(torch.where(flagged, a * logits, logits), 0)[flagged].sum()) for a in sorted((one, two))
    ]
    assert mass[0] <= mass[1] + 1e-12


def test_a_negative_logit_rises_when_it_is_attenuated():
    logits = torch.tensor([0.0, -4.0, -4.0, -2.0], dtype=torch.float64)
    flagged = spikes(logits, 0.1)
    assert flagged.tolist() == [False, False, False, True]
    before, after = (torch.softmax(torch.where(flagged, a * logits, logits), 0) for a in (1.0, 0.3))
    assert after[3] > before[3]


# -- attenuation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "nothing",
    [Attenuate(alpha=1.0), Attenuate(gate=math.inf), Guard(tau=0.0, rho=0.0), Guard(gate=math.inf)],
    ids=["idle attenuation", "closed attenuation", "idle guard", "closed guard"],
)
def test_without_strength_or_behind_a_closed_gate_it_is_bitwise_the_bare_pipeline(any_pipe, nothing):
    bare = draw(any_pipe, steps=2, **guidance(any_pipe))
    with attach(any_pipe, nothing) as run:
        assert torch.equal(draw(any_pipe, steps=2, **guidance(any_pipe)), bare)
    assert run.log[0]["denoiser_rows"] == 4 and not run.log[0]["edits"].get("0.Guard")
    assert torch.equal(draw(any_pipe, steps=2, **guidance(any_pipe)), bare)


@pytest.mark.parametrize(
    "method",
    [Attenuate(), Guard(scale=4.0), Guard(scale=4.0, source="clean", statistic="mass")],
    ids=["attenuate", "guard", "paper"],
)
def test_it_acts_on_every_layout_and_leaves_no_trace(any_pipe, method):
    bare = draw(any_pipe, steps=2, **guidance(any_pipe))
    with attach(any_pipe, method) as run:
        found = draw(any_pipe, steps=2, **guidance(any_pipe))
    assert not near(found, bare) and torch.isfinite(found).all()
    assert torch.equal(draw(any_pipe, steps=2, **guidance(any_pipe)), bare)
    sites = {site for _, site in run.results[ATTENUATED]}
    assert sites and not any(site.startswith("up") for site in sites)
    assert run.log[0]["denoiser_rows"] == (4 if type(method) is Attenuate else 6)


def test_only_the_prompts_rows_change(unet_pipe):
    with attach(unet_pipe, Keep()) as plain:
        draw(unet_pipe, steps=1)
    with attach(unet_pipe, Keep(), Attenuate()) as run:
        draw(unet_pipe, steps=1)
    before, after = plain.results["preds"][0], run.results["preds"][0]
    assert torch.equal(before["uncond"], after["uncond"]) and not near(after["cond"], before["cond"])


def test_scaling_keys_is_scaling_logits(monkeypatch):
    from unleak.engine import denoising

    pipe, drawn = tiny("sd1"), {}
    for part in (pipe.unet, pipe.text_encoder, pipe.vae):
        part.double()
    for how, carry_out in (("scaled", denoising.execute), ("dense", lambda call, edits, kernel: dense(call, edits))):
        monkeypatch.setattr(denoising, "execute", carry_out)
        with attach(pipe, Attenuate()):
            drawn[how] = draw(pipe, steps=2)
    assert (drawn["scaled"] - drawn["dense"]).abs().max() < 1e-9 * drawn["dense"].abs().max()


def test_a_schedule_fades_within_the_window(sd1):
    falling = Attenuate(schedule="falling", window=Window(0, 0.5))
    with attach(sd1, falling) as run:
        draw(sd1, steps=5)
    assert {step for step, _ in run.results[ATTENUATED]} == {0, 1, 2}

    strengths = [falling.attenuation.strength(step, 7, falling.window) for step in falling.window.among(7)]
    assert strengths == pytest.approx([1 - 0.7 * s for s in (1, 0.75, 0.5, 0.25)])


@pytest.mark.parametrize("tau", [0.0, -1.0, math.inf])
def test_a_threshold_that_nothing_reaches(sd1, tau):
    bare = draw(sd1, steps=1)
    with attach(sd1, Attenuate(tau=tau)):
        assert torch.equal(draw(sd1, steps=1), bare)


def test_settings_are_not_remembered(sd1):
    drawn = []
    for tau in (0.01, 1.0, 0.01):
        with attach(sd1, Attenuate(tau=tau)):
            drawn.append(draw(sd1, steps=2))
    assert torch.equal(drawn[0], drawn[2]) and not near(drawn[0], drawn[1])


# -- GUARD -----------------------------------------------------------------------------------------------------


def test_without_repulsion_it_is_attenuation(unet_pipe):
    with attach(unet_pipe, Attenuate(tau=0.1)):
        expected = draw(unet_pipe, negative_prompt="a cat", steps=2)
    with attach(unet_pipe, Guard(rho=0.0)):
        assert near(draw(unet_pipe, negative_prompt="a cat", steps=2), expected)


def test_without_attenuation_it_is_a_schedule_of_guidance(unet_pipe):
    with attach(unet_pipe, RepulsionOnly(rho=2.0)):
        expected = draw(unet_pipe, steps=2)
    with attach(unet_pipe, Guard(alpha=1.0)):
        assert near(draw(unet_pipe, steps=2), expected)


def test_repulsion_fades_but_never_to_nothing():
    zero, one = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    push = [-float(Guard(rho=2.0).combine(one, zero, zero, 7.5, i / 50)) for i in range(50)]
    assert push[0] == 2.0 and push[-1] == pytest.approx(0.0628, abs=1e-3)
    assert all(a > b for a, b in itertools.pairwise(push))


def test_attraction_and_repulsion_have_a_schedule_each():
    zero, one = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    method = Guard(rho=2.0, repulsion_schedule="sine", attraction_schedule="cosine")
    push = [-float(method.combine(one, zero, zero, 7.5, p)) for p in (0.0, 1 / 3, 0.5)]
    pull = [float(method.combine(zero, zero, one, 7.5, p)) for p in (0.0, 1 / 3, 0.5)]
    assert push == pytest.approx([0.0, 1.0, 2.0**0.5]) and pull == pytest.approx([7.5, 7.5 * 0.75**0.5, 7.5 * 0.5**0.5])


def test_orthogonalisation_per_image():
    n = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    side = torch.randn_like(n)
    side -= (side * n).flatten(1).sum(1).reshape(3, 1, 1, 1) / (n * n).flatten(1).sum(1).reshape(3, 1, 1, 1) * n
    v_p = torch.stack([0.7 * n[0], n[1] + 3 * side[1] / side[1].norm() * n[1].norm(), 5 * n[2]])
    found = orthogonal(v_p, n)
    assert found[0].abs().max() < 1e-6
    assert torch.equal(found[1], v_p[1])
    assert torch.allclose(found[2], 3 * n[2], atol=1e-6)


def test_where_attenuation_does_nothing_orthogonalisation_pushes_away_from_the_prompt():
    cond, uncond = torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5)
    found = Guard(orthogonalize=True).combine(cond, uncond, cond, 7.5, 0.0)
    assert torch.allclose(found, uncond - 2.0 * (cond - uncond), atol=1e-5)


@pytest.mark.parametrize("method", [Guard(), Guard.official(gate=0.0)], ids=["guard", "gated official"])
def test_a_batch_equals_its_singles(unet_pipe, method):
    prompts = ["a red mouse and a dog", "a zebra and a cat"]
    with attach(unet_pipe, method):
        batch = draw(
            unet_pipe, prompts, seeds=range(4), num_images_per_prompt=2, negative_prompt=["a bus"] * 2, steps=2
        )
        singles = [draw(unet_pipe, prompts[i // 2], seeds=(i,), negative_prompt="a bus", steps=2) for i in range(4)]
    assert near(batch, torch.cat(singles))


@pytest.mark.parametrize("size", [(64, 96), (112, 64)])
def test_images_need_not_be_square(unet_pipe, size):
    with attach(unet_pipe, Guard(gate=-1.0)):
        assert draw(unet_pipe, size=size).shape[-2:] == (size[0] // 8, size[1] // 8)


# -- the gate --------------------------------------------------------------------------------------------------


def test_an_open_gate_is_no_gate(unet_pipe):
    for method, gated in ((Guard(), Guard(gate=-math.inf)), (Attenuate(), Attenuate(gate=-math.inf)),
                          (Guard(source="clean"), Guard(source="clean", gate=-math.inf))):  # fmt: skip
        with attach(unet_pipe, method):
            expected = draw(unet_pipe, seeds=(0, 1), num_images_per_prompt=2, steps=2)
        with attach(unet_pipe, gated):
            assert near(draw(unet_pipe, seeds=(0, 1), num_images_per_prompt=2, steps=2), expected)


@pytest.mark.parametrize("method", [Guard, Attenuate, Guard.official], ids=["guard", "attenuate", "official"])
def test_each_prompt_of_a_batch_is_gated_for_itself(sd1, method):
    prompts = ["a red mouse and a dog", "a zebra"]
    bare = draw(sd1, prompts, seeds=(0, 1))
    with attach(sd1, Guard(gate=math.inf)) as run:
        draw(sd1, prompts, seeds=(0, 1), steps=1)
    score = [g["score"] for g in run.results["gate"]]
    high = score.index(max(score))
    with attach(sd1, method()):
        all_of_them = draw(sd1, prompts, seeds=(0, 1))
    with attach(sd1, method(gate=sum(score) / 2)) as run:
        found = draw(sd1, prompts, seeds=(0, 1))
    assert [g["acted"] for g in run.results["gate"]] == [high == 0, high == 1]
    assert near(found[high], all_of_them[high]) and near(found[1 - high], bare[1 - high])
    assert not near(found[high], bare[high])
    assert run.log[0]["denoiser_rows"] == (13 if method is Attenuate else 15)


def test_rows_of_guard_are_half_as_many_again_in_its_window_only(sd1):
    with attach(sd1, Guard(gate=-1.0, window=Window(0, 0.5))) as run:
        draw(sd1, steps=5, seeds=(0, 1), num_images_per_prompt=2)
    assert run.log[0]["denoiser_rows"] == 3 * 6 + 2 * 4


def test_a_prompt_that_is_its_own_negative_passes_any_gate(sd1):
    bare = draw(sd1, "a cat", negative_prompt="a cat")
    with attach(sd1, Guard(gate=1e-6)) as run:
        assert torch.equal(draw(sd1, "a cat", negative_prompt="a cat"), bare)
    assert run.results["gate"] == [{"score": 0.0, "acted": False}]


# -- nothing is silent -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"tau": math.nan}, "tau"), ({"alpha": -0.1}, "alpha"), ({"rho": -1.0}, "rho"),
     ({"repulsion_schedule": "up"}, "cosine"), ({"attraction_schedule": "none"}, "constant"),
     ({"source": "both"}, "clean"), ({"statistic": "mean"}, "mass"), ({"precision": "fp8"}, "float32"),
     ({"schedule": "up"}, "rising"), ({"gate": math.nan}, "threshold"),
     ({"gate": 1.0, "reads": (("entropy", 1.0),)}, "needs more"),
     ({"gate": 1.0, "window": Window(0.2, 1)}, "first step")],
)  # fmt: skip
def test_wrong_settings_are_refused_at_once(wrong, says):
    with pytest.raises(BadInput, match=says):
        Guard(**wrong)


@pytest.mark.parametrize("method", [Guard(), Guard(gate=1.0), Attenuate(gate=1.0), RepulsionOnly()], ids=str)
def test_it_needs_guidance(sd1, method):
    with attach(sd1, method), pytest.raises(BadInput, match="guidance_scale"):
        draw(sd1, guidance_scale=1.0)


def test_what_it_cannot_combine_is_refused(sd1):
    with attach(sd1, Guard()), pytest.raises(BadInput, match="guidance_rescale"):
        draw(sd1, guidance_rescale=0.7)


def test_a_scale_that_only_the_pipeline_s_own_combination_shows(flux):
    images = []
    for method in (Guard(), Guard(scale=5.0)):
        with attach(flux, method):
            images.append(draw(flux, **guidance(flux, 5.0)))
    assert max(abs(a - b).max() for a, b in [images]) <= 1e-3


def test_sites_without_text_are_an_error(sd1):
    for method in (Guard, Attenuate):
        for gate in (None, -1.0):
            with attach(sd1, method(sites="mid_block.*attn1", gate=gate)), pytest.raises(NoSite, match="reads text"):
                draw(sd1)
    with pytest.raises(NoSite):
        attach(sd1, Guard(sites="nowhere"))


def test_a_prompt_that_would_be_cut_is_refused(sd1):
    with attach(sd1, Guard(gate=math.inf)), pytest.raises(PromptTruncated):
        draw(sd1, "a zebra and a lion " * 40)


def test_attention_that_cannot_be_seen_is_an_error():
    pipe = tiny("sd1")
    pipe.enable_attention_slicing(1)
    with attach(pipe, Guard()), pytest.raises(Unobservable):
        draw(pipe)


def test_it_can_be_written_down():
    for made in (Guard.official(gate=3.0), Attenuate(sites=ALL), Guard(sites="mid_block.*")):
        assert Intervention.from_dict(made.to_dict()) == made
