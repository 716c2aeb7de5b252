"""Results for people: a page, pictures, and what a notebook shows. One module for each kind of result."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from unleak.core.result import Result
from unleak.report import pages

PAGES = {
    "generate": "plain",
    "diagnose": "diagnosis",
    "repair": "repair",
    "tokens": "tokens",
    "guard": "guard",
    "lint": "lint",
    "edit": "edit",
    "regions": "regions",
    "scan": "scan",
    "calibration": "plain",
    "audit": "plain",
    "doctor": "plain",
    "maps": "maps",
    "methods": "plain",
}
"""Verb -> the module here with ``page(result) -> str``, ``pictures(result) -> {file name: PNG bytes}`` and
``sheet(result) -> Image | None``, the one picture that stands for all."""


def page(result: Result) -> str:
    """One self-contained HTML page, without script."""
    html: str = _module(result).page(result)
    return html


def pictures(result: Result) -> dict[str, bytes]:
    """Every picture of the result by file name, as PNG."""
    files: dict[str, bytes] = _module(result).pictures(result)
    return files


def notebook(result: Result) -> str:
    """What `str` says of the result and its sheet, as a piece of HTML."""
    return pages.notebook(str(result), _module(result).sheet(result))


def _module(result: Result) -> Any:
    return import_module(f"unleak.report.{PAGES[result.verb]}")
