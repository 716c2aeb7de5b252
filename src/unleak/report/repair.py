"""A repair as a before/after grid, and as one page for people."""

from __future__ import annotations

from typing import Any

from PIL import Image

from unleak.drawing.generate import written_seeds
from unleak.report.diagnosis import story
from unleak.report.pages import data_uri, marked, render
from unleak.report.pictures import contact_sheet, png, seeds_of
from unleak.stats.rate import Rate
from unleak.words.diagnosis.diagnosis import described
from unleak.words.repair.automatic import Attempt
from unleak.words.repair.repair import ItemOutcome, Repaired, said_of


def pictures(r: Repaired) -> dict[str, bytes]:
    """Every image, and the grid `before-after.png`."""
    return {**seeds_of(r), "before-after.png": png(sheet(r))}


def sheet(r: Repaired) -> Image.Image:
    """A row of images before, and one after."""
    return contact_sheet([(kind, list(images)) for kind, images in r.views().items()], across=1)


def rates(r: Repaired) -> list[dict[str, Any]]:
    """Per item the share of seeds with its Wilson interval, before and after, ready to print."""
    out = []
    for i in r.items:
        row: dict[str, Any] = {"text": i.text, "sense": i.sense, "repaired": i.repaired}
        for side, hits in (("before", i.before), ("after", i.after)):
            if hits is not None:
                s = Rate.of(hits)
                row[side] = {"k": s.k, "n": s.n, "low": s.low, "high": s.high, "rate": s.value}
        out.append(row)
    return out


def state(i: ItemOutcome) -> str:
    """How the page marks an item: `ok` on every image; `fixed` on half or more, and more than before; `leak` else;
    `named` where nobody judged."""
    if i.rates is None:
        return "named"
    before, after = i.rates
    return "ok" if before.k == before.n else "fixed" if after.k > before.k and after.yes else "leak"


def verdicts(r: Repaired) -> list[dict[str, str]]:
    """Of each missing item the verdict of the diagnosis, and why."""
    if r.diagnosis is None:
        return []
    broken = [i for i, f in enumerate(r.diagnosis.findings) if f.verdict not in (None, "ok")]
    return [
        {"item": r.items[i].text, "verdict": r.diagnosis.verdict_text(i), "story": story(r.diagnosis, i)}
        for i in broken
    ]


def tried(attempt: Attempt) -> dict[str, Any]:
    """A row of the table of what was tried."""
    seen = [f"{name} {before} → {after} of {len(attempt.seeds)}" for name, before, after in attempt.counts]
    seeds = written_seeds(attempt.seeds).replace(",", ", ")  # so that a long list is broken into lines
    return {
        "name": attempt.trial.name,
        "python": described(attempt.trial.repair),
        "seeds": f"{seeds} (held out)" if attempt.held_out and not attempt.redraw else seeds,
        "seen": seen or ["nothing was drawn"],
        "drawings": attempt.drawings,
        "state": "good" if attempt.kept else "faint",
        "reason": attempt.reason,
    }


def page(r: Repaired, evidence: list[dict[str, Any]] | None = None, title: str = "unleak repair") -> str:
    """One self-contained HTML page: prompt, verdict, before and after, numbers, settings. No script needed.

    `evidence` adds rows of (`title`, `note`, `images` [S,H,W,3]) between the verdict and the numbers.
    """
    rows = [{**e, "images": [data_uri(x, 128) for x in e["images"]]} for e in evidence or []]
    return render(
        "repair.html", title=title, r=r, pieces=marked(r.prompt, [(i.span, state(i)) for i in r.items]),
        rates=rates(r), evidence=rows,
        before=[data_uri(x) for x in r.before], after=[data_uri(x) for x in r.after], tried=[tried(a) for a in r.tried],
        verdicts=verdicts(r), repair=described(r.repair) if r.repair else None, drawings=said_of(r.drawings),
        settings=r.settings,
    )  # fmt: skip
