"""`Keep` and `probe`: images from any subset of rows, on every layout (TF-1, 2, 3, 4, 5, 9, 15)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import unleak
from tiny import NAMES, draw, tiny
from unleak import Intervention, Keep, Subset, probe
from unleak.core.anatomy import Anatomy
from unleak.drawing.generate import generate
from unleak.errors import AmbiguousItem, BadInput, ItemNotFound, PromptTruncated
from unleak.text.encode import PADS
from unleak.text.spans import item_span, tokenize
from unleak.text.subsets import KINDS, row_kinds

PROMPT = "a laptop and a striped mouse on a table"
SMALL = {"height": 64, "width": 64, "num_inference_steps": 1}

every_layout = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def pipes():
    return {name: tiny(name) for name in NAMES}


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():  # as pipelines do: attention has another kernel with gradients
        yield


@dataclass(frozen=True)
class Spy(Intervention):
    """Keeps what each encoder says after the interventions before it."""

    seen: dict = field(default_factory=dict, compare=False)

    def on_text(self, ctx, call):
        self.seen[call.name] = call


class Enough(Exception):
    pass


@dataclass(frozen=True)
class UntilDenoiser(Intervention):
    def branches(self, ctx):
        raise Enough


def encode(pipe, prompt, *interventions, **kwargs):
    """The encoders' calls on the positive prompt by name, and the session's log."""
    spy = Spy()
    with pytest.raises(Enough), unleak.attach(pipe, *interventions, spy, UntilDenoiser()) as run:
        draw(pipe, prompt, steps=1, **kwargs)
    return spy.seen, run.log


def layers(output):
    return [output.last_hidden_state, *(output.get("hidden_states") or ())]


def pooled(output):
    return [output[name] for name in ("pooler_output", "text_embeds") if output.get(name) is not None]


def clean(call, text=""):
    """The encoder's output on another text, as the pipeline encodes a prompt."""
    return call.rerun([text] * len(call.prompts))


# -- the rows ---------------------------------------------------------------------------------------------------


@every_layout
def test_kept_rows_are_contextual_and_all_others_are_pads(pipes, name):
    plain, _ = encode(pipes[name], PROMPT)
    kept, log = encode(pipes[name], PROMPT, Keep(Subset.of("striped mouse")))
    assert kept.keys() == plain.keys() == {note["encoder"] for note in log[0]["keep"]}
    for encoder, call in kept.items():
        a, b = item_span(call.tokenizer, PROMPT, "striped mouse", call.length)
        C = clean(plain[encoder])
        for new, H, pad in zip(layers(call.output), layers(plain[encoder].output), layers(C), strict=True):
            assert torch.equal(new[:, a:b], H[:, a:b])
            assert torch.equal(new[:, :a], pad[:, :a]) and torch.equal(new[:, b:], pad[:, b:])
            assert (new.shape, new.dtype, new.device) == (H.shape, H.dtype, H.device)
        assert all(map(torch.equal, pooled(call.output), pooled(C)))
        assert next(n for n in log[0]["keep"] if n["encoder"] == encoder) == {
            "encoder": encoder, "pad": "empty", "pooled": "pad", "positions": [list(range(a, b))],
        }  # fmt: skip


@every_layout
def test_keeping_everything_changes_nothing(pipes, name):
    expected = draw(pipes[name], PROMPT)
    with unleak.attach(pipes[name], Keep(Subset.everything(), pooled="full")):
        assert torch.equal(draw(pipes[name], PROMPT), expected)


@every_layout
def test_keeping_nothing_is_the_empty_prompt(pipes, name):
    expected = draw(pipes[name], ["", ""], seeds=(1, 2))
    with unleak.attach(pipes[name], Keep(Subset.nothing())):
        assert torch.equal(draw(pipes[name], [PROMPT, "a cat"], seeds=(1, 2)), expected)


@every_layout
def test_the_pipelines_own_encodings_are_not_mutated(pipes, name):
    outputs = []
    handle = pipes[name].text_encoder.register_forward_hook(
        lambda *a: outputs.append((a[2], a[2].last_hidden_state.clone()))
    )
    try:
        encode(pipes[name], PROMPT, Keep(Subset.of("mouse"), pooled="item"))
    finally:
        handle.remove()
    assert outputs and all(torch.equal(o.last_hidden_state, before) for o, before in outputs)


@every_layout
def test_the_negative_prompt_is_untouched(pipes, name):
    guided = {"negative_prompt": PROMPT, **({"true_cfg_scale": 2.0} if name == "flux" else {"guidance_scale": 2.0})}
    expected = draw(pipes[name], "", steps=1, **guided)
    with unleak.attach(pipes[name], Keep(Subset.nothing())):
        assert torch.equal(draw(pipes[name], PROMPT, steps=1, **guided), expected)


@settings(max_examples=20, deadline=None)
@given(st.sets(st.sampled_from(KINDS)), st.sets(st.sampled_from(["laptop", "striped mouse", "table"])))
def test_a_union_keeps_what_its_parts_keep(kinds, items):
    cutters = Anatomy.of(FLUX).encoders
    for own in cutters:
        tokens = tokenize(own.tokenizer, PROMPT, 40)
        whole = Subset.of(items, kinds).positions(own, tokens, cutters)
        parts = [Subset.of(i).positions(own, tokens, cutters) for i in items]
        parts += [Subset.of(kinds=[k]).positions(own, tokens, cutters) for k in kinds]
        assert whole == sorted(set().union(*parts)) and max(whole, default=0) < 40
        assert Subset.everything().positions(own, tokens, cutters) == list(range(40))


FLUX = tiny("flux")


@every_layout
def test_keeping_twice_is_keeping_the_intersection(pipes, name):
    """Removal is idempotent, and R1 then R2 is both at once, in any order (here R is what is not kept)."""
    one, two, both = Subset.of(("laptop", "table")), Subset.of(("striped mouse", "table")), Subset.of("table")
    expected, _ = encode(pipes[name], PROMPT, Keep(both))
    for chain in ((Keep(one), Keep(two)), (Keep(two), Keep(one)), (Keep(both), Keep(both))):
        got, _ = encode(pipes[name], PROMPT, *chain)
        for encoder, call in got.items():
            assert all(map(torch.equal, layers(call.output), layers(expected[encoder].output)))


# -- which rows -------------------------------------------------------------------------------------------------


def test_kinds_of_rows():
    tokens = tokenize(FLUX.tokenizer, "a mouse", 6)
    assert row_kinds(tokens) == ["bos", "text", "text", "eos", "pads", "pads"]
    assert row_kinds(tokenize(FLUX.tokenizer, "", 3)) == ["bos", "eos", "pads"]
    kinds = row_kinds(tokenize(FLUX.tokenizer_2, "a mouse", 12))
    assert kinds[0] == "text" and kinds.count("eos") == 1 and kinds[-1] == "pads" and "bos" not in kinds


@every_layout
def test_a_token_is_one_row_of_its_encoder(pipes, name):
    """Other encoders keep the tokens inside the same characters, never the same position."""
    pipe = pipes[name]
    names = [n for n in pipe.components if n.startswith("text_encoder")]
    counted = names[-1]
    _, log = encode(pipe, PROMPT, Keep(Subset.token("striped mouse", 0, counted)))
    at = {note["encoder"]: note["positions"][0] for note in log[0]["keep"]}
    tokenizers = {n: getattr(pipe, n.replace("text_encoder", "tokenizer")) for n in names}
    start = {n: item_span(t, PROMPT, "striped mouse", 77)[0] for n, t in tokenizers.items()}
    assert at[counted] == [start[counted]]
    letters = {n: tokenize(t, PROMPT, 77).offsets[start[n]] for n, t in tokenizers.items()}
    same = PROMPT[slice(*letters[counted])].strip()
    for n in names:
        read = "".join(PROMPT[slice(*tokenize(tokenizers[n], PROMPT, 77).offsets[i])] for i in at[n]).strip()
        assert read in ("", same) or n == counted


def test_tokens_that_encoders_cut_differently_need_an_encoder():
    cutters = Anatomy.of(FLUX).encoders
    tokens = tokenize(FLUX.tokenizer, "a mouse and squirrels", 40)
    with pytest.raises(BadInput, match=r"differently .*encoder='text_encoder'"):
        Subset.token("squirrels", 0).positions(cutters[0], tokens, cutters)
    with pytest.raises(BadInput, match="no encoder is called 'nobody'"):
        Subset.token("squirrels", 0, "nobody").positions(cutters[0], tokens, cutters)
    with pytest.raises(BadInput, match="counted from 0"):
        Subset.token("squirrels", 99, "text_encoder_2").positions(cutters[0], tokens, cutters)


@pytest.mark.parametrize(("subset", "error"), [
    (Subset.of("cat"), ItemNotFound),
    (Subset.of("a"), AmbiguousItem),
    (Subset.token("mouse", 5, "text_encoder"), BadInput),
])  # fmt: skip
def test_bad_subsets_are_refused_before_anything_is_drawn(sd1, subset, error):
    def draws(*_):
        raise AssertionError("the denoiser ran")

    handle = sd1.unet.register_forward_hook(draws)
    try:
        with pytest.raises(error):
            probe(sd1, PROMPT, {"all": Subset.everything(), "bad": subset}, seeds=[0], call=SMALL)
    finally:
        handle.remove()


def test_bad_arguments(sd1):
    for wrong in ({"pad": "blank"}, {"pooled": "half"}, {"pad": "mean"}, {"bank": ("a cat",)}):
        with pytest.raises(BadInput):
            Keep(Subset.pads(), **wrong)
    with pytest.raises(BadInput, match="kind of rows"):
        Subset.of(kinds=["middle"])
    with pytest.raises(BadInput, match="is empty"):
        Subset.of(" ")
    with pytest.raises(BadInput, match="at least one subset"):
        Keep(())
    with pytest.raises(BadInput, match="2 subsets for 1 prompts"):
        encode(sd1, PROMPT, Keep([Subset.pads(), Subset.tokens()]))
    with pytest.raises(BadInput, match="nothing to probe"):
        probe(sd1, PROMPT, {}, call=SMALL)
    with pytest.raises(PromptTruncated):
        probe(sd1, "a mouse " * 80, {"all": Subset.everything()}, call=SMALL)


# -- pads and pooled vectors ------------------------------------------------------------------------------------


@every_layout
def test_pad_definitions_differ(pipes, name):
    seen = {}
    for pad in PADS:
        bank = ("a dog", "a red cat") if pad == "mean" else ()
        calls, log = encode(pipes[name], PROMPT, Keep(Subset.nothing(), pad=pad, bank=bank))
        assert {note["pad"] for note in log[0]["keep"]} == {pad}
        seen[pad] = next(reversed(calls.values())).output.last_hidden_state
        if pad == "zero":
            assert not any(t.any() for c in calls.values() for t in layers(c.output) + pooled(c.output))
        if pad == "mean":
            for c in calls.values():
                mean = c.rerun(["a dog", "a red cat"]).last_hidden_state.mean(0, True)
                assert torch.allclose(c.output.last_hidden_state, mean, atol=1e-6)
    same = {(a, b) for a in PADS for b in PADS if a < b and torch.equal(seen[a], seen[b])}
    # where the pad token is the end of text, its string is the empty text
    assert same <= {("empty", "padtoken")}


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
def test_pooled_policies(pipes, name):
    encoder = "text_encoder" if name == "flux" else "text_encoder_2"
    got = {}
    for policy in ("full", "pad", "item"):
        calls, _ = encode(pipes[name], PROMPT, Keep(Subset.of(("laptop", "table")), pooled=policy))
        got[policy], call = pooled(calls[encoder].output)[0], calls[encoder]
    whole, _ = encode(pipes[name], PROMPT)
    assert torch.equal(got["full"], pooled(whole[encoder].output)[0])
    assert torch.equal(got["pad"], pooled(clean(call))[0])
    alone = [pooled(clean(call, text))[0] for text in ("a laptop", "a table")]
    assert torch.allclose(got["item"], sum(alone) / 2, atol=1e-6)
    none, _ = encode(pipes[name], PROMPT, Keep(Subset.nothing(), pooled="item"))
    assert torch.equal(pooled(none[encoder].output)[0], got["pad"])


# -- images -----------------------------------------------------------------------------------------------------


@every_layout
def test_image_j_is_the_single_run_of_seed_j(pipes, name):
    """Whatever the batch and the other subsets, and also for `num_images_per_prompt`."""
    subsets = [Subset.of("striped mouse"), Subset.tokens(), Subset.pads()]
    with unleak.attach(pipes[name], Keep([s for s in subsets for _ in (3, 5)])):
        many = draw(pipes[name], [PROMPT] * 6, seeds=(3, 5) * 3, steps=1)
    with unleak.attach(pipes[name], Keep(subsets)):
        repeated = draw(pipes[name], [PROMPT] * 3, seeds=(3, 5) * 3, steps=1, num_images_per_prompt=2)
    with unleak.attach(pipes[name], Keep(subsets[1])):
        single = draw(pipes[name], PROMPT, seeds=(5,), steps=1)
    assert torch.allclose(many, repeated, atol=1e-4, rtol=1e-4)
    assert torch.allclose(many[3:4], single, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(many[1], many[3], atol=1e-3)


def test_probe_draws_every_subset_at_every_seed(sd1):
    subsets = {"mouse": Subset.of("striped mouse"), "all": Subset.everything(), "none": Subset.nothing()}
    told, encoded = [], []
    handle = sd1.text_encoder.register_forward_hook(lambda *a: encoded.append(a[2].last_hidden_state.shape[0]))
    try:
        got = probe(sd1, PROMPT, subsets, seeds=[4, 7], pooled="full", call=SMALL, batch=4, progress=told.append)
    finally:
        handle.remove()
    assert list(got) == list(subsets) and told == [4, 2]
    assert all(images.shape == (2, 64, 64, 3) and images.dtype == np.uint8 for images in got.values())
    plain = generate(sd1, PROMPT, [4, 7], **SMALL)[0]
    assert np.abs(got["all"].astype(int) - plain).max() <= 1
    again = probe(sd1, PROMPT, {"all": subsets["all"]}, seeds=[7, 4], pooled="full", call=SMALL)["all"]
    assert np.abs(got["all"].astype(int) - again[::-1]).max() <= 1
    # one call on prompts and one on pads before drawing and for each batch, besides the negative prompts
    assert len(encoded) <= 3 * 3


def test_the_pipeline_is_as_it_was(sd1):
    before = draw(sd1, PROMPT)
    probe(sd1, PROMPT, {"mouse": Subset.of("mouse")}, seeds=[0], call=SMALL)
    assert torch.equal(draw(sd1, PROMPT), before)


def test_it_can_be_written_and_read():
    keep = Keep([Subset.of("mouse") | Subset.token("hot dog", 1, "text_encoder"), Subset.pads()], pad="zero")
    assert Intervention.from_dict(keep.to_dict()) == keep
