"""unleak inside modular pipelines of diffusers: the picture is bitwise that of `attach`, and nothing stays behind."""

from __future__ import annotations

import copy
import re
import warnings
from pathlib import Path

import diffusers
import pytest
import torch

import unleak
from conformance.modular import BLOCKS, draw_modular, modular
from tiny import tiny
from unleak.errors import BadInput, Conflict, UnleakError, UnsupportedModel
from unleak.integrations.diffusers import UnleakBlocks, UnleakGuidance, guidance

diffusers.utils.logging.set_verbosity(100)  # a block logs the traceback of every error that passes it
ITEMS = ["mouse", "laptop"]
METHODS = {"Patch": [unleak.Patch(ITEMS)], "Guard and Maps": [unleak.Guard(scale=4.0), unleak.Maps(ITEMS)]}
PAGE = Path(__file__).parents[1] / "docs" / "modular.md"


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def within(blocks, name="sdxl"):
    """A pipeline of these blocks with the parts of the tiny one."""
    pipe, parts = blocks.init_pipeline(), modular(name).components
    pipe.update_components(**{key: part for key, part in parts.items() if key in pipe.components})
    return pipe


def attached(methods, name="sdxl"):
    pipe = modular(name)
    with unleak.attach(pipe, *methods) as run:
        return draw_modular(pipe), run


def left(pipe) -> list[object]:
    """What of unleak is on the parts of a pipeline: hooks, and methods that stand before those of a class."""
    parts = pipe.components.values()
    modules = [module for part in parts if isinstance(part, torch.nn.Module) for module in part.modules()]
    hooks = [hook for m in modules for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    methods = [value for part in (pipe.scheduler, pipe.guider) for value in vars(part).values()]
    return [thing for thing in (*hooks, *methods) if type(thing).__module__.startswith("unleak")]


@pytest.mark.parametrize("methods", METHODS.values(), ids=METHODS)
def test_blocks_draw_what_attach_draws(methods):
    expected, run = attached(methods)
    pipe = within(UnleakBlocks(BLOCKS["sdxl"]().get_workflow("text2image"), *methods))
    drawn = draw_modular(pipe, output=["images", "unleak_results", "unleak_log"])
    assert torch.equal(drawn["images"], expected)
    assert drawn["unleak_log"] == run.log and drawn["unleak_results"].keys() == run.results.keys()
    assert not left(pipe) and torch.equal(draw_modular(pipe), expected)


@pytest.mark.parametrize("methods", METHODS.values(), ids=METHODS)
def test_a_guider_draws_what_attach_draws(methods):
    expected, run = attached(methods)
    pipe = modular("sdxl")
    bare, before = draw_modular(pipe), pipe.guider
    pipe.update_components(guider=guidance(pipe, *methods))
    assert torch.equal(draw_modular(pipe), expected)
    assert pipe.guider.log == run.log and pipe.guider.results.keys() == run.results.keys()
    assert not left(pipe) and torch.equal(draw_modular(pipe), expected)
    pipe.update_components(guider=before)
    assert torch.equal(draw_modular(pipe), bare)


def test_a_workflow_is_chosen_before_or_afterwards():
    expected, _ = attached(METHODS["Patch"], "flux")
    blocks = UnleakBlocks(BLOCKS["flux"](), *METHODS["Patch"]).get_workflow("text2image")
    assert isinstance(blocks, UnleakBlocks)
    assert torch.equal(draw_modular(within(blocks, "flux")), expected)


def test_a_guider_keeps_class_settings_and_equation():
    pipe = modular("sdxl")
    other = diffusers.AdaptiveProjectedGuidance(guidance_scale=3.0)
    expected = draw_modular(modular("sdxl", other))
    guider = guidance(pipe, unleak.Maps(ITEMS), guider=other)
    assert isinstance(guider, UnleakGuidance) and isinstance(guider, diffusers.AdaptiveProjectedGuidance)
    assert guider.config.guidance_scale == 3.0 and guider is not other
    pipe.update_components(guider=guider)
    assert torch.equal(draw_modular(pipe), expected)
    again = guidance(pipe, unleak.Patch(ITEMS))  # of the guider that the pipeline has now
    assert [type(item).__name__ for item in again.interventions] == ["Patch"]
    assert type(again).__bases__[1] is diffusers.AdaptiveProjectedGuidance


def test_a_guider_in_another_pipeline_is_refused():
    pipe, other = modular("sdxl"), modular("sdxl")
    other.update_components(guider=guidance(pipe, unleak.Patch(ITEMS)))
    with pytest.raises(UnsupportedModel, match="another pipeline"):
        draw_modular(other)


def test_a_guider_that_is_gone_leaves_the_blocks_as_they_were():
    pipe = modular("sdxl")
    kind = type(pipe._blocks)
    guider = guidance(pipe, unleak.Patch(ITEMS))
    assert type(copy.deepcopy(pipe._blocks)) is kind
    del guider
    assert type(pipe._blocks) is kind


@pytest.mark.parametrize("way", ["blocks", "guider"])
def test_an_error_is_typed_and_leaves_nothing(way):
    wrong = unleak.Patch(["zebra"])
    if way == "blocks":
        pipe = within(UnleakBlocks(BLOCKS["sdxl"]().get_workflow("text2image"), wrong))
    else:
        pipe = modular("sdxl")
        pipe.update_components(guider=guidance(pipe, wrong))
    for _ in range(2):
        with pytest.raises(UnleakError, match="zebra"):
            draw_modular(pipe)
    assert not left(pipe)


def test_what_cannot_work_is_refused():
    pipe = modular("sdxl")
    with pytest.raises(BadInput, match="not an Intervention"):
        UnleakBlocks(pipe.blocks, "Patch")
    with pytest.raises(BadInput, match="not an Intervention"):
        guidance(pipe, "Patch")
    with pytest.raises(UnsupportedModel, match="no guider"):
        guidance(modular("flux"), unleak.Patch(ITEMS))
    with pytest.raises(UnsupportedModel, match="no guider"):
        guidance(tiny("sd1"), unleak.Patch(ITEMS))
    pipe.update_components(guider=guidance(pipe, unleak.Patch(ITEMS)))
    with pytest.raises(Conflict), unleak.attach(pipe, unleak.Maps(ITEMS)):
        draw_modular(pipe)


def test_blocks_without_the_encoder_cannot_change_its_rows():
    blocks = BLOCKS["sdxl"]().get_workflow("text2image")
    name, loop = next((name, block) for name, block in blocks.sub_blocks.items() if "denoise" in name)
    blocks.sub_blocks[name] = UnleakBlocks(loop, unleak.Patch(ITEMS))
    with pytest.raises(BadInput, match="text encoder's block"):
        draw_modular(within(blocks))


def test_the_page_runs_as_it_stands():
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(code) >= 3
    exec("\n".join(code), {})
