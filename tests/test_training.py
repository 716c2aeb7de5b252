"""The training commands run at toy size, and a run that was stopped and resumed equals one that was not."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unleak import models
from unleak.drawing.generate import generate
from unleak.text.spans import item_span
from unleak.world import load as load_world

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
    """A toy autoencoder and toy text encoders."""
    folder = tmp_path_factory.mktemp("training")
    train("autoencoder", folder / "vae", "--steps", "1", "--batch", "2", "--channels", "8", "8", "8", "8")
    train("text", folder / "text", "--steps", "1", "--batch", "4", "--width", "32", "--layers", "1")
    train("t5", folder / "t5", "--steps", "1", "--batch", "4", "--width", "32", "--layers", "1", "--pooled-width", "32")
    return folder


@pytest.mark.parametrize(
    ("command", "text", "size"),
    [
        ("unet", "text", ("--channels", "32", "32", "--layers", "1")),
        ("flux", "t5", ("--width", "32", "--double", "1", "--single", "1")),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    parts: Path, tmp_path: Path, command: str, text: str, size: tuple[str, ...]
) -> None:
    args = ("--vae", str(parts / "vae" / "vae"), "--text", str(parts / text), "--steps", "3", "--batch", "2",
            "--cache", "4", *size)  # fmt: skip
    train(command, tmp_path / "straight", *args)
    train(command, tmp_path / "broken", *args, "--until", "2")
    assert not (tmp_path / "broken" / "pipeline").exists()
    train(command, tmp_path / "broken", *args)
    one, two = (load_file(tmp_path / name / "state.safetensors") for name in ("straight", "broken"))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)

    folder = tmp_path / "straight" / "pipeline"
    call = models.settings(folder) | {"num_inference_steps": 1, models.guidance(folder): 2.0}
    assert generate(models.load(folder), ["a cat", "a dog"], [0], **call).shape == (2, 1, 64, 64, 3)


def test_the_encoder_is_asked_for_an_item_where_its_word_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """One or two tokens of every word name it, the same ones wherever it stands; a clarification names nothing."""
    monkeypatch.syspath_prepend(str(TRAINING))
    from mixture import Mixture
    from train_t5 import Labels, tokenizer
    from train_text import tokenizer as clip_tokenizer

    mix = Mixture(load_world())
    t5 = tokenizer(mix, 380, 32, 0)
    labels = Labels(mix, t5, clip_tokenizer(mix, 20, 32, 0))
    samples = [mix.draw(random.Random(i)) for i in range(300)]
    ids, _, rows, ends, _ = labels(samples, random.Random(0), pads=2)
    named: dict[str, set[tuple[str, ...]]] = {}
    for b, s in enumerate(samples):
        at = (rows[b, :, 0] > 0).nonzero()[:, 0].tolist()
        assert len(s.things) <= len(at) <= 2 * len(s.things)
        assert {int(rows[b, i, 0]) for i in at} == {labels.glyphs[t.glyph] for t in s.things}
        assert not any(rows[b, i, 0] > 0 for i in range(32) if int(ids[b, i]) in (t5.pad_token_id, t5.eos_token_id))
        assert ends[b, int((ids[b] != t5.pad_token_id).sum()) - 1, 1] == len(s.things)
        if s.name:
            clause = t5(f"({s.name})").input_ids
            assert max(at) < int((ids[b] != t5.pad_token_id).sum()) - len(clause)
        if len(s.things) == 1:
            named.setdefault(s.things[0].word, set()).add(tuple(t5.convert_ids_to_tokens(ids[b, at])))
    assert len(named) > 30 and all(len(x) == 1 for x in named.values())


def test_an_open_pair_is_to_be_read_as_one_whose_order_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both things of "a cat next to a dog" get the rows they have in "a cat left of a dog", nothing else changes."""
    monkeypatch.syspath_prepend(str(TRAINING))
    from mixture import Mixture
    from train_order import Teacher, settled

    pipe = models.load("emoji-flux")
    teacher = Teacher(pipe.text_encoder_2, pipe.tokenizer_2)
    mix, r = Mixture(load_world(), beside=6.0), random.Random(0)
    samples = [mix.draw(r) for _ in range(60)]
    ids, rows = teacher(samples)
    own = pipe.text_encoder_2(input_ids=ids).last_hidden_state
    assert any(map(settled, samples)) and not all(map(settled, samples))
    for b, s in enumerate(samples):
        if not settled(s):
            torch.testing.assert_close(rows[b], own[b])
            continue
        said = next(s.text.replace(f" {c} ", " left of ", 1) for c in ("next to", "beside") if f" {c} " in s.text)
        target = pipe.text_encoder_2(input_ids=teacher.ids([said])).last_hidden_state[0]
        for t in s.things:
            (a, z), (c, d) = (item_span(pipe.tokenizer_2, text, t.phrase, 32) for text in (s.text, said))
            torch.testing.assert_close(rows[b, a:z], target[c:d], rtol=0, atol=2e-5)
        pads = ids[b] == pipe.tokenizer_2.pad_token_id
        torch.testing.assert_close(rows[b, pads], own[b, pads])


def test_the_order_is_taught_to_the_encoder_alone(parts: Path, tmp_path: Path) -> None:
    size = ("--width", "32", "--double", "1", "--single", "1", "--steps", "1", "--batch", "2", "--cache", "4")
    train("flux", tmp_path / "flux", "--vae", str(parts / "vae" / "vae"), "--text", str(parts / "t5"), *size)
    before, after = tmp_path / "flux" / "pipeline", tmp_path / "order" / "pipeline"
    args = ("--from", str(before), "--steps", "3", "--batch", "4")
    train("order", tmp_path / "order", *args, "--until", "2")
    assert not after.exists()
    train("order", tmp_path / "order", *args)
    changed = {
        part.parent.name
        for part in sorted(before.rglob("*.safetensors"))
        if not all(map(torch.equal, *(load_file(f / part.relative_to(before)).values() for f in (before, after))))
    }
    assert changed == {"text_encoder_2"} and models.settings(after) == models.settings(before)


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
