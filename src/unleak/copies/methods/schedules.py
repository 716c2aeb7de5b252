"""Schedules of a strength over the steps: its share s(p) at progress p, which is 0 at the first step and stays below 1.

The released code of GUARD has all of them. It calls "falling" linear, "cosine-falling" cos2 (``cos^2(pi p / 2)`` is the
same), and "constant" none.
"""

from __future__ import annotations

import math
from collections.abc import Callable

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda p: 1.0,
    "rising": lambda p: p,
    "falling": lambda p: 1 - p,
    "cosine": lambda p: math.cos(p * math.pi / 2),
    "sine": lambda p: math.sin(p * math.pi / 2),
    "cosine-rising": lambda p: (1 - math.cos(math.pi * p)) / 2,
    "cosine-falling": lambda p: (1 + math.cos(math.pi * p)) / 2,
}
