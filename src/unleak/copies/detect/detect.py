"""What a memorized prompt looks like inside the denoiser: one function per equation, tensors in, scores out.

N images, T steps, K text positions. In every score higher means memorized. Nothing here knows a pipeline; see
`detectors.py` for what reads these numbers off one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from unleak.errors import BadInput


def magnitude(cond: Tensor, uncond: Tensor) -> Tensor:
    """``d_j = ||e(z_j, c) - e(z_j, c_u)||_2`` over all of an image's latent: [N, ...] twice -> [N].

    The norm of the difference, not the difference of norms. Wen et al., "Detecting, Explaining, and Mitigating
    Memorization in Diffusion Models", ICLR 2024.
    """
    return (cond - uncond).flatten(1).float().norm(dim=1)


def agreement(x: Tensor) -> Tensor:
    """How far the images of one prompt go the same way: [S, ...] -> [S], at most about 1.

    ``a_j = mean_{i != j} <x_i, x_j> / mean_i ||x_i||^2``: 1 where all seeds agree, 0 where they are unrelated. Its
    mean over j is an unbiased share of what the seeds have in common, so it does not depend on their number. With x
    the text direction, or the predicted clean image, of the first step it is high for a memorized prompt only: any
    other leaves open what stands where, and the seeds differ in it.

    Raises:
        BadInput: a single image agrees with nothing.
    """
    if len(x) < 2:
        raise BadInput("agreement compares the images of a prompt: give at least two seeds")
    flat = x.flatten(1).float()
    products = flat @ flat.mT
    power = products.diagonal()
    return (products.sum(1) - power) / (len(x) - 1) / power.mean().clamp_min(torch.finfo(torch.float32).tiny)


def entropy(p: Tensor) -> Tensor:
    """``E = -sum_k p_k ln p_k`` in nats, 0 to ln K: [..., K] -> [...]; an exact 0 counts nothing.

    Ren et al., "Unveiling and Mitigating Memorization in Text-to-image Diffusion Models through Cross Attention",
    ECCV 2024; p is attention to the text, averaged over image cells, heads and sites.
    """
    return -torch.xlogy(p, p).sum(-1)


def summary_entropy(p: Tensor, summary: Tensor) -> Tensor:
    """The part of `entropy` that falls on summary tokens (EOS and pads), not renormalised (Ren et al.).

    p [..., K]; `summary` [..., K] of bool, broadcast against it.
    """
    return -(torch.xlogy(p, p) * summary).sum(-1)


def late_entropy(p: Tensor, summary: Tensor, late: Sequence[int]) -> Tensor:
    """Ren's metric D: [T, ..., K] and [..., K] of bool -> [...]; `late` are the steps at the end, see `late_steps`.

    ``D = mean_late E + (mean_late Pd - Pd[0])`` with `Pd` the summary entropy. Without an absolute value, as the
    authors' code has it.
    """
    at = list(late)
    summaries = summary_entropy(p, summary)
    return entropy(p)[at].mean(0) + (summaries[at].mean(0) - summaries[0])


def late_steps(steps: int, share: float = 0.2) -> range:
    """The last fifth of a trajectory (40 to 49 of 50 steps), one step at the least."""
    return range(steps - max(1, math.floor(share * steps + 1e-9)), steps)


def localised_magnitude(cond: Tensor, uncond: Tensor, mask: Tensor) -> Tensor:
    """``||(e_c - e_u) M||_2 / mean(M)``: `magnitude` where the end token looks at the end of the trajectory.

    cond, uncond [N, C, h, w] with a mask M [N, h, w], or packed [N, h w, C]. A constant mask gives `magnitude`.
    Chen et al., "Exploring Local Memorization in Diffusion Models via Bright Ending Attention", ICLR 2025.
    """
    v = (cond - uncond).float()
    weight = mask.flatten(1)[..., None] if v.ndim == 3 else mask[:, None]
    return (v * weight).flatten(1).norm(dim=1) / mask.flatten(1).mean(1)
