"""Cross-attention attenuation: turn down the text positions that stand out, statistically, in each head.

Zhao, Triantafillou, Triantafillou, "You Don't Need All That Attention" (GUARD), ICML 2026, arXiv 2603.00133. A
memorized prompt gathers attention on few positions. Per image, site and head, with S = q k^T / sqrt(d):

    m_k = max_q S_qk;   z_k = (m_k - mean m) / (std m + 1e-6)  over positions 1..;   spike: z_k > tau
    S'_qk = alpha(i) S_qk  for spikes k and all queries,   alpha(i) = 1 + (alpha - 1) s(i)

Multiplying a position's logits is scaling its key row, so no attention map is built.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from unleak.copies.methods.gate import Gated
from unleak.copies.methods.schedules import SCHEDULES
from unleak.core import scores
from unleak.core.edits import KeyScale
from unleak.core.intervention import SiteFilter, Window
from unleak.core.rows import Branch
from unleak.errors import BadInput, NoSite, NotFinite, choose

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context

EARLY = SiteFilter(("[!u]*",))
"""Everything but the `up_blocks` of a U-Net: the way down and the middle. A transformer has no way up."""

ATTENUATED = "attenuated"
"""The label of extra rows that read the prompt with attenuation."""


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
    is_spike = spike_scores(peaks) > tau
    is_spike[..., 0] = False
    return is_spike


@dataclass(frozen=True)
class Attenuation:
    """The rule above, for the rows that a mitigation chooses. The attributes are those of `Attenuate`.

    Raises BadInput: a value out of range.
    """

    tau: float
    alpha: float
    statistic: str
    precision: str
    schedule: str

    def __post_init__(self) -> None:
        if math.isnan(self.tau) or not 0 <= self.alpha < math.inf:
            raise BadInput(f"attenuation needs a number tau and alpha >= 0, not {self.tau} and {self.alpha}")
        choose("statistic", self.statistic, ("logit", "mass"))
        choose("precision", self.precision, ("float32", "model"))
        choose("schedule", self.schedule, SCHEDULES)

    @property
    def off(self) -> bool:
        """Whether nothing is a spike, or spikes stay what they are."""
        return self.alpha == 1 or self.tau <= 0 or self.tau == math.inf

    def strength(self, step: int, steps: int, window: Window) -> float:
        """alpha(i): what spikes are multiplied by at this step of the window.

        Progress is counted in the window's n steps, as the released code does: ``s((i - first) / n)``.
        """
        inside = window.among(steps) or [step]
        progress = (step - inside[0]) / len(inside)
        return 1 + (self.alpha - 1) * SCHEDULES[self.schedule](progress)

    def peaks(self, site: AttentionCall, rows: Sequence[int]) -> Tensor:
        """The statistic m of every text position at one site: [rows, heads, text]."""
        q, k = site.q[list(rows)][:, :, site.layout.image_queries], site.k[list(rows)]
        if self.precision == "float32":
            q, k = (x if x.dtype == torch.float64 else x.float() for x in (q, k))
        if self.statistic == "logit":
            return scores.peaks(q, k[:, :, site.layout.text_keys], site.scale)
        return scores.peaks(q, k, site.scale, mass=True)[:, :, site.layout.text_keys]

    def spikes(self, site: AttentionCall, rows: Sequence[int]) -> Tensor:
        """Which text positions are spikes in these batch rows at one site: [rows, heads, text] of bool."""
        return spikes(self.peaks(site, rows), self.tau)

    def acts_at(self, site: AttentionCall) -> bool:
        """Whether a site reads text that may be attenuated."""
        return not self.off and site.kind != "self"

    def scale(self, ctx: Context, site: AttentionCall, rows: Sequence[int], is_spike: Tensor,
              window: Window) -> KeyScale | None:  # fmt: skip
        """``S' = alpha(i) S`` of `rows` on their spikes [rows, heads, text], for all image queries of a head.

        `run.results["attenuated"]` keeps the share of heads and images in which each position was a spike.
        """
        ctx.state["text sites"] = True
        strength = self.strength(ctx.step, ctx.steps, window)
        if strength == 1:
            return None
        shares = ctx.results.setdefault(ATTENUATED, scores.RunningMean())
        shares.add((ctx.step, site.name), is_spike.float().mean((0, 1)))
        factor = torch.where(is_spike, strength, 1.0)
        return KeyScale(None, factor, rows=rows, queries=None if site.kind == "cross" else "image")

    def check(self, ctx: Context) -> None:
        """Raise NoSite where attenuation was due and none of the chosen sites reads text."""
        if not self.off and "text sites" not in ctx.state:
            raise NoSite("none of the chosen sites reads text, so nothing was attenuated; choose others")

    def predict(self, ctx: Context, branches: Sequence[Branch]) -> Tensor:
        """Attenuated predictions [images, ...] from one more denoiser call on these branches alone."""
        predictions = ctx.predict(branches)[ATTENUATED]
        self.check(ctx)
        if not torch.isfinite(predictions).all():
            raise NotFinite("the denoiser predicted NaN or infinity with attenuation; run it in a wider dtype")
        return predictions


@dataclass(frozen=True)
class Attenuate(Gated):
    """Attenuate the spikes of the prompt's cross-attention. Same denoiser rows as without.

    Attributes:
        tau: a position is a spike above this z; 0 or less, or infinity: none is.
        alpha: what its logits are multiplied by; 1 changes nothing. A negative logit moves towards 0, so
            its attention can rise.
        statistic: what peaks: the "logit", as the released code has it, or the attention "mass" after the
            softmax, as the paper has it.
        precision: of the statistics, "float32" or the "model"'s own, which decides less exactly. The release
            decides in bfloat16.
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
        _ = self.attenuation

    @property
    def attenuation(self) -> Attenuation:
        return Attenuation(self.tau, self.alpha, self.statistic, self.precision, self.schedule)

    def rows(self, ctx: Context, site: AttentionCall) -> list[int]:
        """Batch rows to attenuate in this call: the prompt's, of the images that the gate has chosen."""
        if ATTENUATED in site.rows.labels:
            return list(site.rows.of(ATTENUATED))
        chosen = self.chosen(ctx)
        return [i for i in site.rows.of("cond") if chosen is None or site.rows.images[i] in chosen]

    def on_attention(self, ctx: Context, site: AttentionCall) -> KeyScale | None:
        rows, attenuation = self.rows(ctx, site), self.attenuation
        if not rows or not attenuation.acts_at(site):
            return None
        return attenuation.scale(ctx, site, rows, attenuation.spikes(site, rows), self.window)

    def on_prediction(self, ctx: Context, preds: Mapping[str, Tensor]) -> Any:
        """The gate's first look, and the first step of the images that it chooses."""
        first, chosen = self.undecided(ctx), self.decide(ctx, preds)
        if chosen == () or self.attenuation.off:
            return None
        if not first:
            return self.attenuation.check(ctx)
        cond = preds["cond"].clone()
        cond[list(chosen or ())] = self.attenuation.predict(ctx, [Branch(ATTENUATED, images=chosen)])
        return self.instead(ctx, preds, cond)
