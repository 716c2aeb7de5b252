"""The detector half of `unleak bench copies`, and that the embedded model's memorized captions are told apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unleak.bench.copies import copies, detection, intended, mitigation, tuned
from unleak.bench.rows import Row
from unleak.bench.run import Run
from unleak.copies.methods.words import InsertWords
from unleak.copies.scan.scan import scan
from unleak.errors import BadInput
from unleak.judges.copies import scene_judge
from unleak.judges.glyphs import glyph_judge
from unleak.models import load, settings
from unleak.report.tradeoff import front, tradeoff
from unleak.world import load as load_world
from unleak.world.render import Renderer

WORLD = load_world()


def test_splits_share_no_memorized_and_no_ordinary_caption():
    dev, held = (detection.captions(WORLD, split) for split in ("dev", "heldout"))
    assert list(dev) == ["verbatim", "template", "open", "specific", "form"]
    for kind in dev:
        assert len(set(dev[kind])) == len(dev[kind]) >= 12 and not set(dev[kind]) & set(held[kind])
    every = [text for kind in held for text in held[kind]]
    assert len(set(every)) == len(every)
    assert {k: len(v) for k, v in detection.captions(WORLD, "dev", 3).items()} == dict.fromkeys(dev, 3)


def test_each_figure_is_of_its_own_kinds():
    scores = {"verbatim": [3.0, 3.0], "template": [1.5, 1.5], "open": [0.0], "specific": [2.0], "form": [1.0]}
    units = {kind: [f"{kind} {k}" for k in range(len(v))] for kind, v in scores.items()} | {
        "template": ["one scene"] * 2
    }
    rows = detection._figures("magnitude", {k: np.array(v) for k, v in scores.items()}, 8, units)
    found = {(r.subset, r.metric): r.value for r in rows}
    assert {r.metric: r.units for r in rows if r.subset == "template"} == {"auroc": 4, "tpr_at_1fpr": 1}
    assert found["verbatim", "auroc"] == found["template/form", "auroc"] == found["template/open", "tpr_at_1fpr"] == 1
    assert found["template/specific", "auroc"] == 0 and found["template", "auroc"] == pytest.approx(2 / 3)
    assert found["prompt", "denoiser_rows"] == 8


def the_run(tmp_path: Path, split: str = "dev") -> Run:
    return Run(None, tmp_path, "emoji-sd", split, [0, 1], None, {})


def test_the_scene_of_a_caption_shows_all_that_it_stands_for_and_is_a_copy(tmp_path: Path):
    some = [p for p in intended.chosen_prompts(the_run(tmp_path)) if p.kind in detection.MEMORIZED]
    scenes = {c.text: c.scene for c in WORLD.memorized}
    images = Renderer(WORLD).pictures([scenes[p.text] for p in some])
    readings = glyph_judge().read(images)
    assert [p.alignment(r) for p, r in zip(some, readings, strict=True)] == [1.0] * len(some)
    assert [p.alignment(r) for p, r in zip(some, readings[1:] + readings[:1], strict=True)].count(1.0) < len(some) / 4
    assert (scene_judge().similarity(images) > 30).all()
    assert scene_judge().scene(images).tolist() == [p.scene for p in some]
    assert (mitigation.quality(images, readings) > 30).all()
    ghosts = (images // 2 + images[::-1] // 2).astype("uint8")
    assert np.median(mitigation.quality(ghosts, glyph_judge().read(ghosts))) < 20


def test_ordinary_captions_are_judged_by_what_they_name(tmp_path: Path):
    some = {
        kind: [p for p in intended.chosen_prompts(the_run(tmp_path)) if p.kind == kind] for kind in detection.ORDINARY
    }
    assert all(len(p.wanted) in (2, 3) for p in some["specific"]) and not any(p.wanted for p in some["form"])
    for p in some["open"]:
        assert len(p.wanted) == sum(phrase in p.text.split(" and ") for phrase in WORLD.categories.values())


def test_alike_pictures_have_no_diversity():
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype("uint8")
    assert mitigation.diversity(images[[0, 0]]) == 0 < mitigation.diversity(images) < 1
    assert np.isnan(mitigation.diversity(images[:1]))


def test_figures_of_a_mitigation_are_paired_with_none():
    some = [intended.Prompt("a", "verbatim", scene=3), intended.Prompt("b", "form")]
    unnamed = [float("nan")] * 2
    plain = {
        "similarity": [[29.0, 29.0], [12.0, 12.0]], "nearest": [[3, 3], [0, 0]], "alignment": [[1.0, 1.0], unnamed],
        "quality": [[28.0, 28.0], [27.0, 27.0]], "diversity": [0.0, 0.3], "digest": [["p", "q"], ["r", "s"]],
    }  # fmt: skip
    found = plain | {
        "similarity": [[12.0, 25.0], [12.0, 12.0]], "nearest": [[0, 7], [0, 0]], "alignment": [[0.5, 0.0], unnamed],
        "digest": [["x", "y"], ["r", "z"]],
    }  # fmt: skip
    rows = {(r.subset, r.metric): r.value for r in mitigation.rows_of("m", some, plain, found, 20.0)}
    assert rows["verbatim", "copy_rate"] == 0.5 and rows["verbatim", "copy_rate_own"] == 0  # of another scene
    assert rows["verbatim", "copies_stopped"] == 0.5 and rows["verbatim", "alignment_lost"] == 0.75
    assert rows["ordinary", "ordinary_unchanged"] == 0.5 and ("ordinary", "alignment") not in rows
    assert not {key for key in rows if key[0] == "template"}


def test_the_front_is_what_no_other_beats():
    dots = {"none": (100.0, 1.0), "a": (0.0, 0.4), "b": (0.0, 0.3), "c": (40.0, 0.2)}
    assert front(dots) == ["a", "none"]
    assert tradeoff({"verbatim": dots, "template": {"none": (1.0, 1.0)}}).startswith(b"\x89PNG")


def test_tuned_methods_differ_from_the_published_in_what_they_say_and_can_be_gated():
    assert set(tuned.CHOSEN.values()) <= set(tuned.VARIANTS) <= set(mitigation.METHODS)
    methods = {name: preset.make() for name, preset in tuned.MEASURABLE.items() if name not in tuned.TUNED_PRESETS}
    assert len({repr(method) for method in methods.values()}) == len(methods)
    assert all(type(method) is type(methods[name.partition(":")[0]]) for name, method in methods.items())
    (gated,) = mitigation.method_of("guard:tuned+gate", lambda: 0.5)
    assert gated == replace(methods[tuned.CHOSEN["guard:tuned"]], gate=0.5)
    assert "guard:tuned+gate" in mitigation.METHODS and "random-token+gate" not in mitigation.METHODS


def test_the_choice_is_aligned_best_among_those_that_hardly_copy():
    def rows(figures):
        metrics = [(kind, metric) for kind in detection.MEMORIZED for metric in ("copy_rate", "alignment")]
        return [Row(name, *at, value, value, value, 1) for name, each in figures.items()
                for at, value in zip(metrics, each, strict=True)]  # fmt: skip

    some = {
        "guard": (1, 1, 1, 1),
        "guard:a": (0, 0.9, 0.05, 0.9),
        "guard:b": (0.04, 0.2, 0, 0.2),
        "detour": (0, 1, 0, 1),
    }
    assert tuned.chosen(rows(some | {"guard:c": (0, 0.1, 0, 0.2)}), "guard") == "guard:b"
    assert tuned.chosen(rows({name: some[name] for name in ("guard", "guard:a")}), "guard") == "guard:a"


def test_the_gate_is_calibrated_on_as_many_captions_of_every_ordinary_kind(tmp_path: Path, monkeypatch):
    def calibrate(pipe, known, others, *_, **__):
        raise Seen(known, others)

    class Seen(Exception):
        pass

    monkeypatch.setattr(mitigation, "calibrate", calibrate)
    monkeypatch.setattr(Run, "weights", "")
    with pytest.raises(Seen) as seen:
        mitigation.gate_of(the_run(tmp_path))
    known, others = seen.value.args
    kinds = detection.captions(WORLD, "dev")
    assert set(known) == {text for kind in detection.MEMORIZED for text in kinds[kind]}
    assert len({len(set(kinds[kind]) & set(others)) for kind in detection.ORDINARY}) == 1 and len(others) > 60


@pytest.mark.parametrize(("split", "methods", "says"), [("train", None, "split"), ("dev", ["magic"], "Choose from")])
def test_bad_use(split, methods, says):
    with pytest.raises(BadInput, match=says):
        copies.check(split, methods)


@pytest.mark.e2e
def test_the_bench_resumes_and_agrees_with_a_scan(tmp_path: Path, monkeypatch):
    pipe, call = load("emoji-sd"), settings("emoji-sd")
    arguments = {"split": "dev", "seeds": [0, 1], "limit": 2, "methods": ["magnitude", "agreement"], "call": call}
    results = copies.run(pipe, tmp_path, **arguments)
    found = {(r.method, r.subset, r.metric): r.value for r in results.rows}
    assert found["magnitude", "prompt", "denoiser_rows"] == 4
    assert found["agreement", "verbatim", "auroc"] == found["agreement", "template", "auroc"] == 1.0
    assert (tmp_path / "detectors.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "results.json").read_text())["judge"]["name"] == "scenes"
    monkeypatch.setattr("unleak.copies.scan.scan.measure", lambda *_, **__: pytest.fail("it measured again"))
    assert copies.run(pipe, tmp_path, **arguments).rows == results.rows


@pytest.mark.e2e
def test_all_seeds_of_a_memorized_caption_go_one_way():
    pipe, texts = load("emoji-sd"), detection.captions(WORLD, "dev", 3)
    kinds = [(kind, text) for kind in texts for text in texts[kind]]
    found = scan(pipe, [text for _, text in kinds], detectors=["agreement"], call=settings("emoji-sd")).scores
    memorized = [s for (kind, _), s in zip(kinds, found, strict=True) if kind in detection.MEMORIZED]
    ordinary = [s for (kind, _), s in zip(kinds, found, strict=True) if kind in detection.ORDINARY]
    assert min(memorized) > max(ordinary)


@pytest.mark.e2e
def test_mitigations_are_measured_once_and_captions_that_do_not_fit_are_said(tmp_path: Path, monkeypatch):
    pipe, call = load("emoji-sd"), {"num_inference_steps": 4, "guidance_scale": 3.0}
    arguments = {"split": "dev", "seeds": [0, 1], "limit": 1, "methods": ["none", "opposite-guidance"], "call": call}
    results = copies.run(pipe, tmp_path, **arguments)
    found = {(r.method, r.subset, r.metric): r.value for r in results.rows}
    assert found["none", "verbatim", "copy_rate"] == found["none", "template", "copy_rate"] == 1
    assert found["opposite-guidance", "verbatim", "copy_rate_own"] == 0
    assert found["opposite-guidance", "verbatim", "denoiser_rows"] == 8
    assert found["opposite-guidance", "ordinary", "ordinary_unchanged"] == 0
    assert (tmp_path / "mitigation.png").read_bytes().startswith(b"\x89PNG") and "GUARD" in results.notes[-1]
    monkeypatch.setattr(mitigation, "measured", lambda *_: pytest.fail("it drew again"))
    assert copies.run(pipe, tmp_path, **arguments).rows == results.rows
    run, one = Run(pipe, tmp_path, "emoji-sd", "dev", [0], None, call), intended.Prompt("a dog", "specific")
    assert mitigation._fits(run, one, []) and not mitigation._fits(run, one, [InsertWords("word", times=40)])
