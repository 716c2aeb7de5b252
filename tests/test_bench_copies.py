"""The detector half of `unleak bench copies`, and that the embedded model's memorized captions are told apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from unleak.bench import copies, detection
from unleak.copies.scan import scan
from unleak.errors import BadInput
from unleak.models import load, settings
from unleak.world import load as load_world

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
    rows = detection._figures("magnitude", {k: np.array(v) for k, v in scores.items()}, 8)
    found = {(r.subset, r.metric): r.value for r in rows}
    assert found["verbatim", "auroc"] == found["template/form", "auroc"] == found["template/open", "tpr_at_1fpr"] == 1
    assert found["template/specific", "auroc"] == 0 and found["template", "auroc"] == pytest.approx(2 / 3)
    assert found["prompt", "denoiser_rows"] == 8


@pytest.mark.parametrize(("split", "methods", "says"), [("train", None, "split"), ("dev", ["magic"], "choose from")])
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
    monkeypatch.setattr(detection, "scan", lambda *_, **__: pytest.fail("it measured again"))
    assert copies.run(pipe, tmp_path, **arguments).rows == results.rows


@pytest.mark.e2e
def test_all_seeds_of_a_memorized_caption_go_one_way():
    pipe, texts = load("emoji-sd"), detection.captions(WORLD, "dev", 3)
    kinds = [(kind, text) for kind in texts for text in texts[kind]]
    found = scan(pipe, [text for _, text in kinds], detectors=["agreement"], call=settings("emoji-sd")).scores
    memorized = [s for (kind, _), s in zip(kinds, found, strict=True) if kind in detection.MEMORIZED]
    ordinary = [s for (kind, _), s in zip(kinds, found, strict=True) if kind in detection.ORDINARY]
    assert min(memorized) > max(ordinary)
