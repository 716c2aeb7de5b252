"""Masks from text: real model classes with tiny random weights; what is asked, found, refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from typer.testing import CliRunner

from test_judges_real import TEXT, VISION, bert_tokenizer, clip, owl
from tiny import clip_tokenizer, save_tiny, tiny
from unleak.cli import app
from unleak.errors import BadInput, EmptyMask, NotFinite, UnsupportedModel
from unleak.regions.edit import edit
from unleak.regions.masks.text_masks import BoxSegmenter, TextSegmenter, load_masker
from unleak.regions.plan import Edit
from unleak.report import edit as report

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))


def clipseg():
    tokenizer = clip_tokenizer()
    text = {**TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 77, "eos_token_id": tokenizer.eos_token_id}
    config = transformers.CLIPSegConfig(
        text_config=text, vision_config=VISION, projection_dim=16, extract_layers=[0, 1], reduce_dim=16,
        decoder_num_attention_heads=2, decoder_intermediate_size=16,
    )  # fmt: skip
    pixels = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    model = transformers.CLIPSegForImageSegmentation(config)
    torch.nn.init.constant_(model.decoder.transposed_convolution.bias, 1.0)  # it sees something of everything
    return model, transformers.CLIPSegProcessor(pixels, tokenizer)


def dino():
    tokenizer = bert_tokenizer(None)
    backbone = transformers.SwinConfig(
        image_size=32, patch_size=2, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    text = transformers.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **TEXT)
    config = transformers.GroundingDinoConfig(
        backbone_config=backbone, text_config=text, d_model=32, num_queries=8, encoder_layers=1, decoder_layers=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2, max_text_len=64,
    )  # fmt: skip
    pixels = transformers.GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96})
    return (
        transformers.GroundingDinoForObjectDetection(config).eval(),
        transformers.GroundingDinoProcessor(pixels, tokenizer),
    )


def sam():
    vision = transformers.SamVisionConfig(
        hidden_size=16, output_channels=16, num_hidden_layers=1, num_attention_heads=2, image_size=64, patch_size=8,
        window_size=4, global_attn_indexes=[0], mlp_dim=16, num_pos_feats=8,
    )  # fmt: skip
    config = transformers.SamConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4},
        mask_decoder_config={"hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                             "iou_head_hidden_dim": 16},
    )  # fmt: skip
    pixels = transformers.SamImageProcessorPil(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    return transformers.SamModel(config).eval(), transformers.SamProcessor(pixels)


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(0)
    return {maker.__name__: maker() for maker in (clipseg, dino, sam)}


def test_a_segmenter_is_asked_for_each_object_alone(made):
    model, processor = made["clipseg"]
    both = TextSegmenter(model, processor, threshold=0.0).masks(PICTURE, ["a cat", "dog#2"])
    assert both.shape == (2, 64, 96) and both.dtype == torch.bool and both.all()
    some = TextSegmenter(model, processor)
    cat, dog = some.masks(PICTURE, ["cat", "dog"])
    assert 0 < cat.sum() < cat.numel() and not torch.equal(cat, dog)
    assert torch.equal(some.masks(PICTURE, ["the cat"])[0], cat)


def test_boxes_are_filled_and_joined(made):
    found = BoxSegmenter(made["dino"], made["sam"], threshold=0.0).masks(PICTURE, ["cat", "dog"])
    assert found.shape == (2, 64, 96) and found.any(1).any(1).all()


def test_a_text_that_finds_nothing_is_an_error(made):
    with pytest.raises(EmptyMask, match="'cat'"):
        TextSegmenter(*made["clipseg"], threshold=1.1).masks(PICTURE, ["cat"])
    with pytest.raises(EmptyMask, match="'cat'"):
        BoxSegmenter(made["dino"], made["sam"], threshold=1.1).masks(PICTURE, ["cat"])


def test_objects_that_cannot_be_told_apart_or_read_are_refused(made):
    masker = TextSegmenter(*made["clipseg"])
    with pytest.raises(BadInput, match="two objects are called 'cat'"):
        masker.masks(PICTURE, ["cat#1", "a cat#2"])
    with pytest.raises(BadInput, match="fewer words"):
        masker.masks(PICTURE, ["cat " * 90])


def test_nan_is_no_mask():
    model, processor = clipseg()
    with torch.no_grad():
        next(model.decoder.parameters()).fill_(float("nan"))
    with pytest.raises(NotFinite):
        TextSegmenter(model, processor).masks(PICTURE, ["cat"])


def test_only_masks_that_are_not_given_are_looked_for(made):
    asked = []

    class Asked(TextSegmenter):
        def masks(self, picture, objects):
            asked.append((picture.size, list(objects)))
            return super().masks(picture, objects)

    box = np.zeros((64, 96), bool)
    box[:24, :24] = True
    masker = Asked(*made["clipseg"], name="mine")
    with pytest.warns(UserWarning, match="'cat' and 'cup'"):
        r = edit(tiny("sd1"), PICTURE, [Edit("cat", "dog", box), Edit("cup", "hat")], steps=1, size=(64, 96),
                 dilation=0.0, masks_from=masker)  # fmt: skip
    assert asked == [((96, 64), ["cup"])]
    assert torch.equal(r.masks[0], torch.from_numpy(box)) and r.masks[1].any()
    assert [one["mask"] for one in r.to_dict()["edits"]] == ["given", "mine"]
    assert "by mine" in report.page(r)


# -- from folders ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(made, tmp_path_factory):
    there = {}
    for name, (model, processor) in {**made, "owl": owl(None), "clip": clip(None)}.items():
        there[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(there[name])
        processor.save_pretrained(there[name])
    return there


def test_folders_say_what_they_can_do(folders):
    assert isinstance(load_masker(folders["clipseg"]), TextSegmenter)
    for detector in ("dino", "owl"):
        masker = load_masker(folders[detector], folders["sam"])
        masker.threshold = 0.0
        assert masker.masks(PICTURE, ["cat"]).any()
    for wrong in (["clip"], ["sam"], ["clipseg", "sam"], ["sam", "dino"]):
        with pytest.raises(UnsupportedModel, match="is no"):
            load_masker(*(folders[name] for name in wrong))
    with pytest.raises(BadInput, match="one model or from two"):
        load_masker(*[folders["sam"]] * 3)
    with pytest.raises(BadInput, match="no text segmenter"):
        load_masker("no/such/folder")


def test_the_command_line_takes_masks_from_a_model(folders, tmp_path):
    PICTURE.save(tmp_path / "in.png")
    model = save_tiny("sd1", tmp_path / "model")
    args = ["edit", str(tmp_path / "in.png"), "--edit", "cat=dog", "-m", str(model), "--steps", "1"]
    args += ["-o", str(tmp_path), "--json", "-", "--masks-from"]
    assert CliRunner().invoke(app, [*args, str(folders["clip"])]).exit_code == 4
    out = CliRunner().invoke(app, [*args, str(folders["clipseg"])])
    assert out.exit_code == 0, out.output
    assert json.loads(out.stdout)["edits"][0]["mask"] == str(folders["clipseg"])
