"""Seeds of a diagnosis: those that are given, or as many as its verdicts need."""

from __future__ import annotations

from collections.abc import Sequence

from unleak.drawing.generate import Seeds, parse_seeds
from unleak.errors import BadInput
from unleak.judges import Judge

AUTO = "auto"
FIRST, MOST = 4, 32
"""With ``"auto"`` so many images are drawn first, and at most."""


def until_sure(seeds: Seeds) -> bool:
    """Whether these seeds are "auto"."""
    return isinstance(seeds, str) and seeds == AUTO


def batches(seeds: Seeds, judge: Judge | None) -> list[list[int]]:
    """Seeds in the order in which they are drawn, until the verdicts are sure; given seeds are one batch.

    >>> batches(2, None), [len(batch) for batch in batches("auto", object())]
    ([[0, 1]], [4, 4, 8, 16])

    Raises BadInput: "auto" without a judge; else as `parse_seeds`.
    """
    if not until_sure(seeds):
        return [parse_seeds(seeds)]
    if judge is None:
        raise BadInput("seeds 'auto' draws until a judge can tell, and there is none: say how many, such as 4")
    ends = [FIRST]
    while ends[-1] < MOST:
        ends.append(2 * ends[-1])
    return [list(range(start, end)) for start, end in zip([0, *ends], ends, strict=False)]


def advice(seeds: Sequence[int]) -> str:
    """What to do where so many seeds could not tell."""
    if len(seeds) >= MOST:
        return f"{len(seeds)} images leave it open: it happens about as often as not"
    return f"draw more seeds, such as {2 * len(seeds)}, or let {AUTO!r} draw until it is sure, {MOST} at most"
