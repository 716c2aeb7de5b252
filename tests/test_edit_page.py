"""The page of an edit: how much changed, on a scale that is the same for every edit, and what to try next."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from unleak.regions.edited import Check, Edited
from unleak.regions.plan import Edit, plan
from unleak.report import edit as report


def edited(change: int = 0, checks: list[Check] | None = None, **other: Any) -> Edited:
    """A grey photo whose right half has changed by so many levels; the mask is the left half."""
    before, masks = np.full((16, 16, 3), 100, np.uint8), torch.zeros(1, 16, 16, dtype=torch.bool)
    masks[:, :, :8] = True
    after = before.copy()
    after[:, 8:] += np.uint8(change)
    edits = (Edit("a banana", "a cat"),)
    settings = {"overlap": "smallest", "dilation": 0.0, "target_guidance": 2.0}
    return Edited(
        after, before, before, edits, plan(edits), masks, (True,), "ale", settings, 0,
        judge="a judge", checks=checks, **other,
    )  # fmt: skip


def redness(r: Edited) -> float:
    """How much redder the changed half of the heat map is than the half that may change."""
    heat = report.leak_map(r).astype(int)
    return float((heat[0, 12, 0] - heat[0, 12, 1]) / (report.HOT[0] - report.HOT[1]))


def test_the_heat_map_has_an_absolute_scale() -> None:
    assert redness(edited(0)) == 0
    assert [redness(edited(levels)) for levels in (8, 16, 32)] == pytest.approx([0.25, 0.5, 1.0], abs=0.01)
    assert redness(edited(64)) == redness(edited(32)) == 1
    assert redness(edited(2)) < 0.1, "42 dB looks like the small change that it is"


def test_the_scale_is_on_the_page_in_numbers() -> None:
    page = report.page(edited(2))
    for tick in report.legend():
        assert f"{tick['levels']}<br><small>{tick['psnr']}" in page
    assert [tick["levels"] for tick in report.legend()] == ["0", "8", "16", "32 and more"]
    assert [tick["psnr"] for tick in report.legend()] == ["no change", "30 dB", "24 dB", "18 dB"]


FAILED = Check(source_before=True, source_after=False, target_after=False)
DONE = Check(source_before=True, source_after=False, target_after=True)


@pytest.mark.parametrize("check", [FAILED, replace(DONE, source_after=True)])
def test_an_edit_that_failed_says_what_to_try_next(check: Check) -> None:
    r = edited(checks=[check])
    steps = r.next_steps()
    page = report.page(r)
    assert "What to try next" in page and "--seed 1" in page and "--guidance 4" in page
    assert all(f"try: {step}" in str(r) for step in steps)
    assert any("mask" in step for step in steps)


def test_an_edit_that_is_there_or_that_nobody_judged_has_no_next_step() -> None:
    for checks in ([DONE], None):
        r = edited(checks=checks)
        assert not r.next_steps() and "What to try next" not in report.page(r) and "try:" not in str(r)
