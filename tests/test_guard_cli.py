"""`unleak guard` as a person would run it, and the result that it reports."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from tiny import save_tiny, tiny
from unleak import models
from unleak.cli import app
from unleak.copies.methods.guard import Guard
from unleak.copies.presets import MITIGATIONS
from unleak.copies.protect import guard
from unleak.copies.scan.calibrate import Calibration, fingerprint_of
from unleak.judges.copies import scene_judge
from unleak.judges.glyphs import glyph_judge
from unleak.report import guard as report
from unleak.text.items import Item
from unleak.world import load as load_world

PROMPT = "a red <mouse> & a laptop"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = save_tiny("sd1", tmp_path_factory.mktemp("model") / "sd1")
    (made / "unleak.json").write_text('{"call": {"height": 64, "width": 64, "num_inference_steps": 2}}')
    return made


@pytest.fixture
def calibration(folder: Path) -> Calibration:
    return Calibration(
        model=str(folder), fingerprint=fingerprint_of(models.load(folder)), detector="magnitude", threshold=1e9,
        fpr=0.01, steps=1, seeds=2, call=models.settings(folder), auroc=1.0, tpr_at_1fpr=1.0, intervals={},
        memorized=1, ordinary=1,
    )  # fmt: skip


@pytest.fixture
def unleak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> SimpleNamespace:
        done = CliRunner().invoke(app, ["guard", *args])
        assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
        return SimpleNamespace(code=done.exit_code, out=done.stdout, err=" ".join(done.stderr.split()))

    return run


def test_before_and_after_with_all_evidence(unleak: Any, folder: Path, tmp_path: Path) -> None:
    given = ["-m", str(folder), "--preset", "guard", "--set", "tau=0.05", "--seeds", "3:5"]
    done = unleak(PROMPT, *given, "--json", "g.json", "--html", "g.html", "-o", "drawn")
    assert done.code == 0, done.err
    data = json.loads((tmp_path / "g.json").read_text())
    assert (
        data["schema"] == "unleak/guard/1"
        and data["method"]["tau"] == 0.05
        and data["touched"]
        and data["gate"] is None
    )
    assert data["denoiser_rows"] == {"before": 8, "after": 12}
    where = data["attenuated"]
    assert where["steps"] == [0, 1] and len(where["sites"]) == len(where["share_by_site"]) == 7
    assert where["positions"][:3] == ["(start)", "a", "re"] and where["positions"][-1] == "(pad)"
    assert where["share_by_position"][0] == 0 and 0 < max(where["share_by_position"]) <= 1
    assert data["similarity"] is None and data["alignment"] is None
    assert all((tmp_path / "drawn" / name).is_file() for side in data["images"].values() for name in side)
    page = (tmp_path / "g.html").read_text()
    assert "&lt;mouse&gt; &amp; a laptop" in page and "<mouse>" not in page and "http" not in page
    assert "Which positions were attenuated" in page


def test_a_closed_gate_touches_nothing(unleak: Any, folder: Path, tmp_path: Path, calibration: Calibration) -> None:
    calibration.save(tmp_path / "gate.json")
    done = unleak(PROMPT, "-m", str(folder), "--seeds", "0:2", "--gate", "gate.json", "--json", "-", "--html", "g.html")
    data = json.loads(done.out)
    assert done.code == 0 and not data["touched"] and data["attenuated"] is None
    assert [g["acted"] for g in data["gate"]] == [False, False]
    assert data["denoiser_rows"]["before"] == data["denoiser_rows"]["after"]
    assert "bitwise the same" in (tmp_path / "g.html").read_text()


@pytest.mark.parametrize(
    ("args", "says"),
    [(("",), "empty"), ((PROMPT, "--preset", "gaurd"), "guard-official"),
     ((PROMPT, "--gate", "none.json"), "none.json"),
     ((PROMPT, "--items", "zebra"), "zebra"), ((PROMPT, "--seeds", "1,1"), "twice"),
     ((PROMPT, "--json", "x", "--html", "x"), "two files")],
)  # fmt: skip
def test_bad_use_is_found_before_a_model_is_loaded(
    unleak: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, args: tuple[str, ...], says: str
) -> None:
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    done = unleak(*args)
    assert done.code == 2 and says in done.err
    assert not list(tmp_path.iterdir())


def test_gates_that_do_not_fit(unleak: Any, folder: Path, tmp_path: Path, calibration: Calibration) -> None:
    calibration.save(tmp_path / "gate.json")
    done = unleak(PROMPT, "-m", str(folder), "--gate", "gate.json", "--preset", "random-token")
    assert done.code == 2 and "leave the gate out" in done.err
    other = Calibration(**{**calibration.__dict__, "fingerprint": "of another"})
    other.save(tmp_path / "other.json")
    done = unleak(PROMPT, "-m", str(folder), "--gate", "other.json")
    assert done.code == 2 and "another" in done.err


def test_the_help_names_every_preset(unleak: Any) -> None:
    text = " ".join(unleak("--help").out.split())
    assert all(name in text for name in MITIGATIONS)


def test_the_judge_finds_what_a_prompt_names() -> None:
    found = glyph_judge().named("a furry mouse and a red car, with a CAT and another cat")
    assert found == (Item("mouse"), Item("car"), Item("cat"))


def test_a_prompt_that_names_nothing_has_no_alignment() -> None:
    result = guard(tiny("sd1"), "a red mouse", Guard(), seeds=[0, 1],
                     call={"height": 64, "width": 64, "num_inference_steps": 1})  # fmt: skip
    assert result.present is None and result.copies() is None and result.touched
    assert result.sentences() == [
        "Copies, and what is left of them, are not measured: no training images are known here.",
        "Denoiser rows: 1.50 times those without it.",
    ]


@pytest.mark.e2e
def test_the_embedded_model_copies_and_a_strong_repulsion_changes_that(tmp_path: Path) -> None:
    pipe, caption = models.load("emoji-sd"), load_world().memorized[0]
    call = models.settings("emoji-sd") | {"num_inference_steps": 10}
    method = Guard(rho=2 * call["guidance_scale"])
    result = guard(pipe, caption.text, method, seeds=[0], judge=glyph_judge(), copies=scene_judge(), call=call)
    assert result.copies() == (1, 0)
    assert "1 of 1 before, 0 of 1 after" in report.page(result)
