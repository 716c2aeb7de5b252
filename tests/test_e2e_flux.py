"""The second embedded model end to end: FLUX's layout, leaks that sit in the item's row, and a repair right there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unleak.bench.regions.leaks import outcome
from unleak.drawing.generate import generate
from unleak.judges.glyphs import glyph_judge
from unleak.models import edit_settings, embedded_folder, guidance, load, settings
from unleak.regions.edit import edit
from unleak.regions.masks.masks import foreground
from unleak.regions.plan import Edit
from unleak.regions.presets import recommended
from unleak.regions.regional import RegionPrompt, regions
from unleak.words.diagnosis.diagnose import diagnose
from unleak.words.repair.repair import repair
from unleak.world import load as load_world
from unleak.world.edits import SENSE, edit_cases
from unleak.world.render import Renderer

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


def test_regional_prompts_stand_where_they_are_told_and_do_not_leak(pipe) -> None:
    """Beside "a laptop" the encoder makes a device of "a mouse"; in a region of its own it is the animal."""
    for mouse, laptop in (((0, 0, 0.5, 1), (0.5, 0, 1, 1)), ((0.5, 0, 1, 1), (0, 0, 0.5, 1))):
        where = [RegionPrompt("a mouse", mouse), RegionPrompt("a laptop", laptop)]
        drawn = regions(pipe, "a mouse and a laptop", where, seeds=4, call=CALL)
        half = WORLD.image // WORLD.cell / 2
        places = [{f.glyph: f.x >= half for f in reading.found} for reading in JUDGE.read(drawn.images)]
        expected = {"mouse": mouse[0] > 0, "laptop": laptop[0] > 0}
        assert sum(place == expected for place in places) >= 3


def test_edits_reach_their_objects_and_nothing_else(pipe) -> None:
    """Two objects of two, one target with a sense that the other would change."""
    case = next(c for c in edit_cases(WORLD, "dev", 2) if c.kind == SENSE and c.targets[1].phrase == "note")
    image = Renderer(WORLD).pictures([case.scene])[0]
    sides = zip(case.sources, case.targets, case.masks(WORLD), strict=True)
    edits = [Edit(source.article(WORLD), target.article(WORLD), mask) for source, target, mask in sides]
    result = edit(
        pipe, image, edits, source_prompt=case.caption(WORLD), call=CALL, **recommended("ale", edit_settings(MODEL))
    )
    seen = outcome(case, JUDGE.read(result.image[None])[0])
    kept = foreground(result.masks, result.latents.shape[-2:]) == 0
    assert seen.clean and torch.equal(result.latents[..., kept], result.clean[..., kept])
