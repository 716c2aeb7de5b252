"""Attention maps per item: where in the picture the denoiser reads an item's rows.

Source: DAAM (ACL 2023) for cross-attention; here the text columns of every site, joint ones included, at the
grid that the site really has, as running means that stay on the device until they are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unleak.core.scores import RunningMean
from unleak.errors import BadInput, NoSite
from unleak.text.positions import Positions
from unleak.words.methods.item_columns import item_columns
from unleak.words.methods.on_items import OnItems

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context


@dataclass(frozen=True)
class Maps(OnItems):
    """Keep the attention of the picture to each item while the pipeline runs; the picture does not change.

    ``Maps("mouse,laptop")`` or ``Maps(["mouse", "laptop"])``; every prompt of the call must hold every item.
    `run.results["maps"]` is a list with one `ItemMaps` for each generation. `window` and `sites` limit what
    is looked at. Maps are those before any edit of the same call, and of the positive prompt alone.

    Raises (when the pipeline runs):
        ItemNotFound, AmbiguousItem, PromptTruncated, BadInput: an item is not usable in a prompt.
        NoSite: none of the chosen sites reads text.
    """

    def on_attention(self, ctx: Context, site: AttentionCall) -> None:
        if site.kind == "self":
            return
        positions = self.positions(ctx)
        if "maps" not in ctx.state:
            ctx.state["maps"] = ItemMaps(self.names, positions.encoders, ctx.encoded.image_prompts)
            ctx.results.setdefault("maps", []).append(ctx.state["maps"])
        columns = item_columns(ctx, site, positions)
        if columns is not None:
            ctx.state["maps"].add(*columns)

    def on_latents(self, ctx: Context, latents: Tensor) -> None:
        if "maps" not in ctx.state:
            raise NoSite("none of the chosen sites reads text, so there is no map of an item: choose other `sites`")


class ItemMaps:
    """Attention maps of one generation, by item and image.

    Attributes:
        items: as they were named. encoders: whose rows reach the denoiser. prompts: one for each image.
    """

    def __init__(self, items: tuple[str, ...], encoders: tuple[str, ...], prompts: Sequence[str]) -> None:
        self.items, self.encoders, self.prompts = items, encoders, tuple(prompts)
        self._means = RunningMean()

    def add(self, images: Positions, columns: Tensor) -> None:
        """One attention call: columns [images, height, width, items, encoders]."""
        self._means.add((images, tuple(columns.shape[1:3])), columns)

    def map(self, item: str | int, image: int = 0, encoder: str | None = None) -> Tensor:
        """Mean attention of each cell to one row of the item, [height, width] on the CPU, in 0..1.

        The mean goes over heads, sites and steps; coarser sites are resized (bilinear) to the finest one.

        Args:
            item: as it was named, or its number. image: its number in the batch.
            encoder: the rows of this one alone; None: the mean over `encoders`.

        Raises:
            BadInput: there is no such item, image or encoder.
            NotFinite: the denoiser's attention held NaN or infinity.
        """
        i = self.items.index(_known("item", item, self.items)) if isinstance(item, str) else item
        return self.planes(image, encoder)[_known("item", i, range(len(self.items)))].cpu()

    def planes(self, image: int = 0, encoder: str | None = None) -> Tensor:
        """The maps of all items, [items, height, width], where the denoiser runs; see `map`."""
        _known("image", image, range(len(self.prompts)))
        chosen = slice(None) if encoder is None else [self.encoders.index(_known("encoder", encoder, self.encoders))]
        keys: list[Any] = [key for key in list[Any](self._means) if image in key[0]]
        size = max((key[1] for key in keys), key=lambda size: size[0] * size[1])
        times = [self._means.count(key) for key in keys]
        means = [self._means.mean(key)[key[0].index(image)][..., chosen].mean(-1).movedim(-1, 0) for key in keys]
        parts = [n * _resized(one, size) for n, one in zip(times, means, strict=True)]
        return torch.stack(parts).sum(0) / sum(times)

    def heat(self, item: str | int, image: int = 0, encoder: str | None = None) -> Tensor:
        """`map` stretched for the eye: its least cell becomes 0, its greatest 1; a flat map is 0 everywhere."""
        plane = self.map(item, image, encoder)
        low, high = plane.min(), plane.max()
        return (plane - low) / (high - low) if high > low else torch.zeros_like(plane)


def _resized(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """[n, h, w] at another size; bilinear, so that no value leaves the range."""
    if planes.shape[1:] == size:
        return planes
    return torch.nn.functional.interpolate(planes[None], size=size, mode="bilinear", align_corners=False)[0]


def _known(what: str, value: Any, among: Any) -> Any:
    if value not in among:
        raise BadInput(f"no {what} {value!r} in these maps: there are {', '.join(map(str, among))}")
    return value
