"""A scan in stages, each over fewer prompts: nearly equal prompts once, a cheap look at all, a full one at the highest.

The cheap look draws the first two seeds, at the size of the full look or at smaller sides, which cost less and may miss
much: what it leaves out is never measured in full. `benchmarks/wide.py` measures how much of what is sought passes.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from unleak.copies.scan.scan_file import FILE, RECORD, ScanSummary, scan_by
from unleak.errors import BadInput
from unleak.files.parquet import results
from unleak.files.prompt_file import Entry
from unleak.files.workers import Workers

FEW = 2  #: seeds of the cheap look
_APART = re.compile(r"[\W_]+")


def normal(prompt: str) -> str:
    """What nearly equal prompts share: letters and digits in one case and form, one space between words.

    >>> normal("A  red cat!"), normal("a red, CAT")
    ('a red cat', 'a red cat')

    A prompt of no letters and digits is its own.
    """
    return _APART.sub(" ", unicodedata.normalize("NFKC", prompt).casefold()).strip() or prompt


def first_look(seeds: Sequence[int], call: Mapping[str, Any], halved: tuple[int, int] | None = None) -> dict[str, Any]:
    """Settings of a `Scanner` for the cheap look: the first `FEW` seeds of the full look, and its call.

    halved: (height, width) in pixels of the full look, for half the sides, rounded up to a multiple of 8 pixels.
    """
    if halved is not None:
        height, width = (math.ceil(side / 16) * 8 for side in halved)
        call = {**call, "height": height, "width": width}
    return {"seeds": list(seeds[:FEW]), "call": dict(call)}


@dataclass
class Stages:
    """What came of a cascade: how many prompts each stage looked at, the score that passed, and the full scan."""

    looked_at: int
    passed: int
    cut: float
    scan: ScanSummary


def first_file(out: Path) -> Path:
    """Where the cheap look is written: scan.jsonl -> scan.first.jsonl."""
    return out.with_name(f"{out.stem}.first{out.suffix}")


def cascade(
    cheap: Callable[[], AbstractContextManager[Workers]],
    full: Callable[[], AbstractContextManager[Workers]],
    path: str | Path,
    out: str | Path,
    share: float,
    **settings: Any,
) -> Stages:
    """Scan the `share` of prompts with the highest scores of a cheap look. Resumes in either stage.

    Args:
        cheap, full: open the scanners of a stage; only one of them is open at a time.
        share: of the prompts that the cheap look scored; at least one passes.
        settings: see `scan_by`. `first_file(out)` holds the cheap look, and its rejects those that are nearly equal.

    Raises:
        BadInput: share is not above 0 and below 1; and as `scan_by`.
    """
    out = Path(out)
    if not 0 < share < 1:
        raise BadInput(f"--cascade {share}: give the share of prompts that is scanned in full, above 0 and below 1")
    first = first_file(out)
    with cheap() as workers:
        looked_at = scan_by(workers, path, first, normal=normal, **{**settings, "limit": None}).prompts
    cut, passed = highest(first, share)
    places = _places(first, cut)
    following = next(places, None)

    def only(entry: Entry) -> bool:
        nonlocal following
        if (entry.file, entry.number) != following:
            return False
        following = next(places, None)
        return True

    more = {"cascade": {"share": share, "cut": cut, "looked_at": looked_at}}
    with full() as workers:
        return Stages(looked_at, passed, cut, scan_by(workers, path, out, only=only, more=more, **settings))


def highest(scanned: Path, share: float) -> tuple[float, int]:
    """The score that the highest share of the records reaches, and how many reach it (8 bytes of memory a record)."""
    scores = np.fromiter((record["score"] for record in _records(scanned)), float)
    if not len(scores):
        return math.inf, 0
    cut = float(np.partition(scores, -(k := max(1, math.ceil(share * len(scores)))))[-k])
    return cut, int((scores >= cut).sum())


def _places(scanned: Path, cut: float) -> Iterator[tuple[str, int]]:
    return ((r.get("file", ""), r["line"]) for r in _records(scanned) if r["score"] >= cut)


def _records(scanned: Path) -> Iterator[dict[str, Any]]:
    return islice(results(scanned, FILE, RECORD), 1, None)
