"""Contextless rows: every word as it is encoded where all other words say nothing. No item needs to be named.

Source: arXiv 2606.03715, which guides diffusion transformers by rows of words without their context, from a corpus;
here, without one, from fillers: ``H~[word] = mean_f H(P, every other word -> f)[word]``, and the rows of no word from
``mean_f H(P, every word -> f)``. Positions stay what they are, so word order does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unleak.core.intervention import Intervention
from unleak.errors import BadInput, choose
from unleak.text.rows import Layer, each_layer

if TYPE_CHECKING:
    from unleak.core.context import Context
    from unleak.text.call import TextCall
    from unleak.text.spans import Tokens

EOS_PADS = ("filler", "keep")
ROWS = 64  #: texts in one call of the encoder


@dataclass(frozen=True)
class Contextless(Intervention):
    """``Contextless()``: rows of words without their context.

    Attributes:
        fillers: texts that stand, one after the other, in the place of all other words; rows are their mean.
        eos_pads: rows of no word from the sentence of fillers ("filler"), or as the prompt has them ("keep").

    It costs an encoding for each word and filler. The pooled vector stays the prompt's.

    Raises:
        BadInput: no filler, or one without a token of its own. PromptTruncated: the prompt does not fit.
    """

    fillers: tuple[str, ...] = ("thing", "object", "item", "one")
    eos_pads: str = "filler"

    uses_text = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "fillers", (self.fillers,) if isinstance(self.fillers, str) else tuple(self.fillers))
        choose("eos_pads", self.eos_pads, EOS_PADS)
        if not self.fillers:
            raise BadInput('fillers=(): give one or more words that say little, such as ("thing", "object").')

    def on_text(self, ctx: Context, call: TextCall) -> Any:
        fill = [_filling(call, filler) for filler in self.fillers]
        texts: dict[tuple[int, ...], Tokens] = {}
        parts = []  # (prompt, rows of it, the texts whose mean they are)
        for b, cut in enumerate(map(call.padded, call.fitting(call.prompts))):
            words = words_of(cut)
            chosen = [(at, [others for others in words if others != at]) for at in words]
            if self.eos_pads == "filler" and words:
                own = {p for at in words for p in at}
                chosen.append(([p for p in range(cut.length) if p not in own], words))
            for at, gone in chosen:
                made = [one(cut, gone) for one in fill]
                parts.append((b, at, [tokens.ids for tokens in made]))
                texts |= {tokens.ids: tokens for tokens in made}
        every, index = list(texts.values()), {ids: i for i, ids in enumerate(texts)}
        outputs = [call.encoded(every[i : i + ROWS]) for i in range(0, len(every), ROWS)]

        def rows(layer: Layer) -> Tensor:
            """One hidden layer [B, L, d]."""
            out = layer(call.output).clone()
            encoded = torch.cat([layer(output) for output in outputs])
            for b, at, ids in parts:
                out[b, at] = encoded[[index[one] for one in ids]][:, at].float().mean(0).to(out)
            return out

        return each_layer(rows, call.output) if parts else None


def words_of(tokens: Tokens) -> list[list[int]]:
    """The positions of each word of the text: what stands between blanks."""
    found: list[list[int]] = []
    for match in re.finditer(r"\S+", tokens.text):
        a, b = match.span()
        at = [p for p, (c, d) in enumerate(tokens.offsets) if tokens.words[p] and c < b and a < d]
        taken = {p for word in found for p in word}
        if at := [p for p in at if p not in taken]:
            found.append(at)
    return found


def _filling(call: TextCall, filler: str) -> Callable[[Tokens, Iterable[list[int]]], Tokens]:
    """Puts the filler's tokens, again and again, in the place of those of each of some words."""
    (cut,) = call.fitting([filler])
    ids = [token for token, own in zip(cut.ids, cut.words, strict=True) if own]
    if not ids:
        raise BadInput(f"The filler {filler!r} has no token in {call.name}: choose another.")

    def fill(tokens: Tokens, words: Iterable[list[int]]) -> Tokens:
        put = {p: ids[k % len(ids)] for word in words for k, p in enumerate(word)}
        return replace(tokens, ids=tuple(put.get(p, own) for p, own in enumerate(tokens.ids)))

    return fill
