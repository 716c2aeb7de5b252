"""Two looks inside the text encoder: what its layers draw, and what a row reads as.

Sources: Diffusion Lens (arXiv 2403.05846), the rows of an intermediate layer behind the final norm as the text,
``H_l = norm(hidden_states[l])``; and, in the place of Patchscopes, which need a language model's head that text
encoders lack, the nearest of the rows that known names have in their bare phrases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unleak.core.intervention import Intervention
from unleak.errors import BadInput, UnsupportedModel
from unleak.text.call import Encoded
from unleak.text.items import Item
from unleak.text.rows import each_layer, last_layer
from unleak.text.scene import Scene

if TYPE_CHECKING:
    from unleak.core.context import Context
    from unleak.text.call import TextCall


@dataclass(frozen=True)
class Lens(Intervention):
    """Give the denoiser the rows of an earlier encoder layer; the pooled vector stays that of the last.

    Attributes:
        depth: 0..1: 0 the token embeddings, 1 the last layer, in every encoder the nearest layer.

    Where a pipeline reads a hidden layer as it is, it gets the earlier layer as it is; where it reads the encoder's
    last rows, it gets the earlier layer behind the encoder's final norm.
    """

    depth: float

    def __post_init__(self) -> None:
        if not 0 <= self.depth <= 1:
            raise BadInput(f"depth={self.depth}: from 0, the token embeddings, to 1, the last layer.")
        super().__post_init__()

    def on_text(self, ctx: Context, call: TextCall) -> Any:
        """``H = norm(hidden_states[l])``."""
        with _ModuleCalls(call.module) as calls:
            whole = call.encoded(call.cut(call.prompts), output_hidden_states=True)
        last = len(whole.hidden_states) - 1
        rows = whole.hidden_states[round(self.depth * last)]
        if round(self.depth * last) == last:
            return None
        output = each_layer(lambda _: rows, call.output)
        if output.get("last_hidden_state") is None:
            return output
        return type(output)(**{**output, "last_hidden_state": calls.norm(last_layer(whole))(rows)})


class _ModuleCalls:
    """Finds the module that makes the last rows out of the last layer: the first to return them that changed them."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.records: list[tuple[nn.Module, Tensor, Tensor]] = []

    def __enter__(self) -> _ModuleCalls:
        def note(part: nn.Module, args: tuple, output: Any) -> None:
            if isinstance(output, Tensor) and args and isinstance(args[0], Tensor):
                self.records.append((part, args[0], output))

        self.hooks = [part.register_forward_hook(note) for part in self.module.modules()]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def norm(self, rows: Tensor) -> Callable[[Tensor], Tensor]:
        """The final norm; the identity where the last layer is given out as it is."""
        for part, given, returned in self.records:
            same = returned.shape == rows.shape and torch.equal(returned, rows)
            if same and given.shape == rows.shape and not torch.equal(given, rows):
                return part
        return lambda h: h


@torch.no_grad()
def reads_as(encoded: Encoded, items: Sequence[Item], i: int, bank: Iterable[str]) -> list[tuple[str, float]]:
    """What the last row of item i reads as: names and the cosine of their rows with it, -1..1, nearest first.

    The row of a name is the last one of the item's words in its bare phrase ("a computer mouse"), else of the name.
    The mean over the bank is taken off all rows, since rows of one encoder have much in common. Over several
    encoders the cosines are averaged.

    Args:
        encoded: the prompt, from `unleak.drawing.generate.rehearse`.
        bank: two names or more.
    """
    names = list(dict.fromkeys(bank))
    if len(names) < 2:
        raise BadInput("reading a row takes two names or more to choose from")
    in_encoders = []
    for name, call in encoded.calls.items():
        layer = encoded.layer(name)
        if layer is None:
            continue
        scene = Scene(call, items)
        row = layer(scene.prompt.output)[0, scene.prompt.spans[0][i][1] - 1].float()
        views = [Scene(call, [Item(items[i].text, items[i].occurrence, k)]).alone(0) for k in names]
        rows = torch.stack([layer(view.output)[0, view.spans[0][0][1] - 1].float() for view in views])
        in_encoders.append(torch.cosine_similarity(row - rows.mean(0), rows - rows.mean(0), dim=-1))
    if not in_encoders:
        raise UnsupportedModel("the denoiser reads no rows of a text encoder, so there is no row to read")
    cosines = torch.stack(in_encoders).mean(0).tolist()
    return sorted(zip(names, cosines, strict=True), key=lambda pair: -pair[1])
