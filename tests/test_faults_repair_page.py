"""What a repair says of itself, printed and on its page: what was tried, what was kept and why, and how to use it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import unleak
from unleak.cli import app
from unleak.drawing import drawing
from unleak.drawing.generate import parse_seeds, written_seeds
from unleak.judges.glyphs import glyph_judge
from unleak.report.repair import page
from unleak.text.items import Item
from unleak.words.diagnosis.diagnosis import code, described
from unleak.words.presets import REPAIRS, RepairTask
from unleak.words.repair.automatic import held_out_seeds
from unleak.words.repair.repair import Repaired, repair

PROMPT, ITEMS = "a bat and a racket", "bat,racket"
CALL: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 3.0}
SMALL: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 2}
HOSTILE = "a <b>mouse</b> & 'a' \"laptop\" </code><script>alert(1)</script>"


class Looks:
    """A judge that sees the items of a prompt where `sees(call, item)`; the calls are counted from 1."""

    name = "toy"

    def __init__(self, sees: Any) -> None:
        self.sees, self.calls = sees, 0

    def senses(self, items: Any) -> list[str]:
        return [item.sense or item.text for item in items]

    def present(self, images: np.ndarray, items: Any) -> np.ndarray:
        self.calls += 1
        return np.array([[bool(self.sees(self.calls, item.text)) for item in items]] * len(images), bool)


@pytest.fixture(scope="module")
def repaired() -> Repaired:
    """A leak on the embedded model, repaired by trial."""
    pipe = unleak.models.load("emoji-sd")
    found = repair(pipe, PROMPT, ITEMS, seeds="0:2", judge=glyph_judge(), model="emoji-sd", call=CALL)
    assert found.method == "patch" and found.drawn_by == ["patch"] * 2
    return found


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many images each drawing made."""
    counts: list[int] = []
    real = drawing.generate

    def generate(*args: Any, **call: Any) -> Any:
        images = real(*args, **call)
        counts.append(len(images[0]))
        return images

    monkeypatch.setattr(drawing, "generate", generate)
    yield counts


def text_of(html: str) -> str:
    """The page with the marks of its texts as they were written."""
    return unescape(html)


def test_the_page_and_the_text_of_a_repair_say_what_was_tried_what_was_kept_and_why(repaired: Repaired) -> None:
    shown, said = text_of(page(repaired)), str(repaired)
    for attempt in repaired.tried:
        assert attempt.trial.name in said and attempt.reason in said and attempt.reason in shown
        assert described(attempt.trial.repair) in shown and list(attempt.seeds) == held_out_seeds(repaired.seeds)
    assert "bat 0 → 2 of 2" in shown and "2:4 (held out)" in shown
    assert all(sentence in said and sentence in shown for sentence in repaired.why) and "first repair" in said
    assert repaired.not_tried == ["patch-word", "patch-masked", "boost"]
    assert repaired.why[-1] == "Not tried, since they come after it: patch-word, patch-masked, boost."
    assert "a case of leak" in " ".join(shown.replace("<b>", "").replace("</b>", "").split())
    assert repaired.code in shown and repaired.command in shown and repaired.command in said
    data = json.loads(json.dumps(repaired.to_dict()))
    assert data["tried"][0]["drawn_at"] == [2, 3] and data["tried"][0]["reason"] == repaired.tried[0].reason
    assert (data["code"], data["command"], data["why"]) == (repaired.code, repaired.command, repaired.why)


def test_the_code_of_a_repair_runs_as_pasted_and_draws_the_same_images(repaired: Repaired) -> None:
    names: dict[str, Any] = {}
    exec(repaired.code or "", names)
    assert np.array_equal(names["result"].images[0], repaired.after)
    printed = str(repaired).split("in Python:\n")[1].split("  as a command")[0]
    again: dict[str, Any] = {}
    exec("\n".join(line[4:] for line in printed.splitlines()), again)
    assert np.array_equal(again["result"].images[0], repaired.after)


def test_the_command_of_a_repair_runs_as_pasted_and_keeps_the_same_repair(repaired: Repaired, tmp_path: Path) -> None:
    program, *words = shlex.split(repaired.command or "")
    done = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "out")])
    assert program == "unleak" and done.exit_code == 0, done.output
    data = json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))
    assert data["repair"] == repaired.to_dict()["repair"] and data["settings"]["call"] == CALL
    from PIL import Image

    for seed, image in zip(repaired.seeds, repaired.after, strict=True):
        with Image.open(tmp_path / "out" / f"after-{seed}.png") as saved:
            assert np.array_equal(np.asarray(saved), image)


@pytest.mark.parametrize("item", ["mouse", "hot dog", "mouse, the small one", "o'mouse", 'a "mouse"', "mouse#2", "C=c"])
@pytest.mark.parametrize("name", [name for name in REPAIRS if name != "prune"])
def test_the_python_of_every_repair_is_that_repair(name: str, item: str) -> None:
    task = RepairTask((Item.of(item),), (Item("laptop"), Item("key", 2)), ("leak",))
    built = REPAIRS[name].build(task)
    assert eval(described(built), {"unleak": unleak}) == built  # type: ignore[arg-type]


def test_the_code_holds_only_what_python_can_write() -> None:
    call = {"num_inference_steps": np.int64(3), "callback_on_step_end": print, "negative_prompt": 'a "b"\n', "eta": 0.0}
    written = code(unleak.Patch("mouse", others="laptop"), HOSTILE + "\n'", [0, 2], call, "owner/name")
    compile(written, "pasted", "exec")
    assert "# add to call, of your own: callback_on_step_end" in written
    assert "'num_inference_steps': 3, 'negative_prompt': 'a \"b\"\\n', 'eta': 0.0" in written
    assert "unleak.models.load('owner/name')" in written and "models" not in code(
        unleak.Boost("mouse"), "a mouse", [0], {}
    )


@pytest.mark.parametrize("seeds", [[0], [7], [0, 1], [3, 4, 5], [1, 5, 9], [2, 1, 0], [5, 4], [0, 2, 1]])
def test_written_seeds_are_read_back(seeds: list[int]) -> None:
    assert parse_seeds(written_seeds(seeds)) == seeds


def test_a_repair_says_that_none_was_kept_where_none_helped(sd1: Any, counted: list[int]) -> None:
    judge = Looks(lambda call, item: item == "laptop" or call == 3)  # the mouse alone: so it is a leak
    result = repair(sd1, "a mouse and a laptop", "mouse,laptop", seeds=1, judge=judge, call=SMALL)
    shown = text_of(page(result))
    assert result.method == "none" and result.tried and not any(attempt.kept for attempt in result.tried)
    assert "nothing needs a repair" not in str(result) + shown and "Nothing leaks" not in shown
    assert "None of the repairs that were tried shows more items" in shown and "kept: the original images" in str(
        result
    )
    assert all(attempt.trial.name in shown and attempt.reason in shown for attempt in result.tried)
    assert all("“mouse” is still missing" in attempt.reason for attempt in result.tried)
    assert result.code is None and result.command is None
    assert sum(counted) == sum(result.drawings.values())


def test_a_repair_says_which_images_another_one_drew(sd1: Any, counted: list[int]) -> None:
    kept = [False]

    class Judge(Looks):
        def present(self, images: np.ndarray, items: Any) -> np.ndarray:
            there = super().present(images, items)
            mouse = [item.text == "mouse" for item in items]
            if self.calls == 11:  # the kept repair at the user's seeds leaves the mouse out of the second image
                there[:, mouse], kept[0] = np.array([[True], [False]]), True
            return there

    judge = Judge(lambda call, item: item != "mouse" or call in (3, 10, 12))
    result = repair(sd1, "a mouse and a laptop", "mouse,laptop", seeds=2, judge=judge, call=SMALL)
    assert kept[0] and result.drawn_by[0] == "patch" != result.drawn_by[1] != "none"
    (again,) = (attempt for attempt in result.tried if attempt.redraw)
    assert list(again.seeds) == list(again.better) == [1] and again.trial.name == result.drawn_by[1] and not again.kept
    shown, said = text_of(page(result)), str(result)
    assert again.reason in shown and again.reason in said and "shows more at seed 1" in again.reason
    assert f"by {again.trial.name}" in shown and "drawn otherwise" in shown
    assert sum(counted) == sum(result.drawings.values()) and result.drawings["single images again"] == 1


def test_a_repair_that_was_asked_for_says_so(sd1: Any, counted: list[int]) -> None:
    result = repair(sd1, "a mouse and a laptop", "mouse,laptop", with_="boost", only="mouse", seeds=1, call=SMALL)
    assert "It was asked for" in str(result) and "It was asked for" in page(result) and result.tried == []
    assert result.drawings == {"the prompt": 1, "the kept repair": 1} and sum(counted) == 2
    plain = repair(sd1, "a mouse and a laptop", "mouse,laptop", seeds=1, call=SMALL)
    assert "Without a judge no repair can be tried." in text_of(page(plain))


def test_a_repair_says_that_nothing_needs_one_only_where_nothing_is_missing(sd1: Any) -> None:
    ask: dict[str, Any] = {"seeds": 1, "call": SMALL}
    whole = repair(sd1, "a mouse and a laptop", "mouse,laptop", judge=Looks(lambda call, item: True), **ask)
    assert whole.why == ["Every item is on every image, so nothing needs a repair."]
    never = repair(sd1, "a mouse and a laptop", "mouse,laptop", judge=Looks(lambda call, item: item != "mouse"), **ask)
    assert never.why == ["No repair is known for what is missing: “mouse” is unknown."] and not never.tried


def test_texts_on_the_page_of_a_repair_are_escaped(sd1: Any) -> None:
    result = repair(sd1, HOSTILE, "mouse,laptop", with_="patch", only="mouse", seeds=1, call=SMALL, model="<i>m</i>")
    html = page(result)
    assert "<script" not in html and "<i>" not in html and "alert(1)" in html
    assert "http:" not in html and "https:" not in html
    lines = text_of(html)
    assert result.code in lines


@pytest.mark.parametrize(("items", "call", "model"), [
    ("mouse,laptop", SMALL, ""),  # the model has no name
    (["mouse", "laptop, a key"], SMALL, "m"),  # a comma parts items
    ("mouse,laptop", SMALL | {"eta": 0.5}, "m"),  # no option for it
    ("mouse,laptop", SMALL | {"negative_prompt": "x"}, "m"),
])  # fmt: skip
def test_there_is_no_command_where_the_command_line_cannot_say_it(sd1: Any, items: Any, call: Any, model: str) -> None:
    prompt = "a mouse and a laptop, a key"
    result = repair(sd1, prompt, items, with_="patch", only="mouse", seeds=1, call=call, model=model)
    assert result.command is None and result.code and "command line" not in page(result)


def test_a_command_says_items_sizes_and_parameters(sd1: Any) -> None:
    ask: dict[str, Any] = {"with_": "boost", "only": "mouse#2", "seeds": [1], "call": SMALL, "model": "m", "gain": 2.0}
    result = repair(sd1, "-a mouse beside a mouse", "mouse#1,mouse#2=furry mouse", **ask)
    words = shlex.split(result.command or "")
    assert words[-2:] == ["--", "-a mouse beside a mouse"] and words[words.index("--size") + 1] == "64x64"
    assert words[words.index("--items") + 1] == "mouse#1,mouse#2=furry mouse" and "gain=2.0" in words
    assert words[words.index("--only") + 1] == "mouse#2=furry mouse" and words[words.index("--seeds") + 1] == "1"


def test_a_long_prompt_leaves_no_line_of_code_that_is_cut(repaired: Repaired) -> None:
    long = replace(repaired, prompt="a bat and a racket " * 12)
    assert "in Python" not in str(long) and long.prompt in (long.code or "") and long.code in text_of(page(long))
