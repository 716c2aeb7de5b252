"""`unleak bench copies`: who copies is found before it is drawn, and at what cost; what stops it, and what that breaks.

Each part of the suite is a module of its own with its methods and its rows: `detection` (detectors), `mitigation`, and
`audit` (do the weights still hold the picture?).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from unleak.bench.copies import audit, detection, mitigation
from unleak.bench.results import Results
from unleak.bench.run import Run, measured, refuse_unknown
from unleak.judges.copies import scene_judge

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from unleak.bench.run import Asked

#: each has METHODS, all that it can measure; DEFAULT, what it measures unasked; and ``rows(run, methods)``
PARTS: tuple[ModuleType, ...] = (detection, mitigation, audit)


def check(split: str, methods: Sequence[str] | None) -> None:
    """Refuse a split or a method that does not exist. Raises BadInput."""
    refuse_unknown("copies", [name for part in PARTS for name in part.METHODS], split, methods)


def run(
    pipe: Any, out: Path, *, model: str = "emoji-sd", methods: Sequence[str] | None = None, **asked: Unpack[Asked]
) -> Results:
    """Measure the chosen methods (default: those of every part that are meant for it); finished parts are reused."""
    one = Run.of(pipe, out, model, **asked)
    check(one.split, methods)
    judge = scene_judge()
    about = {"name": judge.name, "threshold": judge.threshold}
    results = Results("copies", model, one.seeds, one.split, about, notes=one.notes)
    results.rows += measured(one, PARTS, methods)
    results.save(out)
    return results
