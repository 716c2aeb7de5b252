"""Diagnosis: the verdict table (TF-16), what counts as evidence, who is heard, and repairs chosen by trial."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import unleak
from tiny import NAMES, draw, save_tiny, tiny
from unleak.cli import app
from unleak.errors import BadInput, UnleakError
from unleak.judges.glyphs import glyph_judge
from unleak.models import load, settings
from unleak.report import diagnosis as report
from unleak.stats.rate import Rate
from unleak.text.encode import weights_digest
from unleak.text.items import Item, known
from unleak.text.subsets import Subset
from unleak.words.diagnosis.diagnose import MOST_ITEMS, diagnose, items_of, senses_of
from unleak.words.diagnosis.neglect import VERDICTS, KeepItem, verdict
from unleak.words.methods.lens import Lens
from unleak.words.methods.prune import Prune
from unleak.words.presets import REPAIRS, RepairTask, suggested, trials
from unleak.words.repair.automatic import Best, try_repairs, untried
from unleak.words.repair.repair import repair
from unleak.words.tokens.classifier import Classifier

SMALL = {"height": 64, "width": 64, "num_inference_steps": 1}
TABLE = {
    (True, True, True): "ok", (True, True, False): "ok", (True, False, True): "ok", (True, False, False): "ok",
    (False, True, True): "neglect", (False, True, False): "neglect",
    (False, False, True): "leak", (False, False, False): "unknown",
}  # fmt: skip


class Scripted:
    """Answers by the number of the question: for each call the names that are there; the last answer stays."""

    name = "scripted"

    def __init__(self, *answers: Sequence[str], unreadable: str = "") -> None:
        self.answers, self.asked, self.unreadable = list(answers), 0, unreadable

    def senses(self, items: Sequence[Item]) -> list[str]:
        if any(item.text == self.unreadable for item in items):
            raise BadInput(f"cannot read {self.unreadable!r}")
        return [item.sense or item.text for item in items]

    def present(self, images: np.ndarray, items: Sequence[Item]) -> np.ndarray:
        there = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        return np.array([[(item.sense or item.text) in there for item in items]] * len(images), bool)


def test_every_combination_has_exactly_one_verdict() -> None:
    assert {combination: verdict(*combination) for combination in product((True, False), repeat=3)} == TABLE
    assert set(TABLE.values()) == set(VERDICTS)


@pytest.mark.parametrize("answers", TABLE)
def test_the_verdict_follows_what_the_judge_sees(sd1, answers: tuple[bool, bool, bool]) -> None:
    full, encoded, alone = (["mouse"] if yes else [] for yes in answers)
    judge = Scripted(full, encoded, alone, [], encoded, [])
    found = diagnose(sd1, "a mouse", "mouse", seeds=[0], judge=judge, evidence="all", after=False, call=SMALL)
    (f,) = found.findings
    assert f.verdict == TABLE[answers] and f.present == Rate(int(answers[0]), 1)
    assert list(f.evidence) == ["encoded", "alone", "own", "gathered"] and found.control is not None
    assert f.flags == (("carried elsewhere",) if answers[0] and not answers[1] else ())
    methods = {"ok": None, "leak": "patch", "neglect": "boost", "unknown": None}
    assert found.method == methods[f.verdict] and (found.repair is None) == (found.method is None)


@pytest.mark.parametrize(("after", "method", "refused"), [
    ([["furry mouse", "laptop"]], "patch", set()),
    ([["laptop"], ["furry mouse", "laptop"]], "patch-word", {"patch"}),
    ([["laptop"]], "patch", {"patch-word", "patch-masked", "boost"}),  # none helps: the one that is meant for it stays
])  # fmt: skip
def test_a_repair_that_does_not_help_is_not_suggested_while_another_does(sd1, after, method, refused) -> None:
    # the mouse five times, the laptop, the control; then both: on the images, on a held-out one, on what repairs make
    asked = ([], [], ["furry mouse"], [], [], ["laptop"], [], ["laptop"], ["laptop"])
    found = diagnose(sd1, "a mouse and a laptop", "mouse=furry mouse,laptop", seeds=[0],
                     judge=Scripted(*asked, *after), call=SMALL | {"num_inference_steps": 2})  # fmt: skip
    mouse, laptop = found.findings
    assert (mouse.verdict, laptop.verdict) == ("leak", "ok") and mouse.repaired and not laptop.repaired
    assert found.method == method and set(found.failed) == refused
    assert mouse.after == Rate(int("furry mouse" in after[-1]), 1) and found.after is not None
    assert laptop.after == Rate(1, 1) and found.images.shape == found.after.shape
    assert [list(one.seeds) for one in found.tried] == [[1]] * {0: 1, 1: 2, 3: 4}[len(refused)]
    assert all("is there on 0/1" in why for why in found.failed.values())
    assert all(f"{name} is not suggested" in str(found) for name in refused)


def test_another_sense_is_no_and_is_named(sd1) -> None:
    judge = Scripted(["computer mouse"], ["laptop"], ["furry mouse"], [], [], ["laptop"])
    found = diagnose(sd1, "a mouse and a laptop", "mouse=furry mouse,laptop", seeds=[0], judge=judge, call=SMALL,
                     senses={"mouse": ["furry mouse", "computer mouse"]})  # fmt: skip
    mouse, laptop = found.findings
    # asked: the mouse on the prompt, on its rows, alone, on its own rows, with EOS and pads; then the laptop
    assert mouse.instead == ("computer mouse",) and mouse.senses == ("computer mouse",)
    assert mouse.evidence["encoded"].instead == ["laptop"]
    assert found.after is not None and found.after.shape == (1, 64, 64, 3)
    assert (mouse.verdict, laptop.verdict) == ("leak", "ok") and mouse.repaired and not laptop.repaired


def test_a_latent_leak_is_flagged(sd1) -> None:
    judge = Scripted(["furry mouse"], ["furry mouse", "computer mouse"], ["furry mouse"], [])  # beside it is not it
    found = diagnose(sd1, "a mouse", "mouse=furry mouse", seeds=[0], judge=judge, evidence="all", call=SMALL,
                     senses={"mouse": ["computer mouse"]})  # fmt: skip
    assert found.findings[0].verdict == "ok" and found.findings[0].flags == ("latent leak",)
    assert found.findings[0].evidence["encoded"].rate == Rate(0, 1)


def test_an_item_that_the_judge_cannot_read_is_not_guessed(sd1) -> None:
    judge = Scripted(["laptop"], unreadable="mouse")
    found = diagnose(sd1, "a mouse and a laptop", "mouse,laptop", seeds=[0], judge=judge, call=SMALL)
    mouse, laptop = found.findings
    assert mouse.verdict is None and mouse.present is None and "cannot read 'mouse'" in mouse.note
    assert laptop.verdict == "ok" and "cannot read" in str(found) and "cannot read" in report.page(found)


def test_without_a_judge_there_is_no_verdict_and_it_says_so(sd1) -> None:
    found = unleak.diagnose(sd1, "a [mouse] and a [laptop]", seeds=[0], call=SMALL)
    assert found.prompt == "a mouse and a laptop" and [f.verdict for f in found.findings] == [None, None]
    assert "no judge" in str(found) and "No judge was given" in report.page(found) and found.control is None
    assert (found.flow.size > 0).any() and found.images.shape == (1, 64, 64, 3)


@pytest.mark.parametrize("name", NAMES)
def test_an_items_rows_are_its_span_and_in_a_causal_encoder_all_but_the_others(name: str) -> None:
    pipe = tiny(name)
    kept = {}
    for rows in ("all", "gathered", "own"):
        with unleak.attach(pipe, KeepItem("mouse", ("laptop",), rows)) as run:
            draw(pipe, "a mouse and a laptop", steps=1)
        kept[rows] = {encoder: at[0] for encoder, at in run.log[-1]["keep item"].items()}
        changed = {t["encoder"]: t["rows"][0] for t in run.log[-1]["text"]}
        assert all(not set(changed[encoder]) & set(at) for encoder, at in kept[rows].items())
    for encoder, whole in kept["all"].items():
        own, gathered = kept["own"][encoder], kept["gathered"][encoder]
        assert set(own) <= set(gathered) <= set(whole)
        causal = encoder != {"sd3": "text_encoder_3", "flux": "text_encoder_2"}.get(name)
        assert set(own) <= set(whole) and (len(whole) > len(own)) == causal
        assert not causal or (own == [2] and 5 not in whole)  # "mouse" and "laptop" are one token of every CLIP


def test_items_are_named_or_bracketed_and_checked() -> None:
    assert items_of("a [mouse] and a cat") == ("a mouse and a cat", (Item("mouse"),))
    assert items_of("mouse", "mouse")[1] == (Item("mouse"),)  # the whole prompt is an item like any other
    for prompt, items, says in [
        ("a mouse", None, "brackets"),
        ("a mouse", "", "empty"),
        ("a hot dog", "hot dog,dog", "overlap"),
        (" ".join(f"w{k}" for k in range(20)), [f"w{k}" for k in range(MOST_ITEMS + 1)], "in doubt"),
    ]:
        with pytest.raises(BadInput, match=says):
            items_of(prompt, items)
    assert [str(i) for i in known("a hot dog, a dog and a dog", ["dog", "hot dog", "cat"])] == [
        "hot dog", "dog#2", "dog#3"
    ]  # fmt: skip
    assert senses_of("bat=club,bat=animal") == {"bat": ["club", "animal"]}
    with pytest.raises(BadInput, match="its other sense"):
        senses_of("bat")


def test_many_items_and_odd_characters_fit_the_page(sd1, tmp_path: Path) -> None:
    words = ["<b>x</b>", "мышь", "电脑", "cat"]
    found = diagnose(sd1, ", ".join(words), words, seeds=[0], evidence="all", after=False, call=SMALL)
    found.save(tmp_path / "p.html")
    html = (tmp_path / "p.html").read_text("utf-8")
    assert "&lt;b&gt;x" in html and "<b>x</b>" not in html and "<script" not in html and "http" not in html
    assert html.count('<table class="flow">') == 1 and "电脑" in html
    names = found.file_names()
    found.save(tmp_path / "out")
    data = json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))
    assert data == json.loads(json.dumps(found.to_dict())) and data["images"] == names
    assert data["schema"] == "unleak/diagnose/1" and len(data["items"]) == 4 and len(data["flow"]["pairs"]) == 12
    assert all((tmp_path / "out" / name).is_file() for kind in names.values() for name in kind)
    assert (tmp_path / "out" / "flow.png").is_file()


# Repairs by trial.

TASK = RepairTask((Item("mouse", sense="furry mouse"),), (Item("laptop"),), ("leak",))
ALL = [*TASK.broken, *TASK.others]


def seen(mouse: int, laptop: int, n: int = 4) -> np.ndarray:
    return np.array([[k < mouse, k < laptop] for k in range(n)])


def test_the_cheapest_repair_that_is_meant_for_the_verdict_comes_first() -> None:
    assert [t.name for t in suggested(TASK)] == ["patch"]
    assert [t.name for t in trials(TASK)] == ["patch", "patch-word", "patch-masked", "boost"]
    neglected = RepairTask(TASK.broken, TASK.others, ("neglect",))
    assert [t.name for t in trials(neglected)] == ["boost", "patch", "patch-word", "patch-masked"]
    assert trials(RepairTask((), tuple(ALL), ())) == []
    assert [t.name for t in trials(RepairTask((Item("mouse"),), (Item("laptop"),), ("leak",)))] == [
        "patch",
        "patch-masked",
        "boost",
    ]
    mixed = RepairTask((Item("mouse"), Item("cat")), (), ("leak", "neglect"))
    assert [(t.name, t.items) for t in suggested(mixed)] == [("patch", (Item("mouse"),)), ("boost", (Item("cat"),))]
    costs = [r.cost for r in REPAIRS.values() if r.automatic]
    assert costs == sorted(costs)


def test_redundant_tokens_are_dropped_before_dearer_repairs_and_only_where_some_are_known() -> None:
    prune = Prune(Subset.token("hot dog", 0))
    known_one = replace(TASK, redundant=prune)
    assert [t.name for t in trials(known_one)] == ["patch", "prune", "patch-word", "patch-masked", "boost"]
    assert trials(known_one)[1].repair == prune and next(iter(REPAIRS)) == "prune"
    assert known_one.only("leak").redundant is prune and "prune" not in [t.name for t in trials(TASK)]


def test_pruning_as_a_repair_needs_redundant_tokens(sd1, tmp_path: Path) -> None:
    ask = {"with_": "prune", "seeds": [0], "call": SMALL}
    with pytest.raises(BadInput, match="unleak redundancy"):
        repair(sd1, "a hot dog and a cat", "hot dog,cat", **ask)
    prune = Prune(Subset.token("hot dog", 0))
    result = repair(sd1, "a hot dog and a cat", "hot dog,cat", redundant=prune, judge=Scripted([]), **ask)
    assert result.method == "prune" and not np.array_equal(result.before, result.after)
    assert json.loads(json.dumps(result.to_dict()))["settings"]["redundant"]["type"] == "Prune"
    encoder = {"text_encoder": weights_digest(sd1.text_encoder)}
    never = Classifier("linear", 1, 2.0, "text_encoder", encoder, {"weight": np.zeros(33), "bias": np.zeros(1)})
    with pytest.raises(BadInput, match="no token of these items"):  # it calls none redundant
        repair(sd1, "a hot dog and a cat", "hot dog,cat", redundant=never, **ask)
    (tmp_path / "broken").write_bytes(b"{}")
    done = CliRunner().invoke(
        app, ["repair", "a hot dog", "--items", "hot dog", "--redundancy", str(tmp_path / "broken")]
    )
    assert done.exit_code == 2 and "train it again" in " ".join(done.stderr.split())


@pytest.mark.parametrize(("looks", "kept", "tried"), [
    ([seen(0, 4), seen(3, 4)], "patch", 1),
    ([seen(0, 4), seen(1, 4), seen(2, 4)], "patch-word", 2),  # the first did not reach half of the images
    ([seen(0, 4), seen(2, 0), seen(1, 4), seen(0, 4), seen(0, 4)], "patch-word", 4),  # no gain at a loss elsewhere
    ([seen(0, 4)] * 5, None, 4),
    ([seen(0, 4), seen(0, 4), UnleakError("no memory"), seen(1, 4), seen(4, 4)], "boost", 4),
])  # fmt: skip
def test_the_first_repair_that_works_on_held_out_seeds_is_kept(looks: list, kept: str | None, tried: int) -> None:
    answers = iter(looks)

    def look(*_: object) -> np.ndarray:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    found = try_repairs(TASK, ALL, range(4), look)
    assert len(found) == tried and [t.trial.name for t in found if t.kept] == ([kept] if kept else [])
    assert all(str(t) for t in found)


def test_no_image_is_returned_that_scores_worse() -> None:
    images = np.arange(4).reshape(4, 1, 1, 1).repeat(3, -1)
    best = Best(images.copy(), seen(2, 4), ["none"] * 4)
    assert best.incomplete == [2, 3]
    first = np.array([[True, True], [True, False], [False, True], [True, False]])  # same, lost one, same, swapped
    best.consider(range(4), images + 10, first, "patch", ties=True)
    assert best.drawn_by == ["patch", "none", "patch", "none"] and best.incomplete == [2, 3]
    best.consider([2, 3], images[:2] + 20, np.array([[False, True], [True, True]]), "boost")  # as many do not suffice
    assert best.drawn_by == ["patch", "none", "patch", "boost"] and best.incomplete == [2]
    assert best.images[:, 0, 0, 0].tolist() == [10, 1, 12, 21]


def test_what_is_untried_is_neither_kept_nor_impossible_and_nothing_where_none_was_kept() -> None:
    def look(*made: object) -> np.ndarray:
        return seen(1, 4) if made == (trials(TASK)[0].repair,) else seen(3 if made else 0, 4)

    tried = try_repairs(TASK, ALL, range(4), look)
    assert [t.trial.name for t in tried] == ["patch", "patch-word"] and tried[1].kept
    assert [t.name for t in untried(TASK, tried)] == ["patch", "patch-masked", "boost"]
    tried[0].failed = "no memory"
    assert [t.name for t in untried(TASK, tried)] == ["patch-masked", "boost"]
    tried[1].kept = False
    assert untried(TASK, tried) == []


@pytest.mark.parametrize(("last", "by"), [(1, ["patch", "none"]), (2, ["patch", "patch-masked"])])
def test_the_automatic_repair_takes_back_what_it_made_worse_and_lets_the_next_repair_try(sd1, last, by) -> None:
    """The judge: missing in the prompt, there alone; repaired on held-out seeds, but worse on the second seed.

    Where that seed is drawn anew by the next repair, `last` items are there.
    """

    class Judge(Scripted):
        def present(self, images: np.ndarray, items: Sequence[Item]) -> np.ndarray:
            self.asked += 1
            mouse = [item.text == "mouse" for item in items]
            there = np.array([[not m for m in mouse]] * len(images), bool)
            if self.asked in (3, 10, 11) or (self.asked == 12 and last == 2):  # alone; held out; after; drawn anew
                there[:, mouse] = True
            if self.asked == 11:
                there[1] = False
            assert self.asked < 12 or len(images) == 1
            return there

    judge = Judge([])
    result = repair(
        sd1, "a mouse and a laptop", "mouse,laptop", seeds=[0, 1], judge=judge, call=SMALL | {"num_inference_steps": 2}
    )
    mouse, laptop = result.items
    assert result.method == "patch" and mouse.repaired and not laptop.repaired, (judge.asked, result)
    assert result.drawn_by == by and result.undone == ([1] if last == 1 else [])
    assert np.array_equal(result.after[1], result.before[1]) == (last == 1)
    assert mouse.after.tolist() == [True, last == 2] and laptop.after.tolist() == [True, True]
    assert not np.array_equal(result.after[0], result.before[0])
    data = json.loads(json.dumps(result.to_dict()))
    assert data["verdicts"] == ["leak", "ok"] and data["tried"][0]["kept"] and data["undone"] == result.undone
    assert data["by"] == by


# Inside the encoder.


@pytest.mark.parametrize("name", NAMES)
def test_the_last_layer_seen_through_the_lens_is_the_prompt_and_the_first_is_not(name: str) -> None:
    pipe = tiny(name)
    plain = draw(pipe, "a mouse and a laptop", steps=1)
    out = {}
    for depth in (1.0, 0.5, 0.0):
        with unleak.attach(pipe, Lens(depth)):
            out[depth] = draw(pipe, "a mouse and a laptop", steps=1)
    assert torch.equal(out[1.0], plain)
    assert not torch.equal(out[0.0], plain) and not torch.equal(out[0.5], out[0.0])
    assert torch.equal(draw(pipe, "a mouse and a laptop", steps=1), plain)
    with pytest.raises(BadInput, match="from 0"):
        Lens(1.5)


# The embedded model.


@pytest.mark.e2e
@pytest.mark.parametrize("prompt", ["a mouse and a laptop", "a laptop and a mouse"])
def test_the_embedded_models_leak_is_found_in_the_encoder_in_both_orders(prompt: str) -> None:
    call = settings("emoji-sd") | {"num_inference_steps": 8}
    found = diagnose(load("emoji-sd"), prompt, "mouse,laptop", seeds=range(2), judge=glyph_judge(), call=call,
                     senses={"mouse": ["furry mouse", "computer mouse"]}, model="emoji-sd")  # fmt: skip
    mouse, laptop = found.findings
    assert (mouse.verdict, laptop.verdict) == ("leak", "ok") and mouse.instead == ("computer mouse",)
    assert found.leak_sources(0)[0][:2] == ("laptop", "computer mouse")
    assert found.method == "patch" and mouse.after is not None and mouse.after.yes
    assert "unleak.Patch('mouse=furry mouse', others=['laptop'])" in str(found)


# The command line.


def run(*args: str, code: int = 0) -> tuple[str, str]:
    done = CliRunner().invoke(app, ["diagnose", *args])
    assert done.exit_code == code, (done.exception, done.stderr)
    return done.stdout, " ".join(done.stderr.split())


@pytest.mark.parametrize(("args", "says"), [
    (("a quiet sentence",), "no item is named"),
    (("a mouse and a laptop", "--items", "cat"), "as it stands in the prompt"),
    (("a hot dog", "--items", "hot dog,dog"), "overlap"),
    (("a mouse", "--senses", "mouse"), "its other sense"),
    (("a mouse", "--evidence", "some"), "failures, all"),
    (("a mouse", "--html", "x", "--json", "x"), "two files"),
    (("a mouse", "--seeds", "x"), "seeds"),
])  # fmt: skip
def test_bad_use_is_found_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], says: str
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("unleak.models.load", refuse)
    out, err = run(*args, code=2)
    assert not out and says in err and not list(tmp_path.iterdir())


def test_the_command_writes_its_schema_and_says_that_nobody_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny("sd1", tmp_path / "model")
    out, err = run("a [mouse] and a [laptop]", "-m", "model", "--height", "64", "--width", "64", "--steps", "1",
                   "--seeds", "0", "--json", "-", "--html", "p.html", "--lens")  # fmt: skip
    data = json.loads(out)
    assert data["schema"] == "unleak/diagnose/1" and data["prompt"] == "a mouse and a laptop" and data["judge"] is None
    assert [i["verdict"] for i in data["items"]] == [None, None] and "no verdict" in err
    assert [layer["depth"] for layer in data["layers"]] == [0.25, 0.5, 0.75]
    assert all((tmp_path / "out" / name).is_file() for names in data["images"].values() for name in names)
    assert (tmp_path / "p.html").read_text("utf-8").count("The rows at") >= 3
