"""A mitigation as a before/after grid, and as one page for people."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from unleak.copies.protect import Attenuated, Protection
from unleak.judges.copies import CopyJudge, SceneJudge
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
        tiles = [{"image": data_uri(x), "similarity": None if p.similarity is None else p.similarity[k][j],
                  "nearest": known and data_uri(known[j], 64)} for j, x in enumerate(images)]  # fmt: skip
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
        settings={**p.method.to_dict(), "call": p.call},
    )  # fmt: skip


def _nearest(judge: CopyJudge | None, images: np.ndarray) -> list[np.ndarray] | None:
    """The training image nearest to each image, where the judge knows its picture."""
    if not isinstance(judge, SceneJudge):
        return None
    return [(judge.scenes[k] * 255).round().astype(np.uint8) for k in judge.scene(images)]


def _heat(a: Attenuated) -> dict[str, Any]:
    """Shares [sites, steps], averaged over positions after the start."""
    return {
        "sites": list(zip(a.sites, np.round(a.shares[:, :, 1:].mean(2).T, 3).tolist(), strict=True)),
        "steps": a.steps,
    }
