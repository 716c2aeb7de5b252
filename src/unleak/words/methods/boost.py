"""Strengthen items where they are: the part of DeLeaker that does most of its work, on any layout.

Source: DeLeaker (arXiv 2510.15015): the logits of an item's own rows times ``alpha`` inside the item's own mask.
Multiplying logits is scaling keys, and a mask is a set of queries, so no attention map is built.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unleak.core.edits import Bias, Edit, KeyScale, Where
from unleak.errors import BadInput, NoSite, choose
from unleak.text.positions import Positions
from unleak.words.methods.item_columns import alike, item_columns
from unleak.words.methods.item_masks import item_masks
from unleak.words.methods.maps import ItemMaps
from unleak.words.methods.on_items import OnItems

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context


@dataclass(frozen=True)
class Boost(OnItems):
    """Let image cells attend more to the items: ``Boost("tuba")``, ``Boost("mouse,laptop", gain=1.4)``.

    Attributes:
        items: as `Item.of` writes them; every prompt must hold them.
        gain: above 0; 1 changes nothing.
        operation: ``"scale"``: logits times ``gain``, which weakens where a logit is negative (the paper's).
            ``"bias"``: logits plus ``log(gain)``, attention times ``gain`` before it is made to sum to one.
        region: ``"own"``: in the cells that stand out in the item's attention map of the steps before; the first
            step of `window` only looks. ``"all"``: everywhere, from the first step on.
        std_threshold, morphology: of the masks, see `item_masks`.

    Raises:
        BadInput: a value is out of range; ``region="own"`` with a single step.
        NoSite, and the errors of items, as `Maps`.
    """

    gain: float = 1.2
    operation: str = "scale"
    region: str = "own"
    std_threshold: float = 1.0
    morphology: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.gain < math.inf:
            raise BadInput(f"gain={self.gain}: give a number above 0, e.g. 1.2; 1 changes nothing.")
        choose("operation", self.operation, ("scale", "bias"))
        choose("region", self.region, ("own", "all"))

    def on_attention(self, ctx: Context, site: AttentionCall) -> list[Edit] | None:
        if site.kind == "self":
            return None
        positions = self.positions(ctx)
        if self.region == "own":
            self._check_steps(ctx)
            if "maps" not in ctx.state:
                ctx.state["maps"] = ItemMaps(self.names, positions.encoders, ctx.encoded.image_prompts)
            columns = item_columns(ctx, site, positions)
            if columns is not None:
                ctx.state["maps"].add(*columns)
            if "masks" not in ctx.state:
                return None
        edits = ctx.state.setdefault("edits", {})  # kept for a step, so that masks are resized once
        key = (site.kind, site.rows.labels, site.rows.images)
        if key not in edits:
            edits[key] = [
                self._edit(ctx, site, i, sorted(set().union(*own)), rows)
                for at, rows in alike(site, positions)
                for i, own in enumerate(at)
            ]
        of_this_call: list[Edit] = edits[key]
        return of_this_call

    def _edit(self, ctx: Context, site: AttentionCall, i: int, tokens: list[int], rows: Positions) -> Edit:
        """What happens to item i in these batch rows."""
        where: Where = None if site.kind == "cross" else "image"
        if self.region == "own":
            where = torch.stack([ctx.state["masks"][site.rows.images[row]][i] for row in rows])
        if self.operation == "scale":
            return KeyScale(tokens, self.gain, rows, queries=where)
        return Bias(math.log(self.gain), keys=tokens, queries=where, rows=rows)

    def on_latents(self, ctx: Context, latents: Tensor) -> None:
        """The masks of the next step."""
        if "positions" not in ctx.state:
            raise NoSite("none of the chosen sites reads text, so there is nothing to strengthen: choose other `sites`")
        if "maps" in ctx.state:
            maps: ItemMaps = ctx.state["maps"]
            planes = [maps.planes(image) for image in range(len(maps.prompts))]
            ctx.state["masks"] = item_masks(torch.stack(planes), maps.items, self.std_threshold, self.morphology)
            ctx.state.pop("edits", None)

    def _check_steps(self, ctx: Context) -> None:
        last = max(ctx.steps - 1, 1)
        if sum(step / last in self.window for step in range(ctx.steps)) < 2:
            raise BadInput("region='own' looks in one step and acts in the next: run more steps, or use region='all'.")
