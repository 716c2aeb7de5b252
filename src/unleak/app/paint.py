"""Painted masks: a canvas with a colour for each object, and the colours read back as masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import gradio as gr
import numpy as np
from PIL import Image

from unleak.errors import BadInput
from unleak.files.pictures import MIDDLE

COLOURS = {"orange": "#e69f00", "blue": "#0072b2", "green": "#009e73", "pink": "#cc79a7"}
"""Name of a colour -> what is painted. Okabe and Ito's, which colour-blind people can tell apart."""
OPACITY = 0.7  #: of the paint, so that the picture is seen under it
SIDE = 512  #: pixels of a blank canvas


def canvas(label: str, blank: bool = False) -> gr.ImageEditor:
    """A picture to paint masks on; `blank`: there is only the paper."""
    return gr.ImageEditor(
        cast(Any, blank_paper()) if blank else None, label=label, type="pil", image_mode="RGBA", format="png",
        sources=() if blank else ("upload", "clipboard"), transforms=(), layers=False, height=520,
        canvas_size=(SIDE, SIDE), fixed_canvas=blank, buttons=["fullscreen"],
        brush=gr.Brush(colors=[(colour, OPACITY) for colour in COLOURS.values()], default_color=("#e69f00", OPACITY),
                       color_mode="fixed", default_size=28),
        placeholder="Drop a photo here, or click to choose one",
    )  # fmt: skip


def blank_paper() -> dict[str, Any]:
    """What a canvas without a picture holds."""
    paper = Image.new("RGBA", (SIDE, SIDE), "white")
    return {"background": paper, "layers": [], "composite": paper}


def picture(painted: Mapping[str, Any] | None) -> Image.Image:
    """The picture under the paint. Raises BadInput: there is none."""
    background = (painted or {}).get("background")
    if background is None:
        raise BadInput("there is no picture: upload one, paste one, or let the model draw one")
    return cast(Image.Image, background)


def masks(painted: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
    """Colour -> where it is painted, bool [H, W]; colours that are nowhere are left out.

    The soft edge of a stroke belongs to it from the middle of its opacity on.
    """
    palette = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in COLOURS.values()])
    found: dict[str, np.ndarray] = {}
    for layer in (painted or {}).get("layers") or ():
        pixels = np.asarray(layer.convert("RGBA"))
        where = pixels[..., 3] >= MIDDLE * OPACITY
        painted_with = pixels[where][:, :3].astype(np.int64)
        nearest = np.stack([((painted_with - colour) ** 2).sum(-1) for colour in palette]).argmin(0)
        for i, name in enumerate(COLOURS):
            plane = np.zeros(where.shape, bool)
            plane[where] = nearest == i
            if plane.any():
                found[name] = found[name] | plane if name in found else plane
    return found
