"""Cross-attention attenuation: turn down the text positions that stand out, statistically, in each head.

Zhao, Triantafillou, Triantafillou, "You Don't Need All That Attention" (GUARD), ICML 2026, arXiv 2603.00133. A
memorized prompt gathers attention on few positions. Per image, site and head, with S = q k^T / sqrt(d):

    m_k = max_q S_qk;   z_k = (m_k - mean m) / (std m + 1e-6)  over positions 1..;   spike: z_k > tau
    S'_qk = alpha S_qk  for spikes k and all queries

Multiplying a position's logits is scaling its key row, so no attention map is built.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from unleak.copies.methods.gate import Gated
from unleak.core import scores
from unleak.core.edits import KeyScale
from unleak.core.intervention import SiteFilter
from unleak.core.rows import Branch, Rows
from unleak.errors import BadInput, NoSite, NotFinite, choose

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context

EARLY = SiteFilter(("[!u]*",))
"""Everything but the `up_blocks` of a U-Net: the way down and the middle. A transformer has no way up."""

ATTENUATED = "attenuated"
"""The label of extra rows that read the prompt with attenuation."""

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda p: 1.0,
    "rising": lambda p: p,
    "falling": lambda p: 1 - p,
    "cosine-rising": lambda p: (1 - math.cos(math.pi * p)) / 2,
    "cosine-falling": lambda p: (1 + math.cos(math.pi * p)) / 2,
}
"""Share of the attenuation as a function of progress p in [0, 1) through the window."""


def spike_scores(peaks: Tensor) -> Tensor:
    """z of each position: how far its peak [..., K] stands above the others', in standard deviations.

    Position 0 (begin of text) is left out of mean and (unbiased) deviation; pads are in them.
    """
    rest = peaks[..., 1:]
    return (peaks - rest.mean(-1, keepdim=True)) / (rest.std(-1, keepdim=True) + 1e-6)


def spikes(peaks: Tensor, tau: float) -> Tensor:
    """Positions [..., K] whose z is strictly above tau; never position 0.

    >>> spikes(torch.tensor([9.0, 1.0, 1.0, 4.0]), tau=1.0).tolist()
    [False, False, False, True]
    """
    found = spike_scores(peaks) > tau
    found[..., 0] = False
    return found


@dataclass(frozen=True)
class Attenuate(Gated):
    """Attenuate the spikes of the prompt's cross-attention. Same denoiser rows as without.

    Attributes:
        tau: a position is a spike above this z; 0 or less, or infinity: none is.
        alpha: what its logits are multiplied by; 1 changes nothing. A negative logit moves towards 0, so
            its attention can rise.
        statistic: what peaks: the "logit", as the released code has it, or the attention "mass" after the
            softmax, as the paper has it.
        precision: of the statistics, "float32" or the "model"'s own, which decides less exactly.
        schedule: of the strength ``1 + (alpha - 1) s`` through the window, one of `SCHEDULES`.
        gate: see `Gated`. The images it chooses need one extra row each at the first step.

    The sites are `EARLY`. Joint attention of transformers is attenuated for image queries; no reference exists.
    """

    tau: float = 0.01
    alpha: float = 0.3
    statistic: str = "logit"
    precision: str = "float32"
    schedule: str = "constant"
    sites: SiteFilter = field(default=EARLY, kw_only=True)
    uses_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if math.isnan(self.tau) or not 0 <= self.alpha < math.inf:
            raise BadInput(f"attenuation needs a number tau and alpha >= 0, not {self.tau} and {self.alpha}")
        choose("statistic", self.statistic, ("logit", "mass"))
        choose("precision", self.precision, ("float32", "model"))
        choose("schedule", self.schedule, SCHEDULES)

    @property
    def off(self) -> bool:
        """It attenuates nothing."""
        return self.alpha == 1 or self.tau <= 0 or self.tau == math.inf

    def strength(self, ctx: Context) -> float:
        """What spikes are multiplied by in this step."""
        share = self.window.end - self.window.start
        progress = (ctx.step / ctx.steps - self.window.start) / share if share else 0.0
        return 1 + (self.alpha - 1) * SCHEDULES[self.schedule](min(max(progress, 0.0), 1.0))

    def peaks(self, site: AttentionCall, rows: Sequence[int]) -> Tensor:
        """The statistic of every text position at one site: [rows, heads, text]."""
        q, k = site.q[list(rows)][:, :, site.layout.image_queries], site.k[list(rows)]
        if self.precision == "float32":
            q, k = (x if x.dtype == torch.float64 else x.float() for x in (q, k))
        if self.statistic == "logit":
            return scores.peaks(q, k[:, :, site.layout.text_keys], site.scale)
        return scores.peaks(q, k, site.scale, mass=True)[:, :, site.layout.text_keys]

    def attenuated(self, ctx: Context, rows: Rows) -> list[int]:
        """Batch rows to attenuate in this call: the prompt's, of the images that the gate has chosen."""
        if ATTENUATED in rows.labels:
            return list(rows.of(ATTENUATED))
        chosen = self.chosen(ctx)
        return [i for i in rows.of("cond") if chosen is None or rows.images[i] in chosen]

    def extra(self, chosen: tuple[int, ...] | None) -> list[Branch]:
        """Rows that a call of their own needs for the attenuated predictions of these images."""
        return [Branch(ATTENUATED, images=chosen)]

    def sources(self, rows: Rows, attenuated: Sequence[int]) -> Sequence[int]:
        """The row that each of these takes its statistics from."""
        return attenuated

    def on_attention(self, ctx: Context, site: AttentionCall) -> KeyScale | None:
        """``S' = alpha S`` on spikes, for all queries of the head."""
        rows, strength = self.attenuated(ctx, site.rows), self.strength(ctx)
        if self.off or site.kind == "self" or not rows:
            return None
        ctx.state["text sites"] = True
        if strength == 1:
            return None
        found = spikes(self.peaks(site, self.sources(site.rows, rows)), self.tau)
        shares = ctx.run.results.setdefault(ATTENUATED, scores.RunningMean())
        shares.add((ctx.step, site.name), found.float().mean((0, 1)))
        factor = torch.where(found, strength, 1.0)
        return KeyScale(None, factor, rows=rows, queries=None if site.kind == "cross" else "image")

    def on_prediction(self, ctx: Context, preds: Mapping[str, Tensor]) -> Any:
        """The gate's first look, and the first step of the images that it chooses."""
        if not self.undecided(ctx):
            self.check_sites(ctx)
            return None
        chosen = self.decide(ctx, preds)
        if not chosen or self.off:
            return None
        cond = preds["cond"].clone()
        cond[list(chosen)] = self.predicted(ctx, chosen)
        return {"cond": cond}

    def check_sites(self, ctx: Context) -> None:
        """Raise NoSite where attenuation is due and none of the chosen sites reads text."""
        if not self.off and self.chosen(ctx) != () and "text sites" not in ctx.state:
            raise NoSite("none of the chosen sites reads text, so nothing was attenuated; choose others")

    def predicted(self, ctx: Context, chosen: tuple[int, ...]) -> Tensor:
        """Attenuated predictions of some images, from one more denoiser call on their rows alone."""
        if "cond" not in ctx.rows.labels:
            raise BadInput("a gate needs a pipeline that calls its denoiser once for all branches: leave it out")
        found = ctx.predict(self.extra(chosen))[ATTENUATED]
        self.check_sites(ctx)
        if not torch.isfinite(found).all():
            raise NotFinite("the denoiser predicted NaN or infinity with attenuation; run it in a wider dtype")
        return found
