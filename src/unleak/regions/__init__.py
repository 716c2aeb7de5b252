"""Leaks between regions: edit several objects of an image and change nothing else; regional prompts."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """This room and the verb `unleak.regions` share their name, and Python sets a package's attribute to the imported
    room: so the room itself is callable, and is the verb."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from unleak.regions.regional import regions

        return regions(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
