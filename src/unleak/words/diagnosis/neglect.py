"""Why is an item missing: did the encoder lose it, did the denoiser pass it over, or is it unknown?

Source: Follow the Flow (arXiv 2504.01137), catastrophic neglect. Three questions, each answered by a judge on
images from the same seeds, tell it (``yes``: the item is there in its intended sense on half of them or more):

    full prompt    its text rows alone    the item alone    verdict
    yes            any                    any               ok
    no             yes                    any               neglect: encoded, but not drawn
    no             no                     yes               leak: lost among the other items' meanings in the encoder
    no             no                     no                unknown: not drawn even alone

**Which rows are an item's?** In an encoder that looks both ways its own span, as in the paper. In a causal encoder
the span is not enough: the rows of "mouse" in "a mouse and a laptop" are those of "a mouse", bit by bit, while the
rows after the laptop, EOS and pads have read it and hold another sense. The denoiser reads them all, so there the
item is drawn from all rows but the other items' own (``encoded``) and from its span with EOS and pads (``gathered``);
it counts as encoded if both show it. Its span alone (``own``) tells where in the encoder a leak sits. An image that
shows another known sense beside the intended one counts as no. EOS and pads gather all items: one that they
crowd out is called a leak, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from unleak.core.intervention import Intervention
from unleak.errors import choose
from unleak.judges import Judge
from unleak.stats.rate import Rate
from unleak.text.items import Item
from unleak.text.phrases import phrase
from unleak.text.rows import POOLED_FIELDS, Layer, each_layer, keep
from unleak.text.scene import Scene
from unleak.words.methods.probe import Keep, Subset

if TYPE_CHECKING:
    from unleak.core.context import Context
    from unleak.text.call import TextCall

VERDICTS = ("ok", "leak", "neglect", "unknown")


def flags(encoded: Sighting, senses: Sequence[str]) -> tuple[str, ...]:
    """What is worth knowing of an item that is drawn in its intended sense although its rows do not say so."""
    if any(name in senses for name in encoded.instead):
        return ("latent leak",)
    return () if encoded.rate is None or encoded.rate.yes else ("carried elsewhere",)


def verdict(full: bool, encoded: bool, alone: bool) -> str:
    """The verdict of the three answers; every combination has exactly one."""
    if full:
        return "ok"
    if encoded:
        return "neglect"
    return "leak" if alone else "unknown"


@dataclass(frozen=True)
class KeepItem(Intervention):
    """Keep what the text rows say of one item; every other row, and the pooled vector, becomes that of "".

    Attributes:
        item, others: of the prompt, as `Item.of` writes them.
        rows: in a causal encoder ``"all"``: all rows but the other items' own; ``"gathered"``: the item's own, EOS
            and pads; ``"own"``: the item's own, as always in encoders that look both ways.

    The positions kept are in the session's log under "keep item", by encoder.
    """

    item: str
    others: tuple[str, ...] = ()
    rows: str = "all"

    def __post_init__(self) -> None:
        choose("choice of rows", self.rows, ("all", "gathered", "own"))
        super().__post_init__()

    def on_text(self, ctx: Context, call: TextCall) -> Any:
        """``H~_i = H_i if i in S else C_i``."""
        scene = Scene(call, [Item.of(self.item)], [Item.of(other) for other in self.others])
        kept = [self._kept(scene, b) for b in range(len(call.prompts))]
        ctx.log.setdefault("keep item", {})[call.name] = kept
        empty = scene.empty.output

        def rows(layer: Layer) -> Tensor:
            pairs = zip(layer(call.output).split(1), layer(empty).split(1), kept, strict=True)
            return torch.cat([keep(H, C, S) for H, C, S in pairs])

        output = each_layer(rows, call.output)
        pooled = {name: empty[name] for name in POOLED_FIELDS if output.get(name) is not None}
        return type(output)(**{**output, **pooled})

    def _kept(self, scene: Scene, b: int) -> list[int]:
        spans = scene.prompt.spans[b]
        if self.rows == "own" or not scene.causal:
            return list(range(*spans[0]))
        if self.rows == "gathered":
            return [*range(*spans[0]), *scene.prompt.tokens[b].after_text]
        of_others = {row for i in scene.others for row in range(*spans[i])}
        return [row for row in range(scene.length) if row not in of_others]


@dataclass(frozen=True)
class Sighting:
    """Images [S, H, W, 3] uint8 and on how many of them each thing is that was looked for, by name.

    ``seen`` begins with the item in its intended sense; it is empty where nobody judged.
    """

    title: str
    images: np.ndarray
    seen: dict[str, Rate]

    @property
    def rate(self) -> Rate | None:
        """How often the item is there in its intended sense."""
        return next(iter(self.seen.values()), None)

    @property
    def instead(self) -> list[str]:
        """What else is there on half of the images or more, the most frequent first."""
        others = [name for name, rate in list(self.seen.items())[1:] if rate.yes]
        return sorted(others, key=lambda name: -self.seen[name].k)


def judge_images(
    judge: Judge | None, images: np.ndarray, watched: Sequence[Item], title: str, senses: int = 0
) -> Sighting:
    """Let the judge look for each of the watched things; the first is the item in its intended sense.

    Args:
        senses: the next things are other senses of the item, beside which it does not count.
    """
    if judge is None or not watched:
        return Sighting(title, images, {})
    hits = judge.present(images, watched)
    hits[:, 0] &= ~hits[:, 1 : 1 + senses].any(1)
    return Sighting(title, images, {item.sense or item.text: Rate.of(hits[:, k]) for k, item in enumerate(watched)})


def probes(
    prompt: str, item: Item, others: Sequence[Item], causal: bool
) -> dict[str, tuple[str, str, tuple[Intervention, ...]]]:
    """What is drawn to find out why an item is missing: name -> (title, prompt, interventions).

    Args:
        item: with its sense only where the user named it: alone it is called by that name.
        causal: whether an encoder of the pipeline is causal.
    """
    plain, *beside = (str(replace(one, sense=None)) for one in (item, *others))
    bare = phrase(prompt, item.find(prompt), item.sense).text
    rows = "all rows but those of the other items" if causal else "only its own rows"
    by_name: dict[str, tuple[str, str, tuple[Intervention, ...]]] = {
        "encoded": (f"What the text says of “{item.text}”: {rows}", prompt, (KeepItem(plain, tuple(beside)),)),
        "alone": (f"Without its context: “{bare}”", bare, ()),
    }
    if causal:
        own = f"Only the own rows of “{item.text}”, which have not read what follows"
        gathered = f"The own rows of “{item.text}” with EOS and pads, which have read everything"
        by_name["own"] = (own, prompt, (KeepItem(plain, tuple(beside), "own"),))
        by_name["gathered"] = (gathered, prompt, (KeepItem(plain, tuple(beside), "gathered"),))
    return by_name


def nothing() -> tuple[str, tuple[Intervention, ...]]:
    """What is drawn from pad rows alone: what the judge finds there is its own mistake."""
    return "Nothing: pad rows alone", (Keep((Subset.nothing(),)),)
