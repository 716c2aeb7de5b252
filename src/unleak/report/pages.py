"""Pages for people: self-contained HTML in one style, with every picture inside and every text escaped."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from PIL import Image

from unleak.errors import printable
from unleak.files.provenance import versions
from unleak.report.pictures import enlarge, png
from unleak.text.match import Chars

WIDEST = 640


def _shown(value: Any) -> Any:
    """Text that steers nothing, and does not turn around what stands beside it; autoescape comes after."""
    return printable(value) if type(value) is str else value


_pages = Environment(
    loader=PackageLoader("unleak", "report/templates"), autoescape=True, trim_blocks=True, finalize=_shown
)


def render(template: str, *, settings: dict[str, Any], **content: Any) -> str:
    """A template that extends base.html, with the settings and versions at its end."""
    shown = json.dumps(settings, ensure_ascii=False, default=str)
    return _pages.get_template(template).render(settings=shown, versions=versions(), **content)


def data_uri(image: np.ndarray, side: int = 192) -> str:
    """An image as a data: address, so that a page needs no other file."""
    return "data:image/png;base64," + base64.b64encode(png(enlarge(image, side))).decode()


def notebook(text: str, sheet: Image.Image | None) -> str:
    """A piece of HTML: the text with its first line as the title, and one picture at most `WIDEST` pixels wide."""
    title, _, rest = text.partition("\n")
    uri = None
    if sheet is not None:
        sheet.thumbnail((WIDEST, WIDEST))
        uri = "data:image/png;base64," + base64.b64encode(png(sheet)).decode()
    return _pages.get_template("notebook.html").render(title=title, rest=rest, sheet=uri)


def marked(prompt: str, states: Iterable[tuple[Chars, str]]) -> list[dict[str, Any]]:
    """The prompt as pieces of text; pieces that are items carry their state, which is how the page marks them."""
    pieces: list[dict[str, Any]] = []
    at = 0
    for (a, b), state in sorted(states):
        pieces += [{"text": prompt[at:a], "state": None}, {"text": prompt[a:b], "state": state}]
        at = b
    return [*pieces, {"text": prompt[at:], "state": None}]
