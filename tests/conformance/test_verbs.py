"""Every verb works on a family, or refuses with a typed error; `docs/conformance.md` claims no more than that."""

import json
from dataclasses import asdict

import pytest

from conformance import FAMILIES, Family
from conformance.__main__ import PAGE, UNTOUCHED, kept, outcomes, page
from unleak.drawing.doctor import Outcome
from unleak.report.verbs import VERBS

CORE = {"sd3.5", "pixart-sigma"}
"""One family of each way in which text reaches a picture; the others carry a marker."""


def claimed() -> dict[tuple[str, str], str]:
    """(family, verb) -> cell, as the page has it."""
    cells, head = {}, [""]
    for line in PAGE.read_text().splitlines():
        row = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else [""]
        if row[0] == "" and len(row) > 1:
            head = row
        elif len(row) == len(head) and set(row) != {"---"}:
            cells.update({(row[0], verb): cell for verb, cell in zip(head[1:], row[1:], strict=True)})
    return cells


def test_the_page_names_no_other_families_and_verbs():
    verbs = [*(verb.name for verb in VERBS), UNTOUCHED]
    assert {verb for _, verb in claimed()} == set(verbs)
    assert CORE <= {name for name, _ in claimed()} <= {family.name for family in FAMILIES}


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, id=f.name, marks=[] if f.name in CORE else pytest.mark.conformance) for f in FAMILIES],
)
def test_a_family_has_no_fault_and_keeps_what_the_page_claims(family):
    found = {one.verb: one for one in outcomes(family)}
    assert not [(one.verb, one.reason) for one in found.values() if one.state == "fault"]
    lost = [(verb, found[verb].reason) for (name, verb), cell in claimed().items()
            if name == family.name and cell == "yes" and found[verb].state != "yes"]  # fmt: skip
    assert not lost


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
