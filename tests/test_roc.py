"""ROC figures and their intervals, calibrations as files, and their fit on made-up scores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import unleak
from tiny import tiny
from unleak.copies.scan import fit
from unleak.copies.scan.calibrate import Calibration, fingerprint_of
from unleak.copies.scan.scan import plan
from unleak.errors import BadInput, NotFinite
from unleak.stats.roc import auroc, tpr_at_fpr

scores = st.lists(st.integers(-20, 20).map(float), min_size=1, max_size=30)


@given(scores, scores)
def test_the_interval_holds_the_value_and_turns_with_it(a, b):
    one, other = auroc(a, b), auroc(b, a)
    assert 0 <= one.low <= one.value <= one.high <= 1
    assert np.allclose([one.value, one.low, one.high], [1 - other.value, 1 - other.high, 1 - other.low], atol=1e-6)


def test_a_perfect_separation_of_few_prompts_is_not_certain():
    few, many = auroc([1.0] * 5, [0.0] * 5), auroc([1.0] * 500, [0.0] * 500)
    assert few.value == many.value == 1.0 and few.low < 0.8 < 0.99 < many.low


@given(scores, scores, st.floats(0.005, 0.5))
def test_a_threshold_keeps_to_its_rate_of_false_alarms(a, b, fpr):
    found, threshold = tpr_at_fpr(a, b, fpr)
    assert np.mean(np.array(b) >= threshold) < fpr
    assert np.isclose(np.mean(np.array(a) >= threshold), found.value)
    assert found.low <= found.value <= found.high


def test_the_threshold_stands_midway():
    assert tpr_at_fpr([8.0, 9.0], [1.0, 4.0])[1] == 6.0
    assert tpr_at_fpr([1.0], [2.0])[1] > 2.0


@pytest.mark.parametrize(("a", "b", "error"), [([], [1.0], BadInput), ([1.0], [float("nan")], NotFinite)])
def test_scores_that_say_nothing_are_refused(a, b, error):
    with pytest.raises(error):
        auroc(a, b)


# -- calibrations ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(sd1) -> Calibration:
    return Calibration(
        "tiny", fingerprint_of(sd1), "agreement", 0.8, 0.01, 1, 4, {"guidance_scale": 3.0}, 0.99, 0.97,
        {"auroc": (0.95, 1.0), "tpr_at_1fpr": (0.9, 0.99)}, 30, 100,
    )  # fmt: skip


def test_a_calibration_survives_its_file(made, tmp_path: Path):
    made.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == made
    assert json.loads((tmp_path / "c.json").read_text())["schema"] == "unleak/calibration/1"


@pytest.mark.parametrize("content", ["", "[1]", '{"schema": "unleak/scan/1"}', '{"schema": "unleak/calibration/1"}'])
def test_a_file_that_is_no_calibration_is_refused(content, tmp_path: Path):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(BadInput, match=r"unleak calibrate|cannot read"):
        Calibration.load(tmp_path / "c.json")
    with pytest.raises(BadInput, match="cannot read"):
        Calibration.load(tmp_path / "none.json")


def test_a_calibration_holds_for_one_model_at_one_setting(made, sd1):
    made.check(sd1)
    call = {"guidance_scale": 3.0}
    assert plan(sd1, calibration=made, call=call).names == ("agreement",)
    with pytest.raises(BadInput, match="other weights"):
        made.check(tiny("sd1", seed=1))
    for other, says in (
        ({"seeds": 8}, "seeds 4, not 8"),
        ({"first_steps": 2}, "steps 1, not 2"),
        ({"call": {}}, "call"),
    ):
        with pytest.raises(BadInput, match=says):
            plan(sd1, **{"calibration": made, "call": call, **other})
    with pytest.raises(BadInput, match="detector agreement, which is not among"):
        plan(sd1, detectors_=["magnitude"], calibration=made, call=call)


def test_another_scheduler_is_another_model(made):
    import diffusers

    pipe = tiny("sd1")
    made.check(pipe)
    pipe.scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction")
    with pytest.raises(BadInput, match="another scheduler"):
        made.check(pipe)


def test_a_weighted_score_is_the_sum(made):
    joined = replace(made, detector="combination", weights={"a": 2.0, "b": -1.0}, bias=0.5)
    assert joined.detectors == ("a", "b") and made.detectors == ("agreement",)
    assert joined.score({"a": 3.0, "b": 1.0}) == 5.5 and made.score({"agreement": 0.3}) == 0.3


def test_a_combination_finds_what_no_single_detector_does():
    """Two scores with a common disturbance: only their difference tells."""
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 5, 120)
    kind = np.repeat([1, 0], 60)
    a, b = shared + kind, shared - kind
    tables = [{"a": a[kind == k], "b": b[kind == k]} for k in (1, 0)]
    weights, bias, figures = fit._combined(tables, 0.01)
    single = [fit.separation(n, tables[0][n], tables[1][n]).auroc.value for n in "ab"]
    assert max(single) < 0.75 and figures.auroc.value == 1.0
    assert weights["a"] > 0 > weights["b"]
    joined = [weights["a"] * t["a"] + weights["b"] * t["b"] + bias for t in tables]
    assert min(joined[0]) > figures.threshold > max(joined[1])


def test_too_few_prompts_to_combine():
    with pytest.raises(BadInput, match="two detectors and 5"):
        fit._combined([{"a": np.ones(9), "b": np.ones(9)}, {"a": np.ones(3), "b": np.ones(3)}], 0.01)


def test_the_best_detector_is_calibrated_on_the_model(sd1):
    call = {"height": 64, "width": 64, "num_inference_steps": 2}
    wild, tame = ["a red cat", "a mouse"], ["a dog", "a car", "a hat"]
    calibration = fit.calibrate(sd1, wild, tame, 2, 1, ["magnitude", "entropy"], call=call, model="tiny")
    areas = {name: one["auroc"][0] for name, one in calibration.compared.items()}
    assert [*areas] == ["magnitude", "entropy"] and calibration.auroc == areas[calibration.detector]
    assert calibration.auroc == max(areas.values())
    assert (calibration.memorized, calibration.ordinary, calibration.seeds, calibration.steps) == (2, 3, 2, 1)
    plan(sd1, 2, calibration=calibration, call=call)
    with pytest.raises(BadInput, match="both lists"):
        fit.calibrate(sd1, wild, wild, call=call)
    with pytest.raises(BadInput, match="between 0 and 1"):
        fit.calibrate(sd1, wild, tame, fpr=1.0, call=call)


def test_a_model_is_the_same_from_another_folder(sd1):
    before = fingerprint_of(sd1)
    sd1.text_encoder.name_or_path = "moved/text_encoder"
    assert fingerprint_of(sd1) == before


@pytest.mark.parametrize(("given", "steps"), [({}, 3), ({}, 4), ({"final_sigmas_type": "sigma_min"}, 4)], ids=str)
def test_a_scheduler_that_rewrites_its_own_configuration_is_still_the_same(given, steps):
    pipe = tiny("sd1")
    scheduler = diffusers.DPMSolverSinglestepScheduler
    pipe.scheduler = scheduler.from_config({**pipe.scheduler.config, "final_sigmas_type": "zero", **given})
    call = {"num_inference_steps": steps, "height": 64, "width": 64}
    calibration = fit.calibrate(pipe, ["a red mouse", "a zebra"], ["a cat", "a dog"], 2, call=call)
    for fresh in (False, True):
        if fresh:
            pipe.scheduler = scheduler.from_config(
                {**tiny("sd1").scheduler.config, "final_sigmas_type": "zero", **given}
            )
        calibration.made_at.check(pipe, 2, call)
        unleak.guard(pipe, "a red mouse", "repulsion-only", gate=calibration, seeds=2, call=call)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, solver_order=1)
    with pytest.raises(BadInput, match="another scheduler"):
        calibration.made_at.check(pipe, 2, call)
