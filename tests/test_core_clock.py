"""The step clock counts distinct timesteps, whatever the sampler and however often the denoiser is called."""

from __future__ import annotations

from dataclasses import dataclass

import diffusers
import pytest
import torch

from tiny import draw, tiny
from unleak.core.intervention import Intervention, Window
from unleak.engine.clock import Clock
from unleak.engine.session import attach


@dataclass(frozen=True)
class Watch(Intervention):
    def on_prediction(self, ctx, preds):
        ctx.results.setdefault("seen", []).append((ctx.step, ctx.steps, ctx.fraction, ctx.timestep))

    def on_latents(self, ctx, latents):
        ctx.results.setdefault("after", []).append(ctx.step)


def watch(pipe, window=None, **kwargs):
    with attach(pipe, Watch(window=window or Window())) as run:
        draw(pipe, **kwargs)
    return run.results.get("seen", [])


def with_scheduler(name, pipe):
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    return pipe


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_one_call_a_step(name):
    seen = watch(with_scheduler(name, tiny("sd1")), steps=4)
    assert [s[0] for s in seen] == [0, 1, 2, 3] and {s[1] for s in seen} == {4}
    assert [s[2] for s in seen] == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_heun_makes_nine_calls_in_five_steps():
    pipe = with_scheduler("HeunDiscreteScheduler", tiny("sd1"))
    seen = watch(pipe, steps=5)
    assert [s[0] for s in seen] == [0, 1, 1, 2, 2, 3, 3, 4, 4] and {s[1] for s in seen} == {5}
    assert seen[0][2] == 0 and seen[-1][2] == 1


def test_pndm_repeats_a_timestep():
    pipe = tiny("sd1")
    pipe.scheduler = diffusers.PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    seen = watch(pipe, steps=4)
    assert [s[0] for s in seen] == [0, 1, 1, 2, 3]


def test_two_calls_a_step_are_one_step(flux):
    with attach(flux, Watch()) as run:
        draw(flux, steps=3, negative_prompt="a cat", true_cfg_scale=2.0)
    assert run.log[0]["denoiser_calls"] == 6 and run.log[0]["steps"] == 3
    assert [s[:3] for s in run.results["seen"]] == [(0, 3, 0.0), (1, 3, 0.5), (2, 3, 1.0)]
    assert run.results["after"] == [0, 1, 2]


def test_timesteps_are_the_schedulers(any_pipe):
    seen = watch(any_pipe, steps=3)
    assert [s[3] for s in seen] == [float(t) for t in any_pipe.scheduler.timesteps]


def test_a_single_step_has_fraction_zero(sd1):
    assert watch(sd1, steps=1)[0][:3] == (0, 1, 0.0)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_image_to_image_counts_the_steps_it_makes(name):
    pipe = diffusers.StableDiffusionImg2ImgPipeline(
        **with_scheduler(name, tiny("sd1")).components, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    with attach(pipe, Watch()) as run:
        pipe("a cat", image=torch.rand(1, 3, 64, 64), strength=0.5, num_inference_steps=8, output_type="latent")
    assert [s[0] for s in run.results["seen"]] == [0, 1, 2, 3]
    assert run.results["seen"][-1][2] == 1


def test_windows_are_fractions_of_the_trajectory(sd1):
    assert [s[0] for s in watch(sd1, Window(0.0, 0.5), steps=5)] == [0, 1, 2]
    assert [s[0] for s in watch(sd1, Window(0.5, 1.0), steps=5)] == [2, 3, 4]


def test_each_generation_starts_anew(sd1):
    with attach(sd1, Watch()) as run:
        draw(sd1, steps=2)
        draw(sd1, steps=3)
    assert [s[0] for s in run.results["seen"]] == [0, 1, 0, 1, 2]
    assert [entry["steps"] for entry in run.log] == [2, 3]


def test_a_scheduler_exchanged_inside_the_block_is_followed():
    pipe = tiny("sd1")
    with attach(pipe, Watch()) as run:
        draw(pipe, steps=2)
        with_scheduler("HeunDiscreteScheduler", pipe)
        draw(pipe, steps=2)
    assert [s[0] for s in run.results["seen"]] == [0, 1, 0, 1, 1]
    assert "step" not in vars(pipe.scheduler)


def test_a_loop_written_by_hand(sd1):
    with attach(sd1, Watch(), Watch()) as run, torch.no_grad():
        cond, uncond = sd1.encode_prompt("a dog", "cpu", 1, True)
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        sd1.scheduler.set_timesteps(3)
        for t in sd1.scheduler.timesteps:
            u, c = sd1.unet(torch.cat([latents] * 2), t, encoder_hidden_states=torch.cat([uncond, cond])).sample.chunk(
                2
            )
            latents = sd1.scheduler.step(u + 2.0 * (c - u), t, latents).prev_sample
    assert [s[0] for s in run.results["seen"][::2]] == [0, 1, 2]
    assert run.log[0]["denoiser_rows"] == 6


def test_scheduler_steps_without_a_denoiser(sd1):
    @dataclass(frozen=True)
    class Latents(Intervention):
        def on_latents(self, ctx, latents):
            return latents + 1

    noise = torch.randn(1, 4, 8, 8)
    sd1.scheduler.set_timesteps(2)
    plain = sd1.scheduler.step(noise, sd1.scheduler.timesteps[0], noise).prev_sample
    with attach(sd1, Latents()):
        moved = sd1.scheduler.step(noise, sd1.scheduler.timesteps[0], noise).prev_sample
    assert torch.equal(moved, plain + 1)


def test_the_clock_alone():
    clock = Clock()
    clock.restart([900, 600, 600, 300])
    clock.at_denoiser(object(), lambda table: 600.0)
    assert (clock.step, clock.steps, clock.fraction) == (0, 2, 0.0)
    for _ in range(3):
        clock.after_step()
    assert (clock.step, clock.fraction, clock.timestep) == (1, 1.0, 300.0)
