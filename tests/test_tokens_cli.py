"""`unleak tokens` and `unleak redundancy` as a person would run them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from test_cli import SMALL, files
from test_redundancy import LINES, Alternating
from unleak import models
from unleak.judges.glyphs import glyph_judge
from unleak.report import tokens as report
from unleak.words.tokens.classifier import Classifier
from unleak.words.tokens.redundancy import tokens

PROMPT = "a hot dog and a cat"
DRAWN = (*SMALL[:-1], "0:4")


@pytest.mark.parametrize(("args", "says"), [
    (("tokens", PROMPT, "--items", ""), "empty"),
    (("tokens", PROMPT, "--items", "dragon"), "Write the item as it stands"),
    (("tokens", "hot dog", "--items", "hot dog"), "whole prompt"),
    (("tokens", PROMPT, "--items", "cat", "--pad", "white"), "Choose from empty"),
    (("tokens", PROMPT, "--items", "cat", "--pad", "mean"), "bank"),
    (("tokens", PROMPT, "--items", "cat", "--pad", "mean", "--bank", "none.txt"), "cannot read"),
    (("tokens", PROMPT, "--items", "cat", "--pooled", "half"), "Choose from full"),
    (("tokens", PROMPT, "--items", "cat", "--html", "x", "--json", "x"), "two files"),
    (("redundancy", "none.jsonl", "-o", "model"), "cannot read"),
    (("redundancy", "none.jsonl", "-o", "no/model"), "make it first"),
    (("redundancy", "none.jsonl", "-o", "model", "--kind", "forest"), "Choose from knn"),
])  # fmt: skip
def test_bad_use_is_found_before_a_model_is_loaded(unleak, no_model, args, says):
    done = unleak(*args)
    assert done.code == 2 and says in done.err and not done.out


@pytest.mark.parametrize("command", ["tokens", "redundancy"])
def test_every_option_is_explained(unleak, command):
    done = unleak(command, "--help")
    assert done.code == 0 and not done.err and "--pooled" in done.out


def test_without_a_judge_there_are_pictures_and_no_claim(unleak, sd1_folder, tmp_path):
    done = unleak("tokens", PROMPT, "--items", "hot dog", "-m", sd1_folder, *SMALL, "-o", "o", "--json", "t.json",
                  "--html", "t.html")  # fmt: skip
    assert done.code == 0 and "without a judge" in done.err and "not judged" in done.out
    data = json.loads((tmp_path / "t.json").read_text())
    assert data["schema"] == "unleak/tokens/1" and data["settings"]["pad"] == "empty" and data["judge"] is None
    (item,) = data["items"]
    assert len(item["tokens"]) > 1 and item["redundant"] == []
    assert all(t["representative"] is None and t["shows"] is None for t in item["tokens"])
    named = [name for view in data["images"].values() for name in view]
    assert sorted([*named, "tokens.png", "result.json", "index.html"]) == files(tmp_path / "o")
    html = (tmp_path / "t.html").read_text()
    assert html.count("<img") > len(item["tokens"]) and "<script" not in html and "no judge was given" in html


def test_a_judge_that_cannot_read_an_item_says_so(unleak, tmp_path):
    done = unleak("tokens", "a dragon and a cat", "--items", "dragon", *DRAWN)
    assert done.code == 2 and "has no 'dragon'" in done.err and not files(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"prompt": "a dragon and a cat", "items": ["dragon"]}')
    done = unleak("redundancy", "p.jsonl", "-o", "model", *DRAWN)
    assert done.code == 2 and "has no 'dragon'" in done.err and files(tmp_path) == ["p.jsonl"]


def test_a_model_without_a_judge_cannot_be_trained_for(unleak, sd1_folder, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a hot dog and a cat", "items": ["hot dog"]}')
    done = unleak("redundancy", "p.jsonl", "-o", "model", "-m", sd1_folder)
    assert done.code == 4 and "has no judge" in done.err


def test_a_classifier_is_trained_written_and_tabled(unleak, sd1_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("unleak.cli.command.embedded_judge", lambda *_: Alternating())
    (tmp_path / "p.jsonl").write_text(LINES)
    done = unleak("redundancy", "p.jsonl", "-o", "model", "-m", sd1_folder, *DRAWN, "--json", "r.json")
    assert done.code == 0 and "(chosen)" in done.out and done.out.rstrip().endswith("model")
    data = json.loads((tmp_path / "r.json").read_text())
    assert Classifier.load(tmp_path / "model").kind == data["chosen"] and data["items"]["used"] == 4
    assert all(0 < c["base_rate"] < 1 and c["tokens"] >= 12 for c in data["classifiers"].values())


@pytest.mark.e2e
def test_an_expression_is_carried_by_few_tokens_and_by_no_empty_prompt():
    pipe, call = models.load("emoji-sd"), models.settings("emoji-sd") | {"num_inference_steps": 6}
    study = tokens(pipe, "a hot dog and a cup <b>", "hot dog", judge=glyph_judge(), call=call)
    assert study.hits(0, "nothing").mean() < 0.5 <= study.hits(0, "item 0").mean()
    carries = [study.representative(0, k) for k in range(3)]
    assert carries[-1], "in a causal encoder the last token has read the whole item"
    data = study.to_dict()
    token = data["items"][0]["tokens"][-1]
    assert token["text"] == "dog" and token["shows"]["low"] < token["shows"]["rate"] <= token["shows"]["high"]
    html = report.page(study)
    assert "representative" in html and "<b>&" not in html and "&lt;b&gt;" in html
    width, height = report.sheet(study).size
    assert width > 4 * 128 and height > 128 and isinstance(report.sheet(study), Image.Image)


def test_a_mosaic_keeps_every_image_in_order():
    images = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((3, 2, 2, 3), np.uint8)
    sheet = report.mosaic(images)
    assert sheet.shape == (4, 4, 3)
    assert [sheet[0, 0, 0], sheet[0, 2, 0], sheet[2, 0, 0], sheet[2, 2, 0]] == [0, 1, 2, 255]
