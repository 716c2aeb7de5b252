"""An edit as pictures, and as one page for people."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image
from scipy.ndimage import binary_erosion

from unleak.regions.edited import Edited
from unleak.report.pages import data_uri, render
from unleak.report.pictures import contact_sheet, png
from unleak.text.items import Item

COLOURS = ((214, 39, 40), (31, 119, 180), (44, 160, 44), (148, 103, 189), (255, 127, 14), (23, 190, 207))
HOTTEST = 32
"""Levels of 255 by which a pixel outside the masks has changed where the heat map is full red, whatever the picture is.

If all pixels had, the PSNR would be 18 dB. Half the levels are half as red, and no change leaves the photo's grey."""
TICKS = (0, 8, 16, 32)
HOT = (190, 16, 24)


def outlined(image: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """An image [H, W, 3] with every region, bool [K, H, W], tinted and outlined in a colour of its own."""
    out = image.astype(np.float64)
    for i, region in enumerate(regions):
        colour = np.array(COLOURS[i % len(COLOURS)], np.float64)
        rim = region & ~binary_erosion(region, iterations=max(1, region.shape[0] // 128))
        out[region] = 0.85 * out[region] + 0.15 * colour
        out[rim] = colour
    return out.round().astype(np.uint8)


def leak_map(r: Edited) -> np.ndarray:
    """Change outside the masks as red over a faint photo, on the absolute scale of `HOTTEST`."""
    heat = np.clip(r.leak * 255 / HOTTEST, 0, 1)[..., None]
    faint = r.before.mean(-1, keepdims=True) * 0.25 + 255 * 0.75
    return (faint * (1 - heat) + np.array(HOT) * heat).round().astype(np.uint8)


def legend() -> list[dict[str, str]]:
    """Ticks of the heat map: how far along the scale, levels, and the PSNR of a picture that changed so everywhere."""
    return [
        {
            "at": f"{100 * levels / HOTTEST:g}%",
            "levels": f"{levels}{' and more' if levels == HOTTEST else ''}",
            "psnr": f"{20 * math.log10(255 / levels):.0f} dB" if levels else "no change",
        }
        for levels in TICKS
    ]


def pictures(r: Edited) -> dict[str, bytes]:
    """The images, the masks as used and the sheet `before-after.png`."""
    names = r.file_names()
    files = {names["before"]: r.before, names["after"]: r.image}
    files |= {} if r.full is None else {names["full"]: r.full}
    files |= {name: mask.astype(np.uint8) * 255 for name, mask in zip(names["masks"], r.masks.numpy(), strict=True)}
    return {name: png(Image.fromarray(image)) for name, image in files.items()} | {"before-after.png": png(sheet(r))}


def sheet(r: Edited) -> Image.Image:
    """Before, masks, after and the leak side by side."""
    return contact_sheet([(title, [image]) for title, image in views(r)], side=192, across=4)


def views(r: Edited) -> list[tuple[str, np.ndarray]]:
    """What a person looks at, with titles."""
    return [
        ("before", r.before),
        ("masks", outlined(r.before, r.regions[:-1].numpy())),
        ("after", r.image),
        ("changed outside the masks", leak_map(r)),
    ]


def page(r: Edited) -> str:
    """One self-contained HTML page: what was asked, before and after with masks and leaks, numbers, settings."""
    edits = [
        {
            "source": Item.of(one.source).text, "target": one.target, "given": given,
            "area": float(mask.float().mean()),
            "colour": "rgb({}, {}, {})".format(*COLOURS[i % len(COLOURS)]), "check": r.checks[i] if r.checks else None,
        }
        for i, (one, given, mask) in enumerate(zip(r.edits, r.given, r.masks, strict=True))
    ]  # fmt: skip
    return render(
        "edit.html",
        r=r, edits=edits,
        psnr={name: None if v is None else "exact" if math.isinf(v) else f"{v:.1f} dB" for name, v in r.psnr.items()},
        pictures=[{"title": title, "src": data_uri(image, 384)} for title, image in views(r)],
        legend=legend(), hot="rgb({}, {}, {})".format(*HOT), settings=r.settings,
    )  # fmt: skip
