"""The text seam: prompts learned exactly, rows rewritten at the encoders, nothing lost in silence."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest
import torch

from tiny import draw, tiny
from unleak.core import anatomy
from unleak.core.anatomy import Anatomy
from unleak.core.intervention import Intervention
from unleak.engine.session import attach
from unleak.errors import BadInput, NotFinite, PromptTruncated, UnsupportedModel

ENCODERS = {"sd1": 1, "sd2": 1, "sdxl": 2, "sd3": 3, "flux": 2}
LONG = "a red mouse and a laptop " * 20


@dataclass(frozen=True)
class Keep(Intervention):
    """Remembers the calls."""

    def on_text(self, ctx, call):
        ctx.results.setdefault("calls", []).append(call)


@dataclass(frozen=True)
class Become(Intervention):
    """Every row of the prompt becomes that of another prompt."""

    prompt: str = "a dog"

    def on_text(self, ctx, call):
        return call.rerun([self.prompt] * len(call.prompts))


@dataclass(frozen=True)
class Same(Intervention):
    def on_text(self, ctx, call):
        return call.rerun(call.prompts)


@dataclass(frozen=True)
class ScaleRow(Intervention):
    row: int = 2
    factor: float = 2.0

    def on_text(self, ctx, call):
        def change(x):
            if isinstance(x, tuple):
                return tuple(map(change, x))
            if not isinstance(x, torch.Tensor) or x.ndim != 3:
                return x
            x = x.clone()
            x[:, self.row] *= self.factor
            return x

        return type(call.output)(**{key: change(value) for key, value in call.output.items()})


def extras(name, negative="a cat"):
    scale = {"true_cfg_scale": 3.0} if name == "flux" else {"guidance_scale": 3.0}
    return {"negative_prompt": negative, **scale}


@pytest.mark.parametrize("name", ENCODERS)
def test_each_encoder_is_seen_once_with_the_positive_prompt(name):
    pipe = tiny(name)
    with attach(pipe, Keep()) as run:
        draw(pipe, "a red mouse", steps=1, **extras(name))
    calls = run.results["calls"]
    assert len(calls) == ENCODERS[name] == len({call.name for call in calls})
    for call in calls:
        assert call.prompts == ["a red mouse"] and call.module is getattr(pipe, call.name)
        words = call.tokenizer.decode(call.ids[0], skip_special_tokens=True).replace("!", "").replace(" ", "")
        assert words == "aredmouse"


@pytest.mark.parametrize("name", ENCODERS)
def test_another_prompts_rows_draw_the_other_prompt(name):
    pipe = tiny(name)
    expected = draw(pipe, "a dog", **extras(name))
    with attach(pipe, Become("a dog")):
        assert torch.equal(draw(pipe, "a zebra and a lion", **extras(name)), expected)


@pytest.mark.parametrize("name", ENCODERS)
def test_the_negative_prompt_is_never_touched(name):
    pipe = tiny(name)
    expected = draw(pipe, "a dog", **extras(name, "a zebra"))
    with attach(pipe, Become("a dog")):  # also where both are the same text
        assert torch.equal(draw(pipe, "a zebra", **extras(name, "a zebra")), expected)


@pytest.mark.parametrize("name", ENCODERS)
def test_encoding_again_is_the_identity(name):
    pipe = tiny(name)
    expected = draw(pipe)
    with attach(pipe, Same()) as run:
        assert torch.equal(draw(pipe), expected)
    assert [entry["rows"] for entry in run.log[0]["text"]] == [[[]]] * ENCODERS[name]


def test_sdxl_prompts_may_differ_by_encoder():
    pipe = tiny("sdxl")
    with attach(pipe, Keep()) as run:
        draw(pipe, "a dog", steps=1, prompt_2="a red cat")
    assert [(c.name, c.prompts) for c in run.results["calls"]] == [
        ("text_encoder", ["a dog"]),
        ("text_encoder_2", ["a red cat"]),
    ]


def test_the_log_says_which_rows_changed(any_pipe):
    with attach(any_pipe, ScaleRow(2, 1.5)) as run:
        draw(any_pipe, ["a dog", "a red cat"], steps=1)
    assert run.log[0]["prompts"] == ["a dog", "a red cat"]
    assert all(entry["rows"] == [[2], [2]] for entry in run.log[0]["text"])
    assert json.loads(json.dumps(run.log)) == run.log


def test_interventions_apply_in_list_order(sd1):
    with attach(sd1, Become("a dog"), ScaleRow(2, 3.0)):
        first = draw(sd1)
    with attach(sd1, ScaleRow(2, 3.0), Become("a dog")):
        second = draw(sd1)
    assert torch.equal(second, draw(sd1, "a dog")) and not torch.equal(first, second)


def test_the_rows_the_denoiser_gets_are_placed_by_content():
    pipe = tiny("sd3")
    with attach(pipe, Keep()) as run:
        draw(pipe, steps=1)
    columns = {name: run.encoded.columns(name) for name in run.encoded.calls}
    assert columns == {
        "text_encoder": slice(0, 77),
        "text_encoder_2": slice(0, 77),
        "text_encoder_3": slice(77, 109),
    }


def test_an_encoder_that_gives_only_its_pooled_vector_has_no_columns(flux):
    with attach(flux, Keep()) as run:
        draw(flux, steps=1)
    assert run.encoded.columns("text_encoder") is None
    assert run.encoded.columns("text_encoder_2") == slice(0, 32)


def test_rows_behind_a_final_norm_are_placed_by_length(sd1):
    with attach(sd1, Keep()) as run:
        draw(sd1, steps=1)
    encoded = run.encoded
    encoded.cond = torch.nn.functional.layer_norm(encoded.cond, [32])
    assert encoded.columns("text_encoder") == slice(0, 77)
    encoded.cond = encoded.cond[:, :40]
    assert encoded.columns("text_encoder") is None


def test_rerun_on_ids_and_with_other_arguments(sd1):
    with attach(sd1, Keep()) as run:
        draw(sd1, steps=1)
    (call,) = run.results["calls"]
    assert torch.equal(call.rerun(call.ids)[0], call.output[0])
    assert call.rerun("a dog", output_hidden_states=True).hidden_states is not None
    assert call.rerun(["a dog", "a cat"])[0].shape == (2, 77, 32)
    with pytest.raises(PromptTruncated):
        call.rerun(LONG)


def test_a_prompt_longer_than_the_encoder_is_an_error(any_pipe):
    with attach(any_pipe, Same()), pytest.raises(PromptTruncated, match="would lose"):
        draw(any_pipe, LONG)


def test_without_text_interventions_truncation_stays_the_pipelines_matter(sd1):
    @dataclass(frozen=True)
    class Latents(Intervention):
        def on_latents(self, ctx, latents):
            return None

    with attach(sd1, Latents()):
        draw(sd1, LONG, steps=1)

    @dataclass(frozen=True)
    class Tokens(Latents):
        uses_text = True

    with attach(sd1, Tokens()), pytest.raises(PromptTruncated):
        draw(sd1, LONG, steps=1)


def test_prompt_embeds_alone_cannot_be_rewritten(sd1):
    rows = torch.randn(1, 77, 32)
    with attach(sd1, Same()), pytest.raises(BadInput, match="prompt_embeds"):
        draw(sd1, None, prompt_embeds=rows, negative_prompt_embeds=rows)
    with attach(sd1, replace(Same())) as run:
        draw(sd1)
    assert run.log[0]["prompts"]


def test_a_prompt_the_encoder_never_saw_is_an_error(sd1, monkeypatch):
    class Disguised:
        """A tokenizer that gives the pipeline's encoder another text than the prompt."""

        def __init__(self, tokenizer):
            self.tokenizer = tokenizer

        def __call__(self, prompts, **kwargs):
            return self.tokenizer(["something else"], **kwargs)

        def __getattr__(self, name):
            return getattr(self.tokenizer, name)

    encoder = Anatomy.of(sd1).encoders[0]
    monkeypatch.setattr(anatomy, "text_encoders", lambda parts: [encoder])
    monkeypatch.setattr(sd1, "tokenizer", Disguised(encoder.tokenizer))
    warned, refused = pytest.warns(UserWarning, match="words"), pytest.raises(UnsupportedModel, match="not recognised")
    with attach(sd1, Same()), warned, refused:
        draw(sd1)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda out: out[0], BadInput),
        (lambda out: type(out)(last_hidden_state=out[0]), BadInput),
        (lambda out: type(out)(last_hidden_state=out[0][:, :5], pooler_output=out[1]), BadInput),
        (lambda out: type(out)(last_hidden_state=out[0].double(), pooler_output=out[1]), BadInput),
        (lambda out: type(out)(last_hidden_state=out[0] * float("nan"), pooler_output=out[1]), NotFinite),
    ],
)
def test_an_output_the_pipeline_cannot_use_is_refused(sd1, change, error):
    @dataclass(frozen=True)
    class Broken(Intervention):
        def on_text(self, ctx, call):
            return change(call.output)

    with attach(sd1, Broken()), pytest.raises(error):
        draw(sd1)


def test_encode_prompt_by_hand_in_the_block(flux):
    with attach(flux, Become("a dog")):
        first, second = (flux.encode_prompt(p, max_sequence_length=32)[0] for p in ("a cat", "a zebra"))
    assert torch.equal(first, second)
    assert torch.equal(first, flux.encode_prompt("a dog", max_sequence_length=32)[0])
