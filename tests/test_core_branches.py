"""Batch rows by content, extra branches, and predictions that collapse to the wanted one."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from tiny import draw, tiny
from unleak.core.intervention import Intervention, Window
from unleak.core.rows import POOLED, Branch, Rows
from unleak.engine.batch import fold, grow, label_rows
from unleak.engine.session import attach
from unleak.errors import BadInput, Conflict, NotFinite, UnsupportedModel

# -- rows by content -------------------------------------------------------------------------------------------


def rows_of(*values):
    return torch.tensor(values, dtype=torch.float32)[:, None, None].expand(-1, 3, 2)


@pytest.mark.parametrize(
    ("text", "cond", "uncond", "labels", "images"),
    [
        ((9, 9, 1, 2), (1, 2), (9, 9), "uucc", (0, 1, 0, 1)),
        ((1, 2, 9, 9), (1, 2), (9, 9), "ccuu", (0, 1, 0, 1)),
        ((2, 1), (1, 2), None, "cc", (1, 0)),
        ((1, 2), (1, 2), (8, 9), "cc", (0, 1)),
        ((8, 9), (1, 2), (8, 9), "uu", (0, 1)),
        ((1, 1, 1, 1), (1, 1), (1, 1), "uucc", (0, 1, 0, 1)),
        ((1, 1), (1, 1), (1, 1), "cc", (0, 1)),
        ((5, 1), (1,), None, "?c", (0, 0)),
    ],
)
def test_rows_are_told_apart_by_their_text(text, cond, uncond, labels, images):
    found = label_rows(rows_of(*text), rows_of(*cond), None if uncond is None else rows_of(*uncond))
    assert "".join({"cond": "c", "uncond": "u", "unknown": "?"}[label] for label in found.labels) == labels
    assert found.images == images


def test_a_label_without_rows_gives_none_and_an_unknown_one_raises():
    rows = Rows(("uncond", "uncond"), (0, 1))
    assert rows.of("cond") == () and rows.of(None) == (0, 1) and rows.of([1]) == (1,)
    with pytest.raises(BadInput, match="nobody"):
        rows.of("nobody")
    with pytest.raises(UnsupportedModel):
        Rows(("unknown",), (0,)).of("cond")


def test_rows_are_grouped_by_their_prompt():
    rows = Rows(("uncond", "uncond", "cond", "cond", "cond"), (0, 1, 0, 2, 1), images_per_prompt=2)
    assert rows.by_prompt() == {0: [2, 4], 1: [3]} and rows.by_prompt("uncond") == {0: [0, 1]}
    grown = grow({"sample": torch.zeros(5, 1)}, rows, [Branch("extra")])[1]
    assert grown.by_prompt("extra") == {0: [5, 7], 1: [6]}


# -- growing and folding ---------------------------------------------------------------------------------------


def test_everything_batched_grows_and_nothing_else():
    rows = Rows(("uncond", "cond"), (0, 0))
    inputs = {
        "sample": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor(3),
        "encoder_hidden_states": torch.randn(2, 5, 6),
        "guidance": torch.ones(2),
        "img_ids": torch.randn(2, 3),
        "hidden_states": torch.randn(2, 2, 3),
        "added_cond_kwargs": {"text_embeds": torch.randn(2, 7), "time_ids": torch.randn(2, 6)},
        "down_block_additional_residuals": [torch.randn(2, 4, 8, 8), None],
        "return_dict": False,
    }
    grown, labels = grow(inputs, rows, [Branch("clean"), Branch("other", text=torch.zeros(5, 6))])
    assert labels.labels == ("uncond", "cond", "clean", "other") and labels.images == (0, 0, 0, 0)
    for name in ("sample", "guidance"):
        assert torch.equal(grown[name][[2, 3]], inputs[name][[1, 1]])
    assert grown["img_ids"] is inputs["img_ids"] and grown["timestep"] is inputs["timestep"]
    assert torch.equal(grown["added_cond_kwargs"]["time_ids"][2], inputs["added_cond_kwargs"]["time_ids"][1])
    assert len(grown["down_block_additional_residuals"][0]) == 4
    assert torch.equal(grown["encoder_hidden_states"][2], inputs["encoder_hidden_states"][1])
    assert grown["encoder_hidden_states"][3].abs().max() == 0
    assert inputs["encoder_hidden_states"].abs().min() > 0, "the pipeline's own tensor was written to"


def test_branches_may_be_of_some_images_and_replace_named_inputs():
    rows = Rows(("cond",) * 3, (0, 1, 2))
    inputs = {"sample": torch.randn(3, 2), "encoder_hidden_states": torch.randn(3, 5, 6)}
    grown, labels = grow(inputs, rows, [Branch("b", images=(0, 2), replace={"sample": torch.ones(2, 2)})])
    assert labels.images == (0, 1, 2, 0, 2) and torch.equal(grown["sample"][3:], torch.ones(2, 2))
    with pytest.raises(BadInput, match="pooled"):
        grow(inputs, rows, [Branch("b", replace={"pooled": torch.ones(3, 2)})])
    with pytest.raises(BadInput, match="two branches"):
        grow(inputs, rows, [Branch("cond")])


@pytest.mark.parametrize(
    "where", [lambda own: {"added_cond_kwargs": {"text_embeds": own}}, lambda own: {"pooled_projections": own}]
)
def test_pooled_vectors_go_where_the_denoiser_takes_them(where):
    rows, own = Rows(("cond",) * 2, (0, 1)), torch.randn(2, 7)
    inputs = {"encoder_hidden_states": torch.randn(2, 5, 6)}
    known = {POOLED: ("text_embeds", "pooled_projections")}
    grown, _ = grow(inputs | where(own), rows, [Branch("b", images=(1,), pooled=torch.ones(7))], known)
    expected = where(torch.cat([own, torch.ones(1, 7)]))
    torch.testing.assert_close({name: grown[name] for name in expected}, expected, rtol=0, atol=0)
    with pytest.raises(UnsupportedModel, match="pooled vector"):
        grow(inputs, rows, [Branch("b", pooled=torch.ones(7))])


@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5, -3.0])
def test_the_combined_prediction_survives_guidance(scale):
    rows = Rows(("uncond", "uncond", "cond", "cond", "extra"), (0, 1, 0, 1, 0))
    wanted = torch.randn(2, 4, 3, 3)
    u, c = fold(torch.randn(5, 4, 3, 3), rows, wanted, 4).chunk(2)
    assert torch.equal(u + scale * (c - u), wanted)


# -- in a run --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Combine(Intervention):
    """Guidance written by hand."""

    scale: float = 2.0

    def on_prediction(self, ctx, preds):
        return preds["uncond"] + self.scale * (preds["cond"] - preds["uncond"])


@dataclass(frozen=True)
class Extra(Intervention):
    """A branch that repeats the prompt, compared with it."""

    images: tuple[int, ...] | None = None
    like: str = "cond"

    def branches(self, ctx):
        return [Branch("extra", like=self.like, images=self.images)]

    def on_prediction(self, ctx, preds):
        index = list(self.images or range(len(preds[self.like])))
        gap = (preds["extra"] - preds[self.like][index]).abs().max() / preds[self.like].abs().max()
        ctx.results.setdefault("gap", []).append(float(gap))


@dataclass(frozen=True)
class Labels(Intervention):
    def on_prediction(self, ctx, preds):
        ctx.results.setdefault("rows", []).append(ctx.rows)


def guided(name, scale):
    if name == "flux":
        return {"negative_prompt": "a cat", "true_cfg_scale": scale}
    return {"negative_prompt": "a cat", "guidance_scale": scale}


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "sd3", "flux"])
def test_rows_are_labelled_in_every_layout(name):
    pipe = tiny(name)
    prompts, negative = ["a dog", "a red cat"], ["a cat", "a cat"]
    kwargs = {**guided(name, 3.0), "negative_prompt": negative}
    with attach(pipe, Labels()) as run:
        draw(pipe, prompts, seeds=range(4), steps=1, num_images_per_prompt=2, **kwargs)
    rows = run.results["rows"][-1]
    assert all(rows.images[row] // 2 == prompt for prompt, some in rows.by_prompt(None).items() for row in some)
    if name == "flux":  # one call a branch; the last is the negative prompt's
        assert rows.labels == ("uncond",) * 4 and rows.images == (0, 1, 2, 3)
    else:
        assert rows.labels == ("uncond",) * 4 + ("cond",) * 4
        assert rows.images == (0, 1, 2, 3) * 2


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "sd3", "flux"])
def test_a_prompt_that_is_its_own_negative_keeps_its_two_branches(name):
    pipe = tiny(name)
    expected = draw(pipe, "a cat", **guided(name, 3.0))
    with attach(pipe, Combine(3.0)):  # needs both branches by name
        found = draw(pipe, "a cat", **guided(name, 3.0))
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "sd3", "flux"])
def test_guidance_by_hand_is_the_pipelines_guidance(name):
    pipe = tiny(name)
    expected = draw(pipe, **guided(name, 4.0))
    with attach(pipe, Combine(4.0)) as run:
        found = draw(pipe, **guided(name, 1.5))  # another scale: it must have no effect
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert run.log[0]["combined"] == 3


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3", "flux"])
@pytest.mark.parametrize("like", ["cond", "uncond"])
def test_an_extra_branch_predicts_what_its_model_does(name, like):
    pipe = tiny(name)
    bare = draw(pipe, seeds=(0, 1), num_images_per_prompt=2, **guided(name, 3.0))
    with attach(pipe, Extra(like=like)) as run:
        found = draw(pipe, seeds=(0, 1), num_images_per_prompt=2, **guided(name, 3.0))
    assert len(run.results["gap"]) == 3 and max(run.results["gap"]) < 1e-5
    assert run.log[0]["denoiser_rows"] == 18
    assert (found - bare).abs().max() < 1e-4 * bare.abs().max()


def test_a_branch_of_some_images_costs_only_their_rows(sd1):
    with attach(sd1, Extra(images=(1,))) as run:
        draw(sd1, seeds=(0, 1), num_images_per_prompt=2)
    assert run.log[0]["denoiser_rows"] == 15 and max(run.results["gap"]) < 1e-5


def test_a_branch_inside_its_window_only(sd1):
    with attach(sd1, Extra(window=Window(0, 0.4))) as run:
        draw(sd1)
    assert run.log[0]["denoiser_rows"] == 3 + 2 + 2


@dataclass(frozen=True)
class OtherText(Intervention):
    """The prediction under another prompt, from an extra branch, instead of the prompt's own."""

    prompt: str = "a dog"
    rows: dict = field(default_factory=dict, compare=False)

    def on_text(self, ctx, call):
        self.rows["text"] = call.rerun(self.prompt)[0]

    def branches(self, ctx):
        return [Branch("other", text=self.rows["text"])]

    def on_prediction(self, ctx, preds):
        return preds["uncond"] + 3.0 * (preds["other"] - preds["uncond"])


def test_a_branch_may_read_another_prompt(sd1):
    expected = draw(sd1, "a dog", guidance_scale=3.0)
    with attach(sd1, OtherText()):
        found = draw(sd1, "a zebra", guidance_scale=3.0)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@dataclass(frozen=True)
class AskAgain(Intervention):
    def on_prediction(self, ctx, preds):
        again = ctx.predict([Branch("again", images=(1,))])["again"]
        ctx.results.setdefault("gap", []).append(float((again - preds["cond"][1:]).abs().max()))


def test_one_more_call_on_chosen_rows(any_pipe):
    bare = draw(any_pipe, seeds=(0, 1), num_images_per_prompt=2)
    with attach(any_pipe, AskAgain()) as run:
        found = draw(any_pipe, seeds=(0, 1), num_images_per_prompt=2)
    assert torch.equal(found, bare) and max(run.results["gap"]) < 1e-4
    assert run.log[0]["denoiser_calls"] == 6


def test_two_final_combiners_are_a_conflict(sd1):
    with attach(sd1, Combine(2.0), Combine(3.0)), pytest.raises(Conflict, match=r"0\.Combine and 1\.Combine"):
        draw(sd1)


def test_combiners_in_different_windows_are_not(sd1):
    first, rest = Combine(2.0, window=Window(0, 0.4)), Combine(3.0, window=Window(0.5, 1))
    with attach(sd1, first, rest) as run:
        draw(sd1)
    assert run.log[0]["combined"] == 3


@dataclass(frozen=True)
class Replace(Intervention):
    factor: float = 2.0

    def on_prediction(self, ctx, preds):
        return {"cond": preds["cond"] * self.factor}


def test_replaced_predictions_reach_those_that_follow(sd1):
    @dataclass(frozen=True)
    class See(Intervention):
        def on_prediction(self, ctx, preds):
            ctx.results.setdefault("size", []).append(float(preds["cond"].abs().max()))

    with attach(sd1, See(), Replace(2.0), See()) as run:
        changed = draw(sd1, steps=1)
    before, after = run.results["size"]
    assert after == pytest.approx(2 * before)
    assert not torch.equal(changed, draw(sd1, steps=1))


def test_replacing_needs_one_call_for_all_branches(flux):
    with attach(flux, Replace()), pytest.raises(UnsupportedModel, match="one combined"):
        draw(flux, **guided("flux", 2.0))


@dataclass(frozen=True)
class Wrong(Intervention):
    def on_prediction(self, ctx, preds):
        return preds["cond"][..., :1]


def test_a_combination_of_another_shape_is_refused(sd1):
    with attach(sd1, Wrong()), pytest.raises(BadInput, match="combined predictions"):
        draw(sd1)


def test_nan_predictions_are_found(sd1):
    pipe = tiny("sd1")
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(float("nan"))
    with attach(pipe, Combine()), pytest.raises(NotFinite, match="predicted NaN"):
        draw(pipe)


def test_guidance_switched_off_midway(sd1):
    def off(pipe, i, t, kwargs):
        pipe._guidance_scale = 0.0
        kwargs["prompt_embeds"] = kwargs["prompt_embeds"].chunk(2)[-1]
        return kwargs

    kwargs = {"callback_on_step_end": off, "callback_on_step_end_tensor_inputs": ["prompt_embeds"], "steps": 2}

    @dataclass(frozen=True)
    class Names(Intervention):
        def on_prediction(self, ctx, preds):
            ctx.results.setdefault("names", []).append(sorted(preds))

    with attach(sd1, Names()) as run:
        draw(sd1, **kwargs)
    assert run.results["names"] == [["cond", "uncond"], ["cond"]]
