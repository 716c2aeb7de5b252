"""A mitigation as JSON (schema unleak/guard/1), as a before/after grid, and as one page for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unleak.copies.protect import Attenuated, Protection
from unleak.files.atomic import versions, write_atomic
from unleak.judges.copies import CopyJudge, SceneJudge
from unleak.report.pages import data_uri, render
from unleak.report.pictures import contact_sheet, png
from unleak.stats.rows import share


def to_dict(p: Protection, images: dict[str, list[str]]) -> dict[str, Any]:
    """The result as plain JSON data; `images` holds file names relative to the JSON file."""
    return {
        "schema": "unleak/guard/1",
        "prompt": p.prompt,
        "model": p.model,
        "preset": p.preset,
        "method": p.method.to_dict(),
        "call": p.call,
        "seeds": p.seeds,
        "touched": p.touched,
        "gate": p.gate,
        "attenuated": None if p.attenuated is None else _where(p.attenuated),
        "denoiser_rows": {"before": p.rows[0], "after": p.rows[1]},
        "similarity": _similarity(p),
        "alignment": _alignment(p),
        "images": images,
        "versions": versions(),
    }


def _where(a: Attenuated) -> dict[str, Any]:
    mean = lambda axes: [round(float(x), 4) for x in a.shares.mean(axes)]  # noqa: E731
    return {
        "steps": a.steps, "sites": a.sites, "positions": a.positions,
        "share_by_step": mean((1, 2)), "share_by_site": mean((0, 2)), "share_by_position": mean((0, 1)),
    }  # fmt: skip


def _similarity(p: Protection) -> dict[str, Any] | None:
    if p.similarity is None or p.copy_judge is None:
        return None
    before, after = ([round(float(x), 4) for x in side] for side in p.similarity)
    return {"judge": p.copy_judge.name, "copy_from": p.copy_judge.threshold, "before": before, "after": after}


def _alignment(p: Protection) -> dict[str, Any] | None:
    if p.present is None:
        return None
    before, after = (hits.sum(0).tolist() for hits in p.present)
    items = [{"text": i.text, "present_before": b, "present_after": a, "seeds": len(p.seeds)}
             for i, b, a in zip(p.items, before, after, strict=True)]  # fmt: skip
    return {"judge": p.judge, "items": items}


def save_images(p: Protection, folder: Path) -> dict[str, list[str]]:
    """Write every image and the grid `before-after.png`; returns the file names by side."""
    names: dict[str, list[str]] = {}
    for side, images in (("before", p.before), ("after", p.after)):
        names[side] = [f"{side}-{seed}.png" for seed in p.seeds]
        for name, image in zip(names[side], images, strict=True):
            write_atomic(folder / name, png(Image.fromarray(image)))
    sheet = contact_sheet([("before", list(p.before)), ("after", list(p.after))], across=1)
    write_atomic(folder / "before-after.png", png(sheet))
    return names


def sentences(p: Protection) -> list[str]:
    """What happened, in words: one line per finding."""
    n, said = len(p.seeds), []
    if p.gate is not None:
        acted = sum(g["acted"] for g in p.gate)
        said.append(f"The gate acted on {acted} of {n} images; the others are left alone.")
    if not p.touched:
        said.append("Nothing was changed: every image is bitwise the same.")
    copies = p.copies()
    if copies is not None:
        said.append(f"Copies of a training image: {copies[0]} of {n} before, {copies[1]} of {n} after.")
    if p.present is not None:
        before, after = (int(hits.all(1).sum()) for hits in p.present)
        said.append(f"Everything that the prompt names is there on {before} of {n} seeds before, {after} of {n} after.")
    said.append(f"Denoiser rows: {p.rows[1] / p.rows[0]:.2f} times those without it.")
    return said


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
        {"text": i.text, "before": share(p.present[0][:, k], "", i.text, "present"),
         "after": share(p.present[1][:, k], "", i.text, "present")}
        for k, i in enumerate(p.items)
    ]  # fmt: skip
    return render(
        "guard.html", title="unleak guard", p=p, said=sentences(p), strips=strips, rates=rates,
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
