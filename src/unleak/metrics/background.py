"""How well an edit keeps the background: PSNR, SSIM and MSE of two images outside all masks.

ALE-Bench (arXiv 2412.04715, its released evaluator) blackens the masks in both images and takes PSNR and MSE over all
pixels, black ones too, which lifts PSNR; `over="all"` is that. `over="outside"` counts only what is not masked.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.ndimage import maximum_filter
from skimage.metrics import structural_similarity

from unleak.errors import BadInput

OVER = ("outside", "all")


def weights(masks: np.ndarray) -> np.ndarray:
    """What is outside all masks [K, H, W] of 0..1: ``1 - max_j m_j``, [H, W]. Raises BadInput for another range."""
    masks = np.asarray(masks, np.float64)
    if masks.ndim != 3 or not len(masks) or masks.min() < 0 or masks.max() > 1:
        raise BadInput(f"masks are [K, H, W] from 0 to 1, not {masks.shape}")
    return 1.0 - masks.max(0)


def widened(masks: np.ndarray, pixels: int) -> np.ndarray:
    """Masks [K, H, W] of bool or 0..1 that reach so many pixels further in every direction.

    An autoencoder's decoder looks around: what changed inside a mask changes the pixels next to it, even where their
    latents are the same. Outside masks that are widened by a latent cell most of that is left out.
    """
    return np.stack([maximum_filter(mask, 2 * pixels + 1) for mask in np.asarray(masks)])


def mse(image: np.ndarray, reference: np.ndarray, masks: np.ndarray, over: str = "outside") -> float:
    """Mean squared difference of pixels in 0..1; nan where the masks leave no background."""
    w = weights(masks)
    if not w.any():
        return float("nan")
    squared = ((_unit(image) - _unit(reference)) * w[..., None]) ** 2
    return float(squared.mean() if over == "all" else squared.sum() / (3 * (w**2).sum()))


def psnr(image: np.ndarray, reference: np.ndarray, masks: np.ndarray, over: str = "outside") -> float:
    """Peak signal-to-noise ratio in dB, ``-10 log10 mse``; infinity for equal pixels, nan without background."""
    error = mse(image, reference, masks, over)
    return float("inf") if error == 0 else float(-10 * np.log10(error))


def ssim(image: np.ndarray, reference: np.ndarray, masks: np.ndarray, over: str = "outside") -> float:
    """Structural similarity, Gaussian window of 11 and sigma 1.5, of both images with the masks blackened.

    ``"outside"`` averages it where nothing is masked; nan without background.
    """
    w = weights(masks)
    if not w.any():
        return float("nan")
    value, plane = structural_similarity(
        _unit(image) * w[..., None], _unit(reference) * w[..., None], channel_axis=2, data_range=1.0,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True,
    )  # fmt: skip
    return float(value) if over == "all" else float((plane.mean(2) * w).sum() / w.sum())


def lpips(
    image: np.ndarray, reference: np.ndarray, masks: np.ndarray, distance: Callable[[np.ndarray, np.ndarray], float]
) -> float:
    """LPIPS of both images with the masks blackened; nan without background.

    Args:
        distance: of two images [H, W, 3] of floats in -1..1 (`perceptual.squeeze_lpips`).
    """
    w = weights(masks)[..., None]
    return float(distance(_unit(image) * w * 2 - 1, _unit(reference) * w * 2 - 1)) if w.any() else float("nan")


def _unit(image: np.ndarray) -> np.ndarray:
    return np.asarray(image, np.float64) / 255.0
