"""A diagnosis as pictures, and as one page for people."""

from __future__ import annotations

from typing import Any

from PIL import Image

from unleak.report.flow import heat_map, image_heat_map
from unleak.report.pages import data_uri, marked, render
from unleak.report.pictures import contact_sheet, png, seeds_of
from unleak.stats.rate import Rate
from unleak.words.diagnosis.diagnosis import Diagnosis, Finding, described
from unleak.words.diagnosis.more_seeds import advice

COLOURS = {"ok": "good", "leak": "bad", "suspect": "bad", "neglect": "warn"}
RED, GREEN, GREY = "214, 48, 49", "39, 174, 96", "128, 128, 128"


def pictures(d: Diagnosis) -> dict[str, bytes]:
    """Every image, the sheet `diagnosis.png` and, for several items, the flow."""
    files = {**seeds_of(d), "diagnosis.png": png(sheet(d))}
    if len(d.findings) > 1:
        files["flow.png"] = heat_map(d.flow)
    if d.image_flow is not None:
        files["flow-images.png"] = image_heat_map(d.image_flow)
    return files


def sheet(d: Diagnosis) -> Image.Image:
    """A row of images for the prompt, its repair, and each piece of evidence."""
    titles = {f"{name}-item{k + 1}": e.title for k, f in enumerate(d.findings) for name, e in f.evidence.items()}
    return contact_sheet([(titles.get(kind, kind), list(x)) for kind, x in d.views().items()], across=1)


def page(d: Diagnosis) -> str:
    """One self-contained HTML page: prompt, verdicts, before and after, evidence, flow, numbers. No script needed."""
    states = [(f.span, d.verdict_text(i)) for i, f in enumerate(d.findings)]
    return render(
        "diagnosis.html", d=d, pieces=marked(d.prompt, states),
        items=[_shown(d, i) for i in range(len(d.findings))],
        before=[data_uri(x) for x in d.images], after=[data_uri(x) for x in d.after] if d.after is not None else [],
        flow=_cells(d) if len(d.findings) > 1 else None, image_flow=_image_cells(d), layers=_layers(d),
        repair=described(d.repair) if d.repair else None, advice=advice(d.seeds),
        lost=any(f.verdict not in (None, "ok") for f in d.findings),
        settings={"call": d.call, "without": d.flow.without},
    )  # fmt: skip


def _shown(d: Diagnosis, i: int) -> dict[str, Any]:
    f = d.findings[i]
    evidence = [
        {
            "title": e.title,
            "rate": e.rate,
            "instead": " and ".join(f"{name} on {e.seen[name].k}" for name in e.instead),
            "images": [data_uri(x, 96) for x in e.images],
        }
        for e in f.evidence.values()
    ]
    return {
        "text": f.item.text,
        "sense": f.sense,
        "head": d.verdict_text(i),
        "colour": COLOURS.get(d.verdict_text(i), "faint"),
        "story": story(d, i),
        "after": f.after if f.repaired else None,
        "after_interval": _interval(f.after) if f.after else "",
        "open": f.open,
        "evidence": evidence,
        "reads": ", ".join(f"{name} ({cosine:.2f})" for name, cosine in f.reads[:4]) if evidence else "",
        "numbers": [_cell(rate) for rate in _rates(d, f)],
    }


def _layers(d: Diagnosis) -> list[dict[str, Any]]:
    """What earlier encoder layers draw, with the count of each item."""
    senses = [f.sense for f in d.findings]
    return [
        {
            "title": e.title,
            "counts": ", ".join(f"{name} {e.seen[name]}" for name in senses if name in e.seen),
            "images": [data_uri(x, 96) for x in e.images],
        }
        for e in d.layers.values()
    ]


def _rates(d: Diagnosis, f: Finding) -> list[Rate | None]:
    rates = [f.evidence[name].rate if name in f.evidence else None for name in ("encoded", "alone")]
    control = d.control.seen.get(f.sense) if d.control else None
    return [f.present, *rates, control, *([f.after] if d.after is not None else [])]


def _cell(rate: Rate | None) -> str:
    return "" if rate is None else f"{rate} ({_interval(rate)})"


def _interval(rate: Rate) -> str:
    return f"{100 * rate.low:.0f} to {100 * rate.high:.0f} %"


STORIES = {
    "ok": "drawn as it is meant",
    "leak": "lost in the text encoder: beside the other items its rows say something else, alone it is drawn",
    "neglect": "encoded as it is meant, but not drawn",
    "unknown": "not drawn even alone: the model does not know it under this name",
}


def story(d: Diagnosis, i: int) -> str:
    """The verdict on item i in one to three sentences."""
    f = d.findings[i]
    parts = [f"{f.note}."] if f.note else []
    if f.present is not None and f.verdict:
        sense = f"a {f.sense} on " if f.sense != f.item.text else "on "
        where = "" if f.verdict == "ok" or not f.present.k else "where it is missing it is "
        seen = f"{sense}{f.present.k} of {f.present.n} images ({_interval(f.present)})"
        parts.append(f"{seen}; {where}{STORIES[f.verdict]}.")
        if f.others:
            seen = ", ".join(f"{name} on {rate.k} of {rate.n}" for name, rate in f.others.items())
            parts.append(f"On the images that fail: {seen}.")
    if d.suspects[i]:
        parts += [f"“{j}” moves its rows {100 * share:.0f} % of the way to “{n}”." for j, n, share in d.leak_sources(i)]
    elif f.verdict is None and not f.note:
        parts.append("no other item gives its rows another meaning.")
    return " ".join([*parts, *(f"({flag})" for flag in f.flags)])


def _cells(d: Diagnosis) -> list[list[dict[str, Any] | None]]:
    """The heat map of the flow: [n][n], None on the diagonal."""
    flow, n = d.flow, len(d.findings)
    colours = {"leak": RED, "disambiguation": GREEN, "none": GREY}
    out: list[list[dict[str, Any] | None]] = []
    for i in range(n):
        row: list[dict[str, Any] | None] = []
        for j in range(n):
            if i == j:
                row.append(None)
                continue
            (name, share), size = flow.meaning(i, j), float(flow.size[i, j])
            strength = min(1.0, max(0.0, share)) if name else min(0.15, 0.2 * size)
            row.append({"name": name, "share": f"{100 * share:.0f}", "size": size,
                        "colour": colours[flow.kind(i, j)], "strength": f"{0.6 * strength:.2f}"})  # fmt: skip
        out.append(row)
    return out


def _image_cells(d: Diagnosis) -> list[list[dict[str, Any] | None]] | None:
    """The flow of images: [n][n], None on the diagonal; None where it was not drawn."""
    if d.image_flow is None:
        return None
    colours = {"leak": RED, "disambiguation": GREEN}
    changes, n = d.image_flow.changes, range(len(d.findings))
    return [
        [
            None
            if i == j
            else {
                "distance": f"{changes[i, j].distance:.2g}",
                "appears": ", ".join(changes[i, j].appears),
                "colour": colours.get(changes[i, j].kind or "", GREY),
                "strength": "0.50" if changes[i, j].kind in colours else "0.08",
            }
            for j in n
        ]
        for i in n
    ]
