"""`unleak bench words`: leaks inside the prompt, on the embedded world: seen, explained, repaired.

Each part of the suite is a module of its own with its methods and its rows: `repairs` (what stops leaks and at what
cost), `tokens` (representative and redundant tokens, pruning, classifiers), `flow` (which pairs of items are
isolated), `verdicts` (does the diagnosis name the right reason) and `lint` (are leaks foreseen without drawing).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from unleak.bench.results import Results
from unleak.bench.run import Run, measured, refuse_unknown
from unleak.bench.words import flow, lint, repairs, tokens, verdicts
from unleak.bench.world import reconstructed

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from unleak.bench.run import Asked

#: each has METHODS, all that it can measure; DEFAULT, what it measures unasked; and ``rows(run, methods)``
PARTS: tuple[ModuleType, ...] = (repairs, tokens, flow, verdicts, lint)


def check(split: str, methods: Sequence[str] | None) -> None:
    """Refuse a split or a method that does not exist. Raises BadInput."""
    refuse_unknown("words", [name for part in PARTS for name in part.METHODS], split, methods)


def run(
    pipe: Any, out: Path, *, model: str = "emoji-sd", methods: Sequence[str] | None = None, **asked: Unpack[Asked]
) -> Results:
    """Measure the chosen methods (default: those of every part that are meant for it); finished parts are reused."""
    one = Run.of(pipe, out, model, **asked)
    check(one.split, methods)
    results = Results("words", model, one.seeds, one.split, {"name": one.judge.name}, notes=one.notes)
    results.rows += measured(one, PARTS, methods)
    results.judge["accuracy"] = reconstructed(one.judge, one.world, pipe.vae)
    results.save(out)
    return results
