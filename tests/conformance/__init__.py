"""Every kind of text-to-image pipeline as a tiny random model of the real classes: ``FAMILIES``, `family`.

A file of ``families/`` lists a few `Family` rows; a new file there is found by itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
from typing import Any

import pytest

from conformance import families
from conformance.family import Family

__all__ = ["FAMILIES", "Family", "each", "family"]


def _gather() -> tuple[Family, ...]:
    files = [info.name for info in pkgutil.iter_modules(families.__path__)]
    rows = [row for file in files for row in importlib.import_module(f"{families.__name__}.{file}").FAMILIES]
    names = [row.name for row in rows]
    assert len(set(names)) == len(names), f"two families of one name: {sorted(n for n in names if names.count(n) > 1)}"
    return tuple(sorted(rows, key=lambda row: row.name))


FAMILIES = _gather()


def each() -> list[Any]:
    """Every family as a parameter of a test; slow ones run where CONFORMANCE is set."""

    def marks(row: Family):
        if row.missing:
            yield pytest.mark.skip(reason=f"needs {row.needs}")
        if row.slow and not os.environ.get("CONFORMANCE"):
            yield pytest.mark.skip(reason="slow: set CONFORMANCE=1")

    return [pytest.param(row, id=row.name, marks=list(marks(row))) for row in FAMILIES]


def family(name: str) -> Family:
    """The family of that name; KeyError without one."""
    return {row.name: row for row in FAMILIES}[name]
