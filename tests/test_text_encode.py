"""Encoding as a pipe does, a cache that never answers for another encoder, pads, causality (TF-3, 6, 7)."""

from __future__ import annotations

import pytest
import torch

from tiny import tiny
from unleak.errors import BadInput, PromptTruncated, UnsupportedModel
from unleak.text.causal import is_causal
from unleak.text.encode import PADS, TextEncoder, fingerprint

PROMPT = "a red mouse and a laptop"


@pytest.fixture(scope="module")
def flux():
    return tiny("flux")


@pytest.fixture(autouse=True)
def as_in_a_pipe():
    with torch.no_grad():  # kernels with and without gradient differ in the last bit
        yield


def clip(pipe, **options):
    return TextEncoder(pipe.text_encoder, pipe.tokenizer, **options)


def t5(pipe, length=32, **options):
    return TextEncoder(pipe.text_encoder_2, pipe.tokenizer_2, length=length, **options)


def test_rows_and_pooled_are_those_of_the_pipes():
    sd1, sdxl, sd3, flux = map(tiny, ("sd1", "sdxl", "sd3", "flux"))
    assert torch.equal(clip(sd1)([PROMPT]).rows, sd1.encode_prompt(PROMPT, "cpu", 1, False)[0])
    rows, _, pooled, _ = sdxl.encode_prompt(PROMPT, do_classifier_free_guidance=False)
    one = clip(sdxl, layer=-2)([PROMPT])
    two = TextEncoder(sdxl.text_encoder_2, sdxl.tokenizer_2, layer=-2)([PROMPT])
    assert torch.equal(torch.cat([one.rows, two.rows], -1), rows) and torch.equal(two.pooled, pooled)
    skipped, *_ = sdxl.encode_prompt(PROMPT, do_classifier_free_guidance=False, clip_skip=1)
    chosen = clip(sdxl, layer=lambda output: output.hidden_states[-3])([PROMPT]).rows
    assert torch.equal(chosen, skipped[..., :32])

    third = TextEncoder(sd3.text_encoder_3, sd3.tokenizer_3, length=32)([PROMPT])
    rows = sd3.encode_prompt(PROMPT, None, None, do_classifier_free_guidance=False, max_sequence_length=32)[0]
    assert torch.equal(third.rows, rows[:, 77:]) and third.pooled is None

    rows, pooled, _ = flux.encode_prompt(PROMPT, None, max_sequence_length=32)
    assert torch.equal(t5(flux)([PROMPT]).rows, rows) and torch.equal(clip(flux)([PROMPT]).pooled, pooled)


def test_a_batch_is_its_singles_bit_for_bit(flux):
    encoder = t5(flux)
    both = encoder([PROMPT, "a dog"])
    assert torch.equal(both.rows, torch.cat([t5(flux)([PROMPT]).rows, t5(flux)(["a dog"]).rows]))


def test_too_long_is_an_error(flux):
    with pytest.raises(PromptTruncated, match="more"):
        t5(flux, length=6)([PROMPT])
    with pytest.raises(BadInput):
        t5(flux)([])


def count_calls(encoder):
    calls = []
    encoder.module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_encoded_once_and_forgotten_in_order():
    encoder = TextEncoder(tiny("sd1").text_encoder, tiny("sd1").tokenizer, remember=2)
    calls = count_calls(encoder)
    encoder(["a dog", "a cat"])
    encoder(["a cat", "a dog"])
    assert len(calls) == 2
    encoder(["a bus"])  # the cat was used less recently than the dog
    encoder(["a dog"])
    assert len(calls) == 3
    encoder(["a cat"])
    assert len(calls) == 4


def test_a_cached_encoding_cannot_be_spoiled_by_its_reader():
    encoder = clip(tiny("sd1"))
    first = encoder(["a dog"]).rows
    kept = first.clone()
    first.zero_()
    assert torch.equal(encoder(["a dog"]).rows, kept)


def test_hooks_do_not_make_it_another_encoder():
    module = clip(tiny("sd1")).module
    mark = fingerprint(module)
    handle = module.register_forward_hook(lambda *_, **__: None, with_kwargs=True)
    assert fingerprint(module) == mark
    handle.remove()
    assert fingerprint(module) == mark


@pytest.mark.parametrize("change", ["in place", "replaced", "dtype", "adapter scale", "mode"])
def test_a_changed_encoder_is_encoded_again(change):
    encoder = clip(tiny("sd1"))
    module = encoder.module
    norm = module.final_layer_norm
    norm.scaling = {"style": 1.0}
    before, mark = encoder(["a dog"]).rows, fingerprint(module)
    assert fingerprint(module) == mark
    calls = count_calls(encoder)
    if change == "in place":
        with torch.no_grad():
            norm.bias.add_(1.0)
    elif change == "replaced":
        norm.bias = torch.nn.Parameter(norm.bias.detach() + 1.0)
    elif change == "dtype":
        module.to(torch.bfloat16)
    elif change == "adapter scale":
        norm.scaling["style"] = 0.5
    else:
        module.train()
    after = encoder(["a dog"]).rows
    assert len(calls) == 1 and fingerprint(module) != mark
    if change in {"in place", "replaced"}:
        assert torch.allclose(after, before + 1.0, atol=1e-5)


def test_empty_pads_are_the_empty_prompt(flux):
    assert torch.equal(t5(flux).pads().rows, flux.encode_prompt("", None, max_sequence_length=32)[0])
    assert torch.equal(clip(flux).pads().pooled, flux.encode_prompt("", None, max_sequence_length=32)[1])


def test_pad_definitions_differ(flux):
    for encoder in (clip(tiny("sd2")), t5(flux)):
        encoder.learn_mean(["a dog", "a red cat"])
        rows = {pad: encoder.pads(pad).rows for pad in PADS}
        assert {r.shape for r in rows.values()} == {(1, encoder.length, 32)}
        names = sorted(rows)
        assert not any(torch.equal(rows[a], rows[b]) for a in names for b in names if a < b)
        assert not rows["zero"].any()
        expected = (encoder(["a dog"]).rows + encoder(["a red cat"]).rows) / 2
        assert torch.allclose(rows["mean"], expected, atol=1e-6)


def test_pad_ids():
    pipe = tiny("sd2")  # its pad token is "!", not the end of text
    encoder = clip(pipe, length=6)
    bos, eos, pad = pipe.tokenizer.bos_token_id, pipe.tokenizer.eos_token_id, pipe.tokenizer.pad_token_id
    assert encoder.pads("allpad").ids.tolist() == [[pad] * 6]
    assert encoder.pads("padtoken").ids.tolist() == [[bos, pad, eos, pad, pad, pad]]
    assert encoder.pads("empty").ids.tolist() == [[bos, eos, pad, pad, pad, pad]]


def test_pads_depend_on_length_and_context(flux):
    eight, sixteen = t5(flux, 8).pads().rows, t5(flux, 16).pads().rows
    assert not torch.allclose(eight, sixteen[:, :8], atol=1e-3)
    encoder = t5(flux, 16)
    contextual = encoder(["a dog"]).rows[:, encoder.tokens("a dog").after_text]
    assert not torch.allclose(contextual, encoder.pads().rows[:, encoder.tokens("a dog").after_text], atol=1e-3)


def test_pad_errors(flux):
    with pytest.raises(BadInput, match="learn_mean"):
        t5(flux).pads("mean")
    with pytest.raises(BadInput, match="Choose from empty"):
        t5(flux).pads("blank")
    bare = t5(flux)
    bare.tokenizer = tiny("flux").tokenizer_2
    bare.tokenizer.pad_token = None
    with pytest.raises(BadInput, match="no pad token"):
        bare.pads("allpad")


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "sd3", "flux"])
def test_causality_is_what_the_encoder_does(name):
    pipe = tiny(name)
    for k, causal in {"": True, "_2": name != "flux", "_3": False}.items():
        if getattr(pipe, f"text_encoder{k}", None) is None:
            continue
        encoder = TextEncoder(getattr(pipe, f"text_encoder{k}"), getattr(pipe, f"tokenizer{k}"), length=24)
        assert encoder.causal is causal
        one, two = encoder(["a red mouse and a laptop"]).rows, encoder(["a red mouse and a table"]).rows
        j = encoder.tokens("a red mouse and a").body[1]
        assert torch.equal(one[:, :j], two[:, :j]) is causal


def test_causality_is_asked_once():
    encoder = clip(tiny("sd1"))
    calls = count_calls(encoder)
    assert encoder.causal and encoder.causal and len(calls) == 2


def test_causality_that_cannot_be_seen_is_an_error():
    same = (torch.ones(1, 4), None)
    with pytest.raises(UnsupportedModel):
        is_causal(torch.nn.Linear(1, 1), lambda texts: same)
