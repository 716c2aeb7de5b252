"""What the papers report, beside the same figure of a run here.

The papers' prompts, models, seeds and judges are others than ours, so a published figure says what to expect and
is no target; the column "where" tells what it was measured on. Follow the Flow (arXiv 2504.01137) names its judge
only from version 3 on, and its leaking prompts were chosen to leak: shares of leaks there are no rates in the wild.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from unleak.bench.rows import Row

FLOW = "Follow the Flow, arXiv 2504.01137"
SCHNELL, DEV = f"{FLOW} v3, FLUX-schnell, chosen to leak", f"{FLOW} v3, FLUX-dev, chosen to leak"
REMOVED = f"{FLOW} v3, 339 prompts, all redundant tokens removed"


class Published(NamedTuple):
    """A published figure, and the row of ours that asks the same: its method, metric and subset."""

    method: str
    metric: str
    subset: str
    value: float
    where: str


FIGURES = (
    Published("none", "leak_rate", "all", 0.94, SCHNELL),
    Published("patch", "leak_rate", "all", 0.14, SCHNELL),
    Published("patch:bare", "leak_rate", "all", 0.14, SCHNELL),
    Published("none", "leak_rate", "all", 0.79, DEV),
    Published("patch", "leak_rate", "all", 0.20, DEV),
    Published("patch:bare", "leak_rate", "all", 0.20, DEV),
    Published("tokens", "representative_share", "all/items", 0.89, f"{FLOW} v3: items with a representative token"),
    Published("tokens", "representative_share", "all/tokens", 0.48, f"{FLOW} v3: of tokens of items that have several"),
    Published("prune", "prune_accuracy_before", "redundant", 0.8348, REMOVED),
    Published("prune", "prune_accuracy_after", "redundant", 0.8702, REMOVED),
    Published("prune", "prune_unaffected", "redundant", 0.989, REMOVED),
    Published("prune", "prune_improved", "redundant", 0.25, REMOVED),
    Published("knn", "classifier_precision", "grouped", 0.92, f"{FLOW} v1, k-NN"),
    Published("linear", "classifier_precision", "grouped", 0.90, f"{FLOW} v3, linear, FLUX-schnell"),
    Published("flow", "pairs_isolated", "pair", 0.89, f"{FLOW} v1"),
    Published("diagnosis", "verdict_share", "neglect", 0.07, f"{FLOW} v1: of cases; encoded, but not drawn"),
)


class Beside(NamedTuple):
    """One of our rows and a published figure that asks the same."""

    ours: Row
    published: Published

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {**self.published._asdict(), "ours": self.ours.value, "low": self.ours.low, "high": self.ours.high}


def beside(rows: Sequence[Row]) -> list[Beside]:
    """Every published figure that one of these rows answers to."""
    ours = {(row.method, row.metric, row.subset): row for row in rows}
    keys = [(figure, (figure.method, figure.metric, figure.subset)) for figure in FIGURES]
    return [Beside(ours[key], figure) for figure, key in keys if key in ours]


def beside_table(pairs: Sequence[Beside]) -> str:
    """A markdown table; the empty text where there is nothing to compare."""
    if not pairs:
        return ""
    lines = ["| method | metric | ours | 95 % interval | published | where |", "|---|---|---|---|---|---|"]
    for ours, p in pairs:
        interval = f"{ours.low:.4g} to {ours.high:.4g}"
        lines.append(f"| {p.method} | {p.metric} | {ours.value:.4g} | {interval} | {p.value:.4g} | {p.where} |")
    return "\n".join(lines) + "\n"
