"""What the words tables claim: units, strict harm, neutral prompts, and baselines at their best."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unleak.bench.rows import Row, mean, paired_difference, share
from unleak.bench.words import repairs
from unleak.stats.intervals import by_unit
from unleak.world import load
from unleak.world.prompts import contexts

FIGURES = {
    "share": lambda x, units: share(x, "m", "all", "s", units),
    "mean": lambda x, units: mean(np.mean(x, -1), "m", "all", "s", (0.0, 1.0), units),
    "paired_difference": lambda x, units: paired_difference(np.zeros_like(x), x, "m", "all", "s", (0.0, 1.0), units),
}


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("hits", [0.0, 1.0, None])
def test_an_interval_has_a_width_and_is_one_over_units(figure: str, hits: float | None) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, (20, 4)) if hits is None else np.full((20, 4), hits)
    alone, together = (FIGURES[figure](x.astype(bool), units) for units in (range(20), [i % 5 for i in range(20)]))
    assert (alone.units, together.units) == (20, 5) and alone.value == together.value
    assert alone.low < alone.high and together.low < together.high
    if hits is not None:  # all alike: fewer units say less
        assert together.high - together.low > alone.high - alone.low


def test_images_of_one_unit_say_no_more_than_one_image() -> None:
    every = np.repeat(np.array([[True], [False]] * 5), 40, 1)
    assert share(every, "m", "all", "s").interval == share(every[:, :1], "m", "all", "s").interval
    unit = share(np.ones((30, 4), bool), "m", "all", "s", ["one"] * 30)
    assert unit.units == 1 and unit.low < 1


def test_a_mean_over_units_stays_the_mean_over_cases() -> None:
    values, units = [0.0, 1.0, 1.0, 1.0, 0.5], ["a", "b", "b", "b", "c"]
    assert mean(values, "m", "all", "s", (0, 1), units).value == np.mean(values)
    assert [list(unit) for unit in by_unit(values, units)] == [[0.0], [1.0, 1.0, 1.0], [0.5]]


@pytest.mark.parametrize(
    "glyphs, expected",
    [
        (["furry", "laptop"], (True, True, True, False, False)),
        (["computer mouse", "laptop"], (False, True, False, False, True)),  # the leak itself is no excess
        (["furry", "laptop", "computer mouse"], (True, True, False, True, True)),  # both senses
        (["furry", "laptop", "laptop"], (True, True, False, True, False)),  # one twice
        (["furry", "laptop", "cat"], (True, True, False, True, False)),  # a foreign one
        (["furry"], (True, False, False, False, False)),
        ([], (False, False, False, False, False)),
    ],
)
def test_harm_is_strict_in_number_and_sense(glyphs: list[str], expected: tuple[bool, ...]) -> None:
    mouse: Any = SimpleNamespace(default="furry", other="computer mouse")
    assert repairs.outcome(glyphs, mouse, ["laptop"]) == expected


def test_an_extra_object_counts_as_strict_harm_and_not_as_lenient() -> None:
    things = (SimpleNamespace(word="mouse", phrase="mouse"), SimpleNamespace(word="laptop", phrase="laptop"))
    case: Any = SimpleNamespace(first=True, polyseme="mouse", things=things)
    leaked, extra = np.array([False, True, False, False]), np.array([True, True, False, True])
    before, after = np.tile(leaked, (3, 2, 1)), np.tile(extra, (3, 2, 1))
    rows = {row.metric: row for row in repairs.rows_of("patch", [case] * 3, before, after, "all")}
    assert rows["leak_removed"].value == 1 and rows["right_strict"].value == 0
    assert rows["harm_other"].value == 0 and rows["harm_strict"].value == 1
    assert rows["leak_rate"].units == 1  # prompts of one pair of words are one unit


def of_split(limit: int | None = None) -> Any:
    return SimpleNamespace(world=load(), split="heldout", limit=limit, notes=[])


def test_every_held_out_context_is_drawn_and_the_note_says_what_was_seen() -> None:
    run = of_split()
    cases, world = repairs.trigger_prompts(run), run.world
    assert len(cases) == len(world.contexts["heldout"]) == len({case.prompt for case in cases})
    assert {(c.polyseme, c.trigger) for c in cases} == {context[:2] for context in world.contexts["heldout"]}
    assert "88 of the 88 contexts" in run.notes[0] and "22 pairs" in run.notes[0] and "showed 22" in run.notes[0]
    assert repairs.trigger_prompts(of_split(5)) == cases[:5] == contexts(world, "heldout", 5)


def test_a_lone_object_is_no_neutral_prompt() -> None:
    cases = repairs.neutral_prompts(of_split())
    assert len(cases) == repairs.NEUTRAL and all(len(case.things) == 2 for case in cases)


def test_published_baselines_run_at_their_strong_setting_and_repair_beside_drawing_again() -> None:
    assert {"cutoff:strong", repairs.REROLL} <= set(repairs.DEFAULT)
    assert repairs.METHODS["cutoff:strong"].parameters == {"weight": 1.0, "strong": True}


def test_drawing_again_keeps_the_first_picture_that_shows_every_item(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[int]] = []

    def generate(pipe: Any, text: str, seeds: list[int], **call: Any) -> Any:
        drawn.append(list(seeds))
        return np.arange(len(seeds))[None]

    judge: Any = SimpleNamespace(present=lambda images, items: np.array([[i >= 2, True] for i in images]))
    monkeypatch.setattr(repairs, "generate", generate)
    kept = repairs._rerolled(None, ["a mouse and a laptop"], ["mouse", "laptop"], [0, 1], 4, {}, None, judge)
    assert kept[0].tolist() == [2, 2] and [seeds[0] for seeds in drawn] == [0, 1]
    assert len({seed for seeds in drawn for seed in seeds}) == 8  # no noise is drawn twice


def test_a_table_prints_the_number_of_units() -> None:
    from unleak.bench.results import Results

    table = Results("words", "m", [0], "heldout", {}, [Row("none", "all", "leak_rate", 1.0, 0.9, 1.0, 88, 22)]).table()
    assert table.splitlines()[0].endswith("| n | units |") and table.splitlines()[2].endswith("| 88 | 22 |")
