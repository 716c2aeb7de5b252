"""The second embedded model end to end: FLUX's layout, leaks that sit in the item's row, and a repair right there."""

from __future__ import annotations

import numpy as np
import pytest

from unleak.drawing.generate import generate
from unleak.judges.glyphs import glyph_judge
from unleak.models import embedded_folder, guidance, load, settings
from unleak.words.diagnosis.diagnose import diagnose
from unleak.words.repair.repair import repair
from unleak.world import load as load_world

pytestmark = pytest.mark.e2e
MODEL = "emoji-flux"
CALL = settings(MODEL)
WORLD, JUDGE = load_world(), glyph_judge()


@pytest.fixture(scope="module")
def pipe():
    return load(MODEL)


def test_it_loads_with_plain_diffusers() -> None:
    from diffusers import FluxPipeline

    plain = FluxPipeline.from_pretrained(embedded_folder(MODEL))
    plain.set_progress_bar_config(disable=True)
    call = settings(MODEL) | {"num_inference_steps": 1}
    assert plain("a cat", output_type="np", **call).images.shape == (1, 64, 64, 3)
    assert guidance(MODEL) == "true_cfg_scale"


@pytest.mark.parametrize("prompt", ["a mouse and a laptop", "a laptop and a mouse"])
def test_the_leak_is_repaired_on_both_sides_of_the_trigger(pipe, prompt: str) -> None:
    """Every row of a T5 sees the whole prompt, so a word leaks before its trigger as after it."""
    result = repair(pipe, prompt, "mouse,laptop", seeds=range(6), judge=JUDGE, call=CALL)
    mouse, laptop = sorted(result.items, key=lambda i: i.text, reverse=True)
    assert mouse.before.mean() < 0.5 and mouse.repaired and mouse.after.mean() >= 0.8
    assert not laptop.repaired and laptop.after.mean() >= laptop.before.mean() - 0.34


def test_the_diagnosis_suggests_what_helps(pipe) -> None:
    """The last token of the better name does not carry it here, and by its row no mouse comes back."""
    found = diagnose(pipe, "a mouse and a laptop", "mouse,laptop", judge=JUDGE, call=CALL)
    mouse, laptop = found.findings
    assert mouse.verdict == "leak" and laptop.verdict == "ok"
    assert found.method == "patch-word" and "patch" in found.failed
    assert mouse.after.yes and laptop.after.yes


def test_the_unambiguous_name_keeps_its_sense_beside_the_trigger(pipe) -> None:
    reads = JUDGE.read(generate(pipe, "a furry mouse and a laptop", range(6), **CALL)[0])
    assert np.mean([r.count("mouse") and r.count("laptop") for r in reads]) >= 0.8
