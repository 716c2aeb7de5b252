"""Images of regional prompts as pictures, and as one page for people."""

from __future__ import annotations

import numpy as np
from PIL import Image

from unleak.regions.regional import RegionalImages
from unleak.report import plain
from unleak.report.edit import outlined
from unleak.report.pictures import contact_sheet, png


def pictures(r: RegionalImages) -> dict[str, bytes]:
    """Every image, the masks, and `regions.png` of them all."""
    names = r.file_names()
    files = dict(zip(names["images"], r.images, strict=True))
    files |= {name: mask.astype(np.uint8) * 255 for name, mask in zip(names["masks"], r.masks.numpy(), strict=True)}
    return {name: png(Image.fromarray(image)) for name, image in files.items()} | {"regions.png": png(sheet(r))}


def views(r: RegionalImages) -> dict[str, list[np.ndarray]]:
    """The images, and the same with every region outlined."""
    return {"images": list(r.images), "with their regions": [outlined(image, r.masks.numpy()) for image in r.images]}


def sheet(r: RegionalImages) -> Image.Image:
    """A row of images, and one with the regions outlined."""
    return contact_sheet(list(views(r).items()), across=1)


def page(r: RegionalImages) -> str:
    """One self-contained HTML page: the images, their regions, settings."""
    return plain.page(r, views(r))
