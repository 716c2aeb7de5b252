"""Scans in stages: what passes the cheap look is scanned as one scan of all does, and nothing else is."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from toy_worker import Toy
from unleak.copies.scan.cascade import cascade, first_file, first_look, highest, normal
from unleak.copies.scan.scan_file import scan_by
from unleak.errors import BadInput
from unleak.files.jsonl import rejects_of
from unleak.files.workers import Here


def scanned(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


def stages(folder: Path, share: float, name: str = "scan.jsonl") -> Any:
    toy = Here(Toy(str(folder)))
    return cascade(lambda: nullcontext(toy), lambda: nullcontext(toy), folder / "p.txt", folder / name, share)


def test_the_highest_share_is_scanned_as_by_one_scan(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("".join(f"a cat {i}\n" for i in range(100)) + "A CAT, 7!\n")
    found = stages(tmp_path, 0.1)
    scan_by(Here(Toy(str(tmp_path))), tmp_path / "p.txt", tmp_path / "all.jsonl")
    every = scanned(tmp_path / "all.jsonl")
    assert scanned(tmp_path / "scan.jsonl") == [r for r in every[:100] if r["score"] >= found.cut]
    assert found.looked_at == 100 and found.passed == len(scanned(tmp_path / "scan.jsonl")) >= 10
    head = json.loads((tmp_path / "scan.jsonl").read_text().splitlines()[0])
    assert head["cascade"] == {"share": 0.1, "cut": found.cut, "looked_at": 100}
    assert "but for case" in rejects_of(first_file(tmp_path / "scan.jsonl")).read_text()
    before = (tmp_path / "scan.jsonl").read_bytes()
    (tmp_path / "scan.jsonl").write_bytes(before[:-50])
    assert stages(tmp_path, 0.1).scan.measured < 10 and (tmp_path / "scan.jsonl").read_bytes() == before
    with pytest.raises(BadInput, match="another cascade"):
        stages(tmp_path, 0.2)


def test_a_million_identical_prompts_are_one(tmp_path: Path) -> None:
    """A tenth of them here: the rest only takes longer."""
    (tmp_path / "p.txt").write_text("a cat\n" * 100_000)
    found = stages(tmp_path, 0.5)
    assert (found.looked_at, found.passed, found.scan.prompts) == (1, 1, 1)


def test_nothing_to_look_at_gives_an_empty_scan(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n")
    assert stages(tmp_path, 0.5).scan.prompts == 0
    for share in (0.0, 1.0):
        with pytest.raises(BadInput, match="above 0 and below 1"):
            stages(tmp_path, share, "other.jsonl")


@pytest.mark.parametrize(("one", "two", "same"), [
    ("A red  cat!", "a red, CAT", True), ("a ﬁne cat", "a fine cat", True), ("a red cat", "a red cats", False),
    ("猫", "犬", False), ("!!", "??", False),
])  # fmt: skip
def test_nearly_equal_prompts_differ_in_case_spaces_and_punctuation_alone(one: str, two: str, same: bool) -> None:
    assert (normal(one) == normal(two)) is same


def test_the_cheap_look_is_a_half_or_an_eighth() -> None:
    call = {"guidance_scale": 3.0, "height": 512}
    assert first_look(range(4), call) == {"seeds": [0, 1], "call": call}
    look = first_look(range(4), call, halved=(512, 760))
    assert look == {"seeds": [0, 1], "call": {"guidance_scale": 3.0, "height": 256, "width": 384}}


def test_ties_pass_together(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    scan_by(Here(Toy(str(tmp_path))), tmp_path / "p.txt", tmp_path / "o.jsonl")
    assert highest(tmp_path / "o.jsonl", 0.01)[1] == 1
