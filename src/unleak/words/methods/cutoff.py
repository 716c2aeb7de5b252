"""Cutoff: an item's rows from the prompt whose other items are blanked out in place.

Source: the practitioners' extension sd-webui-cutoff (2023) for SD1, SD2 and SDXL:
``H~[span(A)] = mix(H[span(A)], H^(P, others -> "_")[span(A)], weight)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unleak.errors import BadInput, choose
from unleak.text.eos_pads import words_of_no_item
from unleak.text.rows import Layer, each_layer
from unleak.text.scene import Scene
from unleak.words.methods.on_items import OnItems

if TYPE_CHECKING:
    from unleak.core.context import Context
    from unleak.text.call import TextCall


@dataclass(frozen=True)
class Cutoff(OnItems):
    """``Cutoff("green tie,red shoes")``: each item as it is encoded where the others are blanks.

    Attributes:
        items: two or more, each a target with its neighbours ("green tie"), by their own words.
        weight: 0 keeps the prompt's rows, 1 takes the others. mix: ``"lerp"`` or ``"slerp"``.
        strong: rows of no item come from the prompt with every item blanked out.
        blank: a text of one token.

    Raises:
        BadInput: fewer than two items, an item with a sense, a value out of range; and the errors of `Patch`.
    """

    weight: float = 0.5
    mix: str = "lerp"
    strong: bool = False
    blank: str = "_"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.named) < 2 or any(item.sense for item in self.named):
            raise BadInput("Cutoff blanks items out of each other's prompt: name two or more, by their own words.")
        choose("mix", self.mix, MIXES)
        if not 0 <= self.weight <= 1:
            raise BadInput(f"weight={self.weight}: give a share from 0 to 1.")

    def on_text(self, ctx: Context, call: TextCall) -> Any:
        scene = Scene(call, self.named, filler=self.blank)
        return each_layer(partial(self._rows, scene), call.output)

    def _rows(self, scene: Scene, layer: Layer) -> Tensor:
        """One hidden layer [B, L, d] of the changed prompts."""
        H = layer(scene.prompt.output)
        out = H.clone()
        for b in range(len(H)):
            chosen = [([*range(*scene.prompt.spans[b][i])], scene.masked({i})) for i in scene.items]
            if self.strong:
                chosen.append(
                    ([*words_of_no_item(scene.prompt, b), *scene.prompt.tokens[b].after_text], scene.masked(()))
                )
            for at, view in chosen:
                out[b, at] = MIXES[self.mix](H[b, at], layer(view.output)[b, at], self.weight)
        return out


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Rows [..., d] between a and b along the arc: ``(sin((1-w) t) a + sin(w t) b) / sin t``, t their angle."""
    wide_a, wide_b = a.float(), b.float()
    t = torch.acos(torch.cosine_similarity(wide_a, wide_b, dim=-1).clamp(-1, 1))[..., None]
    arc = (torch.sin((1 - weight) * t) * wide_a + torch.sin(weight * t) * wide_b) / torch.sin(t)
    return torch.where(torch.sin(t) < 1e-4, torch.lerp(wide_a, wide_b, weight), arc).to(a)


MIXES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"lerp": torch.lerp, "slerp": slerp}
