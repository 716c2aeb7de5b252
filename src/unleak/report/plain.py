"""The page of a result that says all in words and pictures: its lines, and its views kind by kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from unleak.core.result import Result
from unleak.report.pages import data_uri, render
from unleak.report.pictures import contact_sheet, png, seeds_of


def pictures(result: Result) -> dict[str, bytes]:
    """Every image, and `sheet.png` of them all where there is any."""
    image = sheet(result)
    return {} if image is None else {**seeds_of(result), "sheet.png": png(image)}


def sheet(result: Result) -> Image.Image | None:
    """A row of images for each kind; None where there is no picture."""
    views = result.views()
    return contact_sheet([(kind, list(images)) for kind, images in views.items()], across=1) if views else None


def page(result: Result, views: Mapping[str, Sequence[np.ndarray]] | None = None) -> str:
    """One self-contained HTML page of the lines and of the views, by default those of the result. No script needed."""
    title, *lines = str(result).splitlines()
    strips = [
        {"title": kind, "images": [data_uri(x) for x in images]}
        for kind, images in (result.views() if views is None else views).items()
    ]
    settings: dict[str, Any] = result.data().get("settings") or {}
    return render("plain.html", settings=settings, verb=result.verb, heading=title, lines=lines, strips=strips)
