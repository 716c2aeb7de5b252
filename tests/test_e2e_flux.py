"""The second embedded model end to end: FLUX's layout, leaks that sit in the item's row, and a repair right there."""

from __future__ import annotations

import numpy as np
import pytest

import unleak
from unleak.bench import world
from unleak.generate import generate
from unleak.judges.glyphs import glyph_judge
from unleak.models import embedded_folder, guidance, load, settings
from unleak.words.repair import repair
from unleak.world import load as load_world
from unleak.world.prompts import prompts

pytestmark = pytest.mark.e2e
MODEL = "emoji-flux"
CALL = settings(MODEL)
WORLD, JUDGE = load_world(), glyph_judge()


@pytest.fixture(scope="module")
def pipe():
    return load(MODEL)


def test_it_loads_with_plain_diffusers_and_is_small() -> None:
    from diffusers import FluxPipeline

    plain = FluxPipeline.from_pretrained(embedded_folder(MODEL))
    plain.set_progress_bar_config(disable=True)
    call = settings(MODEL) | {"num_inference_steps": 1}
    assert plain("a cat", output_type="np", **call).images.shape == (1, 64, 64, 3)
    assert guidance(MODEL) == "true_cfg_scale"
    files = [f for f in embedded_folder(MODEL).rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 40e6
    assert not [f for f in files if f.suffix in (".bin", ".pt", ".ckpt", ".pkl")]


def test_the_laws_hold_on_it(pipe) -> None:
    report = unleak.doctor(pipe)
    assert report.observable and report.identity and report.restored


def test_held_out_pairs_are_drawn(pipe) -> None:
    cases = prompts(WORLD, "pair", "dev", 12)
    images = generate(pipe, [c.prompt for c in cases], [0, 1], **CALL)
    reads = JUDGE.read(images.reshape(-1, 64, 64, 3))
    hits = [world.drawn(c, r) for i, c in enumerate(cases) for r in reads[2 * i : 2 * i + 2]]
    assert np.mean(hits) >= 0.7  # measured far higher by `unleak bench world`; this guards against a broken model


@pytest.mark.parametrize("prompt", ["a mouse and a laptop", "a laptop and a mouse"])
def test_the_leak_is_repaired_on_both_sides_of_the_trigger(pipe, prompt: str) -> None:
    """Every row of a T5 sees the whole prompt, so a word leaks before its trigger as after it."""
    result = repair(pipe, prompt, "mouse,laptop", seeds=range(6), judge=JUDGE, call=CALL)
    mouse, laptop = sorted(result.items, key=lambda i: i.text, reverse=True)
    assert mouse.before.mean() < 0.5 and mouse.repaired and mouse.after.mean() >= 0.8
    assert not laptop.repaired and laptop.after.mean() >= laptop.before.mean() - 0.34


def test_the_unambiguous_name_keeps_its_sense_beside_the_trigger(pipe) -> None:
    reads = JUDGE.read(generate(pipe, "a furry mouse and a laptop", range(6), **CALL)[0])
    assert np.mean([r.count("mouse") and r.count("laptop") for r in reads]) >= 0.8
