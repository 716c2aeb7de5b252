"""Pictures for people: contact sheets and before/after grids with labels, as PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unleak.core.result import Result

INK, PAPER, FAINT = (32, 33, 36), (255, 255, 255), (110, 112, 118)


def png(image: Image.Image) -> bytes:
    """PNG bytes of an image."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def webp(image: Image.Image) -> bytes:
    """WebP bytes of an image for people to look at: a sixth of a PNG's, and not the same to the bit."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=85, method=6)
    return buffer.getvalue()


def seeds_of(result: Result) -> dict[str, bytes]:
    """The pictures of all views of a result, one for each seed, by the file names that it gives them."""
    names, views = result.file_names(), result.views()
    return {
        name: png(Image.fromarray(image))
        for kind, images in views.items()
        for name, image in zip(names[kind], images, strict=True)
    }


def enlarge(image: np.ndarray, side: int) -> Image.Image:
    """An image [H,W,3] uint8 with its longer side at `side` pixels; small images keep their pixels sharp."""
    pil = Image.fromarray(image)
    scale = side / max(pil.size)
    size = (max(1, round(pil.width * scale)), max(1, round(pil.height * scale)))
    return pil.resize(size, Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS)


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[np.ndarray]]], side: int = 128, across: int = 2, gap: int = 6
) -> Image.Image:
    """Rows of (label, images [H,W,3] uint8): the label stands over its images; `across` groups side by side."""
    font = ImageFont.load_default(13)
    head = 22
    most = max(len(images) for _, images in rows)
    tall = max(round(side * image.shape[0] / max(image.shape[:2])) for _, images in rows for image in images)
    width, height = most * (side + gap) + 2 * gap, head + tall + gap
    sheet = Image.new("RGB", (across * width, -(-len(rows) // across) * height + gap), PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, (label, images) in enumerate(rows):
        x, y = (i % across) * width + gap, (i // across) * height + gap
        text = label
        while font.getlength(text) > width - 2 * gap and len(text) > 4:
            text = text[:-4].rstrip() + "..."
        pen.text((x, y + 2), text, INK, font)
        for k, image in enumerate(images):
            sheet.paste(enlarge(image, side), (x + k * (side + gap), y + head - 4))
    return sheet
