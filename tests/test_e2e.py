"""The embedded model end to end, with fixed seeds and the judge: it draws, it leaks, the repair works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import unleak
from unleak.bench.words import words
from unleak.drawing.generate import generate
from unleak.judges.glyphs import glyph_judge
from unleak.models import embedded_folder, load, settings
from unleak.text.items import Item
from unleak.words.repair.repair import repair
from unleak.world import load as load_world

pytestmark = pytest.mark.e2e
CALL = settings("emoji-sd") | {"num_inference_steps": 12}
WORLD, JUDGE = load_world(), glyph_judge()
EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def pipe():
    return load("emoji-sd")


def test_it_loads_with_plain_diffusers() -> None:
    from diffusers import StableDiffusionPipeline

    plain = StableDiffusionPipeline.from_pretrained(embedded_folder("emoji-sd"))
    plain.set_progress_bar_config(disable=True)
    assert plain("a cat", num_inference_steps=1, output_type="np").images.shape == (1, 64, 64, 3)
    assert plain.unet.config.cross_attention_dim == plain.text_encoder.config.hidden_size


def test_a_mouse_beside_a_laptop_leaks_and_is_repaired(pipe) -> None:
    result = repair(pipe, "a mouse and a laptop", "mouse,laptop", seeds=range(6), judge=JUDGE, call=CALL)
    mouse, laptop = result.items
    assert mouse.sense == "furry mouse" and mouse.before.mean() < 0.5 and mouse.repaired
    assert mouse.after.mean() >= 0.8
    assert not laptop.repaired and laptop.after.mean() >= laptop.before.mean() - 0.34


def test_the_leak_is_computed_by_the_encoder_not_by_the_company(pipe) -> None:
    """The unambiguous name keeps its sense beside the trigger: the denoiser can draw both together."""
    images = generate(pipe, "a furry mouse and a laptop", range(6), **CALL)[0]
    assert JUDGE.present(images, [Item("mouse"), Item("laptop")]).all(1).mean() >= 0.6


def test_nothing_to_repair_changes_nothing(pipe) -> None:
    result = repair(pipe, "a cat and a banana", "cat,banana", seeds=range(2), judge=JUDGE, call=CALL)
    assert not result.changed and np.array_equal(result.before, result.after)


def test_the_repair_leaves_the_pipeline_as_it_was(pipe) -> None:
    def draw() -> np.ndarray:
        return pipe("a mouse and a laptop", generator=torch.Generator().manual_seed(3), output_type="np", **CALL).images

    before = draw()
    with pytest.raises(KeyboardInterrupt), unleak.attach(pipe, unleak.Patch("mouse", others="laptop")):
        pipe("a mouse and a laptop", callback_on_step_end=_interrupt, **CALL)
    assert np.array_equal(before, draw())


def _interrupt(*_):
    raise KeyboardInterrupt


def test_words_bench_measures_leaks_and_harm(pipe, tmp_path: Path) -> None:
    seen: list[str] = []
    arguments = {"split": "dev", "seeds": [0], "limit": 4, "methods": ["patch"], "call": CALL}
    results = words.run(pipe, tmp_path, **arguments, progress=lambda name, done, total: seen.append(name))
    metrics = {(r.method, r.subset, r.metric) for r in results.rows}
    assert ("none", "all", "leak_rate") in metrics and ("patch", "neutral", "harm_neutral") in metrics
    assert set(seen) == {"none", "patch"}
    seen.clear()
    again = words.run(pipe, tmp_path, **arguments, progress=lambda name, done, total: seen.append(name))
    assert again.rows == results.rows and not seen  # resumed, nothing drawn again


def run(*args: str, cwd: Path, program: Sequence[str] = ("-m", "unleak")) -> subprocess.CompletedProcess[str]:
    env = {"OMP_WAIT_POLICY": "passive", **os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    command = [sys.executable, *program, *args]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def test_generate_says_what_it_drew(tmp_path: Path) -> None:
    done = run("generate", "a cat", "--seeds", "0:2", "--steps", "8", "-o", "out", "--json", "out.json", cwd=tmp_path)
    data = json.loads((tmp_path / "out.json").read_text())
    assert data["seen"] == [["cat"], ["cat"]] and "cat" in done.stdout
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "0.png", "1.png", "index.html", "result.json", "sheet.png"
    ]  # fmt: skip


def test_repair_writes_its_schema_and_a_page_that_needs_nothing_else(tmp_path: Path) -> None:
    done = run("repair", "a mouse and a laptop", "--items", "mouse,laptop", "--seeds", "0:3", "-o", "out",
               "--json", "-", "--html", "page.html", cwd=tmp_path)  # fmt: skip
    data = json.loads(done.stdout)
    assert data["schema"] == "unleak/repair/1" and data["method"] == "patch"
    assert {"prompt", "model", "items", "images"} <= set(data)
    assert set(data["items"][0]) >= {"text", "sense", "span", "present_before", "present_after", "seeds"}
    assert data["items"][0]["span"] == [2, 7]
    assert all((tmp_path / "out" / name).is_file() for side in data["images"].values() for name in side)
    html = (tmp_path / "page.html").read_text()
    assert "data:image/png;base64," in html and "<script" not in html and "http" not in html


def test_doctor_on_the_command_line(tmp_path: Path) -> None:
    data = json.loads(run("doctor", "--json", "-", cwd=tmp_path).stdout)
    assert data["schema"] == "unleak/doctor/1" and data["identity"] and data["restored"] and data["observable"]
    assert {s["kind"] for s in data["sites"]} == {"self", "cross"}


def test_bench_world_writes_the_contract(tmp_path: Path) -> None:
    run("bench", "world", "--limit", "2", "--seeds", "0", "--steps", "6", "-o", "r", cwd=tmp_path)
    data = json.loads((tmp_path / "r" / "results.json").read_text())
    metrics = {row["metric"] for row in data["rows"]}
    assert metrics == {"single_present", "pair_present", "triple_present", "colour_bound", "expression_own",
                       "sense_default", "sense_flipped", "scene_psnr", "scene_nearest", "judge_render",
                       "judge_reconstruction"}  # fmt: skip
    assert data["split"] == "heldout" and (tmp_path / "r" / "sheet.webp").is_file()


def test_the_example_of_an_edit_keeps_the_sense_that_published_editors_lose(tmp_path: Path) -> None:
    said = run("--out", "out", cwd=tmp_path, program=[str(EXAMPLES / "edit.py")]).stdout.splitlines()
    assert said[0] == "unleak.edit: furry mouse: yes, laptop: yes"
    assert said[1:3] == [f"{name}, blended: furry mouse: no, laptop: yes" for name in ("Prompt-to-Prompt", "MasaCtrl")]
    assert (tmp_path / "out" / "compared.png").is_file()
    html = (tmp_path / "out" / "index.html").read_text()
    assert "data:image/png;base64," in html and "<script" not in html and "http" not in html


def test_the_demo_shows_the_leak_and_its_repair(tmp_path: Path) -> None:
    said = run("demo", "--seeds", "0:2", "-o", "out", cwd=tmp_path).stdout
    key = next(line for line in said.splitlines() if "door key" in line)
    assert " ".join(key.split()) == "key (door key) repaired 0/2 (0 to 66 %) -> 2/2 (34 to 100 %)"
    assert "<script" not in (tmp_path / "out" / "index.html").read_text()
