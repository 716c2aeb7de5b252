"""The tiny pipelines themselves: deterministic, saved and read back, and sensitive to their prompt."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiffusionPipeline

from tiny import NAMES, draw, save_tiny, tiny


@pytest.mark.parametrize("name", NAMES)
def test_equal_calls_give_equal_pipelines(name):
    assert torch.equal(draw(tiny(name)), draw(tiny(name)))


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_reads_back_bitwise(name, tmp_path):
    again = DiffusionPipeline.from_pretrained(save_tiny(name, tmp_path / name))
    again.set_progress_bar_config(disable=True)
    pipe = tiny(name)
    for part, module in pipe.components.items():
        if isinstance(module, torch.nn.Module):
            read = getattr(again, part).state_dict()
            assert all(torch.equal(read[key], value) for key, value in module.state_dict().items()), part
    torch.testing.assert_close(draw(again), draw(pipe), rtol=1e-4, atol=1e-4)  # kernels round by where weights lie


@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_matters(name):
    pipe = tiny(name)
    a, b = draw(pipe, "a red mouse"), draw(pipe, "a zebra")
    assert (a - b).abs().max() > 1e-2 * a.abs().max()


def test_padding_is_that_of_the_real_models():
    assert tiny("sd1").tokenizer.pad_token == "<|endoftext|>"
    assert tiny("sd2").tokenizer.pad_token == "!"
    sdxl = tiny("sdxl")
    assert (sdxl.tokenizer.pad_token, sdxl.tokenizer_2.pad_token) == ("<|endoftext|>", "!")
    ids = tiny("flux").tokenizer_2("a red zebra", padding="max_length", max_length=24).input_ids
    assert ids.count(1) == 1 and set(ids[ids.index(1) + 1 :]) == {0}
