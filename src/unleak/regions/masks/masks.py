"""Masks over an image: read, resized, widened, made disjoint, and the foreground they leave on the latent grid.

A mask is bool [H, W]; a stack of K masks is [K, H, W]. Fractions are of the image's height.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn import functional as F

from unleak.errors import BadInput, EmptyMask
from unleak.files import pictures

OVERLAP = ("smallest", "order", "background")
FOREGROUND = ("single", "multiscale")
NESTED = 0.93
"""A mask lies inside another from this share of its area on."""


def as_stack(masks: Any) -> Tensor:
    """A bool tensor [K, H, W], or [N, K, H, W]: a stack for each of N images or prompts.

    Raises BadInput for another type or shape, EmptyMask for a mask without a cell.
    """
    stack = torch.as_tensor(masks)
    if stack.dtype != torch.bool or stack.ndim not in (3, 4):
        raise BadInput(f"masks are bool [K, H, W], not {stack.dtype} {tuple(stack.shape)} (masks.read_mask makes them)")
    planes = stack.flatten(0, -3)
    for i, mask in enumerate(planes):
        if not mask.any():
            raise EmptyMask(f"mask {i + 1} of {len(planes)} holds nothing")
    return stack


def read_mask(mask: Any, size: tuple[int, int], name: str = "the mask", drawn: tuple[int, int] | None = None) -> Tensor:
    """A mask from a file, an image or an array, as bool [H, W] at `size` = (height, width).

    `drawn` is the size of the picture it was drawn on, where that has other proportions than `size`.

    It is read by `files.pictures.mask`: alpha or luminance, from the middle of their range on. Masks of the image's
    proportions are resized.

    Raises:
        BadInput: it cannot be read, or has other proportions than the image.
        EmptyMask: nothing is left of it at this size.
    """
    plane = pictures.mask(mask, name)
    if not any(_alike(plane.shape, other) for other in (size, drawn or size)):
        height, width = drawn or size
        raise BadInput(f"{name} is {plane.shape[0]}x{plane.shape[1]} and the image {height}x{width}: draw it on that")
    resized = to_grid(torch.from_numpy(plane), size)
    if not resized.any():
        raise EmptyMask(f"{name} holds nothing at {size[0]}x{size[1]}: mark what may change in white")
    return resized


def _alike(one: tuple[int, ...], two: tuple[int, int]) -> bool:
    """Whether two sizes have the same proportions, up to a pixel of rounding."""
    return abs(one[0] * two[1] - one[1] * two[0]) <= max(*one, *two)


def to_grid(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Masks [..., H, W] at another (height, width), nearest: cell i is what stands at floor(i * scale)."""
    planes = masks.reshape(-1, 1, *masks.shape[-2:]).to(torch.uint8)
    return F.interpolate(planes, size=tuple(size), mode="nearest").bool().reshape(*masks.shape[:-2], *size)


def dilate(masks: Tensor, fraction: float) -> Tensor:
    """Widen each mask [K, H, W] by a disc of radius ``int(fraction * H)`` pixels."""
    if not 0.0 <= fraction <= 1.0:
        raise BadInput(f"dilation={fraction}: give a fraction of the image's height, such as 0.04")
    radius = int(fraction * masks.shape[-2])
    if radius == 0:
        return masks
    wide = [distance_transform_edt(~mask.numpy()) <= radius for mask in masks.cpu()]
    return torch.from_numpy(np.stack(wide))


def partition(masks: Tensor, overlap: str = "smallest") -> Tensor:
    """Regions [K + 1, H, W] of masks [K, H, W]: each pixel in exactly one, the background last.

    Args:
        overlap: who owns a pixel under several masks. ``"smallest"``: the mask of the smaller area (ties: the
            earlier one). ``"order"``: the earlier one. ``"background"``: nobody (the authors' release).
    """
    if overlap == "background":
        owned = masks & (masks.sum(0) == 1)
    else:
        areas = masks.flatten(1).sum(1).tolist()
        ranks = sorted(range(len(masks)), key=lambda i: areas[i]) if overlap == "smallest" else range(len(masks))
        owned, taken = torch.zeros_like(masks), torch.zeros_like(masks[0])
        for i in ranks:
            owned[i] = masks[i] & ~taken
            taken |= masks[i]
    return torch.cat([owned, ~owned.any(0)[None]])


def owned_tokens(regions: Tensor, grid: Sequence[int]) -> Tensor:
    """Regions [K + 1, H, W] of `partition`, the background last, on a coarser grid of tokens: bool [K, h, w], disjoint.

    A token belongs to the object that holds most of it, however little that is: what it draws outside a mask is not
    kept. Raises EmptyMask: an object holds no token.
    """
    shares = F.adaptive_avg_pool2d(regions[None, :-1].float(), (grid[0], grid[1]))[0]
    most = shares.argmax(0)
    owned = torch.stack([(most == k) & (share > 0) for k, share in enumerate(shares)])
    for k, mask in enumerate(owned):
        if not mask.any():
            raise EmptyMask(
                f"mask {k + 1} of {len(owned)} holds most of no token of the {grid[0]}x{grid[1]} that the model attends"
                " over: draw it larger"
            )
    return owned


def foreground(masks: Tensor, grid: Sequence[int], how: str = "single", feather: float = 0.0) -> Tensor:
    """How much of each latent cell may change, float [h, w] in 0..1; 0 wherever no mask reaches.

    Args:
        grid: (height, width) of the latents.
        how: ``"single"``: the union of the masks on that grid. ``"multiscale"``: its union with that of grids 2, 4
            and 8 times as coarse, as the authors' release blends.
        feather: width of a linear edge inside the foreground, as a fraction of the height.

    Raises EmptyMask where no mask holds a cell of the grid.
    """
    union = masks.any(0)
    cells = to_grid(union, grid)
    for factor in (2, 4, 8) if how == "multiscale" else ():
        coarse = (max(1, grid[0] // factor), max(1, grid[1] // factor))
        cells |= to_grid(to_grid(union, coarse), grid)
    if not cells.any():
        raise EmptyMask(f"no mask holds a cell of the {grid[0]}x{grid[1]} latent grid; draw it larger or widen it")
    if feather <= 0:
        return cells.float()
    depth = distance_transform_edt(np.pad(cells.cpu().numpy(), 1, mode="edge"))[1:-1, 1:-1]
    return torch.from_numpy(np.clip(depth / (1 + feather * grid[0]), 0, 1)).float()


def mask_notes(masks: Tensor, names: Sequence[str], grid: Sequence[int]) -> list[str]:
    """Notes for people on masks [K, H, W]: overlaps, nesting, a mask of everything.

    Raises EmptyMask for a mask that holds no cell of the latent grid.
    """
    notes = []
    cells, areas = to_grid(masks, grid), masks.flatten(1).sum(1)
    for name, mask, small in zip(names, masks, cells, strict=True):
        if not small.any():
            raise EmptyMask(f"the mask of {name!r} holds no cell of the {grid[0]}x{grid[1]} latent grid; widen it")
        if mask.all():
            notes.append(f"the mask of {name!r} covers the whole image: no background is kept for it")
    for i in range(len(masks)):
        for j in range(i + 1, len(masks)):
            shared = int((masks[i] & masks[j]).sum())
            if shared:
                share = shared / int(min(areas[i], areas[j]))
                how = "lie inside one another" if share >= NESTED else "overlap"
                notes.append(f"the masks of {names[i]!r} and {names[j]!r} {how}: {share:.0%} of the smaller is in both")
    if len(masks) > 1 and masks.any(0).all() and not masks.flatten(1).all(1).any():
        notes.append("the masks together cover the whole image: no background is kept")
    return notes
