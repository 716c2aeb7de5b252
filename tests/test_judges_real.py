"""Judges on real model classes with tiny random weights: what they ask, what they refuse, how they are loaded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from tiny import WORDS, clip_tokenizer
from unleak.errors import BadInput, NotFinite, UnsupportedModel
from unleak.judges.clip import ClipJudge
from unleak.judges.detector import DetectorJudge
from unleak.judges.glyphs import glyph_judge
from unleak.judges.load import load_judge
from unleak.judges.vqa import VqaJudge
from unleak.text.items import Item, parse_items

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 48, 40, 3)).astype(np.uint8)
ITEMS = parse_items("mouse=furry mouse,laptop")
TEXT = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {**TEXT, "image_size": 32, "patch_size": 8}


def bert_tokenizer(folder):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "yes", "no", "is", "there", "?", "picture", *WORDS]
    letters = [chr(c) for c in range(97, 123)]
    vocab = list(dict.fromkeys([*words, *letters, *(f"##{c}" for c in letters)]))
    made = transformers.BertTokenizer({word: i for i, word in enumerate(vocab)}, model_max_length=64)
    made.add_special_tokens({"bos_token": "[DEC]"})
    return made


def clip(folder):
    tokenizer = clip_tokenizer()
    text = {**TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 77, "eos_token_id": tokenizer.eos_token_id}
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)
    pixels = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return transformers.CLIPModel(config), transformers.CLIPProcessor(pixels, tokenizer)


def owl(folder):
    tokenizer = clip_tokenizer()
    tokenizer.model_max_length = 16
    text = {**TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": tokenizer.eos_token_id}
    config = transformers.Owlv2Config(text_config=text, vision_config=VISION, projection_dim=32)
    pixels = transformers.Owlv2ImageProcessor(size={"height": 32, "width": 32})
    return transformers.Owlv2ForObjectDetection(config), transformers.Owlv2Processor(pixels, tokenizer)


def vilt(folder):
    tokenizer = bert_tokenizer(folder)
    config = transformers.ViltConfig(
        **VISION, vocab_size=len(tokenizer), max_position_embeddings=40, id2label={0: "maybe", 1: "no", 2: "yes"}
    )
    pixels = transformers.ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=8)
    return transformers.ViltForQuestionAnswering(config), transformers.ViltProcessor(pixels, tokenizer)


def blip(folder):
    tokenizer = bert_tokenizer(folder)
    ids = {"bos_token_id": tokenizer.bos_token_id, "sep_token_id": tokenizer.sep_token_id, "pad_token_id": 0}
    text = {**TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 64, **ids}
    config = transformers.BlipConfig(
        text_config={**text, "encoder_hidden_size": 32}, vision_config=VISION, projection_dim=16
    )
    pixels = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    return transformers.BlipForQuestionAnswering(config), transformers.BlipProcessor(pixels, tokenizer)


MAKERS = {clip: ClipJudge, owl: DetectorJudge, vilt: VqaJudge, blip: VqaJudge}


@pytest.fixture(scope="module", params=MAKERS, ids=lambda maker: maker.__name__)
def saved(request, tmp_path_factory):
    """(folder of a tiny judge model, the judge class that it should make)."""
    folder = tmp_path_factory.mktemp(request.param.__name__)
    torch.manual_seed(0)
    model, processor = request.param(folder)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, MAKERS[request.param]


def test_the_folder_says_which_judge_it_is(saved):
    folder, kind = saved
    judge = load_judge(folder)
    assert type(judge) is kind
    assert judge.name == str(folder)


def test_one_answer_per_image_and_item_whatever_the_batch(saved):
    judge = load_judge(saved[0])
    whole = judge.present(IMAGES, ITEMS)
    assert whole.shape == (3, 2) and whole.dtype == bool
    judge.batch = 1
    assert (judge.present(IMAGES, ITEMS) == whole).all()


def test_items_are_looked_for_by_their_sense(saved):
    judge = load_judge(saved[0])
    assert judge.senses(ITEMS) == ["furry mouse", "laptop"]
    named = judge.present(IMAGES, [Item("furry mouse")])
    assert (judge.present(IMAGES, ITEMS[:1]) == named).all()


def test_an_item_that_does_not_fit_is_refused_not_cut(saved):
    judge = load_judge(saved[0])
    with pytest.raises(BadInput, match="fewer words"):
        judge.senses([Item("zebra " * 80)])


def test_floats_are_no_images(saved):
    with pytest.raises(BadInput, match="uint8"):
        load_judge(saved[0]).present(IMAGES / 255, ITEMS)


def test_nan_is_an_error_not_an_absence(saved):
    judge = load_judge(saved[0])
    with torch.no_grad():
        for parameter in judge.model.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(NotFinite):
        judge.present(IMAGES, ITEMS)


def test_what_is_no_judge_is_refused(tmp_path):
    tokenizer = clip_tokenizer()
    transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT, vocab_size=len(tokenizer))).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="is no judge"):
        load_judge(tmp_path)


def test_only_safetensors_are_loaded(tmp_path):
    model, processor = clip(tmp_path)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(BadInput, match="pickled"):
        load_judge(tmp_path)


@pytest.mark.parametrize("where", ["", "no/such/folder", "./nowhere", "nowhere"])
def test_a_judge_that_is_not_there(where):
    with pytest.raises(BadInput, match="no judge"):
        load_judge(where)


def test_a_vqa_model_that_cannot_say_yes_is_refused(tmp_path):
    model, processor = vilt(tmp_path)
    model.config.id2label = {0: "maybe", 1: "no", 2: "certainly"}
    with pytest.raises(UnsupportedModel, match="'yes' and 'no'"):
        VqaJudge(model, processor)


def test_known_other_senses_compete_with_the_one_that_is_meant(tmp_path):
    torch.manual_seed(0)
    model, processor = clip(tmp_path)
    alone = ClipJudge(model, processor).margins(IMAGES, ITEMS)
    against = ClipJudge(model, processor, others={"furry mouse": ["red mouse"]}).margins(IMAGES, ITEMS)
    assert (against[:, 0] <= alone[:, 0]).all() and (against[:, 1] == alone[:, 1]).all()
    itself = ClipJudge(model, processor, others={"furry mouse": ["furry mouse"]})
    assert not itself.present(IMAGES, ITEMS)[:, 0].any()  # a tie is no presence


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_the_detector_decides_by_its_threshold(tmp_path, threshold):
    model, processor = owl(tmp_path)
    seen = DetectorJudge(model, processor, threshold=threshold).present(IMAGES, ITEMS)
    assert (seen == (threshold == 0.0)).all()


@pytest.mark.parametrize("answer", ["yes", "no"])
def test_a_vqa_judge_follows_the_answer(tmp_path, answer):
    model, processor = vilt(tmp_path)
    with torch.no_grad():
        model.classifier[-1].bias.zero_()[["maybe", "no", "yes"].index(answer)] = 100.0
    assert (VqaJudge(model, processor).present(IMAGES, ITEMS) == (answer == "yes")).all()


def test_a_judge_by_its_name():
    assert load_judge("glyphs").name == glyph_judge().name
    with pytest.raises(BadInput, match="one of glyphs"):
        load_judge("glyph")
