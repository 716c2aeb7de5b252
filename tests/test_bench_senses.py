"""`unleak bench senses`: prompts of World 2 by company, rates over words, shifts paired by word, strict repairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from unleak.bench import run as bench_run
from unleak.bench.run import Run
from unleak.bench.words import senses
from unleak.bench.words.repairs import OUTCOMES
from unleak.cli import app
from unleak.judges.glyphs import GlyphJudge, GlyphNetwork
from unleak.world import load

W = load(2)
SMALL = {"height": 64, "width": 64, "num_inference_steps": 1}


def seen(cases: list[Any], **outcomes: Any) -> np.ndarray:
    """[P, 2, OUTCOMES]: what is said of every picture; False where nothing is."""
    out = np.zeros((len(cases), 2, len(OUTCOMES)), bool)
    for name, values in outcomes.items():
        out[..., OUTCOMES.index(name)] = values
    return out


def test_every_trigger_prompt_has_a_neutral_one_of_the_same_word() -> None:
    for split in ("dev", "heldout"):
        trigger, neutral = (senses.cases_of(W, split, company) for company in ("trigger", "neutral"))
        assert [(c.polyseme, c.first) for c in trigger] == [(c.polyseme, c.first) for c in neutral]
        assert len(trigger) == 2 * len(W.triggers[split])
        for case in trigger + neutral:
            assert all(
                t.glyph != W.polysemes[case.polyseme].other for t in case.things
            )  # the default sense is asked for
    alone = senses.cases_of(W, "heldout", "alone")
    assert [c.polyseme for c in alone] == list(W.polysemes)
    assert alone[0].prompt == "a mouse"


def test_the_shift_is_paired_by_word() -> None:
    cases = {company: senses.cases_of(W, "heldout", company) for company in senses.COMPANY}
    first = np.array([[c.polyseme == "mouse"] for c in cases["trigger"]])
    none = seen(cases["neutral"])
    row = senses.shift("none", cases, {"neutral": none, "trigger": seen(cases["trigger"], other=first)})
    assert row.units == len(W.polysemes)
    assert row.value == pytest.approx(first.mean())
    assert row.low <= 0 < row.high  # one word of sixteen is no claim about words


def test_mended_and_harm_are_strict_and_leave_out_pairs_without_such_pictures() -> None:
    cases = senses.cases_of(W, "heldout", "trigger")[:4]  # two pairs in two orders
    before = seen(cases, strict=[[True, False], [True, True], [True, True], [True, True]])
    after = seen(cases, strict=[[False, True], [True, True], [True, True], [True, True]])
    rows = {row.metric: row for row in senses.repaired("x", "trigger", cases, before, after)}
    assert (rows["mended"].value, rows["mended"].units) == (1.0, 1)
    assert (rows["harm"].value, rows["harm"].units) == (pytest.approx(1 / 7), 2)
    never = senses.repaired("x", "trigger", cases, seen(cases), after)
    assert [row.metric for row in never] == ["mended"]


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> GlyphJudge:
    """A judge of World 2 that has learned nothing."""
    network = GlyphNetwork(len(W.glyphs), len(W.tints), len(W.backgrounds), 4)
    judge = GlyphJudge(W, network)
    monkeypatch.setattr(bench_run, "glyph_judge", lambda edition: judge)
    return judge


def test_methods_are_measured_beside_drawing_alone(sd1: Any, tmp_path: Path, judge: GlyphJudge) -> None:
    run = Run(sd1, tmp_path, "tiny", "dev", [0], 2, SMALL, edition=2)
    rows = senses.rows(run, ["patch"])
    assert {row.method for row in rows} == {"none", "patch"}
    assert {row.metric for row in rows if row.method == "none"} >= {*senses.RATES, "shift", "denoiser_rows"}
    assert {row.subset for row in rows if row.method == "patch"} >= {"neutral", "trigger", "trigger - neutral"}
    assert not any(row.method == "patch" and row.subset == "alone" for row in rows)
    cost = {row.method: row.value for row in rows if row.metric == "denoiser_rows"}
    assert cost["patch"] == cost["none"]


@pytest.mark.parametrize(("suite", "edition"), [("senses", 1), ("words", 2)])
def test_a_suite_refuses_a_model_of_the_other_world(suite: str, edition: int, sd1: Any, tmp_path: Path) -> None:
    model = tmp_path / "model"
    sd1.save_pretrained(model)
    (model / "unleak.json").write_text(json.dumps({"call": SMALL, "world": edition}))
    result = CliRunner().invoke(app, ["bench", suite, "-m", str(model), "-o", str(tmp_path / "out")])
    assert result.exit_code not in (0, 1)
    assert f"draws world {edition}" in " ".join(result.output.split())
