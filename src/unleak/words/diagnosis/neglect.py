"""Why is an item missing: did the encoder lose it, did the denoiser pass it over, or is it unknown?

Source: Follow the Flow (arXiv 2504.01137), catastrophic neglect. An item may fail on some images only, so the
questions are asked about those: the images of the prompt on which it is not there in its intended sense. On none of
them: ``ok``. Else a judge answers, on images from the seeds that fail (``yes``: on half of them or more):

    another sense is seen    its text rows alone    the item alone    verdict
    yes                      any                    any               leak: the prompt gives it another meaning
    no                       yes                    any               neglect: encoded, but not drawn
    no                       no                     yes               leak: lost among the other items' meanings
    no                       no                     no                unknown: not drawn even alone

An answer is settled where its 95 % interval leaves half out, which takes four images that agree. A verdict that rests
on answers that are not settled is open (`Verdict.open`): more seeds may change it.

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
from typing import TYPE_CHECKING, Any, NamedTuple

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


def verdict(full: bool, encoded: bool, alone: bool, other: bool = False) -> str:
    """The verdict of the answers; every combination has exactly one. `other`: another sense is seen."""
    if full:
        return "ok"
    if other:
        return "leak"
    if encoded:
        return "neglect"
    return "leak" if alone else "unknown"


class Verdict(NamedTuple):
    """A verdict, one of `VERDICTS`, and what more images must tell before it is sure; "" where it is."""

    name: str
    open: str = ""


SPARED = 0.2
"""The share of images that may fail, by the upper end of its interval, where an ``ok`` is sure: 16 good images."""


def decide(present: Rate, other: Rate | None, encoded: Sequence[Rate], alone: Rate) -> Verdict:
    """The verdict of the rates, and whether so many images can tell it.

    Args:
        present: of all images of the prompt, those that show the item in its intended sense.
        other: of the images that fail, those that show another known sense; None where no other is known.
        encoded: the same seeds drawn from its text rows; in a causal encoder also from those that gathered it,
            and it is encoded if all of them show it.
        alone: the same seeds drawn from the item alone.
    """
    if present.k == present.n:
        return spared(present)
    name = verdict(False, all(rate.yes for rate in encoded), alone.yes, other is not None and other.yes)
    if other is not None and other.yes:
        needed = {"another sense is seen": other}
    elif name == "neglect":
        needed = {"its rows draw it": min(encoded, key=lambda rate: rate.low)}
    else:
        needed = {"its rows draw it": min(encoded, key=lambda rate: rate.high), "it is drawn alone": alone}
    if other is not None and not other.yes and name != "leak":
        needed["another sense is seen"] = other
    unsettled = [f"{question} on {rate}" for question, rate in needed.items() if not settled(rate)]
    return Verdict(name, " and ".join(unsettled) + " of the images that fail" if unsettled else "")


def spared(present: Rate) -> Verdict:
    """The verdict on an item that no image lacks: sure where at most `SPARED` of more images may."""
    most = 1 - present.low
    return Verdict("ok", "" if most <= SPARED else f"up to {100 * most:.0f} % of more images may lack it")


def settled(rate: Rate) -> bool:
    """Whether the interval leaves half out."""
    return rate.low > 0.5 or rate.high < 0.5


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


@dataclass(frozen=True, eq=False)
class Sighting:
    """Images [S, H, W, 3] uint8 of some seeds, and which things a judge sees on them.

    Attributes:
        names: of what was looked for; it begins with the item in its intended sense, and is empty where nobody judged.
        hits: [S, names] of bool. seeds: of the images.
    """

    title: str
    images: np.ndarray
    names: tuple[str, ...] = ()
    hits: np.ndarray | None = None
    seeds: tuple[int, ...] = ()

    @property
    def seen(self) -> dict[str, Rate]:
        """On how many of the images each thing is, by name; empty where nobody judged."""
        if self.hits is None or not len(self.hits):
            return {}
        return {name: Rate.of(self.hits[:, k]) for k, name in enumerate(self.names)}

    @property
    def rate(self) -> Rate | None:
        """How often the item is there in its intended sense."""
        return next(iter(self.seen.values()), None)

    @property
    def failing(self) -> tuple[int, ...]:
        """The seeds on whose images the item is not there in its intended sense."""
        return (
            () if self.hits is None else tuple(s for s, hit in zip(self.seeds, self.hits[:, 0], strict=True) if not hit)
        )

    @property
    def instead(self) -> list[str]:
        """What else is there on half of the images or more, the most frequent first."""
        others = [name for name, rate in list(self.seen.items())[1:] if rate.yes]
        return sorted(others, key=lambda name: -self.seen[name].k)

    def at(self, seeds: Sequence[int]) -> Sighting:
        """The same for some of its seeds."""
        rows = [k for k, seed in enumerate(self.seeds) if seed in seeds]
        hits = None if self.hits is None else self.hits[rows]
        return replace(self, images=self.images[rows], hits=hits, seeds=tuple(self.seeds[k] for k in rows))

    def joined(self, more: Sighting) -> Sighting:
        """The same with the images of further seeds."""
        hits = None if self.hits is None or more.hits is None else np.concatenate([self.hits, more.hits])
        images = np.concatenate([self.images, more.images])
        return replace(self, images=images, hits=hits, seeds=(*self.seeds, *more.seeds))


def look(judge: Judge, images: np.ndarray, watched: Sequence[Item], senses: int = 0) -> np.ndarray:
    """[S, watched] of bool: which things are there; the first does not count beside one of the next `senses`."""
    hits = judge.present(images, watched)
    hits[:, 0] &= ~hits[:, 1 : 1 + senses].any(1)
    return hits


def judge_images(
    judge: Judge | None,
    images: np.ndarray,
    watched: Sequence[Item],
    title: str,
    senses: int = 0,
    seeds: Sequence[int] = (),
) -> Sighting:
    """Let the judge look for each of the watched things; the first is the item in its intended sense.

    Args:
        senses: the next things are other senses of the item, beside which it does not count. seeds: of the images.
    """
    if judge is None or not watched:
        return Sighting(title, images, seeds=tuple(seeds))
    names = tuple(item.sense or item.text for item in watched)
    return Sighting(title, images, names, look(judge, images, watched, senses), tuple(seeds))


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
