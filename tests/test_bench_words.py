"""The parts of `unleak bench words`: labels that are true by construction, figures by hand, what is reused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import unleak
from tiny import draw, tiny
from unleak.bench.results import Results
from unleak.bench.rows import balanced_accuracy
from unleak.bench.run import Run
from unleak.bench.words import flow, repairs, tokens, verdicts, words
from unleak.core.anatomy import Anatomy
from unleak.errors import BadInput, UnsupportedModel
from unleak.files import provenance
from unleak.judges.glyphs import glyph_judge
from unleak.text.items import Item
from unleak.words.diagnosis.neglect import VERDICTS
from unleak.words.methods.cutoff import Cutoff
from unleak.words.methods.patch import Patch
from unleak.words.presets import REPAIRS
from unleak.world import load as load_world

WORLD = load_world()
SMALL = {"height": 64, "width": 64, "num_inference_steps": 2}


@pytest.fixture
def run(sd1: Any, tmp_path: Path) -> Run:
    return Run(sd1, tmp_path, "tiny", "dev", [0], 3, SMALL)


def test_a_method_belongs_to_one_part_and_every_part_says_what_it_does_unasked() -> None:
    names = [name for part in words.PARTS for name in part.METHODS]
    assert len(names) == len(set(names))
    assert all(set(part.DEFAULT) <= set(part.METHODS) for part in words.PARTS)
    words.check("heldout", names)
    with pytest.raises(BadInput, match="Choose from"):
        words.check("heldout", ["magic"])


def test_only_the_chosen_parts_run_and_notes_are_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, list[str]] = {}

    def part(name: str) -> Callable[..., list[Any]]:
        def rows(one: Run, methods: list[str]) -> list[Any]:
            asked[name] = methods
            one.notes.append(f"{name}: nothing to say")
            return []

        return rows

    for module in words.PARTS:
        monkeypatch.setattr(module, "rows", part(module.__name__))
    monkeypatch.setattr(words, "reconstructed", lambda *_: {"judge_reconstruction": 1.0})
    results = words.run(run.pipe, run.out, split="dev", methods=["flow", "patch"])
    assert asked == {"unleak.bench.words.repairs": ["patch"], "unleak.bench.words.flow": ["flow"]}
    assert results.to_dict()["notes"] == results.notes and len(results.notes) == 2
    assert "nothing to say" in (run.out / "results.md").read_text()


def test_a_part_is_reused_for_the_same_settings_only(run: Run) -> None:
    assert run.part("x", ["a"], lambda: 1) == 1 and run.part("x", ["a"], lambda: 2) == 1
    assert replace(run, seeds=[1]).part("x", ["a"], lambda: 3) == 3


def test_every_preset_is_a_row_with_and_without_the_name_of_the_sense() -> None:
    acting = [name for name, preset in REPAIRS.items() if repairs.acts(preset)]
    assert set(REPAIRS) - set(acting) == {"prune"}  # nothing is known to be redundant there
    for name in acting:
        assert repairs.METHODS[name].preset == name and not repairs.METHODS[name].sense
        assert repairs.METHODS[f"{name}+sense"].sense and name in repairs.DEFAULT
    assert set(repairs.DEFAULT) <= set(repairs.METHODS)


def test_a_part_of_a_changed_method_is_computed_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run.part("x", [], lambda: 1, [Patch]) == run.part("x", [], lambda: 2, [Patch]) == 1
    assert run.part("y", [], lambda: 4, [Cutoff]) == 4
    original = provenance._source
    changed = lambda name: original(name) + "#" * name.endswith("words.methods.patch")  # noqa: E731
    monkeypatch.setattr(provenance, "_source", changed)
    assert run.part("x", [], lambda: 3, [Patch]) == 3
    assert run.part("y", [], lambda: 5, [Cutoff]) == 4


def test_a_damaged_part_is_computed_again_and_said(run: Run) -> None:
    run.part("x", ["a"], lambda: 1)
    for damage in ("", '{"inputs": "', "[]"):
        (run.out / "parts" / "x.json").write_text(damage)
        assert run.part("x", ["a"], lambda: 2) == 2
    assert len(run.notes) == 3 and "x.json was damaged" in run.notes[0]


@pytest.mark.parametrize("method", ["none", "rewrite", "patch", "structure", "tebopt+sense", "cutoff", "boost"])
def test_every_method_draws_and_its_rows_are_counted(run: Run, method: str) -> None:
    found = {row.metric: row for row in repairs.costs(replace(run, limit=1), method, run.cases("trigger", 1))}
    assert found["denoiser_rows"].value == 2 * 2  # steps, with and without the prompt
    extra = found["encoder_rows"].value - 2
    assert extra == 0 if method in ("none", "rewrite", "boost") else extra > 0
    assert not any(module._forward_hooks for module in run.pipe.unet.modules())


def test_the_automatic_repair_counts_its_trials(run: Run) -> None:
    found = {row.metric: row.value for row in repairs.costs(run, "auto", run.cases("trigger", 1))}
    assert found["denoiser_rows"] > 2 * 2 * 4 and found["encoder_rows"] > 2 * 4


def test_a_method_that_cannot_act_on_the_model_is_noted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise UnsupportedModel("not in joint attention")

    def outcomes(pipe: Any, cases: Any, seeds: Any, *_: Any, **__: Any) -> np.ndarray:
        return np.ones((len(cases), len(seeds), len(repairs.OUTCOMES)), bool)

    monkeypatch.setattr(repairs, "outcomes", outcomes)
    real = repairs.costs
    monkeypatch.setattr(repairs, "costs", lambda r, m, *c: refuse() if m == "structure" else real(r, m, *c))
    found = repairs.rows(run, ["structure", "patch"])
    assert {row.method for row in found} == {"none", "patch"} and any("joint attention" in note for note in run.notes)


# -- tokens ------------------------------------------------------------------------------------------------


def test_shares_of_tokens_are_means_over_items_and_leave_out_what_the_judge_imagines() -> None:
    labels: list[Any] = [
        [[True, False]],  # "hot dog": the last token carries it
        [[False, False], "single_token"],
        ["not_drawn"],
        ["seen_in_nothing"],
    ]
    kinds = ["expression", "expression", "colour", "colour"]
    found = {(r.subset, r.metric): r for r in tokens.representative(labels, kinds)}
    assert found["all", "seen_in_nothing"].value == 1 / 4
    assert found["all/items", "representative_share"].value == 2 / 3
    assert found["all/tokens", "representative_share"].value == pytest.approx((0.5 + 1 + 0) / 3)
    assert found["all/tokens", "redundant_share"].value == pytest.approx((0.5 + 0) / 2)
    assert found["expression/items", "representative_share"].value == 1.0
    assert ("colour/tokens", "redundant_share") not in found


def test_pruning_counts_prompts_and_pairs_images() -> None:
    yes, no, half = [True] * 4, [False] * 4, [True, True, False, False]
    images = np.array([[yes, yes], [no, half], [no, yes], [yes, no]])
    found = {r.metric: r for r in tokens.pruning(images)}
    assert found["prune_accuracy_before"].value == 0.5 and found["prune_accuracy_after"].value == 0.75
    assert found["prune_unaffected"].value == 0.5 and found["prune_improved"].value == 1.0
    assert found["prune_gain"].value == pytest.approx((0 + 0.5 + 1 - 1) / 4)
    assert found["prune_mcnemar_p"].value == 1.0 and found["prune_mcnemar_p"].n == 3


def test_pruning_that_lost_an_item_on_other_seeds_is_not_among_the_verified(monkeypatch, tmp_path) -> None:
    """What is measured on the seeds of the trial decides; the rates are of the others."""
    lost = {"a": ([1, 1, 1, 1], [1, 1, 1, 0]), "b": ([0, 1, 1, 1], [1, 1, 1, 1]), "c": ([1, 1, 1, 1], [1, 1, 1, 1])}
    drawn = {(name, 0): trial for name, trial in lost.items()} | {
        (name, 4): ([1, 1, 1, 1], [1, 1, 0, 0]) for name in lost
    }

    def images(self: Any, prompt: str, *interventions: Any) -> list[int]:
        return drawn[prompt, self.seeds[0]][bool(interventions)]

    monkeypatch.setattr(tokens.Drawing, "images", images)
    judge: Any = SimpleNamespace(present=lambda images, items: np.array(images, bool)[:, None])
    run = Run(SimpleNamespace(), tmp_path, "toy", "dev", [0], None, {})
    monkeypatch.setattr(Run, "weights", "none")
    item = Item("ice cream")
    planned: Any = [SimpleNamespace(prompt=name, encoder="text_encoder", named=[item]) for name in lost]
    found = tokens.pruned(run, planned, [[[True, False]]] * 3, [0, 1, 2, 3], [4, 5, 6, 7], judge)
    n = {(r.subset, r.metric): r.n for r in found}
    assert n["redundant", "prune_gain"] == 3 and n["verified", "prune_gain"] == 2
    assert {r.value for r in found if r.metric == "prune_gain"} == {-0.5}


def test_figures_of_a_classifier_have_their_own_sample_sizes() -> None:
    made: Any = SimpleNamespace(report={"precision": 0.9, "recall": 0.6, "base_rate": 0.5, "called": 10, "tokens": 30})
    found = {r.metric: r for r in tokens.learnt("knn", made)}
    assert found["classifier_precision"].value == 0.9 and found["classifier_precision"].n == 10
    assert found["classifier_recall"].value == 9 / 15 and found["classifier_base_rate"].n == 30
    made.report |= {"precision": None, "recall": 0.0, "called": 0}
    assert "classifier_precision" not in {r.metric for r in tokens.learnt("knn", made)}


# -- diagnosis ---------------------------------------------------------------------------------------------


def test_the_labelled_set_has_four_labels_and_the_item_in_question_first(run: Run) -> None:
    cases = verdicts.labelled(replace(run, limit=None, split="heldout"))
    counts = {label: sum(c.label == label for c in cases) for label in VERDICTS}
    assert sum(counts.values()) >= 200 and min(counts.values()) >= 40
    for case in cases:
        word = case.items[0].text
        assert word in case.prompt and len(case.items) == 2
        assert (word in WORLD.polysemes) == (case.label in ("ok", "leak"))
        assert (word in verdicts.INVENTED) == (case.label == "unknown") == (case.intended is not None)
    assert not set(verdicts.INVENTED) & set(WORLD.words)


def test_an_invented_word_is_looked_for_as_the_object_that_it_is_meant_to_be() -> None:
    judge = verdicts.Glossary(glyph_judge(), {"blicket": "cat"})
    assert judge.senses([Item("blicket"), Item("mouse"), Item("boat")]) == ["cat", "furry mouse", "boat"]
    with pytest.raises(BadInput, match="blicket"):
        glyph_judge().senses([Item("blicket")])


@pytest.mark.parametrize(
    ("label", "whole", "alone", "kept"),
    [("ok", True, True, True), ("ok", False, True, False), ("leak", False, True, True), ("leak", True, True, False),
     ("leak", False, False, False), ("unknown", False, False, True), ("unknown", False, True, False),
     ("neglect", False, True, True), ("neglect", True, True, False), ("neglect", False, False, False)],
)  # fmt: skip
def test_a_label_is_kept_only_where_other_images_confirm_it(label: str, whole: bool, alone: bool, kept: bool) -> None:
    case = verdicts.Labelled(label, "a cat and a boat", (Item("cat"), Item("boat")), {})
    assert verdicts.confirmed(case, whole, lambda prompt: alone) == kept


def test_the_matrix_and_its_balance() -> None:
    said = {"ok": ["ok", "ok"], "leak": ["leak", "ok"], "unknown": ["unknown"] * 4, "neglect": ["leak", "neglect"]}
    found = {(r.subset, r.metric): r for r in verdicts.figures(said)}
    assert found["all", "diagnosis_balanced_accuracy"].value == pytest.approx((1 + 0.5 + 1 + 0.5) / 4)
    assert found["all", "diagnosis_balanced_accuracy"].n == 10
    assert found["neglect/leak", "diagnosis_share"].value == 0.5 and found["ok/leak", "diagnosis_share"].value == 0
    del said["neglect"]  # a balance over three labels is another figure
    assert "diagnosis_balanced_accuracy" not in {r.metric for r in verdicts.figures(said)}


def test_balance_does_not_depend_on_how_many_cases_a_class_has() -> None:
    few, many = np.array([True, False] * 2), np.array([True] * 200)
    r = balanced_accuracy([few, many], "m", "s", "x")
    assert r.value == 0.75 and r.low < 0.75 < r.high and r.n == 204


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3", "flux"])
def test_a_denoiser_passes_an_item_over_only_in_the_whole_prompt(name: str) -> None:
    pipe, call = tiny(name), {"max_sequence_length": 32} if name in ("sd3", "flux") else {}
    whole, part = "a mouse and a laptop", "a laptop"
    plain = {text: draw(pipe, text, steps=1) for text in (whole, part, "a mouse")}
    with verdicts.hide_item(pipe, whole, part, **call):
        hindered = {text: draw(pipe, text, steps=1) for text in plain}
        with unleak.attach(pipe, unleak.Patch("laptop", eos_pads="keep")):
            patched = draw(pipe, whole, steps=1)
    assert not torch.allclose(hindered[whole], plain[whole])
    assert torch.equal(hindered["a mouse"], plain["a mouse"]) and torch.equal(hindered[part], plain[part])
    assert not torch.allclose(patched, hindered[whole])
    assert torch.equal(draw(pipe, whole, steps=1), plain[whole])  # and is itself again
    assert "forward" not in vars(Anatomy.of(pipe).denoiser)


def test_flow_tells_pairs_apart_and_is_read_from_the_saved_part(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"pair": ["none", "none"], "neutral": ["none", "disambiguation"], "trigger": ["leak", "none"]}

    class Seen:
        def __init__(self, kinds: list[str]) -> None:
            self.kinds, self.changes = kinds, {(0, 1): (), (1, 0): ()}

        def kind(self, i: int, j: int) -> str:
            return self.kinds[i]

    monkeypatch.setattr(flow, "flow_of", lambda run, case: Seen(said[case.kind]))
    rows = flow.rows(run, ["flow"])
    found = {(r.subset, r.metric): r.value for r in rows}
    assert found["pair", "pairs_isolated"] == 1 and found["trigger", "pairs_isolated"] == 0
    assert found["trigger", "pairs_leaking"] == 1 and found["pair", "pairs_leaking"] == 0
    assert found.get(("neutral", "pairs_isolated"), 0) == 0
    monkeypatch.setattr(flow, "flow_of", lambda run, case: pytest.fail("it measured again"))
    assert flow.rows(run, ["flow"]) == rows


def test_results_without_notes_say_so() -> None:
    assert Results("words", "m", [0], "dev", {}).to_dict()["notes"] == []
