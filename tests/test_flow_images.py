"""Flow between the images of items: exact zeros where an encoder cannot look (TF-7), and what a change means."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tiny import NAMES, tiny
from unleak.errors import BadInput
from unleak.report import diagnosis as report
from unleak.report.flow import image_heat_map
from unleak.stats.rate import Rate
from unleak.text.items import Item
from unleak.words.diagnosis.diagnose import diagnose
from unleak.words.diagnosis.flow_images import ImageChange, image_flow

SMALL = {"height": 64, "width": 64, "num_inference_steps": 1}


@pytest.mark.parametrize("name", NAMES)
def test_own_rows_draw_the_same_without_what_they_cannot_see(name: str) -> None:
    pipe, call = tiny(name), SMALL | ({"max_sequence_length": 32} if name in ("sd3", "flux") else {})
    found = image_flow(pipe, "a mouse and a laptop", "mouse,laptop", seeds=[0], rows="own", call=call)
    both_ways = name in ("sd3", "flux")  # T5 reads what follows
    assert (found.changes[0, 1].distance > 0) == both_ways and found.changes[1, 0].distance > 0
    assert all(change.kind is None for change in found.changes.values())


def test_in_a_causal_encoder_all_that_has_read_the_other_item_changes(sd1) -> None:
    found = image_flow(sd1, "a mouse and a mouse", "mouse#1,mouse#2", seeds=[0], call=SMALL)
    assert found.changes[0, 1].distance > 0 and found.changes[1, 0].distance > 0
    assert image_heat_map(found).startswith(b"\x89PNG")


@pytest.mark.parametrize(("beside", "without", "kind", "appears"), [
    ((0, 4), (4, 0), "leak", ["computer mouse"]), ((4, 4), (4, 0), "leak", ["computer mouse"]),
    ((0, 0), (4, 0), "leak", []), ((4, 0), (0, 0), "disambiguation", []),
    ((4, 0), (4, 0), "none", []), ((4, 4), (4, 4), "none", []),
])  # fmt: skip
def test_a_change_is_a_leak_or_a_disambiguation(
    beside: tuple[int, int], without: tuple[int, int], kind: str, appears: list[str]
) -> None:
    names = ("furry mouse", "computer mouse")
    rates = [{name: Rate(k, 4) for name, k in zip(names, counts, strict=True)} for counts in (beside, without)]
    change = ImageChange(0.1, *rates)
    assert change.kind == kind and change.appears == appears


def test_it_stands_on_the_page_and_an_item_that_nobody_can_read_is_not_guessed(sd1, tmp_path: Path) -> None:
    class Judge:
        name = "half blind"

        def senses(self, items: Sequence[Item]) -> list[str]:
            if any(item.text == "laptop" for item in items):
                raise BadInput("cannot read 'laptop'")
            return [item.sense or item.text for item in items]

        def present(self, images: np.ndarray, items: Sequence[Item]) -> np.ndarray:
            return np.ones((len(images), len(items)), bool)

    items = "mouse,laptop,cat"
    found = diagnose(sd1, "a mouse, a laptop and a cat", items, seeds=[0], judge=Judge(), flow_images=True, call=SMALL)
    assert found.image_flow is not None
    kinds = {pair: change.kind for pair, change in found.image_flow.changes.items()}
    assert {pair for pair, kind in kinds.items() if kind is None} == {(0, 1), (1, 0), (1, 2), (2, 1)}
    html = report.page(found)
    found.save(tmp_path)
    assert "Who changes whose image" in html and (tmp_path / "flow-images.png").is_file()
    assert len(json.loads(json.dumps(found.to_dict()))["image_flow"]["pairs"]) == 6
