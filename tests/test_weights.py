"""Prompt weights and TACA: logits times a number between the picture's queries and text keys, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tiny import draw, tiny
from unleak import TACA, Boost, Intervention, Weight, attach, hook, weighted
from unleak.errors import BadInput, UnsupportedModel
from unleak.text.items import Item
from unleak.words.presets import REPAIRS, RepairTask

ROWS = 32  #: of text, in the tiny pipelines of joint attention
NAMES = ("sd1", "sd3", "flux")


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_of_one_changes_nothing_and_others_act(name: str) -> None:
    pipe = tiny(name)
    bare = draw(pipe)
    with attach(pipe, Weight("mouse,laptop", 1)):
        assert torch.equal(draw(pipe), bare)
    with attach(pipe, Weight("mouse,laptop", (3.0, 0.2))) as run:
        acted = draw(pipe)
    assert not torch.equal(acted, bare) and run.log[-1]["edits"]["0.Weight"]["KeyScale"]
    assert torch.equal(draw(pipe), bare)
    with attach(pipe, Weight("mouse", 3.0), Weight("laptop", 0.2)):
        torch.testing.assert_close(draw(pipe), acted)


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_is_the_gain_of_the_words_everywhere(name: str) -> None:
    pipe = tiny(name)
    drawn = []
    for method in (Weight("mouse", 2.5), Boost("mouse", 2.5, region="all")):
        with attach(pipe, method):
            drawn.append(draw(pipe))
    torch.testing.assert_close(*drawn)


@pytest.mark.parametrize("prompt, text, items, weights", [
    ("a (mouse:1.4) and a laptop", "a mouse and a laptop", ("mouse",), (1.4,)),
    ("a (mouse:1.4) and a (red car: 0.8)", "a mouse and a red car", ("mouse", "red car"), (1.4, 0.8)),
    ("a mouse and a (mouse:2)", "a mouse and a mouse", ("mouse#2",), (2.0,)),
    ("a (mouse:.5) (furry)", "a mouse (furry)", ("mouse",), (0.5,)),
])  # fmt: skip
def test_weights_are_read_from_a_prompt_on_request(prompt: str, text: str, items: Any, weights: Any) -> None:
    plain, method = weighted(prompt)
    assert plain == text and method == Weight(items, weights)
    assert Intervention.from_dict(method.to_dict()) == method


@pytest.mark.parametrize("prompt", [
    "a mouse", "a (mouse) and a laptop", "a ((mouse:1.4) or so:1.2)", "a (mouse:1.4.2)", "a (mou:1.4)se", "a (:1.4)",
    "a (mouse:0)", "a [mouse:1.4]", "a (mouse:1.4) and a (mouse:1.4",
])  # fmt: skip
def test_what_is_no_weight_is_refused(prompt: str) -> None:
    if prompt == "a (mouse:1.4) and a (mouse:1.4":  # an open parenthesis is text, and so is what follows it
        assert weighted(prompt)[0] == "a mouse and a (mouse:1.4"
        return
    with pytest.raises(BadInput):
        weighted(prompt)


@pytest.mark.parametrize("weights", [0, -1, float("nan"), float("inf"), (1.0,), (1.0, 2.0, 3.0), ("1", 2), ()])
def test_weights_out_of_range_are_refused(weights: Any) -> None:
    with pytest.raises(BadInput, match="weights="):
        Weight("mouse,laptop", weights)


def test_without_the_request_a_prompt_is_read_as_it_stands() -> None:
    pipe = tiny("sd1")
    with attach(pipe, Weight("mouse", 1.0)):
        assert torch.equal(draw(pipe, "a (mouse:1.4)"), draw(pipe, "a (mouse:1.4)"))
    assert not torch.equal(draw(pipe, "a (mouse:1.4)"), draw(pipe, "a mouse"))


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_taca_of_one_changes_nothing(name: str) -> None:
    pipe = tiny(name)
    bare = draw(pipe)
    with attach(pipe, TACA(1.0)):
        assert torch.equal(draw(pipe), bare)
    kinds: dict[str, str] = {}
    with attach(pipe, TACA(), hook(on_attention=lambda ctx, site: kinds.update({site.name: site.kind}))) as run:
        assert not torch.equal(draw(pipe), bare)
    assert {*run.log[-1]["edits"]["0.TACA"]["KeyScale"]} == {name for name, kind in kinds.items() if kind == "joint"}
    assert torch.equal(draw(pipe), bare)


def test_taca_is_its_equation_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """FLUX's tiny pipeline: text rows first, one call a step; the same picture from attention written out."""
    pipe, gamma = tiny("flux"), 1.7
    with attach(pipe, TACA(gamma)):
        acted = draw(pipe)
    attend = torch.nn.functional.scaled_dot_product_attention

    def by_hand(query: Any, key: Any, value: Any, *args: Any, **more: Any) -> Any:
        if query.shape[2] <= ROWS:  # of a text encoder
            return attend(query, key, value, *args, **more)
        louder = torch.cat([gamma * key[:, :, :ROWS], key[:, :, ROWS:]], 2)
        of_text = attend(query[:, :, :ROWS], key, value, *args, **more)
        return torch.cat([of_text, attend(query[:, :, ROWS:], louder, value, *args, **more)], 2)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", by_hand)
    torch.testing.assert_close(draw(pipe), acted, rtol=1e-4, atol=1e-4)


def test_taca_needs_joint_attention_and_a_gamma_above_0() -> None:
    pipe = tiny("sd1")
    with pytest.raises(UnsupportedModel, match="joint attention"), attach(pipe, TACA()):
        draw(pipe)
    for gamma in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(BadInput, match="gamma="):
            TACA(gamma)


def test_both_are_presets() -> None:
    task = RepairTask((Item("mouse", sense="furry mouse"),), (Item("laptop"),), (None,))
    assert REPAIRS["weight"].build(task, REPAIRS["weight"].parse(["weights=2"])) == Weight("mouse", 2)
    assert REPAIRS["weight"].build(task, REPAIRS["weight"].parse(["weights=[2.0]"])) == Weight("mouse", (2.0,))
    assert REPAIRS["taca"].build(task, {"gamma": 1.5}) == TACA(1.5)
