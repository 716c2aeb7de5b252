"""TEBOpt (NeurIPS 2024): move the prompt's rows until every item is itself, and none is like another word.

Source: "Unraveling Information Mix-ups"; with ``pure_j`` the item's row in "A photo of a X_j",
``loss(H) = -min_j cos(H[t_j], pure_j) + mean_{j, u != t_j} cos(H[t_j], H[u])`` and ``H <- H - 20 grad loss(H)``, until
the loss is at most -0.95 + 0.25, at most 21 times. Only text rows are differentiated; the denoiser is not called.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unleak.errors import BadInput
from unleak.text.phrases import phrase
from unleak.text.rows import Layer, each_layer
from unleak.text.scene import Scene
from unleak.text.spans import Span, token_span
from unleak.words.methods.on_items import OnItems

if TYPE_CHECKING:
    from unleak.core.context import Context
    from unleak.text.call import TextCall


@dataclass(frozen=True)
class TEBOpt(OnItems):
    """``TEBOpt("mouse,laptop")``: balance the prompt's rows by gradient descent, in fp32.

    An item of several tokens is represented by its last one; u are the words of the prompt outside the item.
    Other words move too; BOS, EOS and pads do not.

    Attributes:
        items: as `Item.of` writes them; a sense names the item in "A photo of a X".
        rate, steps, target: step size, most steps, and the loss that is enough.

    Raises:
        BadInput: a value is out of range, or the prompt has no word beside an item; and the errors of items.
    """

    rate: float = 20.0
    steps: int = 21
    target: float = -0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rate <= 0 or self.steps < 0:
            raise BadInput(f"rate={self.rate}, steps={self.steps}: give a rate above 0 and at least 0 steps.")

    def on_text(self, ctx: Context, call: TextCall) -> Any:
        scene = Scene(call, self.named)
        photos = [photographed(call, scene, b) for b in range(len(call.prompts))]
        return each_layer(partial(self._rows, scene, photos), call.output)

    def _rows(self, scene: Scene, photos: list[tuple[Any, list[int]]], layer: Layer) -> Tensor:
        """One hidden layer [B, L, d] of the balanced prompts."""
        rows = []
        for b, (output, last) in enumerate(photos):
            pure = layer(output)[range(len(last)), last]
            spans = [scene.prompt.spans[b][i] for i in scene.items]
            rows.append(self.balanced(layer(scene.prompt.output)[b], pure, spans, scene.prompt.tokens[b].body))
        return torch.stack(rows)

    def balanced(self, H: Tensor, pure: Tensor, spans: list[Span], body: Span) -> Tensor:
        """Rows H [L, d] after the descent towards `pure` [n, d]; `spans` of the n items lie in `body`."""
        with torch.inference_mode(False), torch.enable_grad():
            goal, moved = pure.detach().float().clone(), H.detach().float().clone()
            for _ in range(self.steps):
                moved = moved.detach().requires_grad_()
                value = loss(moved, goal, spans, body)
                if value <= self.target:
                    break
                moved = moved - self.rate * torch.autograd.grad(value, moved)[0]
        return moved.detach().to(H)


def loss(H: Tensor, pure: Tensor, spans: list[Span], body: Span) -> Tensor:
    """``-min_j cos(H[t_j], pure_j) + mean_{j, u} cos(H[t_j], H[u])``, t_j the last row of item j."""
    cosine = torch.nn.functional.normalize(H, dim=-1) @ torch.nn.functional.normalize(H, dim=-1).mT
    t = [stop - 1 for _, stop in spans]
    own = torch.cosine_similarity(H[t], pure, dim=-1)
    others = [cosine[stop - 1, u] for start, stop in spans for u in range(*body) if not start <= u < stop]
    return -own.min() + torch.stack(others).mean()


def photographed(call: TextCall, scene: Scene, b: int) -> tuple[Any, list[int]]:
    """The encoding of "A photo of a X" for each item of prompt b, and the last row of each X."""
    texts, last = [], []
    for i in scene.items:
        item, prompt = scene.named[i], call.prompts[b]
        one = phrase(prompt, item.find(prompt), item.sense)
        texts.append("A photo of " + one.text)
        at = tuple(len(texts[-1]) - len(one.text) + c for c in one.item)
        (tokens,) = call.cut([texts[-1]])
        last.append(token_span(call.tokenizer, tokens, (at[0], at[1]), call.name)[1] - 1)
        if range(*scene.prompt.tokens[b].body) == range(*scene.prompt.spans[b][i]):
            raise BadInput(f"{prompt!r} has no word beside '{item}', so there is nothing to keep it apart from.")
    return call.rerun(texts), last
