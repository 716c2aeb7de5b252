"""Issue the intervals of committed tables again, where today's formula needs nothing that the tables do not hold.

    python benchmarks/reissue.py [--lint] [--rows RUN] [FOLDER ...]     default: every results.json under docs/results

A table holds values and sample sizes, not the outcomes of single cases. They are enough where a bootstrap gave an
interval of no width, since all cases are alike: a mean of shares without spread, a paired difference in which nothing
changed. The interval of a balanced accuracy follows from the shares beside it. With `--lint` the scores of lint are
computed again (no picture is drawn), and the intervals of its AUROC are taken: the values must be the committed ones to
twelve digits. Shares of the copies suite from before units were counted are given the widest interval that the formula
has: every caption, of templates every scene, counts once. With `--rows RUN` the rows of the methods in
RUN/results.json, a later run of the same command, replace those of the table. Every other figure is left as it is.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np

from unleak.bench.copies.detection import captions, units_of
from unleak.bench.copies.mitigation import UNAIDED, panels
from unleak.bench.regions.edit_pictures import bars
from unleak.bench.regions.edit_rows import OF_SHARES
from unleak.bench.regions.regions import HEADLINE
from unleak.bench.results import Results
from unleak.bench.rows import Row
from unleak.files.atomic import write_atomic
from unleak.report.tradeoff import tradeoff
from unleak.stats.intervals import Figure, balanced_accuracy, mean, paired_difference, wilson
from unleak.words.diagnosis.neglect import VERDICTS
from unleak.world import load as load_world

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
MEANS = {"leak_removed", "representative_share", "redundant_share", "alignment", *OF_SHARES}
DIFFERENCES = {"copies_stopped", "alignment_lost", "harm_other", "harm_neutral", "prune_gain"}
NOTE = (
    "Intervals of no width, of means of shares and of paired differences where all cases are alike, and that of the "
    "balanced accuracy were issued again from these values (benchmarks/reissue.py). The others are those of the run "
    "that drew the table: of shares Wilson's, over single images, of means a bootstrap over cases. What is counted, "
    "and a mean without bounds where all cases are alike, has none."
)
COPIES = {"copy_rate", "near_copy_rate", "copy_rate_own", "ordinary_unchanged"}
WIDEST = (
    "Shares of the other rows have the widest interval that the formula over units gives (benchmarks/reissue.py): each "
    "caption, of template captions each of the four scenes, counts once. Means of theirs are over captions still, and "
    "what had no width was issued again from its value."
)
LINT = "The intervals of lint_auroc were issued again from the same scores: by prompt, and never of no width."


def reissued(row: Row, results: Results) -> Figure | None:
    """The row's figure by today's formula; None where it needs more than the table holds."""
    versus = " - " in row.method
    if row.metric == "diagnosis_balanced_accuracy":
        return _balanced(row, results.rows)
    if results.suite == "copies" and row.units is None and (sizes := _sizes(row, results)):
        return Figure(row.value, *wilson(row.value, sum(sizes) ** 2 / sum(size**2 for size in sizes)))
    if row.low < row.high:
        return None
    if row.metric in DIFFERENCES or versus:
        return paired_difference([0.0] * row.n, [row.value] * row.n, (0.0, 1.0))
    if row.metric in MEANS:
        return mean([row.value] * row.n, (0.0, 1.0))
    return None


def _balanced(row: Row, rows: Sequence[Row]) -> Figure:
    """Of the shares of each label that are called so."""
    right = {f"{verdict}/{verdict}" for verdict in VERDICTS}
    each = [np.arange(r.n) < round(r.value * r.n) for r in rows if r.metric == "diagnosis_share" and r.subset in right]
    found = balanced_accuracy(each)
    assert math.isclose(found.value, row.value), (found, row)
    return found


def _sizes(row: Row, results: Results) -> list[int]:
    """Captions of each unit of a share of the copies suite; none for other rows."""
    over = row.n // len(results.seeds) if row.metric in COPIES else row.n
    if row.metric not in COPIES | {"flagged", "tpr_at_1fpr"}:
        return []
    if not row.subset.startswith("template"):
        return [1] * over
    world = load_world()
    return list(Counter(units_of(world, captions(world, results.split)["template"])).values())


def with_rows(folder: Path, run: Path) -> int:
    """Replace the rows of a table by those of the methods of another run; how many. They must be of one command."""
    old, new = (Results.from_dict(json.loads((f / "results.json").read_text("utf-8"))) for f in (folder, run))
    assert (old.suite, old.model, old.split, old.seeds) == (new.suite, new.model, new.split, new.seeds)
    fresh: dict[str, list[Row]] = {}
    for row in new.rows:
        fresh.setdefault(row.method, []).append(row)
    order = list(dict.fromkeys(row.method for row in old.rows))
    kept = {name: [row for row in old.rows if row.method == name] for name in order}
    old.rows = [row for rows in (kept | fresh).values() for row in rows]
    old.made_by = new.made_by
    old.notes = [note for note in new.notes if note not in old.notes] + old.notes
    again = f"Run again, over units: {', '.join(fresh)}. The other rows are of an earlier run of the same command."
    old.notes.insert(0, again)
    old.save(folder)
    return len(new.rows)


def of_lint(results: Results) -> dict[str, Row]:
    """The rows of lint's AUROC by subset, computed now."""
    from unleak.cli import app

    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        app(["bench", "words", "-m", results.model, "--methods", "lint", "-o", folder], standalone_mode=False)
        data = json.loads((Path(folder) / "results.json").read_text("utf-8"))
    return {row["subset"]: Row(**row) for row in data["rows"] if row["metric"] == "lint_auroc"}


def reissue(folder: Path, lint: bool) -> int:
    """Write a folder's table with its intervals issued again; how many changed."""
    data = json.loads((folder / "results.json").read_text("utf-8"))
    results = Results.from_dict(data, HEADLINE if data["suite"] == "regions" else ())
    fresh = of_lint(results) if lint and any(row.metric == "lint_auroc" for row in results.rows) else {}
    changed, notes = 0, [WIDEST if results.suite == "copies" else NOTE]
    for i, row in enumerate(results.rows):
        figure = reissued(row, results)
        if row.metric == "lint_auroc" and row.subset in fresh:
            now = fresh[row.subset]
            assert math.isclose(now.value, row.value, rel_tol=1e-12) and now.n == row.n, (now, row)
            figure, notes = Figure(row.value, now.low, now.high), [NOTE, LINT]
        if figure is not None and not np.allclose(figure[1:], (row.low, row.high), rtol=0, atol=1e-9):
            units = row.units if row.units is not None else len(_sizes(row, results)) or None
            results.rows[i] = replace(row, low=figure.low, high=figure.high, units=units)
            changed += 1
    if changed:
        if any(row.method == "prss" for row in results.rows):
            notes.append(UNAIDED)
        stale = [NOTE] if results.suite == "copies" else []
        results.notes = [note for note in results.notes if note not in (*notes, *stale)] + notes
        results.save(folder)
        if (folder / "methods.png").is_file():
            write_atomic(folder / "methods.png", bars(results.rows))
        if (folder / "mitigation.png").is_file():
            write_atomic(folder / "mitigation.png", tradeoff(panels(results.rows)))
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--lint", action="store_true", help="compute the scores of lint again")
    parser.add_argument("--rows", type=Path, metavar="RUN", help="take the rows of this run's methods")
    options = parser.parse_args()
    if options.rows:
        (folder,) = options.folders
        print(folder, with_rows(folder, options.rows), "rows", flush=True)
    for folder in options.folders or sorted(file.parent for file in RESULTS.rglob("results.json")):
        if json.loads((folder / "results.json").read_text("utf-8")).get("schema") == "unleak/bench/1":
            print(folder, reissue(folder, options.lint), "intervals", flush=True)


if __name__ == "__main__":
    main()
