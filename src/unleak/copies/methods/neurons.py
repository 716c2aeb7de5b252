"""Pruned neurons: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, for the duration of a call.

A neuron is an output unit of the value projection of a cross-attention site. For a prompt with rows e,

    act = mean_k |to_v(e_k)|,   z = |act - mu| / sd,   mu and sd over ordinary prompts;

its neurons are those with z > theta, and the k of each site with the largest act. theta falls from 5 to 1 by 1/4 while
k grows from 0 by 1, until the first step no longer shows what it showed: with D = eps - z_T, the similarity of D with
and without these neurons is at most `similar`. Then whole sites are given back where it stays so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from unleak.copies.methods.attenuate import EARLY
from unleak.copies.methods.gate import Gated
from unleak.core.edits import ValueSwap
from unleak.core.intervention import CROSS, SiteLike
from unleak.core.rows import Branch
from unleak.errors import BadInput, NoSite, UnsupportedModel

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context

PRUNED = "pruned"
WINDOW = 11  #: cells; of the released similarity
Neurons = Mapping[str, Sequence[int]]
"""Site -> the numbers of the value units that are off, of H d."""


class Norm(NamedTuple):
    """Mean and standard deviation [H, d] of a site's activations over ordinary prompts."""

    mean: Tensor
    std: Tensor

    def z(self, act: Tensor) -> Tensor:
        return (act - self.mean).abs() / (self.std + 1e-6)


def activations(values: Tensor) -> Tensor:
    """``mean_k |v_k|``: values [n, H, K, d] of n prompts -> [n, H, d]."""
    return values.float().abs().mean(2)


def outliers(act: Tensor, norm: Norm, theta: float, k: int) -> list[int]:
    """Neurons of one site, activations [H, d], with z above theta, and the k with the largest activation."""
    found = norm.z(act).flatten() > theta
    found[act.flatten().topk(k).indices] = True
    return torch.nonzero(found).flatten().tolist()


def similarity(a: Tensor, b: Tensor) -> float:
    """SSIM of noise differences [N, C, h, w], each scaled to 0..1 by channel; mean over images and channels.

    The released code takes MS-SSIM of three scales, for which the latents of small models have no room.
    """
    pairs = zip(a.float().flatten(0, 1).cpu().numpy(), b.float().flatten(0, 1).cpu().numpy(), strict=True)
    window = min(WINDOW, *a.shape[-2:])
    window -= 1 - window % 2
    return float(np.mean([structural_similarity(_unit(x), _unit(y), win_size=window, data_range=1) for x, y in pairs]))


def _unit(x: np.ndarray) -> np.ndarray:
    return (x - x.min()) / max(float(np.ptp(x)), 1e-12)


@dataclass(frozen=True)
class PruneNeurons(Gated):
    """Neurons that the prompt excites unusually are off while it is drawn; the weights are not touched.

    The search takes some denoiser calls on the prompt's rows at the first step, and nothing after it. Only rows of the
    prompt are changed; the released code prunes the empty prompt's too. A `gate` takes the place of its own test for
    memorization. `run.results["pruned"]` holds, for every prompt of every call, what was found.

    Attributes:
        ordinary: prompts that set the norm; default: the ordinary captions of the embedded world. The released
            statistics are of 50,000 captions.
        neurons: take these instead of a search, as an earlier run found them.
        similar: the search ends at this similarity of the first step (released: 0.428).
        theta, least, step: z-scores tried, from `theta` down to `least`.
    """

    layouts: ClassVar[tuple[str, ...]] = (CROSS,)
    ordinary: tuple[str, ...] = ()
    neurons: Neurons | None = None
    similar: float = 0.428
    theta: float = 5.0
    least: float = 1.0
    step: float = 0.25
    sites: SiteLike = field(default=EARLY, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 < self.least <= self.theta and self.step > 0):
            raise BadInput(f"neurons need 0 < least <= theta and a step, not {self.least}, {self.theta}, {self.step}")

    def on_attention(self, ctx: Context, site: AttentionCall) -> ValueSwap | None:
        """``v <- v * (neuron is on)`` for the rows of images whose neurons are known; before, look at them."""
        if site.kind == "joint":
            raise UnsupportedModel("neurons are pruned at cross sites; this model joins text and image")
        if site.kind != "cross":
            return None
        if self.neurons is None and "images" not in ctx.state and PRUNED not in site.rows.labels:
            self._look(ctx, site)
        off: dict[int, Neurons] = ctx.state.get("images", {})
        label = PRUNED if PRUNED in site.rows.labels else "cond"
        rows = [i for i in site.rows.of(label) if off.get(site.rows.images[i], {}).get(site.name)]
        if not rows:
            return None
        keep = torch.ones(len(rows), site.v.shape[1] * site.v.shape[3], device=site.v.device, dtype=site.v.dtype)
        for on, row in zip(keep, rows, strict=True):
            on[list(off[site.rows.images[row]][site.name])] = 0
        return ValueSwap(site.v[rows] * keep.unflatten(1, (site.v.shape[1], 1, -1)), rows=rows)

    def _look(self, ctx: Context, site: AttentionCall) -> None:
        """Learn how the prompts excite this site, and, once in a session, how ordinary prompts do."""
        norms = ctx.results.setdefault("norms", {})
        if site.name not in norms:
            act = activations(site.encode(ctx.encode(self._ordinary()).rows)[1])
            norms[site.name] = Norm(act.mean(0), act.std(0))
        rows = list(site.rows.of("cond"))
        acts = activations(site.v[rows])
        seen = ctx.state.setdefault("acts", {}).setdefault(site.name, {})
        seen.update(zip((site.rows.images[i] for i in rows), acts, strict=True))

    def _ordinary(self) -> tuple[str, ...]:
        if self.ordinary:
            return self.ordinary
        from unleak.world import load

        return tuple(caption.text for caption in load().ordinary)

    def on_prediction(self, ctx: Context, preds: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """At the first step: find the neurons of each prompt, and predict again without them."""
        if "images" in ctx.state:
            return None
        cond, chosen = preds["cond"], self.decide(ctx, preds)
        images = range(len(cond)) if chosen is None else chosen
        by_prompt = {prompt: list(own) for prompt, own in groupby(images, ctx.prompt_of)}
        if by_prompt and self.neurons is None and "acts" not in ctx.state:
            raise NoSite("none of the chosen sites reads text, so no neuron was pruned; choose others")
        off, new = dict[int, Neurons](), cond.clone()
        for mine in by_prompt.values():
            neurons = self._search(ctx, mine, cond[mine]) if self.neurons is None else self.neurons
            ctx.results.setdefault(PRUNED, []).append(neurons)
            if any(neurons.values()):
                new[mine] = self._without(ctx, neurons, mine).to(new)
                off.update(dict.fromkeys(mine, neurons))
        ctx.state["images"] = off
        return {"cond": new} if off else None

    def _search(self, ctx: Context, images: list[int], plain: Tensor) -> Neurons:
        latents = ctx.latents("cond")[images]

        def shown(neurons: Neurons) -> float:
            return similarity(self._without(ctx, neurons, images) - latents, plain - latents)

        found, reached = dict[str, list[int]](), 1.0
        for found in self._candidates(ctx, images[0]):
            reached = shown(found)
            if reached <= self.similar:
                break
        for site in list(found):
            fewer = {name: units for name, units in found.items() if name != site}
            if shown(fewer) <= max(self.similar, reached):
                found = fewer
        return found

    def _candidates(self, ctx: Context, image: int) -> Iterator[dict[str, list[int]]]:
        """Ever more neurons of a prompt, by site."""
        acts, norms = ctx.state["acts"], ctx.results["norms"]
        for k in range(int((self.theta - self.least) / self.step + 1e-9) + 1):
            theta = self.theta - k * self.step
            by_site = {site: outliers(seen[image], norms[site], theta, k) for site, seen in acts.items()}
            yield {site: units for site, units in by_site.items() if units}

    def _without(self, ctx: Context, neurons: Neurons, images: Sequence[int]) -> Tensor:
        """Predictions of some images with these neurons off."""
        ctx.state["images"] = dict.fromkeys(images, neurons)
        try:
            return ctx.predict([Branch(PRUNED, images=tuple(images))])[PRUNED]
        finally:
            del ctx.state["images"]
