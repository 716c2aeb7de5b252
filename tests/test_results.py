"""Every verb's result prints in 30 lines, shows itself without script, becomes plain data and saves itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import unleak
from tiny import tiny
from unleak import report
from unleak.core.result import MOST_LINES, WIDEST, Result
from unleak.errors import BadInput
from unleak.judges.copies import PixelJudge
from unleak.words.diagnosis.diagnosis import described

SMALL = {"height": 64, "width": 64, "num_inference_steps": 2}
ODD = "a mouse and a <b>laptop</b>"
ITEMS = "mouse,<b>laptop</b>"
HALVES = [unleak.RegionPrompt("a mouse", (0, 0, 0.5, 1)), unleak.RegionPrompt.parse("<b>laptop</b>@0.5,0,1,1")]


def verbs() -> dict[str, Any]:
    """Verb -> its result on a tiny pipeline; the prompt is markup, where a result has a prompt."""
    pipe = tiny("sd1")
    photo = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[:, :32] = True
    few = {"rounds": 1, "batch": 1, "seeds": 1, "call": SMALL}
    return {
        "generate": unleak.generate(pipe, ODD, seeds="3,5", describe=lambda images: [["<b>laptop"]] * 2, call=SMALL),
        "diagnose": unleak.diagnose(pipe, ODD, ITEMS, seeds=[0], call=SMALL),
        "repair": unleak.repair(pipe, ODD, ITEMS, with_="boost", seeds=[0], call=SMALL),
        "tokens": unleak.tokens(pipe, ODD, ITEMS, seeds=[0], call=SMALL),
        "guard": unleak.guard(pipe, ODD, "attenuate", seeds=[0], call=SMALL),
        "lint": unleak.lint(pipe, ["a [mouse] and a [<b>laptop</b>]", "a mouse"]),
        "scan": unleak.scan(pipe, [ODD, "a cat"], seeds=2, call=SMALL),
        "calibration": unleak.calibrate(pipe, [ODD], ["a cat"], seeds=2, call=SMALL, model="<b>laptop"),
        "edit": unleak.edit(pipe, photo, [unleak.Edit("a mouse", "<b>laptop</b>", mask)], steps=1),
        "regions": unleak.regions(pipe, ODD, HALVES, seeds=2, call=SMALL),
        "maps": unleak.maps(pipe, ODD, ITEMS, seeds=2, call=SMALL),
        "audit": unleak.audit(pipe, photo, {"<b>laptop": None}, PixelJudge(photo[None]), **few),
        "doctor": unleak.doctor(pipe),
        "methods": unleak.methods(),
    }


VERBS = [
    "generate",
    "diagnose",
    "repair",
    "tokens",
    "lint",
    "edit",
    "regions",
    "maps",
    "scan",
    "calibration",
    "guard",
    "audit",
    "doctor",
    "methods",
]


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return verbs()


@pytest.mark.parametrize("verb", VERBS)
def test_a_result_prints_shows_converts_and_saves(results: dict[str, Any], verb: str, tmp_path: Path) -> None:
    result = results[verb]
    assert isinstance(result, Result) and 1 <= len(str(result).splitlines()) <= MOST_LINES
    assert max(map(len, str(result).splitlines())) <= WIDEST and "array(" not in str(result) + repr(result)
    assert len(repr(result).splitlines()) == 1
    shown = result._repr_html_()
    page = result.save(tmp_path / "new" / "x.html").read_text("utf-8")
    for html in (shown, page):
        assert "<script" not in html and "<b>laptop" not in html and "http" not in html
    data = json.loads(result.save(tmp_path / "x.json").read_text("utf-8"))
    assert data == json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["schema"] == f"unleak/{verb}/1"
    folder = result.save(f"{tmp_path}/out.d/")
    assert {"result.json", "index.html"} <= {file.name for file in folder.iterdir()}
    assert {*_names(data.get("images"))} <= {file.name for file in folder.iterdir()}


def _names(images: Any) -> list[str]:
    if isinstance(images, dict):
        images = list(images.values())
    return [images] if isinstance(images, str) else [name for part in images or [] for name in _names(part)]


@dataclass(repr=False)
class Long(Result):
    verb: ClassVar[str] = "long"
    count: int

    def lines(self) -> list[str]:
        return [f"line {i}" for i in range(self.count)]

    def data(self) -> dict[str, Any]:
        return {}


def test_a_long_result_says_how_much_it_leaves_out() -> None:
    assert str(Long(MOST_LINES)).endswith("line 29") and len(str(Long(MOST_LINES)).splitlines()) == MOST_LINES
    assert str(Long(99)).splitlines()[-1].startswith("... and 70 more lines") and repr(Long(1)) == "<Long: line 0>"


def test_another_suffix_is_refused_with_the_three_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"'\.pdf'.*x\.html.*x\.json.*x/"):
        Long(1).save(tmp_path / "x.pdf")
    assert not list(tmp_path.iterdir())


def test_a_repair_gives_the_code_that_draws_it_again() -> None:
    pipe = tiny("sd1")
    result = unleak.repair(pipe, "a mouse and a laptop", "mouse,laptop", with_="boost", seeds=1, call=SMALL)
    page = report.page(result)
    assert result.code is not None and "unleak.attach(pipe, unleak.Boost" in page and "Kept: <b>boost" in page
    names: dict[str, Any] = {"pipe": pipe}
    exec(result.code, names)
    assert np.array_equal(names["result"].images[0], result.after)


@pytest.mark.parametrize("repair", [
    unleak.Patch("mouse", others="laptop", isolation="bare"),
    unleak.Prune(unleak.Subset.token("hot dog", 0)),
    unleak.Boost("mouse", window=unleak.Window(0.0, 0.5), sites="mid_block*"),
    unleak.DeLeaker("mouse,laptop"),
], ids=lambda repair: type(repair).__name__)  # fmt: skip
def test_a_repair_is_written_as_python(repair: unleak.Intervention) -> None:
    assert eval(described(repair), {"unleak": unleak}) == repair
