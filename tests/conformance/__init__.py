"""Every kind of text-to-image pipeline as a tiny random model of the real classes: ``FAMILIES``, `family`.

A file of ``families/`` lists a few `Family` rows; a new file there is found by itself.
"""

from __future__ import annotations

import importlib
import pkgutil

from conformance import families
from conformance.family import Family

__all__ = ["FAMILIES", "Family", "family"]


def _gather() -> tuple[Family, ...]:
    files = [info.name for info in pkgutil.iter_modules(families.__path__)]
    rows = [row for file in files for row in importlib.import_module(f"{families.__name__}.{file}").FAMILIES]
    names = [row.name for row in rows]
    assert len(set(names)) == len(names), f"two families of one name: {sorted(n for n in names if names.count(n) > 1)}"
    return tuple(sorted(rows, key=lambda row: row.name))


FAMILIES = _gather()


def family(name: str) -> Family:
    """The family of that name; KeyError without one."""
    return {row.name: row for row in FAMILIES}[name]
