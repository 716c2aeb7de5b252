"""Prompts inside chat templates, system messages and instructions: their tokens, rows, and encodings made likewise."""

from __future__ import annotations

import contextlib
import functools
from types import SimpleNamespace

import pytest
import torch
import transformers

from conformance import family
from conformance.parts import lively, qwen3, qwen_tokenizer, t5_encoder, t5_tokenizer
from unleak import Keep, Patch, Subset
from unleak.errors import PromptTruncated, UnsupportedModel
from unleak.text.call import replace_output, text_rows
from unleak.text.encoder_calls import EncoderCall, encoder_calls
from unleak.text.encoders import text_encoders
from unleak.text.items import Item
from unleak.text.positions import columns_of, first_encoder, item_positions, places, prompt_tokens, summary_rows
from unleak.text.prompts import Prompts
from unleak.text.scene import Scene
from unleak.text.spans import token_span
from unleak.text.template import Template, TokenIds, spell

PROMPT = "a Laptop by the red mouse"
ITEMS = [Item("Laptop"), Item("red mouse")]
INSTRUCTION = {"complex_human_instruction": ["A red mouse by a laptop -> a small red mouse", "User Prompt: "]}

CALLS = {
    "qwen-image": {},
    "flux.2-dev": {"max_sequence_length": 128},
    "flux.2-klein": {"max_sequence_length": 40},
    "z-image": {"max_sequence_length": 40},
    "lumina2": {"max_sequence_length": 64},
    "sana": {"max_sequence_length": 32, **INSTRUCTION},
    "pixart-sigma": {"max_sequence_length": 32},
}


def read(pipe, prompt, change=None, **call):
    """What `encode_prompt` made of a prompt, each encoder's output changed by `change(call)` first."""
    encoders = text_encoders(pipe.components)

    def on_call(call):
        ctx = SimpleNamespace(anatomy=SimpleNamespace(encoders=encoders), log={})
        output = change.on_text(ctx, call)
        if output is not None:
            replace_output(call, output)

    with contextlib.ExitStack() as undo:
        prompts = Prompts(pipe, encoders, True, change is not None, on_call if change else lambda call: None)
        for encoder in encoders:
            hook = functools.partial(prompts.after_encoder, encoder)
            undo.callback(encoder.module.register_forward_hook(hook, with_kwargs=True).remove)
        prompts.encode_prompt(pipe.encode_prompt, (), {"prompt": prompt, **call})
    return prompts.encoded


@pytest.fixture(scope="module", params=CALLS)
def case(request):
    """A pipeline, how its prompts are encoded, and what became of `PROMPT`."""
    pipe, call = family(request.param).pipe(), CALLS[request.param]
    with torch.no_grad():
        return pipe, call, read(pipe, PROMPT, **call)


def rows_of(encoded, item):
    """The denoiser's rows [n, D] of one item of the first prompt."""
    (columns,) = item_positions(encoded, [item]).at[0][0]
    return encoded.cond[0, list(columns)]


def test_the_tokens_of_a_prompt_spell_it_and_nothing_of_its_template(case):
    _, _, encoded = case
    (call,) = encoded.calls.values()
    (tokens,) = call.cut([PROMPT])
    assert tokens.ids == tuple(call.ids[0].tolist()) and not tokens.lost
    spelled = "".join(PROMPT[slice(*at)] for at, word in zip(tokens.offsets, tokens.words, strict=True) if word)
    assert set(PROMPT.replace(" ", "")) <= set(spelled)
    for item in ITEMS:
        start, stop = token_span(call.tokenizer, tokens, item.find(PROMPT))
        assert call.tokenizer.decode(list(tokens.ids[start:stop])).strip().lower() == item.text.lower()
    assert tokens.body[1] - tokens.body[0] < sum(tokens.real) <= tokens.length or tokens.before == 0


def test_an_items_rows_are_found_among_the_denoisers_by_their_values(case):
    _, _, encoded = case
    (name, call), (place,) = next(iter(encoded.calls.items())), places(encoded).values()
    layer, (tokens,) = encoded.layer(name), call.cut([PROMPT])
    for item in ITEMS:
        own = range(*token_span(call.tokenizer, tokens, item.find(PROMPT)))
        assert torch.equal(rows_of(encoded, item), layer(call.output)[0, list(own)])
    (at_columns,) = prompt_tokens(encoded)
    assert [at_columns.ids[place.at[0][p]] for p in own] == [tokens.ids[p] for p in own]
    assert bool(summary_rows(encoded)[0, at_columns.end :].all()) and not summary_rows(encoded)[0, at_columns.body[0]]


def test_rows_of_another_text_are_where_its_own_encoding_has_them_or_said_to_be_unknown(case):
    pipe, call, encoded = case
    (name, one), (item, _) = next(iter(encoded.calls.items())), ITEMS
    for text in (PROMPT, "the Laptop of a very small red mouse"):
        with torch.no_grad():
            own = read(pipe, text, **call)
        span = token_span(one.tokenizer, one.cut([text])[0], item.find(text))
        try:
            found = columns_of(encoded, name, text, range(*span))
        except UnsupportedModel as e:
            assert text != PROMPT and "at other places" in str(e)
            continue
        assert found == item_positions(own, [item]).at[0][0][0]


def test_a_patched_row_is_the_row_of_its_own_encoding_in_the_template(case):
    pipe, call, encoded = case
    with torch.no_grad():
        patched = read(pipe, PROMPT, Patch("red mouse", others="Laptop", eos_pads="keep"), **call)
        alone = read(pipe, "a thing by the red mouse", **call)
    wanted, given = rows_of(alone, ITEMS[1]), rows_of(patched, ITEMS[1])
    torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-5)
    assert (given - rows_of(encoded, ITEMS[1])).abs().max() > 1e-6
    assert torch.equal(rows_of(patched, ITEMS[0]), rows_of(encoded, ITEMS[0]))


def test_keeping_everything_changes_no_bit_and_keeping_an_item_keeps_its_rows(case):
    pipe, call, encoded = case
    with torch.no_grad():
        assert torch.equal(read(pipe, PROMPT, Keep(Subset.everything()), **call).cond, encoded.cond)
        kept = read(pipe, PROMPT, Keep(Subset.of("red mouse")), **call)
    assert torch.equal(rows_of(kept, ITEMS[1]), rows_of(encoded, ITEMS[1]))
    assert not torch.equal(rows_of(kept, ITEMS[0]), rows_of(encoded, ITEMS[0]))


def test_a_prompt_that_does_not_fit_into_its_template_is_refused_by_what_is_lost(case):
    _, call, encoded = case
    (one,) = encoded.calls.values()
    if "max_sequence_length" in call:
        with pytest.raises(PromptTruncated, match=r"would lose .*piano"):
            one.check_length(["a mouse " * 60 + "piano"])
    one.check_length([PROMPT + " and a horse"])


@pytest.mark.parametrize("isolation", ["bare", "positioned", "masked-context", "substituted", "attn-mask"])
def test_every_isolation_is_made_inside_the_template(isolation):
    pipe = family("qwen-image").pipe()
    with torch.no_grad():
        plain = read(pipe, PROMPT)
        patched = read(pipe, PROMPT, Patch("red mouse", others="Laptop", isolation=isolation))
    assert (rows_of(patched, ITEMS[1]) - rows_of(plain, ITEMS[1])).abs().max() > 1e-5
    assert patched.cond.shape == plain.cond.shape


def test_two_prompts_of_different_length_have_their_own_columns():
    pipe, prompts = family("qwen-image").pipe(), [PROMPT, "a red mouse"]
    with torch.no_grad():
        encoded = read(pipe, prompts)
        alone = [read(pipe, prompt) for prompt in prompts]
    at = item_positions(encoded, [Item("red mouse")]).at
    for b, one in enumerate(alone):
        rows = encoded.cond[b, list(at[b][0][0])]
        torch.testing.assert_close(rows, rows_of(one, Item("red mouse")), rtol=1e-4, atol=1e-4)


def test_a_template_is_refused_where_positions_are_those_of_the_prompt_alone(case):
    _, _, encoded = case
    with pytest.raises(UnsupportedModel, match="template"):
        first_encoder(encoded)


def test_the_encoders_of_a_template_are_read_without_a_denoiser():
    (one,) = encoder_calls(family("flux.2-klein").pipe(), max_sequence_length=40)
    assert isinstance(one, EncoderCall) and one.layer(one.call.output).shape == (1, 40, 48)
    with torch.no_grad():
        assert Scene(one.call, []).causal


# -- kinds that no family above has ----------------------------------------------------------------------------


class Pipe:
    """A pipeline of one encoder; `inputs(texts)` are what it is given, `rows(hidden, inputs)` what is made of them."""

    def __init__(self, module, tokenizer, inputs, rows=lambda hidden, given: hidden):
        self.text_encoder, self.tokenizer, self.inputs, self.rows = module, tokenizer, inputs, rows
        self.device = torch.device("cpu")

    @property
    def components(self):
        return {"text_encoder": self.text_encoder, "processor": SimpleNamespace(tokenizer=self.tokenizer)}

    def encode_prompt(self, prompt, negative_prompt="", num_images_per_prompt=1, do_classifier_free_guidance=True):
        negative = negative_prompt if do_classifier_free_guidance else None
        given = self.inputs([prompt] if isinstance(prompt, str) else prompt, negative)
        hidden = self.text_encoder(**given, output_hidden_states=True).hidden_states[-2]
        return self.rows(hidden, given)


@pytest.fixture(scope="module")
def language():
    tokenizer = qwen_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tokenizer, qwen3(tokenizer, model=transformers.Qwen3ForCausalLM)


def check(pipe, prompt=PROMPT):
    """Rows of a plain reading are found, and a patched one equals its own encoding."""
    with torch.no_grad():
        plain, alone = read(pipe, prompt), read(pipe, prompt.replace("Laptop", "thing"))
        patched = read(pipe, prompt, Patch("red mouse", others="Laptop", eos_pads="keep"))
    wanted = rows_of(alone, ITEMS[1])
    torch.testing.assert_close(rows_of(patched, ITEMS[1]), wanted, rtol=1e-5, atol=1e-5)
    assert (wanted - rows_of(plain, ITEMS[1])).abs().max() > 1e-5
    return plain


def test_pads_between_the_prompt_and_the_end_of_a_template_and_counted_positions(language):
    tokenizer, module = language

    def inputs(texts, _):
        own = tokenizer([f"system\n{text}" for text in texts], padding="max_length", max_length=24, return_tensors="pt")
        end = tokenizer(["<|im_end|>\nassistant"] * len(texts), return_tensors="pt")
        ids, mask = (torch.cat([own[k], end[k]], 1) for k in ("input_ids", "attention_mask"))
        return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}

    encoded = check(Pipe(module, tokenizer, inputs, lambda hidden, _: hidden[:, 2:]))
    (tokens,) = encoded.calls["text_encoder"].cut([PROMPT])
    assert tokens.real[-1] and not tokens.real[-5] and tokens.body[1] < 20


def test_pads_on_the_left_without_a_mask(language):
    tokenizer, module = language

    def inputs(texts, _):
        ids = [tokenizer(text).input_ids for text in texts]
        long = -(-max(map(len, ids)) // 16) * 16
        return {"input_ids": torch.tensor([[tokenizer.pad_token_id] * (long - len(one)) + one for one in ids])}

    encoded = check(Pipe(module, tokenizer, inputs))
    (tokens,) = encoded.calls["text_encoder"].cut([PROMPT])
    assert not tokens.real[0] and tokens.body[1] == tokens.length


def test_the_negative_prompt_before_the_prompt_in_one_batch(language):
    tokenizer, module = language

    def inputs(texts, negative):
        every = texts if negative is None else [negative] * len(texts) + texts
        return tokenizer(every, padding="max_length", max_length=24, return_tensors="pt")

    pipe = Pipe(module, tokenizer, inputs, lambda hidden, _: tuple(hidden.flip(0).split(1)))
    encoded = check(pipe)
    assert torch.equal(encoded.cond, read(pipe, PROMPT).cond) and encoded.uncond is not None
    patched = read(pipe, PROMPT, Patch("red mouse", others="Laptop"))
    assert torch.equal(patched.uncond, encoded.uncond) and not torch.equal(patched.cond, encoded.cond)


def test_a_cleaned_caption_is_traced_to_the_words_that_are_left(language):
    tokenizer, module = language

    def inputs(texts, _):
        clean = [text.lower().replace("#", "").split("http")[0].strip() for text in texts]
        return tokenizer(clean, padding="max_length", max_length=24, return_tensors="pt")

    check(Pipe(module, tokenizer, inputs), "a #Laptop by the red mouse http://x.yz")


def test_a_text_that_is_rewritten_past_knowing_is_refused(language):
    tokenizer, module = language
    pipe = Pipe(module, tokenizer, lambda texts, _: tokenizer([text[::-1] for text in texts], return_tensors="pt"))
    with pytest.warns(UserWarning, match="not given the words"), pytest.raises(UnsupportedModel, match="recognised"):
        read(pipe, PROMPT, Patch("red mouse"))


def test_a_list_of_rows_one_for_each_prompt(language):
    tokenizer, module = language

    def inputs(texts, _):
        return tokenizer([f"user\n{text}" for text in texts], padding=True, return_tensors="pt")

    def rows(hidden, given):
        return [one[own.bool()] for one, own in zip(hidden, given["attention_mask"], strict=True)]

    check(Pipe(module, tokenizer, inputs, rows))


def test_a_tokenizer_without_offsets_is_read_by_what_it_spells():
    tokenizer = transformers.ByT5Tokenizer(model_max_length=64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = t5_encoder(tokenizer)
    check(Pipe(module, tokenizer, lambda t, _: tokenizer(t, padding="max_length", max_length=40, return_tensors="pt")))


@pytest.mark.parametrize("tokenizer", [qwen_tokenizer(), t5_tokenizer(), transformers.ByT5Tokenizer()])
@pytest.mark.parametrize("text", ["a red mouse", "ein Café für 🐁🖱️", "你好 mouse"])
def test_every_character_is_spelled_by_some_token(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    spelling, ranges = spell(tokenizer, ids)
    assert len(ranges) == len(ids) and all(0 <= a <= b <= len(spelling) for a, b in ranges)
    seen = {i for at in ranges for i in range(*at)}
    assert all(i in seen for i, char in enumerate(spelling) if not char.isspace())


def test_the_words_of_a_template_are_never_taken_for_the_prompts():
    tokenizer = qwen_tokenizer()

    def inputs(texts):
        ids = [tuple(tokenizer(f"a red mouse -> a red mouse\n{text}<|im_end|>red mouse").input_ids) for text in texts]
        return [TokenIds(one, (True,) * len(one)) for one in ids]

    (tokens,) = Template(tokenizer, inputs, "it").cut(["red mouse"])
    assert tokens.body[0] > 5 and tokens.end < tokens.length - 2
    broken = Template(tokenizer, lambda texts: inputs(texts) if "" not in texts else [], "it")
    with pytest.raises(UnsupportedModel, match="more than once"):
        broken.cut(["red mouse"])


def test_text_rows_have_one_form():
    three, ragged = torch.randn(2, 5, 4), [torch.randn(3, 4), torch.randn(5, 4)]
    assert text_rows(three) is three and text_rows(torch.ones(2, 5)) is None and text_rows([]) is None
    padded = text_rows(ragged)
    assert padded.shape == (2, 5, 4) and torch.equal(padded[0, :3], ragged[0]) and not padded[0, 3:].any()
    layers = torch.randn(2, 5, 3, 4)
    assert torch.equal(text_rows(layers, 2)[..., 4:8], layers[:, :, 1])
    assert torch.equal(text_rows(layers.movedim(2, 0), 2)[..., 4:8], layers[:, :, 1])
    assert text_rows(torch.ones(2, 5, 4, dtype=torch.long)) is None


def test_a_tokenizer_is_found_inside_a_processor():
    module, tokenizer = lively(torch.nn.Linear(1, 1)), t5_tokenizer()
    processor = SimpleNamespace(tokenizer=tokenizer)
    for parts in (
        {"text_encoder": module, "tokenizer": processor},
        {"text_encoder": module, "processor": processor},
        {"text_encoder": module, "tokenizer": None, "processor": processor, "text_encoder_2": None},
    ):
        (encoder,) = text_encoders(parts)
        assert encoder.tokenizer is tokenizer and encoder.suffix == ""
    (second,) = text_encoders({"text_encoder_2": module, "processor": None, "processor_2": processor})
    assert second.tokenizer is tokenizer and second.suffix == "_2"
    assert not text_encoders({"text_encoder": module, "processor_2": processor})
