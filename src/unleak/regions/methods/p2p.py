"""Prompt-to-Prompt: the target attends where the source attends, word by word.

Source: Hertz et al., Prompt-to-Prompt Image Editing with Cross Attention Control (arXiv 2208.01626). With A_s and A_t
the maps of source and target at a cross site, M the table between their positions (`alignment`), e the equalizer and
alpha the share of the source per position and step,

    replace   A_t <- alpha e (A_s M)                    + (1 - alpha) A_t
    refine    A_t <- alpha e (r A_s[:, m] + (1 - r) A_t) + (1 - alpha) A_t      r: the token has a counterpart m

and, in early steps, self-attention maps of few cells are the source's. Conditional rows only. All of it is linear in
the maps, so none is materialised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from unleak.core.edits import MapMix, Partition, QueryKeySwap, Region, RowSwap
from unleak.core.intervention import CROSS, JOINT, Intervention
from unleak.errors import BadInput, ItemNotFound, PromptTruncated, choose
from unleak.regions.method import ALPHAS, FLOW, PromptObjects, both
from unleak.regions.methods import alignment
from unleak.regions.methods.alignment import EVERYWHERE, Share
from unleak.regions.methods.controlled import Controlled
from unleak.regions.methods.images import Phrases, each_list, frozen
from unleak.regions.methods.rows import SourceTargetRows, source_and_target_rows
from unleak.text.positions import first_encoder, readable
from unleak.text.spans import Tokens

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context
    from unleak.text.call import TextCall

EVERYWHERE_CELLS = torch.ones(1, 1, dtype=torch.bool)
KINDS = ("replace", "refine", "same")


@dataclass(frozen=True, eq=False)
class P2P(Intervention):
    """Runs beside `DDCM`, or in a call with [source, target, ...] prompts.

    Attributes:
        prompts: the source's and every target's; beside `DDCM` with several images, such a list for each.
        kind: ``"replace"``: prompts that differ word by word. ``"refine"``: words were added or taken away.
            ``"same"``: position by position, to reweight a prompt that stays.
        cross_steps: when the source's cross-attention is injected, see `alignment.shares`.
        self_steps: when its self-attention is, a share of the run that ends before step ``int(end * steps)``.
        self_cells: self-attention is injected at sites with at most so many image cells.
        weights: factors of words of each target, or a tensor [1 or targets, L] of factors by position.
        shifted: see `alignment.replacement`.
    """

    prompts: Phrases
    kind: str = "refine"
    cross_steps: Share | Mapping[str, Share] = 0.8
    self_steps: Share = 0.4
    self_cells: int = 32 * 32
    weights: Mapping[str, float] | Tensor = field(default_factory=dict)
    shifted: bool = True
    uses_text = True

    uses_self_attention: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "prompts", frozen(self.prompts))
        choose("kind", self.kind, KINDS)
        if any(len(some) < 2 for some in each_list(self.prompts)):
            raise BadInput("Prompt-to-Prompt needs the source's prompt and at least one target's")
        alignment.fractions(self.self_steps)

    def on_attention(self, ctx: Context, site: AttentionCall) -> Any:
        if site.kind == "cross":
            return self.cross_mix(ctx, self._rows(ctx))
        start, stop = (int(part * ctx.steps) for part in alignment.fractions(self.self_steps))
        image = site.layout.image_queries
        injected = start <= ctx.step < stop and image.stop - image.start <= self.self_cells
        if site.kind == "joint":
            return self.joint_mix(ctx, site, self._rows(ctx), injected)
        rows = source_and_target_rows(ctx, "cond")
        return QueryKeySwap(rows.targets, rows.sources) if injected and rows.targets else None

    def _rows(self, ctx: Context) -> SourceTargetRows:
        return source_and_target_rows(ctx, "cond", sum(len(prompts) - 1 for prompts in each_list(self.prompts)))

    def joint_mix(self, ctx: Context, site: AttentionCall, rows: SourceTargetRows, injected: bool) -> list[Any]:
        """Where text and image attend jointly: the equations above on logits, for the queries of the picture.

        Its text keys become ``alpha e (k_s M) + (1 - alpha) k_t``, and where self-attention is injected its own queries
        and image keys are the source's. Maps after softmax would
        need tables of all keys by all keys. Ours.
        """
        if not rows.targets:
            return []
        encoder = first_encoder(ctx.encoded)
        columns = readable(ctx.encoded)[encoder.name]
        if "tables" not in ctx.state:
            ctx.state["tables"] = self.tables(encoder, ctx.steps)
        alphas, take, keep = ctx.state["tables"]
        alpha, which = alphas[ctx.step], list(rows.prompts)
        take, keep = ((alpha[:, None] * take)[which].to(site.k), (alpha * keep + 1 - alpha)[which].to(site.k))
        k_s, k_t = site.k[list(rows.sources)], site.k[list(rows.targets)].clone()
        text, image = site.layout.text_keys, site.layout.image_keys
        assert text is not None and image is not None
        at = slice(text.start + columns.start, text.start + columns.stop)
        k_t[:, :, at] = take.mT[:, None] @ k_s[:, :, at] + keep[:, None, :, None] * k_t[:, :, at]
        swaps: list[Any] = []
        if injected:
            k_t[:, :, image] = k_s[:, :, image]
            swaps = [RowSwap(rows.targets, rows.sources, "q", cells=True)]
        return [*swaps, Partition([Region(EVERYWHERE_CELLS, keys=k_t)], rows.targets)]

    def cross_mix(self, ctx: Context, rows: SourceTargetRows) -> MapMix | None:
        """The equations for this step's cross-attention; None where nothing is injected."""
        if not rows.targets:
            return None
        if "tables" not in ctx.state:
            ctx.state["tables"] = self.tables(first_encoder(ctx.encoded), ctx.steps)
        alphas, take, keep = ctx.state["tables"]
        if not (alphas[ctx.step] > 0).any():
            return None
        alpha, which = alphas[ctx.step], list(rows.prompts)  # [targets, L]
        return MapMix(rows.targets, rows.sources, (alpha[:, None] * take)[which], (alpha * keep + 1 - alpha)[which])

    def tables(self, encoder: TextCall, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Alphas [steps + 1, targets, L], and what full injection takes of the source's map [targets, L, L] and keeps
        of the target's own [targets, L].

        Raises:
            PromptTruncated. BadInput: the prompts cannot be replaced word by word. ItemNotFound: a word of
            `cross_steps` or `weights` is in no target.
        """
        pairs = []
        for prompts in each_list(self.prompts):
            source, *others = alignment.cut(encoder.tokenizer, prompts, encoder.length)
            for tokens in (source, *others):
                if tokens.lost:
                    raise PromptTruncated(f"{tokens.text!r} is longer than {tokens.length} tokens: shorten it")
            pairs += [(source, target) for target in others]
        targets = [target for _, target in pairs]
        self._check_words(targets)
        take, keep = zip(*(self._between(*pair) for pair in pairs), strict=True)
        factors = self._factors(targets)
        alphas = alignment.shares(targets, self.cross_steps, steps)
        return alphas, torch.stack(take) * factors[:, None], torch.stack(keep) * factors

    def _check_words(self, targets: list[Tokens]) -> None:
        named = [word for part in (self.cross_steps, self.weights) if isinstance(part, Mapping) for word in part]
        for word in named:
            if word != EVERYWHERE and not any(alignment.positions(tokens, word) for tokens in targets):
                raise ItemNotFound(f"no target's prompt has the word {word!r}")

    def _between(self, source: Tokens, target: Tokens) -> tuple[Tensor, Tensor]:
        """M [L, L] and the share [L] of its own map that a target keeps where its tokens are new."""
        length = source.length
        if self.kind == "replace":
            return alignment.replacement(source, target, self.shifted), torch.zeros(length)
        if self.kind == "same":
            return torch.eye(length), torch.zeros(length)
        counterpart = torch.tensor(alignment.refinement(source, target))
        known = counterpart >= 0
        take = torch.zeros(length, length)
        take[counterpart[known], known.nonzero().flatten()] = 1.0
        return take, (~known).float()

    def _factors(self, targets: list[Tokens]) -> Tensor:
        """e [1 or targets, L]."""
        if isinstance(self.weights, Tensor):
            return self.weights.float().reshape(-1, targets[0].length)
        factors = torch.ones(len(targets), targets[0].length)
        for word, factor in self.weights.items():
            for i, tokens in enumerate(targets):
                factors[i, alignment.positions(tokens, word)] = factor
        return factors


@dataclass(frozen=True)
class PromptToPrompt(Controlled):
    """Prompt-to-Prompt. `kind`, `cross_steps`, `self_steps`, `self_cells`: see `p2p.P2P`."""

    kind: str = "refine"
    cross_steps: float = 0.8
    self_steps: float = 0.4
    self_cells: int = 32 * 32
    citation: str = field(default="Hertz et al., Prompt-to-Prompt (arXiv 2208.01626)", init=False)

    layouts: ClassVar[tuple[str, ...]] = (CROSS, JOINT)
    noise: ClassVar[tuple[str, ...]] = (ALPHAS, FLOW)

    def control(self, source: PromptObjects, target: PromptObjects) -> list[Intervention]:
        return [P2P(both(source, target), self.kind, self.cross_steps, self.self_steps, self.self_cells)]
