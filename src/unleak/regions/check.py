"""What a judge and the pixels say of an edit: is each target there, its source gone, the background kept?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from skimage.metrics import peak_signal_noise_ratio

from unleak.judges import Judge
from unleak.regions.edited import Edited
from unleak.regions.plan import without_article
from unleak.text.items import Item


@dataclass(frozen=True)
class Check:
    """One edit, as the judge sees the whole image."""

    source_before: bool
    source_after: bool
    target_after: bool


def judged(edited: Edited, judge: Judge) -> list[Check]:
    """One `Check` for each edit. Raises BadInput for a phrase that the judge cannot read."""
    sources = [Item(without_article(Item.of(one.source).text)) for one in edited.edits]
    targets = [Item(without_article(one.target)) for one in edited.edits]
    before, after = judge.present(np.stack([edited.before, edited.image]), [*sources, *targets])
    k = len(sources)
    return [Check(bool(before[i]), bool(after[i]), bool(after[k + i])) for i in range(k)]


def background_psnr(edited: Edited, reference: np.ndarray) -> float | None:
    """PSNR in dB of the pixels outside all masks against a reference [H, W, 3] uint8; None without any such pixel.

    `edited.rebuilt` as reference leaves out the autoencoder's own loss, `edited.before` includes it. Equal pixels
    give infinity.
    """
    outside = ~edited.masks.any(0).numpy()
    if not outside.any():
        return None
    if np.array_equal(edited.image[outside], reference[outside]):
        return float("inf")
    return float(peak_signal_noise_ratio(reference[outside], edited.image[outside], data_range=255))
