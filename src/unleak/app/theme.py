"""The look of the page: the colours and the type of the reports, in light and in dark."""

from __future__ import annotations

import inspect
from importlib.resources import files

import gradio as gr

STYLE = files("unleak.app").joinpath("style.css").read_text("utf-8")
"""It gives the colours, and what no theme of gradio can say."""
COLOURS = {
    "paper": "body_background_fill background_fill_primary block_background_fill input_background_fill "
             "block_label_background_fill button_primary_text_color checkbox_background_color",
    "soft": "background_fill_secondary button_secondary_background_fill button_cancel_background_fill "
            "checkbox_label_background_fill checkbox_label_background_fill_selected color_accent_soft",
    "line": "border_color_primary block_border_color button_secondary_background_fill_hover "
            "button_cancel_background_fill_hover checkbox_label_background_fill_hover",
    "edge": "input_border_color button_secondary_border_color button_cancel_border_color checkbox_border_color",
    "ink": "body_text_color block_title_text_color button_secondary_text_color checkbox_label_text_color "
           "checkbox_label_text_color_selected",
    "faint": "input_placeholder_color body_text_color_subdued block_label_text_color block_info_text_color",
    "accent": "button_primary_background_fill button_primary_background_fill_hover checkbox_border_color_selected "
              "checkbox_background_color_selected link_text_color color_accent border_color_accent",
    "bad": "button_cancel_text_color",
}  # fmt: skip
"""Colour of `style.css` -> variables of the theme that have it."""


def theme() -> gr.themes.Base:
    """The theme. Its fonts are those of the system: nothing is fetched from elsewhere."""
    base = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"], text_size="lg")
    known = inspect.signature(base.set).parameters
    coloured = {name: f"var(--{colour})" for colour, names in COLOURS.items() for name in names.split()}
    both = {**coloured, **{f"{name}_dark": value for name, value in coloured.items() if f"{name}_dark" in known}}
    return base.set(**both, input_border_width="1px", button_border_width="1px")
