"""Base of methods that act on items of the prompt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unleak.core.intervention import Intervention
from unleak.text.items import Item, parse_items, written
from unleak.text.positions import ItemPositions, item_positions

if TYPE_CHECKING:
    from unleak.core.context import Context


@dataclass(frozen=True)
class OnItems(Intervention):
    """`items` may be given as ``"mouse,laptop"`` or as a list of texts and items; they are kept as `names`."""

    items: str | Item | Iterable[str | Item]

    uses_text = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "items", written(self.items))

    @property
    def names(self) -> tuple[str, ...]:
        """The items, each as a line that `Item.of` reads."""
        assert isinstance(self.items, tuple)
        return self.items

    @property
    def named(self) -> tuple[Item, ...]:
        """The items."""
        return parse_items(self.names)

    def positions(self, ctx: Context) -> ItemPositions:
        """Where the items stand among the text rows that the denoiser reads, in this generation.

        Raises: see `unleak.text.positions.item_positions`.
        """
        if "positions" not in ctx.state:
            ctx.state["positions"] = item_positions(ctx.encoded, self.named)
        positions: ItemPositions = ctx.state["positions"]
        return positions
