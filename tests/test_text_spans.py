"""Token spans follow characters, per tokenizer: no id matching, no shared positions, no silent loss."""

from __future__ import annotations

from itertools import pairwise

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny import clip_tokenizer, t5_tokenizer
from unleak.errors import BadInput, ItemNotFound, PromptTruncated, UnsupportedModel
from unleak.text.items import Item, find_all
from unleak.text.spans import item_span, token_span, tokenize


def spaced_t5():
    """A unigram tokenizer whose pieces carry the space before them, as older T5 files do."""
    made = t5_tokenizer()
    made.backend_tokenizer.normalizer = tokenizers.normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    made.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    return made


def byte_level():
    """Byte-level pieces with a leading space and no special tokens, as GPT and Qwen tokenizers have."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE(
        {c: i for i, c in enumerate(alphabet)} | {"Ġm": 256, "ou": 257}, [("Ġ", "m"), ("o", "u")]
    )
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="!", model_max_length=64)


TOKENIZERS = {
    "clip": clip_tokenizer(),
    "clip, other pad": clip_tokenizer(pad="!"),
    "t5": t5_tokenizer(),
    "t5, spaces in pieces": spaced_t5(),
    "bytes": byte_level(),
}
tokenizers_of_all_kinds = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)


def spelled(tokenizer, prompt, span, length=64):
    ids = tokenize(tokenizer, prompt, length).ids[slice(*span)]
    return "".join(tokenizer.decode(list(ids)).split()).casefold()


@tokenizers_of_all_kinds
@pytest.mark.parametrize(
    ("prompt", "item", "spells"),
    [
        ("a mouse and a laptop", "mouse", "mouse"),
        ("mouse and laptop", "mouse", "mouse"),
        ("a Mouse, and a laptop", "mouse", "mouse"),
        ("a  hot \n dog on a bridge", "hot dog", "hotdog"),
        ("a T-shirt and a hat", "t-shirt", "t-shirt"),
        ("the mouse's hat", "mouse", "mouse"),
        ("zebras by a bus", "zebras", "zebras"),
        ("a golden gate bridge.", "golden gate bridge", "goldengatebridge"),
    ],
)
def test_span_spells_the_item(tokenizer, prompt, item, spells):
    assert spelled(tokenizer, prompt, item_span(tokenizer, prompt, item, 64)) == spells


@tokenizers_of_all_kinds
def test_span_holds_every_piece_of_the_item_and_only_those(tokenizer):
    prompt = "a squirrel and a podcast by night"
    tokens = tokenize(tokenizer, prompt, 64)
    a, b = token_span(tokenizer, tokens, (2, 10))
    inside = [prompt[slice(*at)] for at in tokens.offsets[a:b]]
    assert "".join(inside).strip().endswith("squirrel") or set("".join(inside)) >= set("squirel")
    around = [prompt[slice(*tokens.offsets[i])] for i in (a - 1, b)]
    assert around[0].strip() == "a" and not around[1].startswith("squirrel")


def test_bos_and_eos_are_not_assumed():
    clip, t5, plain = TOKENIZERS["clip"], TOKENIZERS["t5"], TOKENIZERS["bytes"]
    assert item_span(clip, "laptop", "laptop") == (1, 2)
    assert item_span(t5, "laptop", "laptop") == (0, 1)
    assert item_span(plain, "mouse", "mouse") == (0, 4)
    assert tokenize(clip, "a laptop", 8).body == (1, 3)
    assert tokenize(clip, "a laptop", 8).after_text == range(3, 8)
    assert tokenize(t5, "a laptop", 8).body == (0, 2)
    assert tokenize(t5, "a laptop", 8).after_text == range(2, 8)


def test_positions_differ_between_tokenizers():
    prompt = "a squirrel by a laptop"
    spans = {name: item_span(tokenizer, prompt, "laptop", 64) for name, tokenizer in TOKENIZERS.items()}
    assert len(set(spans.values())) >= 3, spans


def test_the_bare_space_that_opens_a_word_belongs_to_it():
    for name in ("t5", "t5, spaces in pieces"):
        tokenizer = TOKENIZERS[name]
        tokens = tokenize(tokenizer, "a dog by a squirrel", 64)
        a, _ = token_span(tokenizer, tokens, (11, 19))
        assert tokenizer.convert_ids_to_tokens([tokens.ids[a]]) == ["▁"], name


@tokenizers_of_all_kinds
def test_occurrences_move_right(tokenizer):
    prompt = "mouse and mouse and a mouse"
    spans = [item_span(tokenizer, prompt, Item("mouse", k), 64) for k in (1, 2, 3)]
    assert spans == sorted(spans) and len(set(spans)) == 3
    assert item_span(tokenizer, prompt, "mouse#3", 64) == spans[2]


def test_clip_bytes_of_one_character_share_a_span():
    tokenizer = TOKENIZERS["clip"]
    tokens = tokenize(tokenizer, "a 🐭 and a cafe\u0301", 64)
    a, b = token_span(tokenizer, tokens, (2, 3))
    assert b - a == 4  # four UTF-8 bytes, no merge in this vocabulary
    assert item_span(tokenizer, "a 🐭 and a cafe\u0301", "café", 64) == item_span(
        tokenizer, "a 🐭 and a café", "café", 64
    )


def test_unknown_word_is_an_error():
    with pytest.raises(BadInput, match="<unk>"):
        item_span(TOKENIZERS["t5"], "a 🐭 and a laptop", "🐭", 64)


def test_truncation_is_an_error_only_for_what_is_lost():
    tokenizer = TOKENIZERS["clip"]
    prompt = "a big mouse and a laptop"
    assert item_span(tokenizer, prompt, "mouse", 5) == (3, 4)
    for item in ("laptop", "mouse and a laptop"):
        with pytest.raises(PromptTruncated, match="5 tokens"):
            item_span(tokenizer, prompt, item, 5)
    assert tokenize(tokenizer, prompt, 8).lost == ()
    assert len(tokenize(tokenizer, prompt, 5).lost) == 3


def test_left_padding_and_left_truncation_are_followed():
    tokenizer = byte_level()
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    prompt = "a mouse and a dog"
    a, b = item_span(tokenizer, prompt, "mouse", 32)
    assert tokenizer.decode(list(tokenize(tokenizer, prompt, 32).ids[a:b])).strip() == "mouse"
    assert a > 10
    with pytest.raises(PromptTruncated):
        item_span(tokenizer, prompt, "mouse", 8)


def test_no_offsets_is_an_error_with_the_remedy():
    class Slow:
        is_fast = False

    with pytest.raises(UnsupportedModel, match="AutoTokenizer"):
        tokenize(Slow(), "a mouse", 8)


def test_absent_item():
    with pytest.raises(ItemNotFound):
        item_span(TOKENIZERS["clip"], "two cars", "car")


WORDS = ["a", "mouse", "squirrel", "hot", "dog", "café", "T-shirt", "Zebra", "pool,", "night", "xyzzy"]


@settings(max_examples=150, deadline=None)
@given(
    words=st.lists(st.sampled_from(WORDS), min_size=2, max_size=7),
    spaces=st.lists(st.sampled_from([" ", "  ", "\n"]), min_size=7, max_size=7),
    kind=st.sampled_from(list(TOKENIZERS)),
    data=st.data(),
)
def test_disjoint_items_have_disjoint_spans_that_cover_them(words, spaces, kind, data):
    tokenizer = TOKENIZERS[kind]
    if kind.startswith("t5"):
        words = [word.replace("é", "e") for word in words]
    prompt = "".join(word + space for word, space in zip(words, spaces, strict=False)).strip()
    chosen = sorted(data.draw(st.sets(st.integers(0, len(words) - 1), min_size=2)))
    items = [Item(words[k].strip(","), occurrence=1 + words[:k].count(words[k])) for k in chosen]
    tokens = tokenize(tokenizer, prompt, 128)
    spans = [token_span(tokenizer, tokens, at) for at in find_all(prompt, items)]
    assert all(one[1] <= two[0] for one, two in pairwise(spans)), spans
    for item, at, (a, b) in zip(items, find_all(prompt, items), spans, strict=True):
        covered = {c for i in range(a, b) for c in range(*tokens.offsets[i])}
        assert covered >= set(range(*at)), item
        assert spelled(tokenizer, prompt, (a, b), 128) == item.text.casefold()
