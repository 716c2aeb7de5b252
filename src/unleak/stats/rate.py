"""A share of images with its interval."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest


class Rate(NamedTuple):
    """k of n images; ``value`` in 0..1 with its 95 % Wilson interval ``low`` to ``high``."""

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
        return float(binomtest(self.k, self.n).proportion_ci(0.95, method="wilson").low)

    @property
    def high(self) -> float:
        return float(binomtest(self.k, self.n).proportion_ci(0.95, method="wilson").high)

    @property
    def yes(self) -> bool:
        """On half of the images or more."""
        return 2 * self.k >= self.n

    def __str__(self) -> str:
        return f"{self.k}/{self.n}"
