"""A repair as JSON (schema unleak/repair/1), as a before/after grid, and as one page for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from unleak.files.atomic import versions, write_atomic
from unleak.report.pages import data_uri, marked, render
from unleak.report.pictures import contact_sheet, png
from unleak.stats.rows import share
from unleak.words.repair.repair import ItemOutcome, Repair


def to_dict(r: Repair, images: dict[str, list[str]]) -> dict[str, Any]:
    """The result as plain JSON data; `images` holds file names relative to the JSON file."""
    total = lambda hits: None if hits is None else int(hits.sum())  # noqa: E731
    return {
        "schema": "unleak/repair/1",
        "prompt": r.prompt,
        "model": r.model,
        "method": r.method,
        "settings": r.settings,
        "judge": r.judge,
        "seeds": r.seeds,
        "items": [
            {
                "text": i.text, "sense": i.sense, "span": list(i.span), "repaired": i.repaired,
                "present_before": total(i.before), "present_after": total(i.after), "seeds": len(r.seeds),
            }
            for i in r.items
        ],
        "verdicts": None if r.found is None else [f.verdict for f in r.found.findings],
        "tried": [
            {
                "method": t.trial.name, "repair": t.trial.repair.to_dict(), "works": t.works, "kept": t.kept,
                "present_before": t.before.sum(0).tolist(),
                "present_after": None if t.after is None else t.after.sum(0).tolist(),
                "seeds": len(t.before), "failed": t.failed or None,
            }
            for t in r.tried
        ],
        "by": r.by, "undone": r.undone,
        "images": images,
        "versions": versions(),
    }  # fmt: skip


def save_images(r: Repair, folder: Path) -> dict[str, list[str]]:
    """Write every image and the grid `before-after.png`; returns the file names by side."""
    names: dict[str, list[str]] = {}
    for side, images in (("before", r.before), ("after", r.after)):
        names[side] = [f"{side}-{seed}.png" for seed in r.seeds]
        for name, image in zip(names[side], images, strict=True):
            write_atomic(folder / name, png(Image.fromarray(image)))
    sheet = contact_sheet([("before", list(r.before)), ("after", list(r.after))], across=1)
    write_atomic(folder / "before-after.png", png(sheet))
    return names


def rates(r: Repair) -> list[dict[str, Any]]:
    """Per item the share of seeds with its Wilson interval, before and after, ready to print."""
    out = []
    for i in r.items:
        row: dict[str, Any] = {"text": i.text, "sense": i.sense, "repaired": i.repaired}
        for side, hits in (("before", i.before), ("after", i.after)):
            if hits is not None:
                s = share(hits, r.method, i.text, "present")
                row[side] = {"k": int(hits.sum()), "n": s.n, "low": s.low, "high": s.high, "rate": s.value}
        out.append(row)
    return out


def state(i: ItemOutcome) -> str:
    """How the page marks an item: `ok`, `fixed`, `leak`, or `named` where nobody judged."""
    if i.before is None or i.after is None:
        return "named"
    return "ok" if i.before.mean() >= 0.5 else "fixed" if i.after.mean() >= 0.5 else "leak"


def page(r: Repair, evidence: list[dict[str, Any]] | None = None, title: str = "unleak repair") -> str:
    """One self-contained HTML page: prompt, verdict, before and after, numbers, settings. No script needed.

    `evidence` adds rows of (`title`, `note`, `images` [S,H,W,3]) between the verdict and the numbers.
    """
    rows = [{**e, "images": [data_uri(x, 128) for x in e["images"]]} for e in evidence or []]
    return render(
        "repair.html", title=title, r=r, pieces=marked(r.prompt, [(i.span, state(i)) for i in r.items]),
        rates=rates(r), evidence=rows,
        before=[data_uri(x) for x in r.before], after=[data_uri(x) for x in r.after],
        settings=r.settings,
    )  # fmt: skip
