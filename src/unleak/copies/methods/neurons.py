"""Pruned neurons: Hintersdorf et al., "Finding NeMo", NeurIPS 2024, for the duration of a call.

A neuron is an output unit of the value projection of a cross-attention site. For a prompt with rows e,

    act = mean_k |to_v(e_k)|,   z = |act - mu| / sd,   mu and sd over ordinary prompts
    N(theta, k) = {z > theta} and the k of each site with the largest act

theta falls from 5 to 1 by 1/4 while k grows from 0 by 1, until the first step no longer shows what it showed: with
D(N) = eps(z_T without N) - z_T, the similarity of D(N) and D({}) is at most `similar`. Then every site whose neurons
are not needed for that gets them back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
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
"""The label of rows that read the prompt without some neurons."""

STATISTICS = "activation statistics"
"""The key of `run.results` under which those of ordinary prompts are kept."""

WINDOW = 11  #: cells; of the released similarity

Neurons = Mapping[str, Sequence[int]]
"""Site -> the numbers of the value units that are off, of H d."""


def activations(values: Tensor) -> Tensor:
    """``act = mean_k |v_k|``: values [n, H, K, d] of n prompts -> [n, H, d]."""
    return values.float().abs().mean(2)


class ActivationStatistics(NamedTuple):
    """mu and sd [H, d] of a site's activations over ordinary prompts."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, act: Tensor) -> ActivationStatistics:
        """Of the activations [n, H, d] of n prompts."""
        return cls(act.mean(0), act.std(0))

    def z(self, act: Tensor) -> Tensor:
        return (act - self.mean).abs() / (self.std + 1e-6)


def outliers(act: Tensor, ordinary: ActivationStatistics, theta: float, k: int) -> list[int]:
    """N(theta, k) of one site with activations [H, d]."""
    is_outlier = ordinary.z(act).flatten() > theta
    is_outlier[act.flatten().topk(k).indices] = True
    return torch.nonzero(is_outlier).flatten().tolist()


def candidates(
    acts: Mapping[str, Tensor], ordinary: Mapping[str, ActivationStatistics], theta: float, least: float, step: float
) -> Iterator[dict[str, list[int]]]:
    """Ever more neurons of a prompt, by site: N(theta, 0), N(theta - step, 1), ... down to the theta `least`."""
    for k in range(int((theta - least) / step + 1e-9) + 1):
        by_site = {site: outliers(act, ordinary[site], theta - k * step, k) for site, act in acts.items()}
        yield {site: units for site, units in by_site.items() if units}


def search(growing: Iterable[Neurons], similarity_without: Callable[[Neurons], float], similar: float) -> Neurons:
    """The first neurons without which the first step shows something else, less the sites that this does not need.

    `similarity_without(neurons)` is that of D(N) and D({}). If no neurons bring it down to `similar`, the last ones are
    taken, and what they reach is the limit for giving sites back.
    """
    neurons, reached = dict[str, Sequence[int]](), 1.0
    for neurons in map(dict, growing):
        reached = similarity_without(neurons)
        if reached <= similar:
            break
    for site in list(neurons):
        fewer = {name: units for name, units in neurons.items() if name != site}
        if similarity_without(fewer) <= max(similar, reached):
            neurons = fewer
    return neurons


def similarity(a: Tensor, b: Tensor) -> float:
    """SSIM of noise differences [N, C, h, w], each scaled to 0..1 by channel; mean over images and channels.

    The released code takes MS-SSIM of three scales, for which the latents of small models have no room.
    """
    from skimage.metrics import structural_similarity

    pairs = zip(a.float().flatten(0, 1).cpu().numpy(), b.float().flatten(0, 1).cpu().numpy(), strict=True)
    window = min(WINDOW, *a.shape[-2:])
    window -= 1 - window % 2
    return float(np.mean([structural_similarity(_unit(x), _unit(y), win_size=window, data_range=1) for x, y in pairs]))


def _unit(x: np.ndarray) -> np.ndarray:
    return (x - x.min()) / max(float(np.ptp(x)), 1e-12)


def switched_off(values: Tensor, units: Sequence[Sequence[int]]) -> Tensor:
    """Values [rows, H, K, d] with the given units of every row at 0 for all k."""
    on = torch.ones(len(values), values.shape[1] * values.shape[3], device=values.device, dtype=values.dtype)
    for row, numbers in zip(on, units, strict=True):
        row[list(numbers)] = 0
    return values * on.unflatten(1, (values.shape[1], 1, -1))


@dataclass(frozen=True)
class PruneNeurons(Gated):
    """Neurons that the prompt excites unusually are off while it is drawn; the weights are not touched.

    The search takes some denoiser calls on the prompt's rows at the first step, and nothing after it. Only rows of the
    prompt are changed; the released code prunes the empty prompt's too. A `gate` takes the place of its own test for
    memorization. `run.results["pruned"]` holds the neurons that were off, for every prompt of every call.

    Attributes:
        ordinary: prompts for mu and sd; default: the ordinary captions of the embedded world. The released
            statistics are of 50,000 captions.
        neurons: switch these off, without a search.
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
        """The values of rows whose neurons are known, without these; before, learn the prompts' activations."""
        if site.kind == "joint":
            raise UnsupportedModel("neurons are pruned at cross sites; this model joins text and image")
        if site.kind != "cross":
            return None
        if self.neurons is None and "off" not in ctx.state:
            self._learn(ctx, site)
        off: dict[int, Neurons] = ctx.state.get("off", {})
        label = PRUNED if PRUNED in site.rows.labels else "cond"
        units = {row: off.get(site.rows.images[row], {}).get(site.name) for row in site.rows.of(label)}
        rows = [row for row, numbers in units.items() if numbers]
        return ValueSwap(switched_off(site.v[rows], [units[row] or () for row in rows]), rows=rows) if rows else None

    def _learn(self, ctx: Context, site: AttentionCall) -> None:
        """Activations of the prompts at this site, and, once in a session, their statistics over ordinary prompts."""
        statistics = ctx.results.setdefault(STATISTICS, {})
        if site.name not in statistics:
            values = site.encode(ctx.encode(self._ordinary()).rows)[1]
            statistics[site.name] = ActivationStatistics.of(activations(values))
        rows = list(site.rows.of("cond"))
        for row, act in zip(rows, activations(site.v[rows]), strict=True):
            ctx.state.setdefault("activations", {}).setdefault(site.rows.images[row], {})[site.name] = act

    def _ordinary(self) -> tuple[str, ...]:
        if self.ordinary:
            return self.ordinary
        from unleak.world import load

        return tuple(caption.text for caption in load().ordinary)

    def on_prediction(self, ctx: Context, preds: Mapping[str, Tensor]) -> Any:
        """At the first step: search the neurons of each prompt, and predict again without them."""
        if "off" in ctx.state:
            return None
        cond, chosen = preds["cond"], self.decide(ctx, preds)
        images = range(len(cond)) if chosen is None else chosen
        if len(images) and self.neurons is None and "activations" not in ctx.state:
            raise NoSite("none of the chosen sites reads text, so no neuron was pruned; choose others")
        off, pruned = dict[int, Neurons](), cond.clone()
        for _, group in groupby(images, ctx.prompt_of):
            of_prompt = list(group)
            neurons = self._search(ctx, of_prompt, cond[of_prompt]) if self.neurons is None else self.neurons
            ctx.results.setdefault(PRUNED, []).append(neurons)
            if any(neurons.values()):
                pruned[of_prompt] = self._without(ctx, neurons, of_prompt).to(pruned)
                off.update(dict.fromkeys(of_prompt, neurons))
        ctx.state["off"] = off
        return self.instead(ctx, preds, pruned) if off else None

    def _search(self, ctx: Context, images: list[int], plain: Tensor) -> Neurons:
        """`search` for the prompt of these images, whose predictions are `plain` with all neurons."""
        latents, acts = ctx.latents("cond")[images], ctx.state["activations"][images[0]]
        return search(
            candidates(acts, ctx.results[STATISTICS], self.theta, self.least, self.step),
            lambda neurons: similarity(self._without(ctx, neurons, images) - latents, plain - latents),
            self.similar,
        )

    def _without(self, ctx: Context, neurons: Neurons, images: Sequence[int]) -> Tensor:
        """Predictions of some images with these neurons off."""
        ctx.state["off"] = dict.fromkeys(images, neurons)
        try:
            return ctx.predict([Branch(PRUNED, images=tuple(images))])[PRUNED]
        finally:
            del ctx.state["off"]
