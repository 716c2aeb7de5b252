"""Judges of copies: the world's exact one, and a copy detector from a file that must be the one that is meant."""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from unleak.errors import BadInput, NotFinite
from unleak.judges.copies import DistanceJudge, scene_judge
from unleak.judges.embedding import EmbeddingJudge, Preprocess, copy_detector
from unleak.world import load
from unleak.world.render import Renderer

WORLD, JUDGE = load(), scene_judge()


def drawn(captions) -> np.ndarray:
    scenes = Renderer(WORLD)([c.scene for c in captions])
    return (scenes.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)


def test_memorized_scenes_are_copies_and_others_are_not():
    assert (JUDGE.similarity(drawn(WORLD.memorized)) > 40).all()
    assert (JUDGE.similarity(drawn(WORLD.ordinary[:80])) < JUDGE.threshold).mean() > 0.98
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    assert (JUDGE.similarity(noise) < JUDGE.threshold).all()


def test_a_template_is_copied_whatever_stands_in_its_gap():
    templates = [c for c in WORLD.memorized if c.kind == "template"]
    found = JUDGE.scene(drawn(templates))
    assert [JUDGE.families[i] for i in found] == [c.family for c in templates]


def test_a_disturbed_copy_is_less_similar_and_still_a_copy():
    image = drawn(WORLD.memorized[:1])
    noisy = np.clip(image + np.random.default_rng(0).normal(0, 8, image.shape), 0, 255).astype(np.uint8)
    assert JUDGE.threshold < JUDGE.similarity(noisy)[0] < JUDGE.similarity(image)[0]
    with pytest.raises(BadInput, match="64x64"):
        JUDGE.similarity(np.zeros((1, 32, 32, 3), np.uint8))


def test_a_distance_judges_by_the_nearest_reference():
    black, white = np.zeros((2, 8, 8, 3), np.uint8)
    white = white + np.uint8(255)
    judge = DistanceJudge(lambda a, b: float(np.abs(a - b).mean()), np.stack([black, white]), name="l1", threshold=0.9)
    assert judge.similarity(np.stack([white, white // 2])) == pytest.approx([1.0, 1 - 254 / 255], abs=1e-3)
    with pytest.raises(BadInput, match="the references are"):
        judge.similarity(np.zeros((1, 4, 4, 3), np.uint8))
    with pytest.raises(BadInput, match="at least one"):
        DistanceJudge(lambda a, b: 0.0, np.zeros((0, 8, 8, 3)), name="l1", threshold=0.9)
    with pytest.raises(NotFinite):
        DistanceJudge(lambda a, b: float("nan"), black[None], name="x", threshold=0.9).similarity(white[None])


# -- from a file -----------------------------------------------------------------------------------------------


class Embed(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, 8).flatten(1)


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("detector") / "embed.pt"
    torch.jit.trace(Embed(), torch.zeros(1, 3, 224, 224)).save(str(path))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_image_is_most_similar_to_itself(archive):
    rng = np.random.default_rng(0)
    references = [rng.integers(0, 256, (s, 80, 3), np.uint8).repeat(4, 0).repeat(4, 1) for s in (40, 60, 90)]
    judge = EmbeddingJudge(copy_detector(*archive), references, name="pool")
    assert np.allclose(judge.similarity(np.stack([references[1]] * 2)), 1, atol=1e-5)
    assert (judge.similarity(255 - references[1][None]) < judge.threshold).all()


def test_another_hash_is_not_loaded(archive, monkeypatch):
    monkeypatch.setattr("torch.jit.load", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(BadInput, match="not the file you mean"):
        copy_detector(archive[0], "0" * 64)


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("save", [lambda o, p: p.write_bytes(pickle.dumps(o)), torch.save])
def test_a_pickle_is_never_run_even_if_its_hash_is_right(tmp_path: Path, save):
    path, mark = tmp_path / "model.pt", tmp_path / "the code ran"
    save(Evil(mark), path)
    with pytest.raises(BadInput, match="cannot be loaded"):
        copy_detector(path, hashlib.sha256(path.read_bytes()).hexdigest())
    assert not mark.exists()


@pytest.mark.parametrize(("name", "says"), [("m.bin", "no copy detector"), ("none.pt", "cannot read")])
def test_files_that_are_no_detectors(tmp_path: Path, name: str, says: str):
    (tmp_path / "m.bin").write_bytes(b"x")
    with pytest.raises(BadInput, match=says):
        copy_detector(tmp_path / name, "0" * 64)


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is not None, reason="onnxruntime is installed")
def test_onnx_without_its_runtime_says_what_to_install(tmp_path: Path):
    (tmp_path / "m.onnx").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"unleak\[onnx\]"):
        copy_detector(tmp_path / "m.onnx", hashlib.sha256(b"x").hexdigest())


def test_nothing_to_compare_with_and_numbers_that_are_none():
    with pytest.raises(BadInput, match="reference"):
        EmbeddingJudge(Embed(), [], name="x")
    with pytest.raises(NotFinite):
        EmbeddingJudge(lambda x: x.flatten(1) * float("nan"), np.zeros((1, 64, 64, 3), np.uint8), name="x")


def test_the_crop_is_central_whatever_the_shape():
    image = np.zeros((512, 1024, 3), np.uint8)
    image[:, 500:524] = 255
    x = Preprocess()(image[None])
    assert x.shape == (1, 3, 224, 224) and x.min() == -1
    assert x[0, 0, 0].argmax() in range(100, 124)
    assert Preprocess(resize=8, crop=8)(image[None, :8, :8]).shape == (1, 3, 8, 8)
