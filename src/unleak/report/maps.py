"""Attention maps over pictures: one overlay, and a sheet with a row for each item."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from PIL import Image
from skimage.transform import resize

from unleak.errors import BadInput
from unleak.report import plain
from unleak.report.pictures import contact_sheet, png
from unleak.words.attention_maps import AttentionMaps
from unleak.words.methods.maps import ItemMaps


def overlay(image: np.ndarray, heat: np.ndarray, strength: float = 0.8, colours: str = "inferno") -> np.ndarray:
    """A heat map laid over a picture, which stays visible through it: cold cells are dark, hot cells bright.

    Args:
        image: [H,W,3] uint8. heat: [h,w] in 0..1, any size of about the same shape. strength: 0..1, the share of
            the heat map in the blend. colours: a matplotlib colour map.

    Returns:
        [H,W,3] uint8.
    """
    if not 0 <= heat.min() <= heat.max() <= 1:
        raise BadInput(f"heat must lie in 0..1, not {heat.min():.3g}..{heat.max():.3g}")
    spread = resize(np.asarray(heat, np.float64), image.shape[:2], order=1, mode="edge")
    tint = colormaps[colours](spread)[..., :3] * 255
    return np.round(image * (1 - strength) + tint * strength).clip(0, 255).astype(np.uint8)


def item_sheet(maps: ItemMaps, images: Sequence[np.ndarray], side: int = 128) -> Image.Image:
    """The images [n,H,W,3] uint8 of one generation, and under them one row of overlays for each item."""
    if len(images) != len(maps.prompts):
        raise BadInput(f"{len(images)} images do not fit maps of {len(maps.prompts)}")
    rows = [("images", list(images))]
    for item in maps.items:
        rows.append((item, [overlay(image, maps.heat(item, n).numpy()) for n, image in enumerate(images)]))
    return contact_sheet(rows, side, across=1)


def pictures(m: AttentionMaps) -> dict[str, bytes]:
    """Every image, every map over its image, and `maps.png` of them all."""
    names = m.file_names()
    files = dict(zip(names["image"], m.images, strict=True))
    for i in range(len(m.items)):
        files |= dict(zip(names[f"map-{i + 1}"], overlays(m, i), strict=True))
    return {name: png(Image.fromarray(image)) for name, image in files.items()} | {"maps.png": png(sheet(m))}


def overlays(m: AttentionMaps, item: int) -> list[np.ndarray]:
    """The map of an item over every image."""
    return [overlay(image, m.heat(item, s)) for s, image in enumerate(m.images)]


def sheet(m: AttentionMaps) -> Image.Image:
    """A row of images, and under them a row of maps for each item."""
    rows = [("images", list(m.images)), *((item, overlays(m, i)) for i, item in enumerate(m.items))]
    return contact_sheet(rows, across=1)


def page(m: AttentionMaps) -> str:
    """One self-contained HTML page: the images, and where they read each item."""
    views = {"The images": list(m.images), **{item: overlays(m, i) for i, item in enumerate(m.items)}}
    return plain.page(m, views)
