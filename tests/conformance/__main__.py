"""``python -m conformance``: every verb on every family, as a page.

One command makes ``docs/conformance.md``. A family is tried in a process's own time, and its outcomes are kept in
``.conformance/`` under a key of all sources, so that a run that was broken off goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import diffusers
import numpy as np

from conformance import FAMILIES, Family
from unleak import models
from unleak.drawing.doctor import Outcome
from unleak.files.atomic import write_atomic
from unleak.report.verbs import VERBS, try_verbs

ROOT = Path(__file__).parents[2]
PAGE, KEPT = ROOT / "docs" / "conformance.md", ROOT / ".conformance"
UNTOUCHED = "untouched"  #: after all verbs, the bare pipeline draws what it drew before them
ROOMS = {
    "words": "Words: does a word draw what it means",
    "regions": "Regions: edits and regional prompts",
    "copies": "Copies: detectors of memorized images, and mitigations",
}
HEAD = """# Which verbs work on which pipelines

Made by `make conformance`; do not edit. Every verb runs for two steps on a tiny random pipeline of every kind, of the
real classes of diffusers {version}, behind their own templates, instructions and masks. `unleak doctor` says the same
of your own pipeline.

`yes`: it works, and is seen to act. Maps of two items differ, are not zero, and together stay below all attention;
a method changes the picture, and at strength 0, or behind a gate that stays shut, the picture is bitwise that of the
bare pipeline; scores are finite. A number: it refuses, for the reason below the table. **fault**: it failed without
a typed error, or ran and did nothing. *{untouched}*: after all verbs the bare pipeline draws bitwise what it drew
before them.

{families} kinds of pipelines, {verbs} verbs: {yes} times yes, {no} refused, {fault} faults.{untried}
"""


def key() -> str:
    """Of everything that can change an outcome."""
    digest = hashlib.sha256(diffusers.__version__.encode())
    for folder in ("src/unleak", "tests/conformance"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def outcomes(family: Family) -> list[Outcome]:
    """Every verb on one family, and whether the pipeline is what it was afterwards."""
    pipe = family.pipe()
    before = family.draw(pipe)
    found = list(try_verbs(pipe, family.settings()))
    same = np.array_equal(before, family.draw(pipe))
    return [*found, Outcome(UNTOUCHED, "", "yes" if same else "fault", None if same else "another picture than before")]


def kept(family: Family, folder: Path) -> list[Outcome]:
    """Outcomes of a family, out of `folder` if they are there, else found and put there."""
    part = folder / f"{family.name}.json"
    if part.is_file():
        return [Outcome(**one) for one in json.loads(part.read_text())]
    found = outcomes(family)
    write_atomic(part, json.dumps([asdict(one) for one in found], indent=1))
    return found


def page(rows: dict[str, list[Outcome]], untried: Sequence[Family] = ()) -> str:
    """The page in Markdown: a table for each room, with its reasons below it; `untried` lack a package."""
    lacking = ", ".join(f"{family.name} ({family.needs})" for family in untried)
    every = [one for row in rows.values() for one in row]
    count = {state: sum(one.state == state for one in every) for state in ("yes", "no", "fault")}
    head = HEAD.format(
        version=diffusers.__version__,
        untouched=UNTOUCHED,
        families=len(rows),
        verbs=len(VERBS),
        untried=f" Not tried, for want of a package: {lacking}." if lacking else "",
        **count,
    )
    return "\n".join([head, *(_table(room, title, rows) for room, title in ROOMS.items())])


def _table(room: str, title: str, rows: dict[str, list[Outcome]]) -> str:
    names = [verb.name for verb in VERBS if verb.room == room] + [UNTOUCHED]
    reasons: list[str] = []
    body = [_line([name, *(_cell(one, reasons) for one in row if one.verb in names)]) for name, row in rows.items()]
    table = [_line(["", *names]), _line(["---"] * (len(names) + 1)), *body]
    return "\n".join([f"## {title}", "", *table, "", *(f"{i}. {reason}." for i, reason in enumerate(reasons, 1)), ""])


def _cell(one: Outcome, reasons: list[str]) -> str:
    if one.state == "yes":
        return "yes"
    if one.short not in reasons:
        reasons.append(one.short)
    number = reasons.index(one.short) + 1
    return f"**fault** {number}" if one.state == "fault" else str(number)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Try the families that were named, or all, and write the page of all; 1 where there is a fault."""
    parser = argparse.ArgumentParser(prog="python -m conformance", description=__doc__)
    parser.add_argument("families", nargs="*", help="try these alone and print them instead of writing the page")
    parser.add_argument("-o", "--output", type=Path, default=PAGE, help="the page (default: docs/conformance.md)")
    arguments = parser.parse_args(argv)
    models.quiet()
    chosen = [family for family in FAMILIES if not arguments.families or family.name in arguments.families]
    untried = [family for family in chosen if family.missing]
    chosen, rows = [family for family in chosen if not family.missing], {}
    for i, family in enumerate(chosen, 1):
        print(f"{i}/{len(chosen)} {family.name}", end=" ", file=sys.stderr, flush=True)
        rows[family.name] = kept(family, KEPT / key())
        states = [one.state for one in rows[family.name]]
        print(", ".join(f"{states.count(s)} {s}" for s in ("yes", "no", "fault")), file=sys.stderr, flush=True)
    text = page(rows, untried)
    if arguments.families:
        print(text)
    else:
        write_atomic(arguments.output, text)
    return int("**fault**" in text)


if __name__ == "__main__":
    sys.exit(main())
