"""Maps, regions, audit, methods and report as a person would run them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from test_cli import MOUSE, SMALL, files
from unleak.copies.presets import DETECTORS, MITIGATIONS
from unleak.core.result import MOST_LINES
from unleak.regions.presets import EDITORS
from unleak.words.presets import REPAIRS

ROOT = Path(__file__).parent.parent


def test_maps_are_drawn_over_the_images(unleak: Any, sd1_folder: str, tmp_path: Path) -> None:
    done = unleak("maps", "a [mouse] and a [laptop]", "-m", sd1_folder, *SMALL, "--html", "m.html", "--json", "m.json")
    assert done.code == 0 and "mouse" in done.out and done.out.endswith("maps.png\n"), done.err
    data = json.loads((tmp_path / "m.json").read_text())
    assert data["schema"] == "unleak/maps/1" and [item["text"] for item in data["items"]] == ["mouse", "laptop"]
    assert Image.open(tmp_path / "out" / "maps.png").size[0] > 64 and "<script" not in (tmp_path / "m.html").read_text()


def test_regions_are_boxes_or_masks(unleak: Any, sd1_folder: str, tmp_path: Path) -> None:
    Image.fromarray(np.pad(np.full((64, 32), 255, np.uint8), ((0, 0), (32, 0)))).save(tmp_path / "right.png")
    done = unleak("regions", MOUSE, "--region", "mouse@0,0,0.5,1", "--region", "laptop@right.png", "-m", sd1_folder,
                  *SMALL, "--json", "-")  # fmt: skip
    data = json.loads(done.out)
    assert done.code == 0 and data["schema"] == "unleak/regions/1"
    assert [(one["phrase"], one["area"]) for one in data["regions"]] == [("mouse", 0.5), ("laptop", 0.5)]
    assert {"0.png", "index.html", "result.json"} <= set(files(tmp_path / "out"))


def test_an_audit_says_whether_the_image_came_back(unleak: Any, sd1_folder: str, tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(tmp_path / "p.png")
    attack = ("audit", "p.png", "-m", sd1_folder, *SMALL, "--rounds", "1", "--batch", "1")
    done = unleak(*attack, "--preset", "guard", "--set", "rho=0.5", "--json", "a.json", "--fail-over", "1000")
    assert done.code == 0 and "guard" in done.out, done.err
    outcomes = json.loads((tmp_path / "a.json").read_text())["outcomes"]
    assert [(one["method"], one["adaptive"]) for one in outcomes] == [
        ("bare", False),
        ("guard", False),
        ("guard", True),
    ]
    assert unleak(*attack, "--fail-over", "0").code == 3 and unleak(*attack, "--fail-over", "threshold").code == 0


@pytest.mark.parametrize(("args", "says"), [
    (("maps", MOUSE, "--items", "cat"), "as it stands in the prompt"),
    (("maps", "a [mouse] and a", "--html", "page.txt"), "ends in .html"),
    (("regions", MOUSE), "--region"),
    (("regions", MOUSE, "--region", "mouse"), "cannot read the region"),
    (("regions", MOUSE, "--region", "mouse@0,0,2,1"), "<= 1"),
    (("regions", MOUSE, "--region", "mouse@m.png", "--json", "m.png"), "choose another file"),
    (("audit", "none.png"), "the image 'none.png' cannot be read"),
    (("audit", "m.png", "--set", "tau=1"), "--preset"),
    (("audit", "m.png", "--preset", "gaurd"), "did you mean 'guard'"),
    (("audit", "m.png", "--preset", "guard", "--set", "taw=1"), "did you mean 'tau'"),
    (("audit", "m.png", "--fail-over", "much"), "finite"),
    (("guard", MOUSE, "--preset", "guard", "--set", "tau=big"), "tau is a float"),
    (("methods", "boots"), "did you mean 'boost'"),
])  # fmt: skip
def test_bad_use_is_found_before_a_model_is_loaded(
    unleak: Any, no_model: None, tmp_path: Path, args: tuple[str, ...], says: str
) -> None:
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(tmp_path / "m.png")
    done = unleak(*args)
    assert done.code == 2 and says in done.err and not done.out, done.err
    assert files(tmp_path) == ["m.png"]


def test_methods_are_those_of_all_tables(unleak: Any, no_model: None) -> None:
    done = unleak("methods")
    tables = (REPAIRS, EDITORS, MITIGATIONS, DETECTORS)
    assert done.code == 0 and all(f"  {name} " in done.out for table in tables for name in table)
    data = json.loads(unleak("methods", "--json", "-").out)
    assert data["schema"] == "unleak/methods/1" and len(data["methods"]) == sum(map(len, tables))


@pytest.mark.parametrize("name", ["boost", "ale", "guard", "entropy"])
def test_a_method_tells_its_source_and_parameters(unleak: Any, no_model: None, name: str) -> None:
    preset: Any = next(table[name] for table in (REPAIRS, EDITORS, MITIGATIONS, DETECTORS) if name in table)
    done = unleak("methods", name)
    assert done.code == 0 and preset.source in done.out and len(done.out.splitlines()) <= MOST_LINES + 10
    (data,) = json.loads(unleak("methods", name, "--json", "-").out)["methods"]
    assert [one["name"] for one in data["parameters"]] == [one.name for one in preset.parameters]


@pytest.mark.parametrize(("command", "table", "like"), [
    (("repair", MOUSE, "--items", "mouse,laptop", "--with"), REPAIRS, "patch"),
    (("guard", MOUSE, "--preset"), MITIGATIONS, "attenuate"),
    (("edit", "m.png", "--edit", "cat=dog@m.png", "--preset"), EDITORS, "infedit"),
])  # fmt: skip
def test_a_line_in_a_table_is_all_that_the_command_line_needs(
    unleak: Any, sd1_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...], table: Any, like: str,
) -> None:  # fmt: skip
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(tmp_path / "m.png")
    monkeypatch.setitem(table._by_name, "toy", replace(table[like], name="toy", summary="Does little."))
    assert "toy: Does little." in unleak(command[0], "--help").out and "Does little." in unleak("methods", "toy").out
    done = unleak(*command, "toy", "-m", sd1_folder, "--steps", "2", "--json", "-")
    assert done.code == 0 and "toy" in (json.loads(done.out).get(key) for key in ("method", "preset")), done.err


@pytest.mark.parametrize("values", [
    ("--preset", "guard", "--set", "tau=3", "--set", "alpha=0.2", "--set", "rho=0.5"),
    ("--preset", "guard", "--set", "sites=mid_block*"),
])  # fmt: skip
def test_parameters_of_a_mitigation_are_set_by_name(unleak: Any, sd1_folder: str, values: tuple[str, ...]) -> None:
    done = unleak("guard", MOUSE, "-m", sd1_folder, *SMALL, "--json", "-", *values)
    assert done.code == 0, done.err
    method = json.loads(done.out)["method"]
    for name, value in (text.split("=") for text in values[3::2]):
        assert value in json.dumps(method[name])


def test_results_are_shown_again(unleak: Any, sd1_folder: str, tmp_path: Path) -> None:
    done = unleak("report", str(ROOT / "docs" / "results" / "words" / "results.json"))
    assert done.code == 0 and done.out.startswith("| method | subset | metric |") and "leak_rate" in done.out, done.err
    (tmp_path / "p.txt").write_text("a red cat\na dog\n")
    first = unleak("scan", "p.txt", "-m", sd1_folder, "--seeds", "0:2", "-o", "s.jsonl", "--html", "one.html")
    again = unleak("report", "s.jsonl", "--html", "two.html")
    assert again.code == 0 and again.out == first.out, again.err
    assert (tmp_path / "one.html").read_text() == (tmp_path / "two.html").read_text()


@pytest.mark.parametrize(("text", "says"), [
    ("", "cannot read"), ("{", "cannot read"), ("[1]", "no results"), ('{"schema": "unleak/x/1"}', "no results"),
    ('{"schema": "unleak/bench/1"}', "is damaged"), ('{"schema": "unleak/scan/1"}\n{"score": 1}', "is damaged"),
])  # fmt: skip
def test_what_is_no_results_is_refused(unleak: Any, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "r.json").write_text(text)
    done = unleak("report", "r.json")
    assert done.code == 2 and says in done.err and not done.out, done.err
