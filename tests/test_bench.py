"""Statistics, results files, resumable parts, pictures, seeds: what every benchmark rests on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from unleak.bench.results import Results
from unleak.bench.rows import share
from unleak.drawing.generate import parse_seeds
from unleak.errors import BadInput
from unleak.files import provenance
from unleak.files.atomic import only_writer, write_atomic
from unleak.files.parts import Parts
from unleak.report.pictures import contact_sheet, enlarge, png
from unleak.text.prompt import check_prompt


def test_results_follow_the_contract(tmp_path: Path) -> None:
    r = Results("world", "emoji-sd", [0, 1], "heldout", {"name": "glyphs", "accuracy": {}})
    r.rows.append(share([True, False], "emoji-sd", "pair", "pair_present"))
    r.save(tmp_path)
    data = json.loads((tmp_path / "results.json").read_text())
    assert data["schema"] == "unleak/bench/1"
    assert set(data) >= {"suite", "model", "command", "versions", "seeds", "split", "judge", "rows"}
    assert set(data) >= {"commit", "dirty", "processor", "threads"} and data["threads"] >= 1
    assert Results.from_dict(data).to_dict() == data
    assert set(data["rows"][0]) == {"method", "subset", "metric", "value", "low", "high", "n", "units"}
    assert "pair_present" in (tmp_path / "results.md").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results.json", "results.md"]


def test_headline_figures_stand_side_by_side_above_the_table(tmp_path: Path) -> None:
    r = Results("regions", "m", [0], "heldout", {}, headline=("tel", "til"))
    r.rows = [share([True], "ale", "all", "tel"), share([True, False], "ale", "1 edited", "til")]
    r.rows += [share([False], "p2p", "all", "til"), share([True], "ale - p2p", "all", "tel")]
    r.save(tmp_path)
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert lines[5:9] == [
        "| method | n | tel | til |", "|---|---|---|---|", "| ale | 1 | 1 (0.207 to 1) |  |",
        "| p2p | 1 |  | 0 (0 to 0.793) |",
    ]  # fmt: skip


def test_parts_are_reused_only_for_the_same_inputs(tmp_path: Path) -> None:
    parts, calls = Parts(tmp_path), []
    for inputs in (1, 1, 2):
        assert parts.get("x", inputs, lambda i=inputs: calls.append(i) or [i]) == [inputs]
    other = Parts(tmp_path, common=["another code"])
    assert [other.get("x", 2, lambda: 5), other.get("x", 2, lambda: 6)] == [5, 5] and calls == [1, 2]


def test_an_interrupt_leaves_no_part_behind(tmp_path: Path) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Parts(tmp_path).get("x", 1, interrupted)
    assert not list(tmp_path.rglob("*.json"))


def test_an_unwritable_place_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot write"):
        write_atomic(tmp_path / "file" / "x.json", "{}")


@pytest.mark.parametrize(("text", "seeds"), [("3", [3]), ("0:4", [0, 1, 2, 3]), ("1,5,9", [1, 5, 9])])
def test_seeds(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "4:2", "1:2:3", "-1", "0:100000", "1.5"])
def test_bad_seeds(text: str) -> None:
    with pytest.raises(BadInput, match="seeds"):
        parse_seeds(text)


@pytest.mark.parametrize("prompt", ["", "   ", "x" * 20_000, "\udcff"])
def test_bad_prompts(prompt: str) -> None:
    with pytest.raises(BadInput):
        check_prompt(prompt)


def test_pictures_keep_small_pixels_sharp_and_any_shape() -> None:
    image = np.zeros((8, 16, 3), np.uint8)
    image[:, 8:] = 255
    big = np.asarray(enlarge(image, 64))
    assert big.shape == (32, 64, 3) and set(np.unique(big)) == {0, 255}
    sheet = contact_sheet([("a very long label " * 9, [image] * 3), ("b", [image])], across=2)
    assert png(sheet).startswith(b"\x89PNG") and sheet.width > 3 * 128


def test_published_figures_stand_beside_the_rows_that_ask_the_same(tmp_path: Path) -> None:
    one = Results("words", "m", [0], "heldout", {"name": "j"})
    one.rows = [share([True] * 3 + [False], "patch", "all", "leak_rate"), share([True], "patch", "before", "leak_rate")]
    assert [(b.published.value, b.ours.value) for b in one.compared] == [(0.14, 0.75), (0.2, 0.75)]
    one.save(tmp_path)
    text, data = (tmp_path / "results.md").read_text(), json.loads((tmp_path / "results.json").read_text())
    assert "Published figures beside ours" in text and text.count("2504.01137 v3, FLUX-") == 2
    assert data["published"][0]["ours"] == 0.75 and "2504.01137" in data["published"][0]["where"]
    one.rows = [share([True], "m", "all", "hits")]
    assert "Published" not in one.table()


def test_two_runs_do_not_write_one_folder(tmp_path: Path) -> None:
    new = tmp_path / "new"
    with only_writer(new), pytest.raises(BadInput, match="another run writes"), only_writer(new):
        pass
    with only_writer(new):  # and the first let go
        pass
    assert not list(new.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot write"), only_writer(tmp_path / "file"):
        pass


def test_the_code_of_a_method_is_that_of_all_it_imports() -> None:
    from unleak.text import spans
    from unleak.words.methods import patch

    code = provenance._imports("unleak.words.methods.patch")
    assert "unleak.core.intervention" in code and all(name.startswith("unleak.") for name in code)
    assert provenance.code_of(patch) == provenance.code_of(patch.Patch) != provenance.code_of(spans)


def test_a_package_that_git_does_not_know_has_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_git", lambda *_: None)
    assert provenance.working_copy() == (None, None)
    assert provenance.made_by().keys() == {"commit", "dirty", "processor", "threads"}
