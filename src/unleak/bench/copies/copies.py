"""`unleak bench copies`: who copies is found before it is drawn, and at what cost; what stops it, and what that breaks.

Each part of the suite is a module of its own with its methods and its rows: `detection` (detectors), `mitigation`, and
`audit` (do the weights still hold the picture?).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from unleak.bench.copies import audit, detection, mitigation
from unleak.bench.results import Results
from unleak.bench.run import Run, measured, refuse_unknown
from unleak.judges.copies import scene_judge

#: each has METHODS, all that it can measure; DEFAULT, what it measures unasked; and ``rows(run, methods)``
PARTS: tuple[ModuleType, ...] = (detection, mitigation, audit)


def check(split: str, methods: Sequence[str] | None) -> None:
    """Refuse a split or a method that does not exist. Raises BadInput."""
    refuse_unknown("copies", [name for part in PARTS for name in part.METHODS], split, methods)


def run(
    pipe: Any,
    out: Path,
    *,
    model: str = "emoji-sd",
    split: str = "heldout",
    seeds: Sequence[int] = range(4),
    limit: int | None = None,
    methods: Sequence[str] | None = None,
    call: dict[str, Any] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Results:
    """Measure the chosen methods (default: those of every part that are meant for it); finished parts are reused."""
    check(split, methods)
    judge = scene_judge()
    one = Run(pipe, out, model, split, list(seeds), limit, dict(call or {}), progress)
    about = {"name": judge.name, "threshold": judge.threshold}
    results = Results("copies", model, one.seeds, split, about, notes=one.notes)
    results.rows += measured(one, PARTS, methods)
    results.save(out)
    return results
