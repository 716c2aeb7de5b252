"""Where items, ends of text and pads stand among the denoiser's text rows, on every layout."""

from __future__ import annotations

import pytest
import torch

from tiny import clip_tokenizer, draw, t5_tokenizer
from unleak.core.intervention import Intervention
from unleak.engine.session import attach
from unleak.errors import BadInput, ItemNotFound, UnsupportedModel
from unleak.text.call import Encoded
from unleak.text.items import Item
from unleak.text.positions import first_encoder, item_positions, prompt_tokens, readable, summary_rows
from unleak.text.spans import tokenize

PROMPTS = ["a red mouse and a laptop", "a laptop by the mouse"]


class Look(Intervention):
    pass


@pytest.fixture(scope="module")
def encoded(any_pipe):
    with attach(any_pipe, Look()) as run:
        draw(any_pipe, PROMPTS, steps=1, num_images_per_prompt=2)
    return run.encoded


def test_an_items_positions_hold_the_rows_that_its_encoder_made_of_it(encoded):
    found = item_positions(encoded, [Item("mouse"), Item("laptop")])
    assert found.encoders == tuple(readable(encoded)) and len(found.at) == 2
    for e, name in enumerate(found.encoders):
        call, start = encoded.calls[name], readable(encoded)[name].start
        for b in range(len(PROMPTS)):
            for i, word in enumerate(("mouse", "laptop")):
                ids = [int(call.ids[b, row - start]) for row in found.at[b][i][e]]
                assert call.tokenizer.decode(ids).strip() == word
    with pytest.raises(ItemNotFound):
        item_positions(encoded, [Item("piano")])


def test_the_first_encoder_opens_the_denoisers_text_and_others_may_only_be_pooled(encoded):
    call = first_encoder(encoded)
    assert encoded.columns(call.name).start == 0
    assert [cut.text for cut in prompt_tokens(encoded)] == PROMPTS
    assert all(encoded.columns(name) is None for name in encoded.calls.keys() - readable(encoded).keys())


def test_summary_rows_are_each_images_own(encoded):
    found = summary_rows(encoded)
    ends = [cut.end for cut in prompt_tokens(encoded)]
    assert [int(row.int().argmax()) for row in found] == [ends[0], ends[0], ends[1], ends[1]]
    assert encoded.image_prompts == [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]


def test_without_a_prompt_or_known_rows_it_is_said_so():
    with pytest.raises(BadInput, match="call the pipeline with `prompt`"):
        readable(Encoded())


def test_rows_that_are_no_encoders_are_unsupported(encoded):
    foreign = Encoded(PROMPTS, 2, encoded.calls, torch.zeros(4, 3, 5))
    with pytest.raises(UnsupportedModel, match="no text encoder's rows"):
        first_encoder(foreign)


@pytest.mark.parametrize("tokenizer", [clip_tokenizer(), t5_tokenizer()])
@pytest.mark.parametrize("text", ["", "a mouse"])
def test_the_end_of_a_text_is_its_end_token(tokenizer, text):
    cut = tokenize(tokenizer, text, 9)
    assert cut.ids[cut.end] == tokenizer.eos_token_id and all(cut.real[: cut.end + 1])
    assert cut.after_text == range(cut.end, 9)
