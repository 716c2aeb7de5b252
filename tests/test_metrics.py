"""Metrics of edits: definitions that papers rely on, and what an unchanged image must score."""

from __future__ import annotations

import math
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from skimage.metrics import peak_signal_noise_ratio
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

from unleak.errors import BadInput, UnsupportedModel
from unleak.metrics import background
from unleak.metrics.features import ClipScore, DinoKeys
from unleak.metrics.leakage import leakage
from unleak.metrics.perceptual import squeeze_lpips
from unleak.metrics.structure import self_similarity, structure_distance

RANDOM = np.random.default_rng(0)
IMAGE, OTHER = RANDOM.integers(0, 256, (2, 24, 32, 3), dtype=np.uint8)
MASKS = np.zeros((2, 24, 32))
MASKS[0, :8, :8], MASKS[1, 12:, 16:] = 1.0, 1.0


def score(images, texts):
    """The image's mean level; more for texts of more letters."""
    return images.reshape(len(images), -1).mean(1)[:, None] * np.array([len(text) for text in texts])[None]


def test_an_unchanged_image_scores_perfectly():
    assert background.psnr(IMAGE, IMAGE, MASKS) == math.inf and background.mse(IMAGE, IMAGE, MASKS) == 0
    assert background.ssim(IMAGE, IMAGE, MASKS) == pytest.approx(1) == background.ssim(IMAGE, IMAGE, MASKS, "all")
    assert structure_distance(IMAGE, IMAGE, lambda images: images.reshape(len(images), -1, 3).astype(float)) == 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_background_is_what_no_mask_holds(seed):
    inside = MASKS.max(0) > 0
    changed = np.where(inside[..., None], np.random.default_rng(seed).integers(0, 256, IMAGE.shape), IMAGE)
    for over in background.OVER:
        assert background.mse(changed, IMAGE, MASKS, over) == 0
        assert background.ssim(changed, IMAGE, MASKS, over) == pytest.approx(1)


def test_black_pixels_lift_the_psnr_that_counts_all():
    outside = MASKS.max(0) == 0
    own = background.psnr(IMAGE, OTHER, MASKS)
    assert own == pytest.approx(peak_signal_noise_ratio(IMAGE[outside], OTHER[outside], data_range=255))
    assert background.psnr(IMAGE, OTHER, MASKS, "all") == pytest.approx(own - 10 * math.log10(outside.mean()))


def test_without_a_background_there_is_no_figure_and_wrong_masks_are_refused():
    full = np.ones((1, 24, 32))
    assert all(math.isnan(f(IMAGE, OTHER, full)) for f in (background.mse, background.psnr, background.ssim))
    assert math.isnan(background.lpips(IMAGE, OTHER, full, lambda a, b: 1.0))
    assert math.isnan(leakage(IMAGE, full, ["dog"], score).tels)
    for wrong in (full[0], full * 255, np.zeros((0, 24, 32))):
        with pytest.raises(BadInput, match="masks are"):
            background.mse(IMAGE, OTHER, wrong)


def test_leakage_is_the_mean_over_the_right_pairs():
    soft = MASKS * 0.5
    found = leakage(IMAGE, soft, ["dog", "horse"], score)
    level = [float((IMAGE * m[..., None]).astype(np.uint8).mean()) for m in (*soft, 1 - soft.max(0))]
    assert found.performance == pytest.approx((3 * level[0] + 5 * level[1]) / 2)
    assert found.tils == pytest.approx((5 * level[0] + 3 * level[1]) / 2)
    assert found.tels == pytest.approx(4 * level[2])
    assert found.tels_released == pytest.approx(len("dog and horse") * level[2])
    assert math.isnan(leakage(IMAGE, MASKS[:1], ["dog"], score).tils)
    with pytest.raises(BadInput, match="one mask for each"):
        leakage(IMAGE, MASKS, ["dog"], score)


def test_tels_ignores_what_the_masks_hold():
    other = IMAGE.copy()
    other[:8, :8] = 0
    assert leakage(other, MASKS, ["dog", "cat"], score).tels == leakage(IMAGE, MASKS, ["dog", "cat"], score).tels


def test_similarity_is_a_cosine():
    features = np.random.default_rng(0).normal(size=(2, 5, 7))
    table = self_similarity(features)
    assert np.allclose(np.diagonal(table, axis1=1, axis2=2), 1) and np.allclose(table, self_similarity(features * 3))


def test_dino_gives_the_keys_of_the_last_layer():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = ViTModel(ViTConfig(**size, patch_size=32, image_size=64))
    keys = DinoKeys(model)(np.stack([IMAGE, OTHER]))
    assert keys.shape == (2, 1 + 7 * 9, 16)  # 24 x 32 pixels become 224 x 299
    assert not np.allclose(keys, DinoKeys(model, levels=1.0)(np.stack([IMAGE, OTHER])))
    assert structure_distance(IMAGE, IMAGE, DinoKeys(model)) == 0
    with pytest.raises(UnsupportedModel, match="no key projections"):
        DinoKeys(torch.nn.Linear(1, 1))


class Processor:
    """Fixed inputs of the right shapes: the texts' lengths and the images' corners decide them."""

    class tokenizer:
        model_max_length = 4

        def __new__(cls, text, **_):
            return type("Cut", (), {"input_ids": text.split()})

    def __call__(self, text, images, **_):
        from transformers import BatchFeature

        ids = torch.tensor([[len(t) % 90, 99] for t in text])
        pixels = torch.stack([torch.from_numpy(np.array(i))[:8, :8].permute(2, 0, 1) / 255.0 for i in images])
        return BatchFeature({"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels})


def test_clip_scores_are_cosines_that_are_never_negative():
    torch.manual_seed(0)
    part = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = CLIPModel(CLIPConfig(
        text_config={**part, "vocab_size": 100, "eos_token_id": 99, "max_position_embeddings": 4},
        vision_config={**part, "image_size": 8, "patch_size": 4}, projection_dim=8,
    ))  # fmt: skip
    see = ClipScore(model, Processor(), batch=1)
    found = see(np.stack([IMAGE, OTHER]), ["dog", "a horse", "something else"])
    assert found.shape == (2, 3) and (found >= 0).all() and (found <= 100.01).all() and found.max() > 0
    with pytest.raises(BadInput, match="reads 4 tokens"):
        see(IMAGE[None], ["one two three four five"])


def test_lpips_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image.lpips", None)
    with pytest.raises(BadInput, match=r"unleak\[metrics\]"):
        squeeze_lpips(tmp_path / "lpips.safetensors")


class Weighted(torch.nn.Module):
    """In torchmetrics' place: it would unpickle if `pretrained`, and fetch a backbone unless `pnet_rand`."""

    def __init__(self, pretrained: bool = True, net: str = "alex", pnet_rand: bool = False) -> None:
        super().__init__()
        assert not pretrained and pnet_rand and net == "squeeze"
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        return self.weight * (one - two).abs().mean()


def test_lpips_has_its_weights_from_a_safetensors_file(monkeypatch, tmp_path):
    module = types.ModuleType("torchmetrics.functional.image.lpips")
    monkeypatch.setattr(module, "_LPIPS", Weighted, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    save_file({"weight": torch.tensor(2.0)}, tmp_path / "lpips.safetensors")
    zeros, ones = np.zeros((2, 8, 8, 3))
    assert squeeze_lpips(tmp_path / "lpips.safetensors")(zeros, ones + 1) == pytest.approx(2.0)
    save_file({"other": torch.tensor(2.0)}, tmp_path / "other.safetensors")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps({"weight": 1}))
    for name in ("other.safetensors", "pickle.pth", "missing.safetensors"):
        with pytest.raises(BadInput, match="no LPIPS network"):
            squeeze_lpips(tmp_path / name)
