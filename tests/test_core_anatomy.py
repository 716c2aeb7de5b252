"""Finding the parts of a pipeline, and the latent grid of a site."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import ControlNetModel, UNet2DModel
from hypothesis import given
from hypothesis import strategies as st

from tiny import tiny
from unleak.core.anatomy import Anatomy, Grid
from unleak.errors import UnsupportedModel

EXPECTED = {
    "sd1": ("unet", ["text_encoder"], 32),
    "sd2": ("unet", ["text_encoder"], 32),
    "sdxl": ("unet", ["text_encoder", "text_encoder_2"], 22),
    "sd3": ("transformer", ["text_encoder", "text_encoder_2", "text_encoder_3"], 3),
    "flux": ("transformer", ["text_encoder", "text_encoder_2"], 4),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_parts_are_found(name):
    anatomy = Anatomy.of(tiny(name))
    denoiser, encoders, sites = EXPECTED[name]
    assert anatomy.denoiser_name == denoiser
    assert sorted(e.name for e in anatomy.encoders) == encoders
    assert len(anatomy.sites) == sites
    for encoder in anatomy.encoders:
        assert encoder.tokenizer is getattr(anatomy.pipe, f"tokenizer{encoder.suffix}")


def test_an_encoder_that_is_not_loaded_is_left_out():
    pipe = tiny("sd3")
    pipe.text_encoder_3 = pipe.tokenizer_3 = None
    assert sorted(e.name for e in Anatomy.of(pipe).encoders) == ["text_encoder", "text_encoder_2"]


def test_a_controlnet_is_not_taken_for_the_denoiser(sd1):
    parts = {**sd1.components, "controlnet": ControlNetModel.from_unet(sd1.unet)}
    assert Anatomy.of(SimpleNamespace(components=parts)).denoiser is sd1.unet


def test_a_pipeline_without_text_conditioning_is_refused():
    pipe = SimpleNamespace(components={"unet": UNet2DModel(block_out_channels=(32,) * 4, norm_num_groups=8)})
    with pytest.raises(UnsupportedModel, match="0 text-conditioned"):
        Anatomy.of(pipe)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 3))
def test_spatial_grids_have_the_aspect_of_the_latents(height, width, level):
    grid = Grid(torch.zeros(1, 4, height, width), {}, (None, None))
    for _ in range(level):
        height, width = (height + 1) // 2, (width + 1) // 2
    found = grid.of(height * width)
    assert found is not None and found[0] * found[1] == height * width


def test_an_even_grid_is_exact():
    grid = Grid(torch.zeros(1, 4, 24, 40), {}, (None, None))
    assert [grid.of(n) for n in (960, 240, 60, 15, 77)] == [(24, 40), (12, 20), (6, 10), (3, 5), None]


def test_packed_latents_take_the_grid_from_the_position_table():
    rows, columns = torch.meshgrid(torch.arange(6), torch.arange(10), indexing="ij")
    table = torch.stack([torch.zeros(60), rows.flatten(), columns.flatten()], dim=1)
    grid = Grid(torch.zeros(2, 60, 16), {"txt_ids": torch.zeros(32, 3), "img_ids": table}, (None, None))
    assert grid.of(60) == (6, 10) and grid.of(15) is None


def test_packed_latents_without_a_table_take_the_aspect_of_the_image():
    assert Grid(torch.zeros(1, 60, 16), {}, (96, 160)).of(60) == (6, 10)
    assert Grid(torch.zeros(1, 60, 16), {}, (None, None)).of(60) is None
