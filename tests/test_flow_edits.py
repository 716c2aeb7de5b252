"""Edits on models that predict a flow: the published arithmetic, packed latents, exact backgrounds, typed refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler
from PIL import Image

from tiny import tiny
from unleak.core.predictions import Level, predicted
from unleak.drawing import photo
from unleak.errors import BadInput, UnsupportedModel
from unleak.regions.edit import edit
from unleak.regions.masks.masks import foreground
from unleak.regions.methods.ddcm import ddcm_step
from unleak.regions.methods.schedule import followed, levels
from unleak.regions.plan import Edit

SIZE = (64, 96)
CALL = {"max_sequence_length": 32}
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8))
CUP_MASK = np.zeros(SIZE, bool)
CUP_MASK[8:40, 8:40] = True
CUP = Edit("blue cup", "red cup", CUP_MASK)


@pytest.fixture(scope="module", params=["sd3", "flux"])
def pipe(request):
    return tiny(request.param)


def quick(pipe, edits=(CUP,), **options):
    options = {"preset": "flowedit", "size": SIZE, "dilation": 0.0, "call": CALL, **options}
    late = {"n_max": 0.75} if options["preset"] in ("flowedit", "flowalign") else {}
    options = {"steps": 4 if late else 3, **late, **options}
    return edit(pipe, PICTURE, list(edits), **options)


def some(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("pull", [0.0, 0.01])
def test_with_memory_a_step_on_a_flow_is_that_of_flowedit_and_flowalign(pull):
    z0, Z, n, next_n, v_t, v_s = (some(i, 1, 4, 3, 5) for i in range(6))
    for sigma, after in ((1.0, 0.8), (0.8, 0.3), (0.3, 0.0)):
        p = (1 - sigma) * z0 + sigma * n
        q = Z + p - z0
        target, source = (predicted(v, x, "flow_prediction", Level(1 - sigma, sigma)) for v, x in ((v_t, q), (v_s, p)))
        expected = Z + (after - sigma) * (v_t - v_s) + pull * (source.clean - target.clean)
        here, there = Level(1 - sigma, sigma), Level(1 - after, after)
        z_t, x_t, x_s = ddcm_step(target, source, p, z0, next_n, here, there, memory=1.0, pull=pull)
        assert torch.allclose(x_s, (1 - after) * z0 + after * next_n, atol=1e-12)
        assert torch.allclose(x_t - x_s, expected - z0, atol=1e-12)
        if after == 0:
            assert torch.allclose(z_t, expected, atol=1e-12)


def test_without_memory_the_target_is_its_own_clean_prediction_under_the_shared_noise():
    z0, n, next_n, v_t, v_s = (some(i, 1, 4, 3, 5) for i in range(5))
    here, there = Level(0.4, 0.6), Level(0.7, 0.3)
    x_s, x_t = 0.4 * z0 + 0.6 * n, some(9, 1, 4, 3, 5)
    target, source = (predicted(v, x, "flow_prediction", here) for v, x in ((v_t, x_t), (v_s, x_s)))
    z_t, new_t, new_s = ddcm_step(target, source, x_s, z0, next_n, here, there)
    assert torch.allclose(z_t, z0 + target.clean - source.clean)
    assert torch.allclose(new_t, 0.7 * z_t + 0.3 * next_n) and torch.allclose(new_s, 0.7 * z0 + 0.3 * next_n)


def test_flowedit_on_a_pipeline_is_the_published_loop():
    """Z <- Z + (sigma' - sigma) (v_w(q; target) - v_w(p; source)), on SD3, by its own transformer."""
    pipe = tiny("sd3")
    steps, n_max, w_s, w_t = 4, 3, 1.5, 5.5
    r = quick(pipe, steps=steps, n_max=n_max / steps, seed=3)
    z0 = photo.to_latents(pipe, PICTURE)
    random = torch.Generator("cpu").manual_seed(3)
    noises = [torch.randn(z0.shape, generator=random) for _ in range(n_max + 1)]
    pipe.scheduler.set_timesteps(steps)
    sigmas, times = pipe.scheduler.sigmas, pipe.scheduler.timesteps
    rows = {
        text: pipe.encode_prompt(text, text, text, device="cpu", max_sequence_length=32)
        for text in ("blue cup", "red cup")
    }

    @torch.no_grad()
    def v(x, t, text, scale):
        cond, uncond, pooled, empty = rows[text]
        one = lambda e, p: pipe.transformer(x, timestep=t[None], encoder_hidden_states=e, pooled_projections=p).sample  # noqa: E731
        u = one(uncond, empty)
        return u + scale * (one(cond, pooled) - u)

    Z = z0.clone()
    for i, n in zip(range(steps - n_max, steps), noises, strict=False):
        p = (1 - sigmas[i]) * z0 + sigmas[i] * n
        q = Z + p - z0
        Z = Z + (sigmas[i + 1] - sigmas[i]) * (v(q, times[i], "red cup", w_t) - v(p, times[i], "blue cup", w_s))
    assert not torch.allclose(Z, z0, atol=1e-2)
    assert torch.allclose(r.latents, Z, atol=1e-4)


def test_cells_and_packed_latents_are_each_other(pipe):
    z = torch.randn(2, 4, 8, 12)
    packed = photo.as_latents(pipe, z)
    assert packed.ndim == (3 if hasattr(pipe, "_pack_latents") else 4)
    assert torch.equal(photo.as_cells(pipe, packed, (8, 12)), z)


@pytest.mark.parametrize("preset", ["flowedit", "flowalign", "p2p", "rf-inversion"])
def test_a_blended_edit_keeps_the_background_exactly_and_the_pipeline_as_it_was(pipe, preset):
    scheduler = pipe.scheduler
    r = quick(pipe, preset=preset, blend=True)
    kept = foreground(r.masks, r.latents.shape[-2:]) == 0
    assert torch.equal(r.latents[..., kept].float(), r.clean[..., kept])
    assert not torch.allclose(r.latents[..., ~kept], r.clean[..., ~kept], atol=1e-3)
    distilled = hasattr(pipe, "_pack_latents")  # tiny FLUX reads the scale of guidance, SD3 has unconditional rows
    branches = {"flowalign": 3, "rf-inversion": 1 if distilled else 2}.get(preset, 2 if distilled else 4)
    assert pipe.scheduler is scheduler and r.log[-1]["steps"] == 3
    assert r.log[-1]["denoiser_rows"] == 3 * branches


def test_nothing_to_change_changes_nothing(pipe):
    same = Edit("blue cup", "blue cup", CUP_MASK)
    with pytest.warns(UserWarning, match="become itself"):
        r = quick(pipe, [same], source_guidance=3.0, target_guidance=3.0)
    assert torch.allclose(r.latents, r.clean, atol=1e-5)


def test_the_last_steps_may_be_plain(pipe):
    edited, plain = quick(pipe), quick(pipe, n_min=0.25)
    assert not torch.allclose(edited.latents, plain.latents)
    with pytest.raises(BadInput, match="n_min"):
        quick(pipe, n_min=0.75)


def test_images_together_are_the_images_alone(pipe):
    call = {"preset": "flowedit", "size": SIZE, "steps": 3, "n_max": 0.67, "call": CALL, "dilation": 0.0}
    other = PICTURE.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    both = edit(pipe, [PICTURE, other], [[CUP], [Edit("cat", "dog", CUP_MASK)]], **call)
    alone = edit(pipe, other, [Edit("cat", "dog", CUP_MASK)], **call)
    assert torch.allclose(both[1].latents, alone.latents, atol=1e-4)


def test_a_scheduler_of_two_calls_a_step_is_exchanged_for_eulers():
    pipe = tiny("sd3")
    euler = quick(pipe)
    pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    r = quick(pipe)
    assert torch.allclose(r.latents, euler.latents, atol=1e-5)
    assert isinstance(pipe.scheduler, FlowMatchHeunDiscreteScheduler)


def test_left_out_steps_are_the_first_ones():
    pipe = tiny("sd3")
    with followed(pipe, 5, skipped=2):
        pipe.scheduler.set_timesteps(5)
        assert len(pipe.scheduler.timesteps) == 3
        late = [levels(pipe.scheduler, i) for i in range(3)]
    pipe.scheduler.set_timesteps(5)
    assert late == [levels(pipe.scheduler, i) for i in (2, 3, 4)] and late[-1][1] == Level(1.0, 0.0)


def test_ale_keeps_the_background_exactly_and_acts_at_every_site(pipe):
    dog = np.zeros(SIZE, bool)
    dog[16:56, 48:88] = True
    r = quick(pipe, [CUP, Edit("cat", "dog", dog)], preset="ale", steps=2)
    kept = foreground(r.masks, r.latents.shape[-2:]) == 0
    assert torch.equal(r.latents[..., kept].float(), r.clean[..., kept])
    assert not torch.allclose(r.latents[..., ~kept], r.clean[..., ~kept], atol=1e-3)
    (edits,) = (of["Bias"] for name, of in r.log[-1]["edits"].items() if "RGBCAM" in name)
    assert len(edits) >= 2 and len(set(edits.values())) == 1


def test_ale_as_released_is_cross_attention_alone(pipe):
    with pytest.raises(UnsupportedModel, match="preset ale"):
        quick(pipe, preset="ale-official", steps=2)


def test_the_model_finds_its_own_masks(pipe):
    r = quick(pipe, [Edit("blue cup", "red cup"), Edit("cat", "dog")], preset="ale", steps=1)
    assert r.given == (False, False) and r.masks.any((1, 2)).all() and not (r.masks[0] & r.masks[1]).any()


def test_rf_inversion_without_control_of_its_way_leads_back(pipe):
    """With the empty prompt up and down and eta 1 all the way, the source is drawn again."""
    r = quick(pipe, preset="rf-inversion", steps=4, target_guidance=1.0, eta=1.0, until=1.0)
    assert torch.allclose(r.latents, r.clean, atol=1e-4)
    assert not torch.allclose(quick(pipe, preset="rf-inversion", eta=0.0).latents, r.clean, atol=1e-2)


def test_flow_methods_say_so_where_noise_goes_by_alphas():
    with pytest.raises(UnsupportedModel, match="by alphas"):
        edit(tiny("sd1"), PICTURE, [CUP], preset="flowedit", steps=2, size=SIZE)


@pytest.mark.parametrize("preset", ["infedit", "masactrl", "pnp", "ddim", "direct", "null-text"])
def test_methods_that_need_alphas_say_which_do_not(pipe, preset):
    with pytest.raises(UnsupportedModel, match="flowedit"):
        quick(pipe, preset=preset, steps=2)


def test_sizes_that_the_denoiser_cannot_read_are_refused(pipe):
    with pytest.raises(BadInput, match="multiples of 16"):
        quick(pipe, size=(64, 88))
