"""Flow between items: exact zeros where an encoder cannot look (TF-7), directions, and what a change means."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tiny import NAMES, tiny
from unleak.drawing.generate import rehearse
from unleak.errors import BadInput, ItemNotFound
from unleak.models import load
from unleak.text.items import Item
from unleak.text.scene import Scene
from unleak.words.diagnosis.flow import WITHOUT, Change, Flow, _share, flow
from unleak.words.methods.lens import reads_as

PROMPT = "a red mouse and a laptop on a table"
ITEMS = ["mouse", "laptop", "table"]


@pytest.fixture(scope="module")
def pipes():
    return {name: tiny(name) for name in NAMES}


def call_of(name: str) -> dict:
    return {"max_sequence_length": 32} if name in ("sd3", "flux") else {}


@pytest.mark.parametrize("without", WITHOUT)
@pytest.mark.parametrize("name", NAMES)
def test_what_stands_to_the_right_cannot_change_a_causal_row(pipes, name: str, without: str) -> None:
    found = flow(pipes[name], PROMPT, ITEMS, without=without, call=call_of(name))
    for (i, j), changes in found.changes.items():
        causal = {c.encoder for c in changes if c.channel == "gathered"}
        for c in changes:
            sees = c.channel == "gathered" or c.encoder not in causal or j < i
            assert (c.size > 0) == sees, (i, j, c)
            assert sees or not any(c.towards.values())
    clips = {"sd1": 1, "sd2": 1, "sdxl": 2, "sd3": 2, "flux": 0}[name]
    assert sum(c.channel == "gathered" for c in found.changes[0, 1]) == clips
    assert (np.diag(found.size) == 0).all() and (found.size >= 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_layer_is_the_one_that_the_denoiser_gets(pipes, name: str) -> None:
    encoded = rehearse(pipes[name], PROMPT, **call_of(name)).prompts.encoded
    read = {}
    for encoder, call in encoded.calls.items():
        layer, columns = encoded.layer(encoder), encoded.columns(encoder)
        assert (layer is None) == (columns is None)
        if layer is not None:
            rows = layer(call.output)
            part = encoded.cond[:, columns]
            width = rows.shape[-1]
            assert any(torch.equal(part[..., k : k + width], rows) for k in range(0, part.shape[-1] - width + 1, 16))
            read[encoder] = rows
    assert list(read) == {"flux": ["text_encoder_2"], "sd1": ["text_encoder"], "sd2": ["text_encoder"]}.get(
        name, list(encoded.calls)
    )


@pytest.mark.parametrize("name", ["sd1", "flux"])
@torch.no_grad()
def test_no_row_but_its_own_knows_a_hidden_item(pipes, name: str) -> None:
    seen = {}
    for other in ("laptop", "dog"):
        encoded = rehearse(pipes[name], f"a red {other} and a zebra", **call_of(name)).prompts.encoded
        call = encoded.calls["text_encoder_2" if name == "flux" else "text_encoder"]
        view = Scene(call, [Item(other), Item("zebra")]).hidden({1})
        seen[other] = view.output.last_hidden_state[0], view.phrases[0][0]
    (one, span), (two, same) = seen.values()
    outside = [i for i in range(len(one)) if not span[0] <= i < span[1]]
    assert span == same and torch.equal(one[outside], two[outside]) and not torch.equal(one, two)


def test_the_share_of_the_way_is_a_projection() -> None:
    to = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    assert _share(0.4 * to, to) == pytest.approx(0.4) and _share(-to, to) == pytest.approx(-1)
    assert _share(torch.zeros(2, 8), to) == 0 == _share(to, torch.zeros(2, 8))


@pytest.mark.parametrize(("towards", "kind", "name"), [
    ({"furry mouse": 0.1, "computer mouse": 0.7, "laptop": 0.4}, "leak", "computer mouse"),
    ({"furry mouse": 0.8, "computer mouse": 0.2, "laptop": 0.4}, "disambiguation", "furry mouse"),
    ({"furry mouse": 0.1, "computer mouse": 0.2, "laptop": 0.9}, "leak", "laptop"),
    ({"furry mouse": 0.1, "computer mouse": -2.0, "laptop": 0.2}, "none", None),
])  # fmt: skip
def test_a_change_means_what_it_points_to(towards: dict[str, float], kind: str, name: str | None) -> None:
    still = Change("text_encoder", "own", 0.0, dict.fromkeys(towards, 0.0))
    change = Change("text_encoder", "gathered", 0.9, towards)
    items = (Item("mouse", sense="furry mouse"), Item("laptop"))
    found = Flow("a mouse and a laptop", items, "substituted", {(0, 1): (still, change), (1, 0): (still,)}, (0.0, 0.0))
    assert found.kind(0, 1) == kind and found.meaning(0, 1)[0] == name
    assert found.leaks_into(0) == ([1] if kind == "leak" else []) and found.leaks_into(1) == []
    assert found.size.tolist() == [[0, 0.9], [0, 0]]


def test_bad_input_is_refused(pipes) -> None:
    with pytest.raises(BadInput, match="Choose from substituted"):
        flow(pipes["sd1"], PROMPT, ITEMS, without="magic")
    with pytest.raises(BadInput, match="overlap"):
        flow(pipes["sd1"], PROMPT, ["red mouse", "mouse"])
    with pytest.raises(ItemNotFound):
        flow(pipes["sd1"], PROMPT, ["cat"])


def test_scripts_that_are_split_to_bytes_work_where_the_tokenizer_can_spell_them(pipes) -> None:
    assert flow(pipes["sd1"], "мышь и 电脑", ["мышь", "电脑"]).changes[1, 0][0].size > 0
    with pytest.raises(BadInput, match="reads"):  # this T5 has no pieces for them
        flow(pipes["flux"], "мышь и 电脑", ["мышь", "电脑"], call=call_of("flux"))


@pytest.mark.e2e
def test_the_embedded_model_leaks_in_both_orders_and_not_in_harmless_company() -> None:
    pipe = load("emoji-sd")

    def kind(prompt: str, sense: str = "furry mouse", other: str = "laptop") -> tuple[str, str | None]:
        items = [Item("mouse", sense=sense), Item(other)]
        found = flow(pipe, prompt, items, senses={"mouse": ["furry mouse", "computer mouse"]})
        return found.kind(0, 1), found.meaning(0, 1)[0]

    for prompt in ("a mouse and a laptop", "a laptop and a mouse"):
        assert kind(prompt) == ("leak", "computer mouse")
        assert kind(prompt, sense="computer mouse") == ("disambiguation", "computer mouse")
    assert kind("a banana and a mouse", other="banana")[0] != "leak"


@pytest.mark.e2e
def test_a_row_reads_as_its_sense() -> None:
    pipe = load("emoji-sd")
    bank = ["furry mouse", "computer mouse", "laptop", "cat"]

    def read(prompt: str) -> str:
        return reads_as(rehearse(pipe, prompt).prompts.encoded, [Item("mouse"), Item("laptop")], 0, bank)[0][0]

    assert read("a mouse and a laptop") == "furry mouse"  # it has not read the laptop; EOS and pads have
    assert read("a laptop and a mouse") == "computer mouse"
