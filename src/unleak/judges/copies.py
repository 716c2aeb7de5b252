"""Does an image copy a training image? The embedded world's exact answer; `embedding.py` has a user's own detector.

Similarity is evidence, not proof of infringement: two pictures of one thing resemble each other, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np

from unleak.errors import BadInput, NotFinite
from unleak.judges.glyphs import glyph_judge
from unleak.world import Caption, World
from unleak.world import load as load_world
from unleak.world.render import Renderer

CELLS = 8  #: along each side of a reference
NEAR = 1  #: cells of the world by which an object may be moved and still stand in its place


class CopyJudge(Protocol):
    """What every judge of copies offers; `name` stands beside every figure that it decided.

    `threshold`: from this similarity on, an image counts as a copy.
    """

    name: str
    threshold: float

    def similarity(self, images: np.ndarray) -> np.ndarray:
        """Images [N,H,W,3] uint8 -> similarity [N] to the nearest training image."""
        ...


@runtime_checkable
class PartsJudge(CopyJudge, Protocol):
    """A judge that can also tell which parts of a training image stand in their place.

    `parts`: what they are called, such as "objects". `references`: the training images, uint8 [M, H, W, 3].
    """

    parts: str
    references: np.ndarray

    def scene(self, images: np.ndarray) -> np.ndarray:
        """Which training image is the nearest [N], as an index."""
        ...

    def in_place(self, images: np.ndarray, scenes: Sequence[int]) -> list[np.ndarray]:
        """Images [N,H,W,3] -> of each image i: does each part of image ``scenes[i]`` stand in its place? [P]."""
        ...


def nearest(image: np.ndarray, references: np.ndarray) -> int:
    """Index of the reference [N,H,W,3] with the least mean squared error to the image, both 0..1."""
    return int(((references - image[None]) ** 2).mean((1, 2, 3)).argmin())


def memorized(images: np.ndarray, captions: Sequence[Caption], world: World) -> tuple[np.ndarray, np.ndarray]:
    """PSNR [P, S] in dB to each caption's own scene, and whether the nearest memorized scene is its own [P, S]."""
    from skimage.metrics import peak_signal_noise_ratio

    render = Renderer(world)
    bank = render([c.scene for c in world.memorized]).permute(0, 2, 3, 1).numpy()
    own = render([c.scene for c in captions]).permute(0, 2, 3, 1).numpy()
    scenes = [c.scene for c in world.memorized]
    psnr, hit = np.zeros(images.shape[:2]), np.zeros(images.shape[:2], bool)
    for p, c in enumerate(captions):
        for s, image in enumerate(images[p].astype(np.float32) / 255):
            psnr[p, s] = peak_signal_noise_ratio(own[p], image, data_range=1.0)
            hit[p, s] = scenes[nearest(image, bank)] == c.scene
    return psnr, hit


class PixelJudge:
    """PSNR in dB to the nearest of some reference images [M, H, W, 3] uint8, on the scale of `SceneJudge`.

    The parts of a reference are its cells, `CELLS` along each side; one stands in its place where its own PSNR reaches
    the threshold. A cell without detail is in its place wherever the colour is right.
    """

    name, parts = "pixels", "cells"

    def __init__(self, references: np.ndarray, threshold: float = 20.0) -> None:
        if not len(references):
            raise BadInput("copies are told by the images that may be copied: give at least one reference")
        self.references, self.threshold = np.asarray(references), threshold

    def similarity(self, images: np.ndarray) -> np.ndarray:
        """See `CopyJudge`. Raises BadInput unless images have the references' size."""
        return self._psnr(images).max(1)

    def scene(self, images: np.ndarray) -> np.ndarray:
        """Which reference is the nearest [N]."""
        return self._psnr(images).argmax(1)

    def in_place(self, images: np.ndarray, scenes: Sequence[int]) -> list[np.ndarray]:
        """See `PartsJudge`."""
        return [
            np.array(
                [_decibels(a, b) >= self.threshold for a, b in zip(_cells(i), _cells(self.references[k]), strict=True)]
            )
            for i, k in zip(images, scenes, strict=True)
        ]

    def _psnr(self, images: np.ndarray) -> np.ndarray:
        if images.shape[1:] != self.references.shape[1:]:
            raise BadInput(f"the references are {self.references.shape[1:]}, the images {images.shape[1:]}")
        return np.array([[_decibels(i, r) for r in self.references] for i in images])


def _decibels(image: np.ndarray, reference: np.ndarray) -> float:
    from skimage.metrics import peak_signal_noise_ratio

    return float(peak_signal_noise_ratio(reference, image)) if (reference != image).any() else 100.0


def _cells(image: np.ndarray) -> list[np.ndarray]:
    return [cell for row in np.array_split(image, CELLS) for cell in np.array_split(row, CELLS, axis=1)]


class DistanceJudge:
    """``1 - d`` with the least distance d to some reference images [M, H, W, 3] uint8, such as LPIPS.

    Args:
        distance: of two images [H, W, 3] of floats in -1..1 (`unleak.metrics.perceptual.squeeze_lpips`).
        threshold: no source says from which LPIPS on an image is a copy: take it from images that you know.
    """

    def __init__(
        self,
        distance: Callable[[np.ndarray, np.ndarray], float],
        references: np.ndarray,
        *,
        name: str,
        threshold: float,
    ) -> None:
        if not len(references):
            raise BadInput("copies are told by the images that may be copied: give at least one reference")
        self.distance, self.references = distance, np.asarray(references) / 127.5 - 1
        self.name, self.threshold = name, threshold

    def similarity(self, images: np.ndarray) -> np.ndarray:
        """See `CopyJudge`. Raises BadInput unless images have the references' size, NotFinite."""
        if images.shape[1:] != self.references.shape[1:]:
            raise BadInput(f"the references are {self.references.shape[1:]}, the images {images.shape[1:]}")
        similarities = np.array([[1 - self.distance(i / 127.5 - 1, r) for r in self.references] for i in images])
        if not np.isfinite(similarities).all():
            raise NotFinite(f"{self.name} returned NaN or infinity")
        return np.max(similarities, axis=1)


class SceneJudge:
    """PSNR in dB to the nearest scene that was memorized in training, where the scene is what all its copies share.

    A verbatim scene counts as a whole; of a template the glyph that changes from caption to caption is left out.
    Memorized captions reach about 29 dB, others about 11. The parts of a scene are its objects, as the glyph judge
    reads them; one stands in its place within `NEAR` cells.
    """

    name, parts, threshold = "scenes", "objects", 20.0

    def __init__(self, world: World) -> None:
        self.side = world.image
        captions = [c for c in world.memorized if c.kind == "verbatim"]
        captions += list({c.family: c for c in world.memorized if c.kind == "template"}.values())
        self.scenes = Renderer(world)([c.scene for c in captions]).permute(0, 2, 3, 1).numpy()
        self.references = (self.scenes * 255).round().astype(np.uint8)
        self.masks = np.ones((*self.scenes.shape[:3], 1), np.float32)
        for mask, caption in zip(self.masks, captions, strict=True):
            for p in caption.scene.placements[caption.fixed :] if caption.kind == "template" else ():
                x, y = p.x * world.cell, p.y * world.cell
                mask[y : y + world.sprite, x : x + world.sprite] = 0
        self.families = [c.family for c in captions]
        self.objects = [c.scene.placements[: c.fixed if c.kind == "template" else None] for c in captions]

    def similarity(self, images: np.ndarray) -> np.ndarray:
        """See `CopyJudge`. Raises BadInput unless images have the world's size."""
        return self._psnr(images).max(1)

    def scene(self, images: np.ndarray) -> np.ndarray:
        """Which scene is the nearest [N], as an index into `scenes`."""
        return self._psnr(images).argmax(1)

    def in_place(self, images: np.ndarray, scenes: Sequence[int]) -> list[np.ndarray]:
        """See `PartsJudge`; colours do not matter."""
        readings = glyph_judge().read(images)
        return [
            np.array([any(f.glyph == p.glyph and max(abs(f.x - p.x), abs(f.y - p.y)) <= NEAR for f in reading.found)
                      for p in self.objects[k]], bool)
            for reading, k in zip(readings, scenes, strict=True)
        ]  # fmt: skip

    def _psnr(self, images: np.ndarray) -> np.ndarray:
        if images.ndim != 4 or images.shape[1:] != (self.side, self.side, 3):
            raise BadInput(f"this judge reads RGB images of {self.side}x{self.side}, not {images.shape[1:]}")
        x = np.asarray(images, np.float32) / 255
        area = 3 * self.masks.sum((1, 2, 3))
        error = np.stack([(((i - self.scenes) ** 2) * self.masks).sum((1, 2, 3)) / area for i in x])
        return -10 * np.log10(np.maximum(error, 1e-10))


@lru_cache(maxsize=1)
def scene_judge() -> SceneJudge:
    """The judge of the embedded world."""
    return SceneJudge(load_world())
