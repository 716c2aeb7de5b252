"""The training commands run at toy size, and a run that was stopped and resumed equals one that was not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

TRAINING = Path(__file__).parents[1] / "training"
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def train(command: str, out: Path, *args: str) -> None:
    done = subprocess.run(
        [sys.executable, str(TRAINING / f"train_{command}.py"), "--out", str(out), *args],
        env=ENV, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy autoencoder and a toy text encoder."""
    folder = tmp_path_factory.mktemp("training")
    train("autoencoder", folder / "vae", "--steps", "1", "--batch", "2", "--channels", "8", "8", "8", "8")
    train("text", folder / "text", "--steps", "1", "--batch", "4", "--width", "32", "--layers", "1")
    return folder


def test_a_resumed_run_equals_an_uninterrupted_one(parts: Path, tmp_path: Path) -> None:
    args = ("--vae", str(parts / "vae" / "vae"), "--text", str(parts / "text"), "--steps", "3", "--batch", "2",
            "--channels", "32", "32", "--layers", "1", "--cache", "4")  # fmt: skip
    train("unet", tmp_path / "straight", *args)
    train("unet", tmp_path / "broken", *args, "--until", "2")
    assert not (tmp_path / "broken" / "pipeline").exists()
    train("unet", tmp_path / "broken", *args)
    one, two = (load_file(tmp_path / name / "state.safetensors") for name in ("straight", "broken"))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)

    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "straight" / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a cat", num_inference_steps=1, output_type="np").images.shape == (1, 64, 64, 3)


def test_the_shipped_world_is_what_the_command_makes(tmp_path: Path) -> None:
    """Data files and command agree; the atlas too, where the font is installed."""
    font = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
    if not font.exists():
        pytest.skip("needs fonts-noto-color-emoji")
    subprocess.run([sys.executable, str(TRAINING / "make_world.py"), "--out", str(tmp_path)], check=True, env=ENV)
    shipped = TRAINING.parent / "src/unleak/world/data"
    assert (tmp_path / "world.json").read_bytes() == (shipped / "world.json").read_bytes()


def test_the_judge_trains(parts: Path, tmp_path: Path) -> None:
    train("judge", tmp_path, "--vae", str(parts / "vae" / "vae"), "--steps", "1", "--batch", "2", "--check", "100")
    assert (tmp_path / "glyphs.safetensors").is_file()
