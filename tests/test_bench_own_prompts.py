"""`unleak bench words` on prompts, a model and a judge of the user's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from test_judges_real import clip
from tiny import save_tiny
from unleak.bench.words import own_prompts, own_repairs
from unleak.bench.words.own_repairs import Drawn
from unleak.cli import app
from unleak.errors import BadInput
from unleak.text.items import Item

SMALL = {"height": 64, "width": 64, "num_inference_steps": 1}
MOUSE = ("a mouse and a laptop", (Item("mouse", sense="furry mouse"), Item("laptop")))
CAT = ("a cat and a dog", (Item("cat"), Item("dog")))


class Judge:
    """Sees an item on every image, or on none: the mouse where it is drawn alone, a laptop never misses."""

    name = "scripted"

    def __init__(self) -> None:
        self.asked = 0

    def senses(self, items: Sequence[Item]) -> list[str]:
        if any(item.text == "dog" for item in items):
            raise BadInput("cannot read 'dog'")
        return [item.sense or item.text for item in items]

    def present(self, images: np.ndarray, items: Sequence[Item]) -> np.ndarray:
        self.asked += 1
        alone = self.asked == 3  # the third question of a diagnosis: the item without its company
        return np.array([[item.text != "mouse" or alone for item in items]] * len(images), bool)


def test_what_a_diagnosis_of_other_seeds_calls_broken_is_repaired_and_measured(sd1: Any, tmp_path: Path) -> None:
    judge = Judge()
    settings: dict[str, Any] = {"model": "tiny", "seeds": [0, 1], "call": SMALL, "methods": ["patch", "patch+sense"]}
    result = own_prompts.run(sd1, tmp_path, [MOUSE, CAT], judge, **settings)
    rows = {(r.method, r.subset, r.metric): r for r in result.rows}
    assert rows["diagnosis", "leak", "verdict_share"].value == 0.5 and rows["diagnosis", "ok", "verdict_share"].n == 2
    assert rows["none", "all", "item_presence"].value == 0.5 and rows["none", "all", "prompt_accuracy"].value == 0
    for method in ("patch", "patch+sense"):
        assert rows[method, "repaired", "item_presence_before"].value == 0.5
        assert rows[method, "all", "leak_rate"].value == 1 and rows[method, "repaired", "harm_other"].value == 0
        assert rows[method, "repaired", "encoder_rows"].value > rows[method, "repaired", "denoiser_rows"].value == 2
    assert any("cannot read 'dog'" in note for note in result.notes)
    assert {(b.published.method, b.published.value) for b in result.compared} >= {("none", 0.94), ("patch", 0.14)}
    before, asked = (tmp_path / "results.json").read_bytes(), judge.asked
    again = own_prompts.run(sd1, tmp_path, [MOUSE, CAT], judge, **settings)  # finished parts are not drawn again
    assert judge.asked == asked and again.rows == result.rows and (tmp_path / "results.json").read_bytes() == before


def test_an_interrupted_run_goes_on_with_identical_results(sd1: Any, tmp_path: Path) -> None:
    class Interrupted(Judge):
        def present(self, images: np.ndarray, items: Sequence[Item]) -> np.ndarray:
            if self.asked == 8:
                raise KeyboardInterrupt
            return super().present(images, items)

    def run(folder: str, judge: Judge) -> Any:
        return own_prompts.run(sd1, tmp_path / folder, [MOUSE], judge, seeds=[0], call=SMALL, methods=["patch"])

    whole = run("whole", Judge())
    stopped = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        run("parts", stopped)
    assert (
        list((tmp_path / "parts" / "parts").glob("diagnosis-*.json")) and not (tmp_path / "parts/results.json").exists()
    )
    assert run("parts", Judge()).rows == whole.rows


def test_changes_are_paired_and_told_apart_by_verdict() -> None:
    before = np.array([[0, 1], [0, 1]], bool)
    after = np.array([[1, 1], [1, 0]], bool)
    one = Drawn(("leak", "ok"), before, after)
    found = {r.metric: r for r in own_repairs.changes("patch", [one])}
    assert (found["presence_gain"].value, found["harm_other"].value) == (1.0, -0.5)
    assert (found["item_presence_before"].value, found["item_presence_after"].value) == (0.5, 0.75)
    assert found["prompt_mcnemar_p"].n == 1
    (leaks,) = own_repairs.presence("patch", [one])
    assert (leaks.metric, leaks.value, leaks.n) == ("leak_rate", 0.0, 2)


def test_a_method_that_cannot_act_is_noted_with_its_reason(sd1: Any, tmp_path: Path) -> None:
    methods = ["deleaker", "cutoff", "patch+sense"]
    alone = ("a mouse on a chair", (Item("mouse"),))
    result = own_prompts.run(sd1, tmp_path, [alone], Judge(), seeds=[0], call=SMALL, methods=methods)
    assert {r.method for r in result.rows} == {"diagnosis", "none"}
    assert sorted(note.split(":")[0] for note in result.notes) == sorted(methods)


# -- the file ------------------------------------------------------------------------------------------------


def test_published_prompt_sets_and_lines_are_read(tmp_path: Path) -> None:
    excite = tmp_path / "excite.json"
    excite.write_text('{"animals": [{"prompt": "a dog and a frog", "indices": [2, 5]}], "objects": [{"prompt": "a"}]}')
    records, notes = own_prompts.read(excite)
    assert records == [("a dog and a frog", (Item("dog"), Item("frog")))]
    assert notes == ["excite.json, 2: no item is named: give items in the file, in [brackets] or with --items"]
    lines = tmp_path / "own.jsonl"
    one = {"prompt": "a mouse and a cat", "items": ["mouse", "cat"], "sense": {"mouse": "furry mouse"}}
    lines.write_text(
        json.dumps(one) + '\n{"prompt": "a hot dog", "items": ["hot dog", "dog"]}\n{"prompt": "a [bat]"}\n'
    )
    records, notes = own_prompts.read(lines)
    assert records == [
        ("a mouse and a cat", (Item("mouse", sense="furry mouse"), Item("cat"))),
        ("a bat", (Item("bat"),)),
    ]
    assert len(notes) == 1 and "own.jsonl, 2: " in notes[0] and "overlap" in notes[0]
    assert len(own_prompts.read(lines, limit=1)[0]) == 1


@pytest.mark.parametrize(("name", "text", "says"), [
    ("x.json", "[", "no JSON document"), ("x.json", "[1]", "int, not text"), ("x.json", "{}", "no prompt with items"),
    ("x.jsonl", '{"prompt": "a cat", "items": ["cat"], "sense": {"dog": "hound"}}', "no items of this prompt"),
    ("x.jsonl", '{"prompt": "a cat", "items": ["cat"], "sense": "hound"}', "intended senses"),
    ("x.txt", "a plain sentence", "no item is named"), ("x.txt", "", "is empty"),
])  # fmt: skip
def test_a_file_without_usable_prompts_is_refused(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=says):
        own_prompts.read(tmp_path / name)


# -- the command line ----------------------------------------------------------------------------------------


def test_the_command_measures_a_real_class_of_model_with_a_clip_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny("sd1", tmp_path / "model")
    torch.manual_seed(0)
    for part in clip(tmp_path):
        part.save_pretrained(tmp_path / "judge")
    Path("own.jsonl").write_text('{"prompt": "a hot dog and a laptop", "items": ["hot dog", "laptop"]}\n')
    args = ["bench", "words", "-m", "model", "--prompts", "own.jsonl", "--steps", "1", "--seeds", "0", "-o", "out"]
    args += ["--methods", "diagnosis,none,flow,tokens"]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 2 and "--judge" in done.stderr
    done = CliRunner().invoke(app, [*args, "--judge", "judge"])
    assert done.exit_code == 0, (done.exception, done.stderr)
    data = json.loads(Path("out/results.json").read_text())
    assert data["schema"] == "unleak/bench/1" and data["split"] == "own.jsonl" and "judge" in data["judge"]["name"]
    assert {r["metric"] for r in data["rows"]} >= {"verdict_share", "item_presence", "pairs_isolated"}
    assert {p["metric"] for p in data["published"]} >= {"verdict_share", "pairs_isolated"}
    assert "Published figures beside ours" in done.stdout


@pytest.mark.parametrize(("args", "says"), [
    (["--prompts", "none.jsonl"], "cannot read"), (["--judge", "x/y"], "goes with --prompts"),
    (["--prompts", "own.jsonl", "--methods", "lint"], "Choose from"),
])  # fmt: skip
def test_bad_use_is_found_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("unleak.models.load", lambda *_, **__: pytest.fail("the model was loaded"))
    Path("own.jsonl").write_text('{"prompt": "a [cat]"}')
    done = CliRunner().invoke(app, ["bench", "words", *args])
    assert done.exit_code == 2 and says in " ".join(done.stderr.split())
