"""A scan as one page for people, also from its output file in constant memory."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from unleak.copies.scan.scan import Scan
from unleak.copies.scan.scan_file import FILE, RECORD
from unleak.files.parquet import results
from unleak.report.pages import render

SHOWN, BINS, WIDE, TALL = 50, 64, 640, 130


def pictures(scan: Scan) -> dict[str, bytes]:
    """None: a scan draws no image."""
    return {}


def sheet(scan: Scan) -> None:
    """None: a scan draws no image."""


def page(scan: Scan) -> str:
    """One self-contained HTML page of a scan: verdict, histogram, the highest scores, settings."""
    head = scan.data()
    every = head.pop("prompts")
    return _page({"input": f"{len(every)} prompts", **head}, lambda: iter(every), head["threshold"])


def file_page(path: Path, limit: float | None = None) -> str:
    """The same of the output file of a scan, made in constant memory.

    `limit` is the score from which a prompt counts as found; default: the calibrated threshold, if there is one.

    Raises BrokenFile: it is no output of a scan, or a line of it is damaged.
    """
    head = next(results(path, FILE, RECORD))
    prompts = lambda: islice(results(path, FILE, RECORD), 1, None)  # noqa: E731
    return _page(head, prompts, head["threshold"] if limit is None else limit)


def _page(head: dict[str, Any], prompts: Callable[[], Iterator[dict[str, Any]]], limit: float | None) -> str:
    total = over = 0
    low, high = math.inf, -math.inf
    highest: list[tuple[float, int, dict[str, Any]]] = []
    for total, r in enumerate(prompts(), 1):  # noqa: B007
        low, high = min(low, r["score"]), max(high, r["score"])
        over += limit is not None and r["score"] >= limit
        entry = (r["score"], -r["line"], r)
        (heapq.heappush if len(highest) < SHOWN else heapq.heappushpop)(highest, entry)
    if not total:
        low = high = 0.0
    return render(
        "scan.html",
        head=head, limit=limit, total=total, over=over, low=low, high=high,
        bars=_bars(prompts(), low, high, limit), at=_place(limit, low, high),
        rows=[r for *_, r in sorted(highest, key=lambda e: e[:2], reverse=True)],
        others=[d for d in head["detectors"] if d != head["score"]],
        settings={k: v for k, v in head.items() if k != "input"},
    )  # fmt: skip


def _place(score: float | None, low: float, high: float) -> float | None:
    """Where a score stands on the histogram's axis; None outside of it."""
    if score is None or not low <= score <= high or low == high:
        return None
    return WIDE * (score - low) / (high - low)


def _bars(prompts: Iterator[dict[str, Any]], low: float, high: float, limit: float | None) -> list[dict[str, Any]]:
    """The histogram's bars, as high as the logarithm of their counts, so that a few outliers are seen."""
    counts = [0] * BINS
    step = (high - low) / BINS or 1.0
    for r in prompts:
        counts[min(BINS - 1, int((r["score"] - low) / step))] += 1
    scale = TALL / math.log1p(max(*counts, 1))
    bars = []
    for i, n in enumerate(counts):
        start, end = low + i * step, low + (i + 1) * step
        over = limit is not None and (start + end) / 2 >= limit
        bar = {"x": i * WIDE / BINS, "width": WIDE / BINS - 1, "height": round(math.log1p(n) * scale, 1)}
        bars += [{**bar, "count": n, "low": start, "high": end, "over": over}] if n else []
    return bars
