"""A share of one prompt's images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from unleak.stats.intervals import wilson


class Rate(NamedTuple):
    """k of n independent images of one prompt; ``value`` in 0..1 with its 95 % interval ``low`` to ``high``."""

    k: int
    n: int

    @classmethod
    def of(cls, hits: np.ndarray) -> Rate:
        """Of a flat array of yes and no."""
        return cls(int(np.sum(hits)), int(np.size(hits)))

    @property
    def value(self) -> float:
        return self.k / self.n

    @property
    def low(self) -> float:
        return wilson(self.value, self.n)[0]

    @property
    def high(self) -> float:
        return wilson(self.value, self.n)[1]

    @property
    def yes(self) -> bool:
        """On half of the images or more."""
        return 2 * self.k >= self.n

    def __str__(self) -> str:
        return f"{self.k}/{self.n}"
