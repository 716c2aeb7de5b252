"""Pipelines that do something otherwise than most: each is handled by what it does, or refused with the reason."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.utils import BaseOutput

import unleak
from conformance import family
from unleak.core.predictions import clean_latents
from unleak.drawing.generate import generate, global_noise, images_of
from unleak.drawing.photo import step_of
from unleak.errors import UnsupportedModel
from unleak.regions.methods.blend import latent_grid


class Video(BaseOutput):
    frames: Any = None


def test_a_pipeline_of_videos_is_refused_where_images_are_looked_at() -> None:
    with pytest.raises(UnsupportedModel, match="returns frames, not images"):
        images_of(SimpleNamespace(), Video(frames=np.zeros((1, 2, 8, 8, 3))))


def test_a_prompt_that_is_encoded_inside_the_call_is_refused() -> None:
    pipe = family("amused").pipe()
    hidden = dict(vars(pipe))
    session = unleak.attach(pipe, unleak.Maps("mouse"))
    with pytest.raises(UnsupportedModel, match="encodes its prompt inside its own call"), session:
        pass
    assert vars(pipe) == hidden


def test_a_reference_image_that_is_encoded_with_global_noise_is_the_same_in_every_drawing() -> None:
    control = family("cogview4-control")
    pipe, call = control.pipe(), control.settings()
    first, again = (generate(pipe, "a cat", [0], **call) for _ in range(2))
    assert np.array_equal(first, again)


def test_global_noise_is_put_back() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with global_noise():
        one = torch.rand(2)
    with global_noise():
        assert torch.equal(one, torch.rand(2))
    torch.manual_seed(3)
    with global_noise(7):
        torch.rand(5)
    assert torch.equal(torch.rand(2), expected)


def test_channels_of_a_condition_are_no_latents() -> None:
    scheduler = diffusers.DDIMScheduler()
    x, output = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    wide = torch.cat([x, torch.randn(2, 5, 8, 8)], 1)
    assert torch.equal(*(clean_latents(scheduler, latents, output, 500) for latents in (x, wide)))
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    packed, velocity = torch.randn(2, 6, 16), torch.randn(2, 6, 16)
    wide = torch.cat([packed, torch.randn(2, 6, 16)], 2)
    t = float(flow.timesteps[3])
    assert torch.equal(*(clean_latents(flow, latents, velocity, t) for latents in (packed, wide)))


@pytest.mark.parametrize("scale", [8, 16])
def test_the_grid_of_packed_latents_is_that_of_the_autoencoder_whatever_the_pipeline_calls_its_scale(
    scale: int,
) -> None:
    vae = SimpleNamespace(config=SimpleNamespace(latent_channels=4))
    ctx: Any = SimpleNamespace(pixels=(64, 96), pipe=SimpleNamespace(vae=vae, vae_scale_factor=scale))
    assert latent_grid(ctx, torch.zeros(1, 4 * 6, 16)) == (8, 12)
    with pytest.raises(UnsupportedModel, match="no picture of 64x96"):
        latent_grid(ctx, torch.zeros(1, 25, 16))


def test_a_pipeline_without_a_scale_of_its_latents_takes_no_photo() -> None:
    with pytest.raises(UnsupportedModel, match="vae_scale_factor"):
        step_of(SimpleNamespace())
