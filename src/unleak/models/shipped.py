"""Where the weights of the embedded worlds are: beside the code in a checkout, else in the package `unleak_worlds`."""

from __future__ import annotations

from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "unleak_worlds"
REMEDY = "install them with pip install 'unleak[demo]', or work in a checkout"


def shipped(place: str) -> Path:
    """A file or folder of the worlds, by its place below the code: "models/emoji-sd".

    A place that is nowhere is named where a checkout would have it.
    """
    beside = Path(str(files("unleak"))) / place
    spec = None if beside.exists() else find_spec(PACKAGE)
    folders = (Path(folder) / place for folder in (spec.submodule_search_locations if spec else None) or ())
    return next((path for path in folders if path.exists()), beside)
