"""The page of `python -m conformance`."""

import json
from dataclasses import asdict

import pytest

from conformance import Family
from conformance.__main__ import kept, page
from unleak.drawing.doctor import Outcome
from unleak.report.verbs import VERBS


def test_outcomes_are_kept_and_the_page_tells_them_apart(tmp_path):
    family = Family("none", lambda: pytest.fail("kept outcomes are read, not found again"))
    long = "this needs classifier-free guidance, and the pipeline runs without: call it with more"
    some = [Outcome(verb.name, verb.room, "yes") for verb in VERBS[:-2]]
    some += [Outcome(VERBS[-2].name, "copies", "no", long), Outcome(VERBS[-1].name, "copies", "fault", "KeyError: 3")]
    (tmp_path / "none.json").write_text(json.dumps([asdict(one) for one in some]))
    text = page({"none": kept(family, tmp_path)})
    assert "| 1 | **fault** 2 |" in text and "2. KeyError: 3." in text
    assert "1. this needs classifier-free guidance, and the pipeline runs without." in text
    assert f"{len(VERBS) - 2} times yes, 1 refused, 1 faults" in text
