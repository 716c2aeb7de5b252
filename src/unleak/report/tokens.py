"""What tokens draw, as JSON (schema unleak/tokens/1), as a strip of pictures, and as one page for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unleak.files.atomic import versions, write_atomic
from unleak.report.pages import data_uri, marked, render
from unleak.report.pictures import PAPER, contact_sheet, png
from unleak.stats.rows import share
from unleak.text.match import Chars
from unleak.words.tokens.redundancy import TokenStudy

CARRIES = (20, 108, 46)  #: the frame of a representative token


def rate(s: TokenStudy, i: int, view: str | None) -> dict[str, Any] | None:
    """On how many seeds item i is in a view, with its Wilson interval; None where nothing was judged."""
    hits = s.hits(i, view)
    if hits is None:
        return None
    row = share(hits, "tokens", str(view), "present")
    return {"present": int(hits.sum()), "seeds": row.n, "rate": row.value, "low": row.low, "high": row.high}


def to_dict(s: TokenStudy, images: dict[str, list[str]]) -> dict[str, Any]:
    """The result as plain JSON data; `images` holds file names relative to the JSON file, by view."""
    items = [
        {
            "text": item.item.text, "occurrence": item.item.occurrence, "sense": item.sense, "span": list(item.span),
            "whole": rate(s, i, item.view), "nothing": rate(s, i, "nothing"), "view": item.view,
            "redundant": s.redundant(i),
            "tokens": [
                {"text": t.text, "span": list(t.chars), "view": t.view, "shows": rate(s, i, t.view),
                 "representative": s.representative(i, k)}
                for k, t in enumerate(item.tokens)
            ],
        }
        for i, item in enumerate(s.plan.items)
    ]  # fmt: skip
    return {
        "schema": "unleak/tokens/1", "prompt": s.plan.prompt, "model": s.model, "encoder": s.plan.encoder,
        "settings": s.settings, "judge": s.judge, "seeds": s.seeds, "items": items, "images": images,
        "versions": versions(),
    }  # fmt: skip


def save_images(s: TokenStudy, folder: Path) -> dict[str, list[str]]:
    """Write every image and the strip `tokens.png`; returns the file names by view."""
    names: dict[str, list[str]] = {}
    for view, images in s.images.items():
        names[view] = [f"{view.lower().replace(' ', '-')}-{seed}.png" for seed in s.seeds]
        for name, image in zip(names[view], images, strict=True):
            write_atomic(folder / name, png(Image.fromarray(image)))
    write_atomic(folder / "tokens.png", png(strip(s)))
    return names


def strip(s: TokenStudy, most: int = 4) -> Image.Image:
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
    sheet = Image.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows)), PAPER)
    for k, row in enumerate(rows):
        sheet.paste(row, (0, sum(r.height for r in rows[:k])))
    return sheet


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
    found = rate(s, i, view)
    return f"{found['present']}/{found['seeds']}" if found else ""


def page(s: TokenStudy) -> str:
    """One self-contained HTML page: the prompt, a picture per token under its text, rates, settings."""
    pictures = {view: [data_uri(image, 96) for image in images] for view, images in s.images.items()}
    others = [view for view in s.images if not view.startswith("item ")]
    context = [{"view": view, "rates": [rate(s, i, view) for i in range(len(s.plan.items))]} for view in others]
    return render(
        "tokens.html", title="unleak tokens", s=s, data=to_dict(s, {}), pieces=_pieces(s), pictures=pictures,
        context=context, settings=s.settings,
    )  # fmt: skip


def _pieces(s: TokenStudy) -> list[dict[str, Any]]:
    """The prompt with the tokens of its items marked; shared characters belong to the first token."""
    states = {True: "ok", False: "redundant", None: "named"}
    found: list[tuple[Chars, str]] = []
    at = 0
    for i, item in sorted(enumerate(s.plan.items), key=lambda pair: pair[1].span):
        for k, token in enumerate(item.tokens):
            a, b = token.chars
            if b > at:
                found.append(((max(a, at), b), states[s.representative(i, k)]))
                at = b
    return marked(s.plan.prompt, found)
