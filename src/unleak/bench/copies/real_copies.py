"""`unleak bench copies --memorized FILE --ordinary FILE`: detectors on any model, beside what others published.

The figures are those of the files' prompts alone. Published ones are of other prompts, steps and numbers of images, so
they are notes and no rows: a difference may come from any of these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unleak.bench.results import Results
from unleak.bench.rows import Row
from unleak.copies.presets import DETECTORS
from unleak.copies.scan.calibrate import fingerprint_of
from unleak.copies.scan.scan import scan
from unleak.errors import BadInput, choose
from unleak.files.parts import Parts
from unleak.files.provenance import code_of
from unleak.stats.roc import auroc, tpr_at_fpr

CHUNK = 64  #: prompts in one part
METHODS: tuple[str, ...] = tuple(name for name, d in DETECTORS.items() if not d.whole)

#: detector -> what was published: figure, on what, and where it is read
PUBLISHED: dict[str, tuple[str, ...]] = {
    "magnitude": (
        "AUROC 0.994, TPR at 1 % FPR 0.982: SD 1.4, 50 steps, 4 images, 500 and 500 prompts (the authors' notebook)",
        "AUROC 0.998 on SD 1.4, 0.997 on SD 2.1 (measured again by later papers; read in a leaderboard)",
    ),
    "entropy": ("AUROC 0.966 on SD 1.4, 0.948 on SD 2.1, as Ren et al. (read in a leaderboard)",),
}


def check(methods: Sequence[str] | None) -> list[str]:
    """The detectors to measure, default all of one step. Raises BadInput."""
    return [choose("detector of one step", name, METHODS) for name in methods or METHODS]


def run(
    pipe: Any,
    out: Path,
    kinds: Mapping[str, Sequence[str]],
    *,
    model: str,
    seeds: Sequence[int] = range(4),
    methods: Sequence[str] | None = None,
    call: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Results:
    """`auroc` and `tpr_at_1fpr` of one-step detectors on the prompts `kinds["memorized"]` and `kinds["ordinary"]`.

    Finished parts in `out` are reused. Raises BadInput for a prompt in both lists, and what `scan` raises.
    """
    names = check(methods)
    if both := set(kinds["memorized"]) & set(kinds["ordinary"]):
        raise BadInput(f"{len(both)} prompts are in both files, such as {min(both)!r}")
    parts, stamp = Parts(out), [fingerprint_of(pipe, call or {}), list(seeds), dict(call or {}), names, code_of(scan)]
    scores: dict[str, dict[str, np.ndarray]] = {}
    for kind, texts in kinds.items():
        chunks = []
        for start in range(0, len(texts), CHUNK):
            some = list(texts[start : start + CHUNK])

            def measured(some: list[str] = some) -> dict[str, list[float]]:
                return {n: x.mean(1).tolist() for n, x in scan(pipe, some, seeds, 1, names, call=call).images.items()}

            chunks.append(parts.get(f"real-{kind}-{start:06d}", [*stamp, some], measured))
            if progress:
                progress(len(some))
        scores[kind] = {name: np.concatenate([part[name] for part in chunks]) for name in names}
    results = Results("copies", model, list(seeds), "all", {"name": "none"})
    n = sum(map(len, kinds.values()))
    for name in names:
        pair = scores["memorized"][name], scores["ordinary"][name]
        for metric, figure in (("auroc", auroc(*pair)), ("tpr_at_1fpr", tpr_at_fpr(*pair, 0.01)[0])):
            results.rows.append(Row.of(figure, n, name, "memorized", metric))
        results.notes += [f"Published for {name}: {text}." for text in PUBLISHED.get(name, ())]
    results.save(out)
    return results
