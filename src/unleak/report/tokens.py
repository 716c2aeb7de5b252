"""What tokens draw, as a strip of pictures, and as one page for people."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from unleak.report.pages import data_uri, marked, render
from unleak.report.pictures import PAPER, contact_sheet, png, seeds_of
from unleak.text.match import Chars
from unleak.words.tokens.redundancy import TokenStudy

CARRIES = (20, 108, 46)  #: the frame of a representative token


def pictures(s: TokenStudy) -> dict[str, bytes]:
    """Every image, and the strip `tokens.png`."""
    return {**seeds_of(s), "tokens.png": png(sheet(s))}


def sheet(s: TokenStudy, most: int = 4) -> Image.Image:
    """One row per item: nothing, each of its tokens, the whole item; up to `most` seeds to a picture.

    Representative tokens have a green frame.
    """
    rows = []
    for i, item in enumerate(s.plan.items):
        cells = [("nothing", "nothing", PAPER)]
        for k, token in enumerate(item.tokens):
            if token.view:
                cells.append((token.text, token.view, CARRIES if s.representative(i, k) else PAPER))
        if item.view:
            cells.append((item.item.text, item.view, PAPER))
        pictures = [
            (f"{text}  {_count(s, i, view)}".rstrip(), [framed(mosaic(s.images[view][:most]), colour)])
            for text, view, colour in cells
        ]
        rows.append(contact_sheet(pictures, across=len(pictures)))
    strip = Image.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows)), PAPER)
    for k, row in enumerate(rows):
        strip.paste(row, (0, sum(r.height for r in rows[:k])))
    return strip


def framed(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """An image [H,W,3] with a frame of 1/32 of its width."""
    f = max(1, image.shape[1] // 32)
    out = np.empty((image.shape[0] + 2 * f, image.shape[1] + 2 * f, 3), np.uint8)
    out[:] = colour
    out[f:-f, f:-f] = image
    return out


def mosaic(images: np.ndarray, across: int = 2) -> np.ndarray:
    """Images [S,H,W,3] as one, `across` to a row; missing ones are white."""
    S, H, W, _ = images.shape
    across = min(across, S)
    down = -(-S // across)
    sheet = np.full((down * across, H, W, 3), 255, np.uint8)
    sheet[:S] = images
    return sheet.reshape(down, across, H, W, 3).swapaxes(1, 2).reshape(down * H, across * W, 3)


def _count(s: TokenStudy, i: int, view: str) -> str:
    rate = s.rate(i, view)
    return f"{rate['present']}/{rate['seeds']}" if rate else ""


def page(s: TokenStudy) -> str:
    """One self-contained HTML page: the prompt, a picture per token under its text, rates, settings."""
    pictures = {view: [data_uri(image, 96) for image in images] for view, images in s.images.items()}
    others = [view for view in s.images if not view.startswith("item ")]
    context = [{"view": view, "rates": [s.rate(i, view) for i in range(len(s.plan.items))]} for view in others]
    return render(
        "tokens.html", title="unleak tokens", s=s, data=s.data(), pieces=_pieces(s), pictures=pictures,
        context=context, settings=s.settings,
    )  # fmt: skip


def _pieces(s: TokenStudy) -> list[dict[str, Any]]:
    """The prompt with the tokens of its items marked; shared characters belong to the first token."""
    states = {True: "ok", False: "redundant", None: "named"}
    marks: list[tuple[Chars, str]] = []
    at = 0
    for i, item in sorted(enumerate(s.plan.items), key=lambda pair: pair[1].span):
        for k, token in enumerate(item.tokens):
            a, b = token.chars
            if b > at:
                marks.append(((max(a, at), b), states[s.representative(i, k)]))
                at = b
    return marked(s.plan.prompt, marks)
