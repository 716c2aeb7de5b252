"""Rows that read another text: of any length, with the mask and the pooled vectors that it has."""

from __future__ import annotations

import pytest
import torch

from conformance import family
from conformance.family import PROMPT
from unleak.copies.methods.detour import Detour
from unleak.core.rows import MASK, TEXT, Branch
from unleak.engine.batch import with_text
from unleak.engine.session import attach
from unleak.errors import UnsupportedModel

FAMILIES = [
    "sd1", "sdxl", "sd3.5", "flux.1", "flux.1-true-cfg", "chroma", "qwen-image", "z-image", "lumina2", "sana",
    "aura-flow", "pixart-sigma", "flux.2-klein", "cogview4", "hunyuan-image-2.1",
]  # fmt: skip
TEXTS = ["a zebra", "a photo of an old wooden table with a small black cat and a glass of wine on it"]


@pytest.mark.parametrize("text", TEXTS, ids=["shorter", "longer"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_detour_that_never_ends_draws_the_other_text(name, text):
    one = family(name)
    pipe = one.pipe()
    expected = one.draw(pipe, text, output_type="latent")
    bare = one.draw(pipe, output_type="latent")
    with attach(pipe, Detour(text, near=-1.0)):
        found = one.draw(pipe, PROMPT, output_type="latent")
    assert abs(found - expected).max() < 1e-3 * abs(expected).max() < abs(bare - expected).max()


def call_of(length: int, **further):
    return {"x": torch.zeros(2, 9, 4), "text": torch.randn(2, length, 6), **further}


KNOWN = {("x",): ("x",), TEXT: ("text",), MASK: ("counts",)}


def test_what_is_as_long_as_the_text_goes_with_it():
    counts = torch.cat([torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]), torch.ones(2, 9, dtype=torch.long)], 1)
    inputs = call_of(5, counts=counts, places=torch.arange(15.0).reshape(5, 3), lengths=[5, 5], other=torch.ones(2, 7))
    branch = Branch("b", text=torch.ones(3, 6), mask=torch.tensor([1, 1, 0]))
    found = with_text(inputs, branch, KNOWN)
    assert found["text"].shape == (2, 3, 6) and found["lengths"] == [3, 3]
    assert found["counts"].tolist() == [[1, 1, 0, *[1] * 9]] * 2 and torch.equal(found["places"], inputs["places"][:3])
    places = with_text(call_of(5, at=torch.arange(5), scale=torch.ones(2)), branch, KNOWN)
    assert places["at"].tolist() == [0, 1, 2] and places["scale"].shape == (2,)
    assert found["other"] is inputs["other"] and found["x"] is inputs["x"] and inputs["text"].shape == (2, 5, 6)


def test_a_text_that_cannot_take_its_place_is_refused():
    with pytest.raises(UnsupportedModel, match="fewer tokens"):  # there are no positions for more rows
        with_text(call_of(5, places=torch.zeros(5, 3)), Branch("b", text=torch.ones(6, 6)), KNOWN)
    layers = [torch.zeros(2, 5, 8), torch.zeros(2, 5, 8)]
    with pytest.raises(UnsupportedModel, match="of as many tokens"):
        with_text(call_of(5, layers=layers), Branch("b", text=torch.ones(3, 6)), KNOWN)
    stacked = {"x": torch.zeros(2, 9, 4), "text": torch.zeros(2, 3, 5, 6)}
    with pytest.raises(UnsupportedModel, match="several layers"):
        with_text(stacked, Branch("b", text=torch.ones(3, 6)), KNOWN)
    with pytest.raises(UnsupportedModel, match="goes with"):
        with_text(call_of(5, second=torch.zeros(2, 5, 8)), Branch("b", text=torch.ones(3, 6)), KNOWN)
    masked = Branch("b", text=torch.ones(3, 6), mask=torch.tensor([1, 1, 0]))
    with pytest.raises(UnsupportedModel, match="no mask"):
        with_text(call_of(5), masked, {TEXT: ("text",)})
