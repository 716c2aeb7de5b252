"""`unleak bench copies`: who copies is found before it is drawn, and at what cost; what stops it, and what that breaks.

Each half of the suite is a module of its own with its methods and its rows: `detection` (detectors).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from unleak.bench import detection
from unleak.bench.results import Results
from unleak.errors import BadInput
from unleak.judges.copies import scene_judge
from unleak.world import load as load_world
from unleak.world.prompts import check_split

HALVES: tuple[ModuleType, ...] = (detection,)


def check(split: str, methods: Sequence[str] | None) -> None:
    """Refuse a split or a method that does not exist. Raises BadInput."""
    check_split(load_world(), split)
    known = [name for half in HALVES for name in half.METHODS]
    if unknown := set(methods or ()) - set(known):
        raise BadInput(f"bench copies has no {sorted(unknown)}; choose from {known}")


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
    """Measure the chosen methods (default: all) of both halves; finished parts are reused."""
    check(split, methods)
    world, judge = load_world(), scene_judge()
    results = Results("copies", model, list(seeds), split, {"name": judge.name, "threshold": judge.threshold})
    for half in HALVES:
        chosen = [name for name in half.METHODS if methods is None or name in methods]
        results.rows += half.rows(
            pipe, out, world, split=split, seeds=list(seeds), limit=limit, methods=chosen, call=dict(call or {}),
            progress=progress,
        )  # fmt: skip
    results.save(out)
    return results
