"""What an edit gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from unleak.regions.masks import masks as masking
from unleak.regions.plan import Edit, Plan


@dataclass(eq=False)
class Edited:
    """One edited image, and everything that led to it.

    `image` (after), `before` (the photo) and `rebuilt` (the photo through the autoencoder, which is what an edit can
    keep at best) are [H, W, 3] uint8 at the working size; `masks` bool [K, H, W] as they were used (widened), one for
    each edit; `given` says which of them the user gave, and `masker` who found the others; `latents` and `clean` are
    the final latents of the target and those of the source, [1, C, h, w]; `notes` is what a person should know
    (overlaps, full masks); `log` is that of the call which drew it, with `together` images.
    """

    image: np.ndarray
    before: np.ndarray
    rebuilt: np.ndarray
    edits: tuple[Edit, ...]
    plan: Plan | None
    masks: Tensor
    given: tuple[bool, ...]
    preset: str
    settings: dict[str, Any]
    seed: int
    notes: list[str] = field(default_factory=list)
    masker: str = "own"
    latents: Tensor | None = field(default=None, repr=False)
    clean: Tensor | None = field(default=None, repr=False)
    log: Any = field(default=None, repr=False)
    together: int = 1

    @property
    def regions(self) -> Tensor:
        """The masks made disjoint, bool [K + 1, H, W], the background last."""
        return masking.partition(self.masks, self.settings["overlap"])

    @property
    def leak(self) -> np.ndarray:
        """How much each pixel outside the masks differs from the rebuilt photo, [H, W] in 0..1; 0 inside them."""
        change = np.abs(self.image.astype(np.float64) - self.rebuilt).mean(-1) / 255
        return np.where(self.masks.any(0).numpy(), 0.0, change)
