"""The table of repairs: every line acts by its name, and the automatic repair knows only those that say so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tiny import draw, tiny
from unleak import Intervention, Prune, Subset
from unleak.core.presets import Presets
from unleak.engine.session import attach
from unleak.errors import BadInput
from unleak.text.items import Item
from unleak.words import presets
from unleak.words.methods.on_items import OnItems
from unleak.words.methods.patch import Patch
from unleak.words.presets import REPAIRS, Repair, RepairTask, broken_words, trials
from unleak.words.repair.automatic import held_out_seeds
from unleak.words.repair.repair import plan, repair

PROMPT, ITEMS = "a mouse and a laptop", "mouse,laptop"
TASK = RepairTask((Item("mouse", sense="furry mouse"),), (Item("laptop"),), ("leak",))
SMALL: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 2}


@pytest.mark.parametrize("name", REPAIRS)
def test_every_repair_acts_by_its_name_and_its_parameters_are_those_of_its_line(name: str) -> None:
    task = RepairTask(TASK.broken, TASK.others, (None,), Prune(Subset.token("mouse", 0) | Subset.token("laptop", 0)))
    built = REPAIRS[name].build(task)
    assert isinstance(built, REPAIRS[name].method) and Intervention.from_dict(built.to_dict()) == built
    for parameter in REPAIRS[name].parameters:
        assert getattr(built, parameter.name) == parameter.default, parameter
    with pytest.raises(BadInput, match="'no_such'"):
        REPAIRS[name].build(task, {"no_such": 1})
    with pytest.raises(BadInput, match="'no_such'"):
        plan(PROMPT, ITEMS, with_=name, redundant=task.redundant, no_such=1)


def test_a_repair_takes_the_items_as_its_method_can() -> None:
    def items(name: str) -> tuple[str, ...]:
        return REPAIRS[name].build(TASK).items  # type: ignore[union-attr]

    assert items("patch") == ("mouse=furry mouse",) and items("patch-word") == items("boost") == ("mouse",)
    assert items("structure") == items("tebopt") == ("mouse=furry mouse", "laptop")
    assert items("cutoff") == items("deleaker") == ("mouse", "laptop")
    assert REPAIRS["prune"].build(TASK) is None


@pytest.mark.parametrize("name", ["structure", "cutoff", "tebopt"])
def test_published_baselines_repair_what_is_named(sd1: Any, name: str) -> None:
    result = repair(sd1, PROMPT, ITEMS, with_=name, seeds=[0], only="mouse", call=SMALL)
    assert result.method == name and not np.array_equal(result.before, result.after)
    with attach(sd1, REPAIRS[name].build(RepairTask((Item("mouse"),), (Item("laptop"),), (None,)))):
        assert np.array_equal(sd1_image(sd1), result.after)


def sd1_image(pipe: Any) -> np.ndarray:
    from unleak.drawing.generate import generate

    return generate(pipe, PROMPT, [0], **SMALL)[0]


def test_parameters_reach_the_method_and_bad_ones_are_refused_before_anything_is_drawn(sd1: Any) -> None:
    result = repair(sd1, PROMPT, ITEMS, with_="tebopt", seeds=[0], only="mouse", call=SMALL, steps=0)
    assert np.array_equal(result.before, result.after) and result.settings["steps"] == 0
    with pytest.raises(BadInput, match="Cutoff blanks items out"):
        plan(PROMPT, "mouse", with_="cutoff")
    with pytest.raises(BadInput, match="weight"):
        plan(PROMPT, ITEMS, with_="cutoff", weight=2.0)
    with pytest.raises(BadInput, match="did you mean 'isolation'"):
        plan(PROMPT, ITEMS, isolaton="bare")  # "auto" takes the parameters of Patch


def test_a_new_line_is_not_automatic_unless_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Toy(OnItems):
        strength: float = 1.0

    before = [t.name for t in trials(TASK)]
    for automatic in (False, True):
        toy = Repair("toy", Toy, "Does nothing.", "-", arguments=broken_words, automatic=automatic, cost=9.0)
        monkeypatch.setattr(presets, "REPAIRS", Presets("repair", [*REPAIRS.values(), toy]))
        assert [t.name for t in trials(TASK)] == [*before, *["toy"] * automatic]
    assert presets.REPAIRS["toy"].build(TASK, {"strength": 2.0}) == Toy("mouse", strength=2.0)


def test_deleaker_is_a_repair_of_joint_attention() -> None:
    pipe = tiny("flux")
    plain = draw(pipe, PROMPT, steps=2)
    for name in ("deleaker", "deleaker-official"):
        with attach(pipe, REPAIRS[name].build(TASK, {"std_threshold": 0.0})):
            assert not np.array_equal(draw(pipe, PROMPT, steps=2), plain)


def test_a_carrier_that_is_no_subset_is_refused() -> None:
    with pytest.raises(BadInput, match="carriers"):
        Patch("mouse", unequal="representative", carriers="mouse")  # type: ignore[arg-type]


@pytest.mark.parametrize("seeds", [[0], [0, 1, 2, 3], [7, 3], [1, 0, 5], list(range(20))])
def test_a_repair_is_verified_on_other_seeds_than_the_users(seeds: list[int]) -> None:
    others = held_out_seeds(seeds)
    assert len(set(others)) == len(seeds) and not set(others) & set(seeds)
