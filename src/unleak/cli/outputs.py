"""Paths of outputs, checked before anything runs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

from unleak.errors import BadInput


def check_folder(folder: Path) -> Path:
    """The folder, which can be made and written to; nothing is made yet. Raises BadInput."""
    try:
        str(folder).encode("utf-8")
        there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        with tempfile.TemporaryFile(dir=there):
            return folder
    except UnicodeEncodeError:
        raise BadInput(f"the path {str(folder)!r} is not valid UTF-8 text; choose another") from None
    except OSError as e:
        raise BadInput(f"cannot write to the folder {folder}: {e.strerror or e}; choose another with -o") from e


def check_file(path: Path, option: str, out: Path | None = None) -> None:
    """A file that an option names can be written: its folder is there, or is `out`. Raises BadInput."""
    if str(path) in ("", ".", "-") or path.is_dir() or (out is not None and path.absolute() == out.absolute()):
        raise BadInput(f"{option} {str(path)!r} is no file name: write {option} FILE")
    if not path.parent.is_dir() and (out is None or path.parent.absolute() != out.absolute()):
        raise BadInput(f"{option} {str(path)!r}: there is no folder {str(path.parent)!r}; make it first")
    check_folder(path.parent)


def check_distinct(outputs: Mapping[str, Path]) -> None:
    """No two outputs are one file, whatever their paths look like. Raises BadInput."""
    for (one, path), (two, other) in combinations(outputs.items(), 2):
        if _same(path, other):
            raise BadInput(f"{one} and {two} both write {str(path)!r}: name two files")


def check_inputs(outputs: Mapping[str, Path], inputs: Mapping[str, Path]) -> None:
    """No output is an input, whatever their paths look like. Raises BadInput."""
    for option, path in outputs.items():
        for name, given in inputs.items():
            if _same(path, given):
                raise BadInput(f"{option} {str(path)!r} holds the {name} that are read: choose another file")


def _same(one: Path, two: Path) -> bool:
    try:
        return one.samefile(two)
    except OSError:  # one of them is not there yet
        return one.resolve() == two.resolve()
