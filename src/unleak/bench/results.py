"""What every benchmark writes: `results.json` (schema unleak/bench/1), `results.md`, and resumable parts."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from unleak.bench.published import Beside, beside, beside_table
from unleak.bench.rows import Row
from unleak.files.atomic import write_atomic
from unleak.files.provenance import made_by, versions
from unleak.saved import Number, Saved, Seed

MADE_BY = ("commit", "dirty", "processor", "threads")


@dataclass(frozen=True)
class SavedResults:
    """What `results.json` holds beside the published figures, which follow from its rows."""

    suite: str
    model: str
    command: str
    seeds: list[Seed]
    split: str
    judge: dict[str, Any]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    commit: str | None = None
    dirty: bool | None = None
    processor: str | None = None
    threads: Number | None = None


FILE = Saved("results.json of a benchmark", SavedResults, "run the benchmark again", "unleak/bench/1")


@dataclass
class Results:
    """One benchmark run."""

    suite: str
    model: str
    seeds: list[int]
    split: str
    judge: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  #: what could not be measured, and why
    headline: Sequence[str] = ()  #: metrics that a reader wants side by side
    command: str = field(default_factory=lambda: shlex.join(["unleak", *sys.argv[1:]]))
    versions: dict[str, str] = field(default_factory=versions)
    made_by: dict[str, Any] = field(default_factory=made_by)  #: commit, dirty, processor, threads

    def to_dict(self) -> dict[str, Any]:
        head = {
            k: getattr(self, k) for k in ("suite", "model", "command", "versions", "seeds", "split", "judge", "notes")
        }
        rows = [r.to_dict() for r in self.rows]
        published = [b.to_dict() for b in self.compared]
        return {"schema": "unleak/bench/1", **head, **self.made_by, "rows": rows, "published": published}

    @classmethod
    def from_dict(
        cls, data: dict[str, Any], headline: Sequence[str] = (), path: str | Path = "results.json"
    ) -> Results:
        """What `to_dict` gave; of older results it is not known who made them. Raises BrokenFile."""
        head = FILE.parse({k: v for k, v in data.items() if k != "published"} if isinstance(data, dict) else data, path)
        made_by = {name: data[name] for name in MADE_BY if name in data}
        known = {f.name: getattr(head, f.name) for f in fields(head) if f.name not in MADE_BY}
        return cls(**known, versions=data.get("versions", {}), headline=headline, made_by=made_by)

    @property
    def compared(self) -> list[Beside]:
        """The papers' figures that these rows answer to."""
        return beside(self.rows)

    def table(self) -> str:
        """The rows as a markdown table; under it the published figures, if any are of the same kind."""
        lines = ["| method | subset | metric | value | 95 % interval | n | units |", "|---|---|---|---|---|---|---|"]
        for r in self.rows:
            units = "" if r.units is None else r.units
            lines.append(f"| {r.method} | {r.subset} | {r.metric} | {r.value:.4g} | {r.interval} | {r.n} | {units} |")
        theirs = beside_table(self.compared)
        return "\n".join(lines) + "\n" + (f"\nPublished figures beside ours:\n\n{theirs}" if theirs else "")

    def overview(self) -> str:
        """A line for each method with its headline figures over all cases; without a headline, nothing."""
        by_name = {(r.method, r.metric): r for r in self.rows if r.subset == "all" and " - " not in r.method}
        if not self.headline or not by_name:
            return ""
        lines = ["| method | n | " + " | ".join(self.headline) + " |", "|---" * (len(self.headline) + 2) + "|"]
        for method in dict.fromkeys(method for method, _ in by_name):
            rows = [by_name.get((method, metric)) for metric in self.headline]
            n = next((str(row.n) for row in rows if row), "")
            cells = [_cell(row) if row else "" for row in rows]
            lines.append(f"| {method} | {n} | " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n\n"

    def save(self, folder: Path) -> None:
        """Write `results.json` and `results.md` atomically."""
        about = f"model {self.model}, split {self.split}, seeds {self.seeds}, judge {self.judge}"
        about += "".join(f", {name} {value}" for name, value in self.made_by.items())
        head = f"# {self.suite}\n\n`{self.command}`  \n{about}\n\n"
        write_atomic(folder / "results.json", json.dumps(self.to_dict(), indent=1) + "\n")
        notes = "".join(f"\n{note}\n" for note in self.notes)
        write_atomic(folder / "results.md", head + self.overview() + self.table() + notes)


def _cell(row: Row) -> str:
    return f"{row.value:.3g} ({row.low:.3g} to {row.high:.3g})" if row.interval else f"{row.value:.3g}"
