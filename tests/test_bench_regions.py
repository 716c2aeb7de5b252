"""The edit benchmark: cases whose truth can be told, leaks that are told apart, methods that are compared fairly."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tiny import tiny
from unleak import models
from unleak.bench.regions import ale_bench, edit_each, editing, regions
from unleak.bench.regions.edit_rows import rows_of
from unleak.bench.regions.leaks import outcome
from unleak.bench.rows import median
from unleak.bench.run import Run
from unleak.cli import app
from unleak.errors import BadInput, EmptyMask
from unleak.judges.glyphs import Found, Reading, glyph_judge
from unleak.metrics.background import psnr, widened
from unleak.regions.methods.blend import Blend
from unleak.regions.methods.ddcm import DDCM
from unleak.regions.methods.ore import ORE
from unleak.regions.methods.rgbcam import RGBCAM
from unleak.regions.methods.selfattn import SelfInjection
from unleak.regions.presets import EDITORS
from unleak.world import load as load_world
from unleak.world.edits import COUNTS, KINDS, SENSE, edit_cases
from unleak.world.render import Renderer

WORLD = load_world()
CASES = [case for case in edit_cases(WORLD, "heldout", 8) if case.kind != SENSE]
COMPANY = [case for case in edit_cases(WORLD, "heldout", 8) if case.kind == SENSE]


def words(things):
    return {t.word for t in things}


# -- cases -----------------------------------------------------------------------------------------------------------


def test_every_kind_and_count_has_as_many_cases_and_a_shorter_list_is_a_prefix():
    assert [(len(c.edited), c.kind) for c in CASES[:9]] == [(n, kind) for n in COUNTS for kind in KINDS]
    assert len(CASES) == 72 == len(set(CASES))
    assert edit_cases(WORLD, "heldout", 3) == CASES[:27] + COMPANY[:6]
    assert not set(CASES) & set(edit_cases(WORLD, "dev", 8))


@pytest.mark.parametrize("split, other", [("heldout", "dev"), ("dev", "heldout")])
def test_objects_form_pairs_of_the_split_and_none_of_another(split, other):
    for case in edit_cases(WORLD, split, 8):
        for side in (case.sources, case.targets):
            pairs = {frozenset(pair) for pair in combinations(words(side), 2)}
            assert not pairs & WORLD.pairs[other]
        if case.kind == "object" and len(case.edited) > 1:
            assert {frozenset(p) for p in combinations(words(case.targets), 2)} & WORLD.pairs[split]


def test_a_word_stands_in_a_context_of_the_split_and_is_meant_as_it_is_alone():
    assert [len(case.edited) for case in COMPANY] == [2, 3] * 8
    for case in COMPANY:
        (misread,) = case.misread
        (target,) = [t for t in case.targets if t.word in WORLD.polysemes]
        p = WORLD.polysemes[target.word]
        (company,) = [t for t in case.targets if t.word in p.triggers]
        first = case.targets.index(target) < case.targets.index(company)
        assert (target.glyph, misread) == (p.default, p.other)
        assert (p.word, company.word, "and", first) in WORLD.contexts["heldout"]
        shown = {placement.glyph for placement in case.scene.placements}
        assert not shown & {misread, *(t.glyph for t in case.targets)}


def test_a_word_that_its_company_turned_into_something_else_is_an_internal_leak():
    case = COMPANY[0]
    (misread,) = case.misread
    at = next(i for i, t in enumerate(case.targets) if t.word in WORLD.polysemes)
    seen = [Found(t.glyph, None, p.x, p.y, 1.0) for t, p in zip(case.targets, case.places, strict=True)]
    assert outcome(case, Reading("white", tuple(seen))).internal is False
    seen[at] = replace(seen[at], glyph=misread)
    wrong = outcome(case, Reading("white", tuple(seen)))
    assert wrong.internal is True and not wrong.hits[at]


def test_what_a_target_brings_is_nowhere_in_the_source():
    for case in CASES:
        shown = {p.glyph for p in case.scene.placements}, {p.tint for p in case.scene.placements}
        for source, target in zip(case.sources, case.targets, strict=True):
            assert (source.glyph == target.glyph) == (case.kind == "colour")
            assert case.kind == "colour" or target.glyph not in shown[0]
            assert target.tint is None or target.tint not in {*shown[1], case.scene.background}
        tints = [t.tint for t in case.targets if t.tint]
        assert len(set(tints)) == len(tints) and (case.kind == "object" or len(tints) == len(case.targets))


def test_masks_hold_the_objects_and_nothing_else():
    for case in CASES[:18]:
        masks = case.masks(WORLD)
        assert masks.sum((1, 2)).tolist() == [WORLD.sprite**2] * len(masks) and masks.sum(0).max() == 1
        bare = type(case.scene)(case.scene.background, case.distractors)
        whole, without = Renderer(WORLD)([case.scene, bare]).numpy()
        changed = np.abs(whole - without).max(0) > 0
        assert changed.any() and not changed[~masks.any(0)].any()


# -- leaks -----------------------------------------------------------------------------------------------------------


def read(case, *found, background=None):
    return outcome(case, Reading(background or case.scene.background, tuple(found)))


def at(place, thing):
    return Found(thing.glyph, thing.tint, place.x, place.y, 1.0)


def test_leaks_are_told_apart():
    case = next(c for c in CASES if c.kind == "colour+object" and len(c.edited) == 2 and c.distractors)
    (one, two), (a, b), left = case.places, case.targets, case.distractors[0]
    kept = Found(left.glyph, left.tint, left.x, left.y, 1.0)
    right = read(case, at(one, a), at(two, b), kept)
    assert right == ((True, True), False, False, 1.0) and right.clean
    assert read(case, at(one, b), at(two, a), kept) == ((False, False), True, False, 1.0)
    assert read(case, at(one, a), kept) == ((True, False), False, False, 1.0)
    colour = Found(b.glyph, a.tint, two.x, two.y, 1.0)
    assert read(case, at(one, a), colour, kept) == ((True, False), True, False, 1.0)
    stray = Found(a.glyph, a.tint, left.x, left.y, 1.0)
    assert read(case, at(one, a), at(two, b), stray) == ((True, True), False, True, 0.0)
    new = next(g for g in WORLD.glyphs if g not in {left.glyph, a.glyph, b.glyph})
    assert read(case, at(one, a), at(two, b), kept, Found(new, None, left.x, left.y, 1.0)).external
    assert not read(case, at(one, a), at(two, b), kept, background=a.tint).clean
    single = next(c for c in CASES if len(c.edited) == 1 and not c.distractors)
    assert read(single, at(single.places[0], single.targets[0])) == ((True,), None, False, None)


def test_the_judge_reads_the_truth_off_true_pictures():
    """The source leaks nothing and shows no target; the scene with its targets shows all."""
    rng = np.random.default_rng(0)

    def place(thing, p):
        tint = thing.tint or (rng.choice(WORLD.tints) if thing.glyph in WORLD.tintable else None)
        return type(p)(thing.glyph, p.x, p.y, tint)

    after = []
    for case in CASES:
        new = dict(zip(case.edited, case.targets, strict=True))
        shown = [place(new[i], p) if i in new else p for i, p in enumerate(case.scene.placements)]
        after.append(type(case.scene)(case.scene.background, tuple(shown)))
    before, goal = (
        [outcome(c, r) for c, r in zip(CASES, glyph_judge().read(Renderer(WORLD)(scenes)), strict=True)]
        for scenes in ([c.scene for c in CASES], after)
    )
    assert not any(o.internal or o.external or any(o.hits) for o in before)
    assert np.mean([o.clean for o in goal]) > 0.95 and np.mean([o.kept for o in goal if o.kept is not None]) > 0.95


# -- methods ---------------------------------------------------------------------------------------------------------


def test_every_preset_is_a_method_and_masks_are_shared():
    assert set(EDITORS) <= set(editing.METHODS) and {"p2p+bb", "masactrl+bb"} <= set(editing.METHODS)
    assert "ale+bb" not in editing.METHODS
    for name, one in editing.METHODS.items():
        if one is not None:
            EDITORS[one[0]].make(**one[1])
        assert name == editing.SOURCE or one is not None


@pytest.mark.parametrize(
    "parts, kinds",
    [
        ((), [DDCM, SelfInjection]),
        (("blend",), [DDCM, SelfInjection, Blend]),
        (("ore",), [DDCM, SelfInjection, ORE]),
        (("rgbcam", "blend"), [DDCM, SelfInjection, RGBCAM, Blend]),
        (("ore", "rgbcam", "blend"), [DDCM, SelfInjection, RGBCAM, Blend]),
    ],
)
def test_parts_of_ale_are_switched_off_alone(parts, kinds):
    method = EDITORS["ale"].make(**{part: part in parts for part in editing.PARTS})
    masks, clean = torch.ones(1, 8, 8, dtype=torch.bool), torch.zeros(1, 4, 8, 8)
    made = method.parts(("a cup", ["a cup"]), ("a dog", ["a dog"]), masks, clean)
    assert [type(one) for one in made] == kinds
    assert made[0].objects == (("a cup",) if "ore" in parts else ())
    assert all(one.values == ("restricted" if "ore" in parts else "plain") for one in made if type(one) is RGBCAM)


def test_what_a_model_recommends_reaches_the_methods_that_know_it(tmp_path):
    (tmp_path / "unleak.json").write_text(json.dumps({"call": {}, "edit": {"steps": 3, "self_replace": 0.2}}))
    given = Run(None, tmp_path, str(tmp_path), "dev", [0], None, {"target_guidance": 2.5})
    assert editing.options(given, "ale", "colour")[1] == {"steps": 3, "self_replace": 0.2, "target_guidance": 2.5}
    assert editing.options(given, "p2p", "colour")[1] == {"steps": 3, "target_guidance": 2.5}
    (tmp_path / "unleak.json").write_text('{"call": {}, "edit": 3}')
    with pytest.raises(BadInput, match="must look like"):
        models.edit_settings(tmp_path)
    (tmp_path / "unleak.json").write_text('{"call": {}, "edit": {"ale": 3}}')
    with pytest.raises(BadInput, match="must look like"):
        editing.options(given, "ale", "colour")


def test_a_model_recommends_to_one_method_what_the_others_do_not_get(tmp_path):
    edit = {"steps": 8, "target_guidance": 3.0, "ale": {"target_guidance": 2.0}, "pnp": {"steps": 20}}
    (tmp_path / "unleak.json").write_text(json.dumps({"call": {}, "edit": edit}))
    one = Run(None, tmp_path, str(tmp_path), "dev", [0], None, {})
    own = {name: EDITORS[name].make(**editing.options(one, name, "object")[1]) for name in ("ale", "p2p", "pnp")}
    assert {name: (one.steps, one.target_guidance) for name, one in own.items()} == {
        "ale": (8, 2.0),
        "p2p": (8, 3.0),
        "pnp": (20, 7.5),
    }


@pytest.mark.parametrize("name", EDITORS)
def test_a_method_that_inverts_keeps_its_published_steps_and_guidance_unless_the_user_gives_others(name, tmp_path):
    edit = {"steps": 8, "target_guidance": 4.0, "dilation": 0.0}
    published = EDITORS[name].make()
    (tmp_path / "unleak.json").write_text(json.dumps({"call": {}, "edit": edit}))
    for call, wanted in (
        ({}, (published.steps, published.target_guidance) if published.inverts else (8, 4.0)),
        ({"steps": 3, "target_guidance": 2.0}, (3, 2.0)),
    ):
        one = Run(None, tmp_path, str(tmp_path), "dev", [0], None, call)
        method = EDITORS[name].make(**editing.options(one, name, "colour")[1])
        assert (method.steps, method.target_guidance, method.dilation) == (*wanted, 0.0)


def test_cases_of_equal_options_are_edited_together_and_one_without_a_mask_loses_no_other(tmp_path, monkeypatch):
    (tmp_path / "unleak.json").write_text('{"call": {}, "edit": {}}')
    one = Run(None, tmp_path, str(tmp_path), "dev", [0], None, {})
    cases, calls = CASES[:9], []
    scenes = editing.Scenes(cases, np.arange(9), "exact")

    def fake(pipe, images, edits, *, source_prompt, **options):
        calls.append(list(images))
        if 4 in images:
            raise EmptyMask("nothing")
        assert source_prompt == [cases[i].caption(WORLD) for i in images] and len(edits) == len(images)
        return [f"edited {i}" for i in images]

    monkeypatch.setattr(edit_each, "edit", fake)
    wanted = [None if i == 4 else f"edited {i}" for i in range(9)]
    assert editing.edited(one, scenes, range(9), "p2p", 0) == wanted and calls[0] == list(range(9))
    calls.clear()
    assert editing.edited(one, scenes, range(9), "ale", 0) == wanted
    assert calls[:2] == [[0, 3, 6], [1, 2, 4, 5, 7, 8]], "ALE injects more of the layout where only a colour changes"


def test_a_change_beside_a_mask_is_left_out_one_cell_further():
    masks = np.zeros((2, 16, 16), bool)
    masks[0, 4:8, 4:8] = masks[1, 12:, 12:] = True
    wider = widened(masks, 2)
    assert wider[0].sum() == 64 and wider[0, 2:10, 2:10].all() and wider[1].sum() == 36
    before = np.full((16, 16, 3), 100, np.uint8)
    after = before.copy()
    after[4:8, 3] = 200
    assert psnr(after, before, masks) < 30 and psnr(after, before, wider) == float("inf")


def test_masks_are_measured_object_by_object():
    masks, truth = np.zeros((2, 8, 8), bool), np.zeros((2, 8, 8), bool)
    masks[:, :4], truth[0, :4], truth[1, 3:7] = True, True, True
    found = editing._iou(masks, truth)
    assert found == [1.0, pytest.approx(1 / 7)]
    made = [[{"iou": found, "over_half": [one >= 0.5 for one in found]}]] * 3
    rows = {row.metric: row.value for row in rows_of("ale", made, "all")}
    assert rows == {"mask_iou": pytest.approx(4 / 7), "masks_over_half_iou": 0.5}


def test_a_median_is_not_moved_by_a_few_cases():
    few = np.full((40, 1), 30.0)
    few[:4] = 100.0
    row = median(few + np.arange(40)[:, None] / 100, "ale", "all", "background_psnr_median")
    assert 30 < row.low <= row.value <= row.high < 31 and row.n == 40


# -- runs ------------------------------------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(app, ["bench", "regions", *map(str, arguments)])


@pytest.mark.e2e
def test_a_run_is_measured_drawn_and_resumed(tmp_path, monkeypatch):
    arguments = ["--split", "dev", "--limit", 1, "--methods", "ale,bb", "--steps", 2, "-o", tmp_path]
    monkeypatch.setattr(editing, "COSTED", 1)
    cases = edit_cases
    monkeypatch.setattr(regions, "edit_cases", lambda *given: [c for c in cases(*given) if len(c.edited) < 3][:4])
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    data = json.loads((tmp_path / "results.json").read_text())
    figures = {(r["method"], r["metric"]): r["value"] for r in data["rows"] if r["subset"] == "all"}
    assert figures["source", "edit_success"] == figures["source", "tel"] == 0
    assert figures["ale", "latents_exact"] == figures["bb", "latents_exact"] == 1
    assert figures["ale", "denoiser_rows"] == 8 and ("ale - bb", "til") in figures
    assert figures["ale", "background_psnr_one_cell_out"] > figures["ale", "background_psnr_median"] > 20
    assert figures["ale", "background_psnr"] > 20 and figures["ale", "structure_distance"] > 0
    assert all(Image.open(tmp_path / name).size[0] > 100 for name in ("methods.png", "sheet.webp"))
    monkeypatch.setattr(editing, "edited", None)
    assert run(*arguments).exit_code == 0
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == data["rows"]
    other = replace(EDITORS["ale"], fields={"rest": "alone"})  # another default
    monkeypatch.setitem(EDITORS._by_name, "ale", other)
    assert run(*arguments).exit_code != 0


def test_wrong_arguments_are_refused():
    for wrong in (["--methods", "nothing"], ["--masks", "none"], ["--suite", "other"], ["--suite", "ale-bench"]):
        assert run(*wrong).exit_code == 2, wrong


# -- ALE-Bench -------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    """A picture with two objects and their masks, and three prompts, in the layout of ALE-Bench."""
    folder = tmp_path / "data"
    for name in ("images", "masks/one", "prompts/1/color", "prompts/2/object"):
        (folder / name).mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(folder / "images/one.jpg")
    for name, x in (("cup", 0), ("green dog", 32)):
        mask = np.zeros((64, 64), np.uint8)
        mask[:32, x : x + 32] = 255
        Image.fromarray(mask).convert("RGBA" if x else "L").save(folder / f"masks/one/{name}_mask.png")
    edits = {"1/color": [[["cup", "red cup"]], [["green dog", "blue dog"]]],
             "2/object": [[["cup", "bus"], ["green dog", "cat"]]]}  # fmt: skip
    for where, prompts in edits.items():
        some = [{"index": i, "editing_types": [where], "edits": one} for i, one in enumerate(prompts)]
        (folder / f"prompts/{where}/one_prompts.json").write_text(json.dumps({"image": "one", "prompts": some}))
    return folder


def test_ale_bench_is_read_drawn_measured_and_resumed(data, tmp_path, monkeypatch):
    pipe, out, call = tiny("sd1"), tmp_path / "out", {"steps": 1, "dilation": 0.0}
    see = ale_bench.Extractors(clip=lambda images, texts: np.ones((len(images), len(texts))))
    monkeypatch.setattr(ale_bench, "SIDE", 64)
    todo = ale_bench.cases(data)
    assert [(c.count, c.type, c.index) for c in todo] == [(1, "color", 0), (1, "color", 1), (2, "object", 0)]
    assert ale_bench.soft_masks(data, todo[2]).sum((1, 2)).tolist() == [1024, 1024]

    def go(**more):
        return ale_bench.run(pipe, out, data=data, model="tiny", call=call, masks="exact", see=see, **more)

    results = go()
    assert sorted(str(f.relative_to(out)) for f in out.rglob("edit_*.png")) == [
        "ale/1/color/one/edit_0.png", "ale/1/color/one/edit_1.png", "ale/2/object/one/edit_0.png",
    ]  # fmt: skip
    figures = {(r.method, r.subset, r.metric): r for r in results.rows}
    assert figures["source", "all", "mse"].value == 0 and figures["ale", "all", "mse"].value > 0
    assert figures["ale", "all", "tils"].n == 1 and figures["ale", "all", "tels"].n == 3
    assert ("ale", "all", "lpips") not in figures and ("source", "all", "psnr") not in figures
    table = ale_bench.comparison(results.rows)
    assert "| ALE, published (arXiv 2412.04715) | 16.03 |" in table and "masks: exact" in results.notes
    assert table in (out / "results.md").read_text()
    with monkeypatch.context() as m:
        m.setattr(ale_bench, "edit_each", None)
        assert go().rows == results.rows
    call["steps"] = 2
    assert go(limit=1).rows != results.rows


def test_ale_bench_refuses_what_it_cannot_read(data, tmp_path):
    with pytest.raises(BadInput, match="give the folder of ALE-Bench"):
        ale_bench.cases(tmp_path / "nothing")
    with pytest.raises(BadInput, match="Choose from"):
        ale_bench.check(data, ["magic"])
    (data / "masks/one/cup_mask.png").unlink()
    with pytest.raises(BadInput, match="no mask"):
        ale_bench.soft_masks(data, ale_bench.cases(data)[0])
    (data / "prompts/1/color/one_prompts.json").write_text("{}")
    with pytest.raises(BadInput, match="no file of prompts"):
        ale_bench.cases(data)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", '{"image": "a.png", "image": "b.png", "prompts": []}'])
def test_prompts_of_ale_bench_that_are_damaged_are_refused_by_name(data, text):
    file = next((data / "prompts").rglob("*_prompts.json"))
    file.write_text(text)
    with pytest.raises(BadInput, match=r"_prompts.json is no file of prompts"):
        ale_bench.cases(data)
