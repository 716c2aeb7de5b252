"""InfEdit's unified attention control: cross- and self-attention control joined by a third branch, the layout.

Source: Xu et al., Inversion-Free Image Editing with Natural Language (arXiv 2312.04965). `DDCM` carries source, target
and layout from one noise; the layout reads the source's prompt. At step c of N,

    self    (c + 1) / N < S        target and layout:  q, k <- the source's
            afterwards             layout:             q <- the target's,  k, v <- the source's
    cross   (c + 1) / N <= tau     target:             the source's map, aligned word by word (`p2p`)

so that the layout becomes the source's content in the target's arrangement. After each step but the first

    x_target <- x_target where the layout sees the edited words, else x_layout;     x_source where it sees kept words.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from unleak.core.edits import MapMix, QueryKeySwap, RowSwap
from unleak.core.intervention import Intervention
from unleak.errors import BadInput
from unleak.regions.method import PromptObjects, both
from unleak.regions.methods.controlled import Controlled
from unleak.regions.methods.ddcm import SOURCE
from unleak.regions.methods.images import Phrases, Prompts, each_list, frozen, rows_of
from unleak.regions.methods.ore import is_cross
from unleak.regions.methods.p2p import P2P
from unleak.regions.methods.rows import source_and_target_rows
from unleak.regions.methods.schedule import alphas
from unleak.text.items import Item
from unleak.text.positions import first_encoder
from unleak.text.prompt import each_prompt
from unleak.text.spans import token_span, tokenize

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context
    from unleak.text.call import TextCall

LAYOUT = "layout"
"""Name of the third branch; to be given to `DDCM` as a follower."""
CELLS = 16 * 16
"""Where words are looked for: at the sites whose cells are nearest to so many."""
TEMPERATURE = 0.15


@dataclass(frozen=True, eq=False)
class UnifiedAttention(Intervention):
    """Stands after ``DDCM(followers=("layout",))``.

    Attributes:
        prompts: the source's and the target's; or such a pair for each prompt of the call.
        kind: ``"refine"`` or ``"replace"``, see `p2p.P2P`.
        cross_steps, self_steps: tau and S, shares of the steps in 0..1.
    """

    prompts: Phrases
    kind: str = "refine"
    cross_steps: float = 0.7
    self_steps: float = 0.3
    uses_text = True

    uses_self_attention: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "prompts", frozen(self.prompts))
        _shares(cross_steps=self.cross_steps, self_steps=self.self_steps)

    def on_attention(self, ctx: Context, site: AttentionCall) -> list[MapMix] | list[RowSwap]:
        after = (ctx.step + 1) / ctx.steps
        if is_cross(site):
            return [self._aligned(ctx)] if after <= self.cross_steps else []
        swaps = []
        for own, source, layout in ((g, f"source_{g}", f"{LAYOUT}_{g}") for g in ("cond", "uncond")):
            if after < self.self_steps:
                swaps += [QueryKeySwap(own, source), QueryKeySwap(layout, source)]
            else:
                swaps += [RowSwap(layout, own, "q"), RowSwap(layout, source, "kv")]
        return swaps

    def _aligned(self, ctx: Context) -> MapMix:
        if "tables" not in ctx.state:
            ctx.state["tables"] = P2P(self.prompts, self.kind).tables(first_encoder(ctx.encoded), ctx.steps)
        _, take, keep = ctx.state["tables"]
        rows = source_and_target_rows(ctx, "cond", len(take))
        which = list(rows.prompts)
        return MapMix(rows.targets, rows.sources, take[which], keep[which])


@dataclass(frozen=True, eq=False)
class LayoutBlend(Intervention):
    """Stands after `UnifiedAttention`; it sees each step's own maps, before they are edited.

    Attributes:
        prompt: the source's; or one for each prompt of the call.
        edited, kept: its phrases that may change, and those that must not; or lists of them for each.
        threshold: share of the largest attention from which on edited words are seen; early it is at least
            0.15 / sqrt(a), so that nothing is edited while no word can be seen.
        kept_threshold: the same for kept words, as it is.
    """

    prompt: Prompts
    edited: Phrases
    kept: Phrases = ()
    threshold: float = 0.6
    kept_threshold: float = 0.6
    uses_text = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prompt", "edited", "kept"):
            object.__setattr__(self, name, frozen(getattr(self, name)))
        _shares(threshold=self.threshold, kept_threshold=self.kept_threshold)

    def on_attention(self, ctx: Context, site: AttentionCall) -> None:
        if not is_cross(site) or site.grid is None or ctx.step == 0:
            return
        if "tokens" not in ctx.state:
            encoder = first_encoder(ctx.encoded)
            named = {LAYOUT: self.edited, "source": self.kept}
            ctx.state["tokens"] = {branch: self._tokens(encoder, some) for branch, some in named.items() if some}
        for branch, each in ctx.state["tokens"].items():
            whose = zip(each, rows_of(ctx, len(each), f"{branch}_cond"), strict=True)
            maps = ctx.state.setdefault(f"{branch} {ctx.step}", {}).setdefault(site.grid, [])
            maps.append([site.columns(tokens, rows) for tokens, rows in whose])  # [its images, h, w, tokens] by prompt

    def _tokens(self, encoder: TextCall, phrases: Phrases) -> list[list[int]]:
        """Positions of all their tokens, for each prompt. Raises ItemNotFound, AmbiguousItem."""
        each = []
        for text, some in zip(each_prompt(self.prompt), each_list(phrases), strict=True):
            prompt = tokenize(encoder.tokenizer, text, encoder.length, encoder.name)
            spans = [token_span(encoder.tokenizer, prompt, Item.of(p).find(text), encoder.name) for p in some]
            each.append([token for span in spans for token in range(*span)])
        return each

    def on_latents(self, ctx: Context, latents: Tensor) -> Tensor | None:
        """Raises BadInput: no layout branch runs beside."""
        if LAYOUT not in ctx.results:
            raise BadInput('there is no layout: name DDCM(followers=("layout",)) first')
        if ctx.step == 0:
            return None
        a, _ = alphas(ctx.pipe.scheduler, ctx.step)
        layout, source = (ctx.results[name].to(latents) for name in (LAYOUT, SOURCE))
        may_change = self._mask(ctx, LAYOUT, latents, max(TEMPERATURE / a**0.5, self.threshold))
        out = torch.where(may_change, latents, layout)
        if self.kept:
            out = torch.where(self._mask(ctx, "source", latents, self.kept_threshold), source, out)
        return out

    def _mask(self, ctx: Context, branch: str, latents: Tensor, threshold: float) -> Tensor:
        """Where a branch sees the words in this step, bool [images, 1, h, w]."""
        by_grid = ctx.state.pop(f"{branch} {ctx.step}")
        nearest = min(by_grid, key=lambda grid: abs(math.log(math.prod(grid) / CELLS)))
        by_prompt = zip(*by_grid[nearest], strict=True)
        level = torch.cat([torch.stack(sites).mean(0).amax(-1) for sites in by_prompt])[:, None]
        level = F.interpolate(level.float(), size=latents.shape[-2:], mode="bilinear", align_corners=False)
        return level > threshold * level.amax((2, 3), keepdim=True)


def _shares(**given: float) -> None:
    wrong = {name: value for name, value in given.items() if not 0.0 <= value <= 1.0}
    if wrong:
        raise BadInput(f"{wrong}: give shares from 0 to 1")


@dataclass(frozen=True)
class UnifiedAttentionControl(Controlled):
    """InfEdit. `kind`, `cross_steps`, `self_steps`: see `infedit.UnifiedAttention`; `threshold`: see
    `infedit.LayoutBlend`, which blends by words and not by masks."""

    kind: str = "refine"
    cross_steps: float = 0.7
    self_steps: float = 0.3
    threshold: float = 0.6
    citation: str = field(default="Xu et al., Inversion-Free Image Editing (arXiv 2312.04965)", init=False)

    followers: ClassVar[tuple[str, ...]] = (LAYOUT,)

    def control(self, source: PromptObjects, target: PromptObjects) -> list[Intervention]:
        attention = UnifiedAttention(both(source, target), self.kind, self.cross_steps, self.self_steps)
        return [attention, LayoutBlend(source[0], source[1], threshold=self.threshold)]
