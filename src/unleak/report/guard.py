"""A mitigation as a before/after grid, and as one page for people."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from unleak.copies.methods.detour import Detour
from unleak.copies.protect import Attenuated, Protection
from unleak.judges.copies import CopyJudge, PartsJudge
from unleak.report.pages import data_uri, render
from unleak.report.pictures import contact_sheet, png, seeds_of
from unleak.stats.rate import Rate


def pictures(p: Protection) -> dict[str, bytes]:
    """Every image, and the grid `before-after.png`."""
    return {**seeds_of(p), "before-after.png": png(sheet(p))}


def sheet(p: Protection) -> Image.Image:
    """A row of images before, and one after."""
    return contact_sheet([(kind, list(images)) for kind, images in p.views().items()], across=1)


def page(p: Protection) -> str:
    """One self-contained HTML page: before and after, similarity, where attention was turned down, settings."""
    a = p.attenuated
    strips = []
    for k, (title, images) in enumerate((("Before", p.before), ("After, from the same noise", p.after))):
        known = _nearest(p.copy_judge, images)
        left = None if p.remains is None else (p.remains.before, p.remains.after)[k]
        tiles = [{"image": data_uri(x), "similarity": None if p.similarity is None else p.similarity[k][j],
                  "nearest": known and data_uri(known[j], 64), "left": _left(p, None if left is None else left[j])}
                 for j, x in enumerate(images)]  # fmt: skip
        strips.append({"title": title, "tiles": tiles})
    rates = [] if p.present is None else [
        {"text": i.text, "before": Rate.of(p.present[0][:, k]),
         "after": Rate.of(p.present[1][:, k])}
        for k, i in enumerate(p.items)
    ]  # fmt: skip
    return render(
        "guard.html", title="unleak guard", p=p, sentences=p.sentences(), strips=strips, rates=rates,
        limit=None if p.copy_judge is None else p.copy_judge.threshold,
        positions=[] if a is None else a.by_position(), heat=None if a is None else _heat(a),
        advice=advice(p), settings={**p.method.to_dict(), "call": p.call},
    )  # fmt: skip


def _nearest(judge: CopyJudge | None, images: np.ndarray) -> list[np.ndarray] | None:
    """The training image nearest to each image, where the judge knows its picture."""
    if not isinstance(judge, PartsJudge):
        return None
    return [judge.references[k] for k in judge.scene(images)]


def _left(p: Protection, in_place: np.ndarray | None) -> str | None:
    """What stands in its place of the training image, such as "2 of 3 objects"."""
    if p.remains is None or in_place is None:
        return None
    return f"{int(in_place.sum())} of {len(in_place)} {p.remains.parts}"


def advice(p: Protection) -> list[tuple[str, str]]:
    """What to try next: why, and what to add to the command."""
    found: list[tuple[str, str]] = []
    copies, gated = p.copies(), p.gate is not None
    acted = p.touched if p.gate is None else any(image["acted"] for image in p.gate)
    if copies is not None and copies[1] and acted:
        found.append(("Copies remain. Try a mitigation that departs further from the prompt.", _stronger(p)))
    elif copies is not None and copies[1]:
        found.append(("The gate let copies pass. See what the mitigation does without it.", "leave out --gate"))
    elif p.remains is not None and p.remains.counts[1]:
        found.append(("No image is a copy, but parts of the training image stand where they stood.", _stronger(p)))
    if p.present is not None and acted and not p.present[1].all():
        seeds = max(p.seeds) + 1
        found.append(("What the prompt names is missing on some seeds. Draw more, and keep those that show it.",
                      f"--seeds {seeds}:{seeds + 4 * len(p.seeds)}"))  # fmt: skip
    if not gated and copies is not None and not copies[0]:
        found.append(("Nothing was copied before: nothing had to be changed. A gate leaves such prompts as they are.",
                      "--gate auto, or --gate FILE, made by unleak calibrate"))  # fmt: skip
    elif not gated:
        found.append(("Without a gate ordinary prompts are changed, too. A gate leaves them bitwise as they are.",
                      "--gate auto, or --gate FILE, made by unleak calibrate"))  # fmt: skip
    if copies is None:
        found.append(("No training images are known here, so copies cannot be counted. Compare the two rows yourself.",
                      "the same seeds stand above each other"))  # fmt: skip
    return found


def _stronger(p: Protection) -> str:
    if isinstance(p.method, Detour):
        return f"--preset detour --set near={max(-1.0, round(p.method.near - 0.2, 2)):g}"
    return "--preset detour"


def _heat(a: Attenuated) -> dict[str, Any]:
    """Shares [sites, steps], averaged over positions after the start."""
    return {
        "sites": list(zip(a.sites, np.round(a.shares[:, :, 1:].mean(2).T, 3).tolist(), strict=True)),
        "steps": a.steps,
    }
