"""Views of an encoder call: phrases, renaming, fillers and pair masks, also where a pipeline hides pads."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import tokenizers
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from tiny import t5_tokenizer, tiny
from unleak import Patch
from unleak.errors import BadInput, PromptTruncated, SpanMismatch, UnsupportedModel
from unleak.text.call import TextCall
from unleak.text.items import Item, find_all
from unleak.text.phrases import phrase, rename
from unleak.text.scene import Scene
from unleak.text.spans import tokenize


@pytest.mark.parametrize(
    ("prompt", "item", "options", "text", "own"),
    [
        ("by a mouse", "mouse", {}, "a mouse", "mouse"),
        ("An owl", "owl", {}, "An owl", "owl"),
        ("two mice", "mice", {}, "mice", "mice"),
        ("a red mouse", "mouse", {}, "mouse", "mouse"),
        ("a red mouse", "red mouse", {}, "a red mouse", "red mouse"),
        ("visa mouse", "mouse", {}, "mouse", "mouse"),
        ("a mouse", "mouse", {"article": ""}, "mouse", "mouse"),
        ("the mouse", "mouse", {"article": "one"}, "one mouse", "mouse"),
        ("A mouse", "mouse", {"sense": "old mouse"}, "An old mouse", "mouse"),
        ("an owl", "owl", {"sense": "barn owl"}, "a barn owl", "owl"),
        ("the owl", "owl", {"sense": "old owl"}, "the old owl", "owl"),
        ("a mouse", "mouse", {"sense": "the grey rodent"}, "the grey rodent", "grey rodent"),
        ("a mouse", "mouse", {"sense": "mouse by a mouse"}, "a mouse by a mouse", "mouse"),
    ],
)
def test_phrases(prompt, item, options, text, own):
    made = phrase(prompt, Item(item).find(prompt), **options)
    assert made.text == text and made.text[slice(*made.item)] == own


def test_renaming_keeps_everything_else():
    prompt = "An owl, a mouse  and the bat."
    items = [Item("bat"), Item("owl"), Item("mouse")]
    found = find_all(prompt, items)
    text, phrases = rename(prompt, list(zip(found, ("wooden bat", "barn owl", None), strict=True)))
    assert text == "A barn owl, a mouse  and the wooden bat."
    assert [text[slice(*p.item)] for p in phrases] == ["bat", "owl", "mouse"]
    assert [text[slice(*p.stands_for)] for p in phrases] == ["the wooden bat", "A barn owl", "a mouse"]


def test_an_article_that_belongs_to_another_item_stays_there():
    prompt = "give a mouse a cookie"
    found = find_all(prompt, [Item("mouse a"), Item("cookie")])
    text, phrases = rename(prompt, [(found[0], None), (found[1], "old cookie")])
    assert text == "give a mouse a old cookie"
    assert [text[slice(*p.stands_for)] for p in phrases] == ["a mouse a", "old cookie"]


@given(st.lists(st.sampled_from(["a", "an", "the", "mouse", "owl", "red"]), min_size=1, max_size=8), st.data())
def test_renaming_nothing_is_the_prompt(words, data):
    prompt = " ".join(words)
    chosen = data.draw(st.sets(st.integers(0, len(words) - 1), min_size=1))
    items = [Item(words[k], occurrence=1 + words[:k].count(words[k])) for k in sorted(chosen)]
    text, phrases = rename(prompt, [(at, None) for at in find_all(prompt, items)])
    assert text == prompt and [p.item for p in phrases] == find_all(prompt, items)


def call(module, tokenizer, prompts, length=24, masked=False, **changes):
    """A text encoder's call, as the session hands it out."""

    def encode(ids, mask, overrides):
        given = {"attention_mask": mask} if masked else {}
        with torch.no_grad():
            return module(ids, **{**given, **overrides})

    cut = [tokenize(tokenizer, prompt, length) for prompt in prompts]
    ids, mask = torch.tensor([one.ids for one in cut]), torch.tensor([one.real for one in cut]).long()
    made = {"name": "text_encoder", "module": module, "tokenizer": tokenizer, "prompts": prompts, "ids": ids}
    return TextCall(**{**made, "encode": encode, "output": encode(ids, mask, {}), **changes})


CONTEXT = SimpleNamespace(anatomy=SimpleNamespace(encoders=()))  # no other encoder is asked


@pytest.fixture(scope="module")
def t5():
    return tiny("flux").text_encoder_2


@pytest.mark.parametrize("isolation", ["bare", "positioned", "masked-context", "attn-mask"])
def test_hidden_pads_stay_hidden(t5, isolation):
    """With its pads masked an encoder's rows do not depend on L; the isolated rows must not either."""
    patch = Patch("cup", others="laptop", isolation=isolation)
    rows = {}
    for masked in (True, False):
        for length in (16, 24):
            output = patch.on_text(CONTEXT, call(t5, t5_tokenizer(), ["a laptop and a cup"], length, masked))
            rows[masked, length] = output.last_hidden_state[:, 4]
    assert torch.allclose(rows[True, 16], rows[True, 24], atol=1e-5)
    alike = torch.allclose(rows[False, 16], rows[False, 24], atol=1e-3)
    assert alike is (isolation == "attn-mask")  # under its own mask the item sees no pad in any case


def test_separation_blocks_both_directions(t5):
    one, two = (
        Scene(call(t5, t5_tokenizer(), [f"a {word} and a dog"]), [Item(word)], [Item("dog")])
        for word in ("laptop", "key")
    )
    for scene in (one, two):
        assert not scene.causal
    (a, b), (c, d) = one.prompt.spans[0][1], one.prompt.phrases[0][1]
    assert (a, b) == two.prompt.spans[0][1] and c == a - 1 and d == b
    rows = [scene.separated.output.last_hidden_state[0] for scene in (one, two)]
    plain = [scene.prompt.output.last_hidden_state[0] for scene in (one, two)]
    assert torch.allclose(rows[0][c:d], rows[1][c:d], atol=1e-5)
    assert not torch.allclose(plain[0][c:d], plain[1][c:d], atol=1e-3)
    assert not torch.allclose(rows[0][d:], rows[1][d:], atol=1e-3)  # what follows still hears both


def test_views_are_encoded_once(t5):
    made = []
    handle = t5.register_forward_hook(lambda *_: made.append(1))
    try:
        scene = Scene(call(t5, t5_tokenizer(), ["a laptop and a dog"]), [Item("dog")], [Item("laptop")])
        made.clear()
        for _ in range(2):
            scene.alone(0), scene.masked({0}), scene.masked((0,)), scene.renamed, scene.empty, scene.positioned(0)
    finally:
        handle.remove()
    assert len(made) == 5


def test_an_earlier_change_of_the_rows_does_not_disturb_the_views(t5):
    changed = call(t5, t5_tokenizer(), ["a laptop and a dog"])
    changed.output = type(changed.output)(last_hidden_state=changed.output.last_hidden_state + 100.0)
    scene = Scene(changed, [Item("dog")])
    clean = Scene(call(t5, t5_tokenizer(), ["a laptop and a dog"]), [Item("dog")])
    assert torch.equal(scene.prompt.output.last_hidden_state, changed.output.last_hidden_state)
    assert torch.equal(scene.separated.output.last_hidden_state, clean.separated.output.last_hidden_state)


def test_an_encoder_that_mixes_differently_under_a_mask_is_refused(t5):
    class Odd(torch.nn.Module):
        def forward(self, ids, attention_mask=None):
            output = t5(ids, attention_mask=attention_mask)
            return output if attention_mask is None else type(output)(last_hidden_state=-output.last_hidden_state)

    scene = Scene(call(Odd(), t5_tokenizer(), ["a laptop and a dog"]), [Item("dog")])
    with pytest.raises(UnsupportedModel, match="per pair"):
        _ = scene.separated


def test_fillers_must_be_one_token_and_fit(t5):
    scene = Scene(call(t5, t5_tokenizer(), ["a laptop and a dog"]), [Item("dog")], [Item("laptop")], filler="two words")
    with pytest.raises(BadInput, match="more than one token"):
        scene.masked({0})
    long = Item("dog", sense="dog " + "and " * 12 + "hat")
    full = Scene(call(t5, t5_tokenizer(), ["a laptop and a key by a dog"], length=20), [long])
    with pytest.raises(PromptTruncated, match="after"):
        full.positioned(0)


def bytes_of_words(*merges):
    """Byte-level tokens whose first piece depends on the space before the word."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate(alphabet)}
    vocab |= {a + b: len(vocab) + i for i, (a, b) in enumerate(merges)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, list(merges)))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="!", model_max_length=64)


class Mean(torch.nn.Module):
    """A causal encoder: running means of embeddings."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(300, 4)

    def forward(self, ids):
        rows = self.table(ids).cumsum(1) / torch.arange(1, ids.shape[1] + 1)[:, None]
        return transformers.modeling_outputs.BaseModelOutput(last_hidden_state=rows)


def test_unequal_spans_are_an_error_unless_a_policy_is_chosen():
    here = call(Mean(), bytes_of_words(), ["big mouse"])  # " mouse" takes six tokens, "mouse" five
    with pytest.raises(SpanMismatch, match=r"'mouse' in text_encoder has 6 token\(s\) in the prompt and 5 alone"):
        Patch("mouse").on_text(CONTEXT, here)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the policy was chosen: nothing to warn of
        new = Patch("mouse", unequal="right-align", eos_pads="keep").on_text(CONTEXT, here).last_hidden_state
    alone = here.encode(torch.tensor([tokenize(here.tokenizer, "mouse", 24).ids]), None, {}).last_hidden_state
    empty = here.encode(torch.tensor([tokenize(here.tokenizer, "", 24).ids]), None, {}).last_hidden_state
    assert torch.equal(new[:, 4:9], alone[:, :5]) and torch.equal(new[:, 3:4], empty[:, 3:4])
    assert torch.equal(new[:, :3], here.output.last_hidden_state[:, :3])


def test_other_tokens_of_the_same_number_give_a_warning():
    here = call(Mean(), bytes_of_words(("Ġ", "m")), ["big mouse"])
    with pytest.warns(UserWarning, match="other tokens alone"):
        Patch("mouse").on_text(CONTEXT, here)


def test_a_pipeline_that_masks_pads(t5):
    """`positioned` must unmask what it pushes to the right: the item's rows must not come from masked tokens."""
    prompt = "a laptop and a dog"
    here = call(t5, t5_tokenizer(), [prompt], masked=True)
    new = Patch("dog", isolation="positioned").on_text(CONTEXT, here).last_hidden_state[:, 4]
    comma = tokenize(here.tokenizer, ",", 24).body[1] - 1
    filler = tokenize(here.tokenizer, ",", 24).ids[comma]
    ids = torch.tensor([[*[filler] * 3, *tokenize(here.tokenizer, "a dog", 21).ids]])
    mask = (torch.arange(24) < 6).long()[None]
    with torch.no_grad():
        assert torch.equal(new, t5(ids, attention_mask=mask).last_hidden_state[:, 4])
