"""Regional prompts in plain generation, and the room that shares its name with the verb."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import unleak
from unleak import RegionPrompt
from unleak.errors import BadInput, EmptyMask, ItemNotFound
from unleak.regions.methods.rgbcam import RGBCAM

SMALL = {"height": 64, "width": 64, "num_inference_steps": 2}
PROMPT = "a red cat and a blue dog"


def test_it_is_the_intervention_with_the_regions_as_masks(sd1) -> None:
    left = np.zeros((64, 64), bool)
    left[:, :32] = True
    where = [RegionPrompt("red cat", (0, 0, 0.5, 1)), RegionPrompt("blue dog", ~left)]
    result = unleak.regions(sd1, PROMPT, where, seeds="0,1", call=SMALL)
    method = RGBCAM(["red cat", "blue dog"], torch.from_numpy(np.stack([left, ~left])))
    with unleak.attach(sd1, method):
        expected = unleak.generate(sd1, PROMPT, seeds=2, call=SMALL).images[0]
    assert np.array_equal(result.images, expected) and result.areas() == [0.5, 0.5]
    assert not np.array_equal(expected, unleak.generate(sd1, PROMPT, seeds=2, call=SMALL).images[0])


def test_a_region_is_read_from_text() -> None:
    assert RegionPrompt.parse("red cat@0,0,0.5,1").where == (0, 0, 0.5, 1)
    assert RegionPrompt.parse("me@home@mask.png").phrase == "me@home"
    for text in ("red cat", "@0,0,1,1", "cat@", "cat@0,0,1", "cat@0.5,0,0.5,1", "cat@0,0,2,1"):
        with pytest.raises(BadInput):
            RegionPrompt.parse(text)


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ([], BadInput),
        ([RegionPrompt("green bird", (0, 0, 1, 1))], ItemNotFound),
        ([RegionPrompt("red cat", (0, 0, 0.001, 1))], EmptyMask),
        ([RegionPrompt("red cat", "nowhere.png")], BadInput),
    ],
)
def test_bad_regions_are_refused_before_anything_is_drawn(sd1, where, error) -> None:
    with pytest.raises(error):
        unleak.regions(sd1, PROMPT, where, call=SMALL, progress=lambda _: pytest.fail("it drew"))


@pytest.mark.parametrize(
    "lines",
    [
        "import unleak; assert callable(unleak.regions); from unleak.regions.edit import edit",
        "from unleak.regions.edit import edit; import unleak; assert callable(unleak.regions)",
        "import unleak.regions; assert callable(unleak.regions) and unleak.regions.__path__",
    ],
)
def test_the_room_is_the_verb_in_either_order(lines: str) -> None:
    check = "; assert unleak.regions.__call__ and edit" if "edit" in lines else ""
    subprocess.run([sys.executable, "-c", lines + check], check=True)
