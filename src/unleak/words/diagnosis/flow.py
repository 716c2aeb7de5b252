"""Flow between items: how much each item's presence changes what the text rows say of each other item.

Source: Follow the Flow (arXiv 2504.01137), flow between items; the scores without images are those of rows with
and without the other item. With P the prompt and P\\j the prompt without item j:

    own rows       D_ij = H_i(P) - H_i(P\\j)                                    relative to |H_i(P\\j) - C|
    gathered rows  D_ij = T(P) - T(P\\j) - T(P\\i) + T(P\\ij)                     relative to |T(P\\j) - T(P\\ij)|

C are clean pad rows. T are EOS and the pads of a causal encoder: an item's own rows cannot see what follows, yet
T gathers all items, and D is what i and j make of each other there beyond what each adds. Elsewhere T is not read.

What a change means is told by how far it goes towards the rows U_k that item i would have under the name k:
``<D_ij, U_k> / <U_k, U_k>`` with ``U_k = (P\\j with i called k) - P\\j``; at 1 it is as if the word were k.
Towards the name of the intended sense it is disambiguation, towards another sense's or the other item's name a leak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unleak.drawing.generate import rehearse
from unleak.errors import UnsupportedModel, choose
from unleak.text.call import Encoded, TextCall
from unleak.text.eos_pads import aligned
from unleak.text.items import Item, find_all, parse_items
from unleak.text.prompt import check_prompt
from unleak.text.rows import Layer
from unleak.text.scene import Scene, View

#: how item j is taken out of the prompt
WITHOUT: dict[str, Callable[[Scene, set[int]], View]] = {
    "substituted": Scene.substituted,  # "a mouse and a thing"
    "masked-context": Scene.masked,  # fillers in place of its tokens
    "attn-mask": Scene.hidden,  # no other row attends to it
}
#: a change that goes this share of the way to a name has that name's meaning
SHARE = 0.3


@dataclass(frozen=True)
class Change:
    """What item j's presence does to the rows of item i in one encoder.

    Attributes:
        channel: ``"own"``: the item's own rows. ``"gathered"``: rows after the text of a causal encoder.
        size: 0 or more; 0 exactly where j cannot reach these rows, 1 where it changes as much as i itself says.
        towards: for each name that i might go by, the share of the way there; 1 is all of it.
    """

    encoder: str
    channel: str
    size: float
    towards: dict[str, float]


@dataclass(frozen=True)
class Flow:
    """All changes of one prompt, by (i, j): item i's rows, changed by item j.

    ``alone[i]``: 1 - cos of item i's rows in the prompt and in its bare phrase, the largest of all encoders.
    """

    prompt: str
    items: tuple[Item, ...]
    without: str
    changes: dict[tuple[int, int], tuple[Change, ...]]
    alone: tuple[float, ...]

    @property
    def size(self) -> np.ndarray:
        """[n, n]: the largest change of item i's rows by item j; 0 on the diagonal."""
        n = len(self.items)
        out = np.zeros((n, n))
        for (i, j), changes in self.changes.items():
            out[i, j] = max(change.size for change in changes)
        return out

    def meaning(self, i: int, j: int) -> tuple[str | None, float]:
        """The name that item i's rows went towards because of item j, and the share of the way.

        None, and the largest share that any name has, where that is less than `SHARE`.
        """
        shares = [pair for change in self.changes[i, j] for pair in change.towards.items()]
        name, share = max(shares, key=lambda pair: pair[1])
        return (name if share >= SHARE else None), share

    def kind(self, i: int, j: int) -> str:
        """``"none"``: no known name's meaning was taken on; ``"disambiguation"``; ``"leak"``."""
        name, _ = self.meaning(i, j)
        return "none" if name is None else "disambiguation" if name == self.items[i].sense else "leak"

    def leaks_into(self, i: int) -> list[int]:
        """The items that leak into item i, the strongest first."""
        leaking = [j for j in range(len(self.items)) if i != j and self.kind(i, j) == "leak"]
        return sorted(leaking, key=lambda j: -self.meaning(i, j)[1])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        pairs = [
            {"item": i, "by": j, "kind": self.kind(i, j), "changes": [vars(c) for c in changes]}
            for (i, j), changes in self.changes.items()
        ]
        return {"without": self.without, "pairs": pairs, "alone": list(self.alone)}


def flow(
    pipe: Any,
    prompt: str,
    items: str | Iterable[str | Item],
    *,
    senses: Mapping[str, Sequence[str]] | None = None,
    without: str = "substituted",
    call: Mapping[str, Any] | None = None,
) -> Flow:
    """The flow between the items of a prompt, from its text encoders alone: nothing is drawn.

    Args:
        items: every item of the prompt; "mouse=furry mouse" names the intended sense.
        senses: for the text of an item, the names of its other senses: ``{"mouse": ["computer mouse"]}``.
        without: how an item is taken away, one of `WITHOUT`.
        call: arguments of the pipeline.

    Raises:
        BadInput, ItemNotFound, AmbiguousItem, PromptTruncated.
        UnsupportedModel: the denoiser reads no text rows, or an encoder takes no mask for ``"attn-mask"``.
    """
    check_prompt(prompt)
    named = parse_items(items)
    find_all(prompt, named)
    choose("way to go without", without, WITHOUT)
    return flow_of(rehearse(pipe, prompt, **(call or {})).prompts.encoded, prompt, named, senses or {}, without)


@torch.no_grad()
def flow_of(
    encoded: Encoded,
    prompt: str,
    items: Sequence[Item],
    senses: Mapping[str, Sequence[str]],
    without: str = "substituted",
) -> Flow:
    """`flow` of a prompt that is encoded already (`unleak.drawing.generate.rehearse`)."""
    readers = [
        _Reader(call, layer, items, without)
        for name, call in encoded.calls.items()
        if (layer := encoded.layer(name)) is not None
    ]
    if not readers:
        raise UnsupportedModel("the denoiser reads no rows of a text encoder, so there is no flow to see")
    every = range(len(items))
    changes = {
        (i, j): tuple(change for reader in readers for change in reader.changes(i, j, _names(items, senses, i, j)))
        for i, j in permutations(every, 2)
    }
    alone = tuple(max(reader.apart_from_alone(i) for reader in readers) for i in every)
    return Flow(prompt, tuple(items), without, changes, alone)


def _names(items: Sequence[Item], senses: Mapping[str, Sequence[str]], i: int, j: int) -> list[str]:
    """What item i might go by beside item j: its senses, and j's own name."""
    own = [items[i].sense, *senses.get(items[i].text, ())]
    return list(dict.fromkeys(name for name in (*own, items[j].sense or items[j].text) if name))


class _Reader:
    """The rows of one encoder, layer and prompt, with and without items."""

    def __init__(self, call: TextCall, layer: Layer, items: Sequence[Item], without: str) -> None:
        self.call, self.layer, self.view = call, layer, WITHOUT[without]
        self.items = [replace(item, sense=None) for item in items]
        self.every = set(range(len(items)))
        self._scenes: dict[tuple[int, str] | None, Scene] = {}
        self.causal = self._scene(None).causal
        self.tokens = self._scene(None).prompt.tokens[0]

    def changes(self, i: int, j: int, names: Sequence[str]) -> list[Change]:
        """The changes of item i's rows by item j, in each channel."""
        there, gone = self._without(), self._without(j)
        own = self._own(i, gone)
        called = {k: self._without(j, called=(i, k)) for k in names}
        empty = self.layer(self._scene(None).empty.output)[0].float()  # without pads it may be shorter than the prompt
        pads = empty[[min(p, len(empty) - 1) for p in range(*gone.spans[0][i])]]
        towards = {k: _minus(self._own(i, view), own) for k, view in called.items()}
        in_channels = [self._change("own", _minus(self._own(i, there), own), own - pads, towards)]
        if self.causal:
            T = self._gathered
            base = T(gone)
            added = base - T(self._without(i, j))  # by i, where j is not
            both = T(there) - base - (T(self._without(i)) - T(self._without(i, j)))
            in_channels.append(self._change("gathered", both, added, {k: T(view) - base for k, view in called.items()}))
        return in_channels

    def apart_from_alone(self, i: int) -> float:
        """1 - cos of item i's rows in the prompt and in its bare phrase."""
        scene = self._scene(None)
        here, alone = self._own(i, scene.prompt), self._own(i, scene.alone(i))
        m = min(len(here), len(alone))
        return float((1 - torch.cosine_similarity(here[-m:], alone[-m:], dim=-1)).mean().clamp(min=0))

    def _change(self, channel: str, change: Tensor, scale: Tensor, towards: Mapping[str, Tensor]) -> Change:
        size = float(_norm(change) / _norm(scale)) if change.any() else 0.0
        return Change(self.call.name, channel, size, {k: _share(change, to) for k, to in towards.items()})

    def _without(self, *gone: int, called: tuple[int, str] | None = None) -> View:
        return self.view(self._scene(called), self.every - set(gone))

    def _scene(self, called: tuple[int, str] | None) -> Scene:
        if called not in self._scenes:
            name = dict([called] if called else [])
            self._scenes[called] = Scene(
                self.call, [replace(item, sense=name.get(i)) for i, item in enumerate(self.items)]
            )
        return self._scenes[called]

    def _own(self, i: int, view: View) -> Tensor:
        return self.layer(view.output)[0, slice(*view.spans[0][i])].float()

    def _gathered(self, view: View) -> Tensor:
        return self.layer(view.output)[0, aligned(self.tokens, view.tokens[0])].float()


def _minus(one: Tensor, two: Tensor) -> Tensor:
    """The difference of two spans' rows, the last ones paired where one is longer."""
    m = min(len(one), len(two))
    return one[-m:] - two[-m:]


def _norm(rows: Tensor) -> Tensor:
    """Root mean square over rows, so that spans of different lengths compare."""
    return rows.pow(2).sum(-1).mean().sqrt()


def _share(change: Tensor, to: Tensor) -> float:
    """``<D, U> / <U, U>``, the last rows paired where one has more."""
    m = min(len(change), len(to))
    d, u = change[-m:].flatten(), to[-m:].flatten()
    return float(d @ u / (u @ u)) if u.any() else 0.0
