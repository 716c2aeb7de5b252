"""`unleak bench words`: leaks inside the prompt, on the embedded world: seen, explained, repaired.

Each part of the suite is a module of its own with its methods and its rows: `repairs` (what stops leaks and at what
cost), `tokens` (representative and redundant tokens, pruning, classifiers), `flow` (which pairs of items are
isolated), `verdicts` (does the diagnosis name the right reason) and `lint` (are leaks foreseen without drawing).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from unleak.bench.results import Results
from unleak.bench.run import Run, measured, refuse_unknown
from unleak.bench.words import flow, lint, repairs, tokens, verdicts
from unleak.bench.world import reconstructed
from unleak.judges.glyphs import glyph_judge

#: each has METHODS, all that it can measure; DEFAULT, what it measures unasked; and ``rows(run, methods)``
PARTS: tuple[ModuleType, ...] = (repairs, tokens, flow, verdicts, lint)


def check(split: str, methods: Sequence[str] | None) -> None:
    """Refuse a split or a method that does not exist. Raises BadInput."""
    refuse_unknown("words", [name for part in PARTS for name in part.METHODS], split, methods)


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
    judge = glyph_judge()
    one = Run(pipe, out, model, split, list(seeds), limit, dict(call or {}), progress)
    results = Results("words", model, one.seeds, split, {"name": judge.name}, notes=one.notes)
    results.rows += measured(one, PARTS, methods)
    results.judge["accuracy"] = reconstructed(judge, one.world, pipe.vae)
    results.save(out)
    return results
