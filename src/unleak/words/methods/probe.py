"""Probes: what a chosen set of a prompt's rows draws on its own.

Source: Follow the Flow (arXiv 2504.01137), generation from a subset S of the contextual rows H with
index-aligned pad rows C elsewhere: ``H~_i = H_i if i in S else C_i``. The length never changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from unleak.core.anatomy import Anatomy
from unleak.core.intervention import Intervention
from unleak.drawing.generate import Seeds, draw, images_at_once, parse_seeds, rehearse
from unleak.engine.session import attach
from unleak.errors import BadInput, choose
from unleak.text.encode import check_pad
from unleak.text.items import Item
from unleak.text.prompt import check_prompt, each_prompt
from unleak.text.rows import POOLED_FIELDS, each_layer, keep
from unleak.text.scene import Scene
from unleak.text.spans import Tokens
from unleak.text.subsets import Cutter, Subset, cut

if TYPE_CHECKING:
    from unleak.core.context import Context
    from unleak.text.call import TextCall

__all__ = ["POOLED", "Keep", "Subset", "probe"]

POOLED = ("full", "pad", "item")


@dataclass(frozen=True)
class Keep(Intervention):
    """Keep a subset of the positive prompt's rows; all others become pad rows, in every encoder and layer.

    ``Keep(Subset.of("mouse"))`` for every prompt of the call, or one subset for each of its prompts.

    Attributes:
        subsets: the rows S to keep.
        pad: the pad rows C, one of `unleak.text.encode.PADS`. ``"empty"``: the encoding of "".
            ``"allpad"``: of pad tokens only. ``"padtoken"``: of the pad token's string. ``"zero"``: zeros.
            ``"mean"``: the mean encoding of the texts in `bank`.
        pooled: ``"pad"``: the pooled vector of the pads. ``"full"``: of the whole prompt; it enters the denoiser
            beside the rows, so the probe is then not isolated. ``"item"``: the mean of those of the subset's
            items, each encoded alone; of the pads where a subset names no item.
        bank: texts whose mean ``pad="mean"`` is.

    Both policies, and the positions kept in each encoder, are in the session's log under "keep".

    Raises (when built, or when the pipeline encodes its prompt):
        ItemNotFound, AmbiguousItem, PromptTruncated, BadInput.
    """

    subsets: Subset | Sequence[Subset]
    pad: str = "empty"
    pooled: str = "pad"
    bank: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        given = (self.subsets,) if isinstance(self.subsets, Subset) else tuple(self.subsets)
        object.__setattr__(self, "subsets", tuple(Subset(**s) if isinstance(s, Mapping) else s for s in given))
        object.__setattr__(self, "bank", each_prompt(self.bank))
        if not self.subsets:
            raise BadInput(f"{type(self).__name__} needs at least one subset.")
        check_pad(self.pad)
        choose("pooled policy", self.pooled, POOLED)
        if (self.pad == "mean") != bool(self.bank):
            raise BadInput("pad='mean' is the mean over texts, and only it takes them: bank=('a cat', 'a car').")
        super().__post_init__()

    def on_text(self, ctx: Context, call: TextCall) -> Any:
        """``H~_i = H_i if i in S else C_i`` in every layer; then the pooled vector."""
        subsets = self._each_prompts(len(call.prompts))
        every = ctx.anatomy.encoders
        cuts = call.cut(call.prompts)
        kept = [self.kept(subset, call, tokens, every) for subset, tokens in zip(subsets, cuts, strict=True)]
        pads = self._pads(call)
        output = each_layer(lambda layer: _kept(layer(call.output), layer(pads), kept), call.output)
        pooled = {
            name: torch.cat([self._pooled(call, pads, name, b, s) for b, s in enumerate(subsets)])
            for name in POOLED_FIELDS
            if output.get(name) is not None
        }
        note = {"encoder": call.name, "pad": self.pad, "pooled": self.pooled, "positions": kept}
        ctx.log.setdefault("keep", []).append(note)
        return type(output)(**{**output, **pooled})

    def kept(self, subset: Subset, own: Cutter, tokens: Tokens, every: Sequence[Cutter]) -> list[int]:
        """The positions S in one prompt; arguments and errors are those of `Subset.positions`."""
        return subset.positions(own, tokens, every)

    def _each_prompts(self, B: int) -> tuple[Subset, ...]:
        assert not isinstance(self.subsets, Subset)
        if len(self.subsets) not in (1, B):
            raise BadInput(f"{len(self.subsets)} subsets for {B} prompts: give one for all, or one for each.")
        return (*self.subsets,) * (B // len(self.subsets))

    def _pads(self, call: TextCall) -> Any:
        """The encoder's output on clean pads, of the prompts' batch size, so that nothing depends on the batch."""
        B = len(call.prompts)
        if self.pad == "mean":
            return _each(lambda t: t.float().mean(0, True).to(t).repeat(B, *[1] * (t.ndim - 1)), call.rerun(self.bank))
        pads = call.encoded([call.neutral(self.pad)] * B)
        return _each(torch.zeros_like, pads) if self.pad == "zero" else pads

    def _pooled(self, call: TextCall, pads: Any, name: str, b: int, subset: Subset) -> Tensor:
        """The pooled vector [1, dp] of prompt b."""
        if self.pooled == "item" and subset.named:
            one = replace(call, prompts=call.prompts[b : b + 1], ids=call.ids[b : b + 1])
            alone = [Scene(one, [Item.of(item)]).alone(0).output[name] for item in subset.named]
            return torch.stack(alone).mean(0)
        return (call.output if self.pooled == "full" else pads)[name][b : b + 1]


def _kept(H: Tensor, C: Tensor, kept: Sequence[Sequence[int]]) -> Tensor:
    """One layer [B, L, d] with the positions S_b of each prompt b kept."""
    return torch.cat([keep(H[b : b + 1], C[b : b + 1], S) for b, S in enumerate(kept)])


def _each(change: Callable[[Tensor], Tensor], output: Any) -> Any:
    """An encoder output with every tensor of it changed."""
    parts = {
        name: tuple(map(change, value)) if isinstance(value, tuple) else change(value) for name, value in output.items()
    }
    return type(output)(**parts)


def probe(
    pipe: Any,
    prompt: str,
    subsets: Mapping[str, Subset],
    *,
    seeds: Seeds = 4,
    pad: str = "empty",
    pooled: str = "pad",
    bank: Iterable[str] = (),
    call: Mapping[str, Any] | None = None,
    batch: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
    """What each subset of the prompt's rows draws: images [S, H, W, 3] uint8 by the subset's name.

    Subsets and seeds together fill the denoiser's batch. Image j starts from the noise of ``seeds[j]``, whatever
    the subset; `Subset.everything()` with ``pooled="full"`` is the plain image.

    Args:
        pad, pooled, bank: as in `Keep`.
        call: arguments of the pipeline (steps, guidance, size).
        batch: images drawn at once; default as in `unleak.drawing.generate.generate`.
        progress: is told how many images each call made.

    Raises:
        BadInput, ItemNotFound, AmbiguousItem, PromptTruncated: before anything is drawn.
    """
    check_prompt(prompt)
    numbers, call = parse_seeds(seeds), dict(call or {})
    if not subsets:
        raise BadInput("nothing to probe: give at least one subset")
    keep_only = partial(Keep, pad=pad, pooled=pooled, bank=each_prompt(bank))
    rehearse(pipe, prompt, keep_only(list(subsets.values())[:1]), **call)
    every = Anatomy.of(pipe).encoders
    for subset in subsets.values():
        for own in every:
            subset.positions(own, cut(own, prompt), every)

    jobs = [(subset, seed) for subset in subsets.values() for seed in numbers]
    batch = batch or images_at_once(pipe, call)
    out = []
    for start in range(0, len(jobs), batch):
        part = jobs[start : start + batch]
        with attach(pipe, keep_only([subset for subset, _ in part])):
            out.append(draw(pipe, [prompt] * len(part), [seed for _, seed in part], **call))
        if progress:
            progress(len(part))
    images = np.concatenate(out)
    return dict(zip(subsets, images.reshape(len(subsets), len(numbers), *images.shape[1:]), strict=True))
