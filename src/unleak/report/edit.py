"""An edit as JSON (schema unleak/edit/1), as pictures, and as one page for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from PIL import Image
from scipy.ndimage import binary_erosion

from unleak.files.atomic import versions, write_atomic
from unleak.regions.check import Check, background_psnr
from unleak.regions.edited import Edited
from unleak.report.pages import data_uri, render
from unleak.report.pictures import contact_sheet, png
from unleak.text.items import Item

COLOURS = ((214, 39, 40), (31, 119, 180), (44, 160, 44), (148, 103, 189), (255, 127, 14), (23, 190, 207))
LEAK_SCALE = 8
"""A change of 1 / LEAK_SCALE of the full range outside the masks is drawn as hot as can be."""


def to_dict(r: Edited, model: str, images: dict[str, Any], checks: Sequence[Check] | None = None) -> dict[str, Any]:
    """The result as plain JSON data; `images` holds file names relative to the JSON file."""
    height, width = r.image.shape[:2]
    return {
        "schema": "unleak/edit/1",
        "model": model,
        "preset": r.preset,
        "settings": r.settings,
        "seed": r.seed,
        "size": [height, width],
        "source_prompt": r.plan.source if r.plan else None,
        "target_prompt": r.plan.target if r.plan else None,
        "edits": [
            {
                "source": one.source, "target": one.target, "mask": "given" if given else r.masker,
                "area": float(mask.float().mean()),
                "check": None if checks is None else vars(checks[i]),
            }
            for i, (one, given, mask) in enumerate(zip(r.edits, r.given, r.masks, strict=True))
        ],
        "background_psnr": {name: _finite(value) for name, value in psnr(r).items()},
        "notes": r.notes,
        "images": images,
        "denoiser_rows": r.log[-1]["denoiser_rows"] // r.together if r.log else 0,
        "versions": versions(),
    }  # fmt: skip


def psnr(r: Edited) -> dict[str, float | None]:
    """Background PSNR against the rebuilt photo and against the photo itself."""
    return {"rebuilt": background_psnr(r, r.rebuilt), "photo": background_psnr(r, r.before)}


def _finite(value: float | None) -> float | str | None:
    return "inf" if value is not None and math.isinf(value) else value


def outlined(r: Edited) -> np.ndarray:
    """The photo with the region of each edit tinted and outlined in a colour of its own."""
    out = r.before.astype(np.float64)
    for i, region in enumerate(r.regions[:-1].numpy()):
        colour = np.array(COLOURS[i % len(COLOURS)], np.float64)
        rim = region & ~binary_erosion(region, iterations=max(1, region.shape[0] // 128))
        out[region] = 0.85 * out[region] + 0.15 * colour
        out[rim] = colour
    return out.round().astype(np.uint8)


def leak_map(r: Edited) -> np.ndarray:
    """Change outside the masks as heat over a faint photo."""
    heat = np.clip(r.leak * LEAK_SCALE, 0, 1)
    tint = colormaps["inferno"](heat)[..., :3] * 255
    faint = r.before.mean(-1, keepdims=True) * 0.25 + 255 * 0.75
    weight = np.clip(3 * heat, 0, 1)[..., None]
    return (faint * (1 - weight) + tint * weight).round().astype(np.uint8)


def save_images(r: Edited, folder: Path) -> dict[str, Any]:
    """Write the images, the masks as used and the sheet `before-after.png`; returns the file names."""
    names: dict[str, Any] = {"before": "before.png", "after": "after.png", "masks": []}
    write_atomic(folder / "before.png", png(Image.fromarray(r.before)))
    write_atomic(folder / "after.png", png(Image.fromarray(r.image)))
    for i, mask in enumerate(r.masks.numpy()):
        names["masks"].append(f"mask-{i + 1}.png")
        write_atomic(folder / names["masks"][-1], png(Image.fromarray(mask.astype(np.uint8) * 255)))
    sheet = contact_sheet([(title, [image]) for title, image in pictures(r)], side=192, across=4)
    write_atomic(folder / "before-after.png", png(sheet))
    return names


def pictures(r: Edited) -> list[tuple[str, np.ndarray]]:
    """What a person looks at, with titles."""
    return [
        ("before", r.before),
        ("masks", outlined(r)),
        ("after", r.image),
        ("changed outside the masks", leak_map(r)),
    ]


def page(r: Edited, model: str, checks: Sequence[Check] | None = None, judge: str | None = None) -> str:
    """One self-contained HTML page: what was asked, before and after with masks and leaks, numbers, settings."""
    edits = [
        {
            "source": Item.of(one.source).text, "target": one.target, "given": given,
            "area": float(mask.float().mean()),
            "colour": "rgb({}, {}, {})".format(*COLOURS[i % len(COLOURS)]), "check": checks[i] if checks else None,
        }
        for i, (one, given, mask) in enumerate(zip(r.edits, r.given, r.masks, strict=True))
    ]  # fmt: skip
    return render(
        "edit.html",
        r=r, model=model, edits=edits, judge=judge,
        psnr={name: None if v is None else "exact" if math.isinf(v) else f"{v:.1f} dB" for name, v in psnr(r).items()},
        pictures=[{"title": title, "src": data_uri(image, 384)} for title, image in pictures(r)],
        settings=r.settings,
    )  # fmt: skip
