"""Region-guided blending of cross-attention (RGB-CAM): in each region, only that region's words and values.

Source: ALE (arXiv 2412.04715). With masks m_i, M = softmax(Q K^T / sqrt d + bias) and V_i the values of object i's
own embedding E_i,

    A = sum_i (M . m_i) V_i + (M . m_bg) V_base,        bias = -100 for words of i outside m_i.

The masks partition the queries, so this is one attention per region over its own queries: no map is materialised and
the cost does not grow with the number of objects. Only the prompt's own rows are touched. Where text and image attend
jointly, `joint` says what is done instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from unleak.core.edits import Bias, Partition, Region
from unleak.core.intervention import CROSS, JOINT, Intervention
from unleak.errors import BadInput, UnsupportedModel, choose
from unleak.regions.masks.masks import OVERLAP, as_stack, owned_tokens, partition
from unleak.regions.methods.images import Phrases, each_list, each_stack, frozen, own_prompts, rows_of
from unleak.regions.methods.joint import attends_jointly, check_joint, check_separate, own_rows, reads
from unleak.regions.methods.ore import BASE_INDEX, FIND, KEY_EMBED, REST, embed
from unleak.regions.methods.slots import text_rows

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context
    from unleak.text.call import TextCall
    from unleak.text.spans import Span

VALUES = ("restricted", "plain")
BIAS = ("region", "mask")


class _Prompt(NamedTuple):
    """Of one prompt: its regions that are not empty, as (number, mask) with the background last; and for each object
    its tokens, with the cells where they are shut out."""

    regions: list[tuple[int, Tensor]]
    shut_out: list[tuple[range, Tensor]]


@dataclass(frozen=True, eq=False)
class RGBCAM(Intervention):
    """Words of an object act in its region alone, with the object's own embedding; also in plain generation.

    ``with attach(pipe, RGBCAM(["red car", "dog"], masks)): pipe("red car and dog")`` puts each into its place.

    Attributes:
        objects: phrases of the prompt ("red car", "red car#2"), one for each mask; or such a list for each prompt of
            the call.
        masks: bool [K, H, W] over the image, any size, or [prompts, K, H, W]; what no mask holds is background.
        overlap: who owns a cell under several masks, see `masks.partition`.
        bias: ``"region"``: words of i are shut out wherever i does not own the cell. ``"mask"``: only outside
            mask i, also where i lost the cell (the release).
        values: ``"restricted"``: of object-restricted embeddings. ``"plain"``: of the prompt, so that only the
            bias acts.
        rest: of restricted embeddings, what they hold besides their object; see `ore`.
        base_index, key_embed, find: see `ore.ORE`.
        masked_logit: added to the logits of words that are shut out, finite.
    """

    objects: Phrases
    masks: Tensor
    overlap: str = "smallest"
    bias: str = "region"
    values: str = "restricted"
    rest: str = "alone"
    base_index: str = "paper"
    key_embed: str = "plain"
    find: str = "words"
    masked_logit: float = -100.0
    uses_text = True
    layouts: ClassVar[tuple[str, ...]] = (CROSS, JOINT)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "objects", frozen(self.objects))
        object.__setattr__(self, "masks", as_stack(self.masks))
        objects, masks = [len(some) for some in each_list(self.objects)], each_stack(self.masks)
        if objects != [len(some) for some in masks]:
            raise BadInput(f"{objects} objects and {[len(some) for some in masks]} masks: give one mask for each")
        choose("overlap", self.overlap, OVERLAP)
        choose("bias", self.bias, BIAS)
        choose("values", self.values, VALUES)
        choose("base_index", self.base_index, BASE_INDEX)
        choose("key_embed", self.key_embed, KEY_EMBED)
        choose("find", self.find, FIND)
        choose("rest", self.rest, REST)

    def on_text(self, ctx: Context, call: TextCall) -> Any:
        """Where text and image attend jointly, the rows of objects are the encoder's, see `joint`."""
        if not attends_jointly(ctx.anatomy):
            return None
        check_joint(self.base_index, self.find)
        return own_rows(call, each_list(self.objects), self.rest) if self.values == "restricted" else None

    def on_attention(self, ctx: Context, site: AttentionCall) -> list[Any] | None:
        if site.kind == "joint":
            return self._jointly(ctx, site)
        if site.kind != "cross":
            return None
        if "prompts" not in ctx.state:
            ctx.state["prompts"] = self._prepare(ctx)
        E, prompts = ctx.state["prompts"]
        edits: list[Any] = []
        for i, (prompt, rows) in enumerate(zip(prompts, rows_of(ctx, len(prompts)), strict=True)):
            if self.values == "restricted":
                K, V = (part.unflatten(0, (len(prompts), -1))[i] for part in site.encode(E))  # [K + 1, H, L, d]
                keys = K[-1] if self.key_embed == "base" else None
                edits.append(Partition([Region(m, keys=keys, values=V[k]) for k, m in prompt.regions], rows))
            edits += [Bias(self.masked_logit, tokens, cells, rows) for tokens, cells in prompt.shut_out]
        return edits

    def _jointly(self, ctx: Context, site: AttentionCall) -> list[Any]:
        """The table of `joint`, for the rows of each prompt."""
        if site.grid is None:
            raise UnsupportedModel(f"the latent height and width at site {site.name} are not known")
        by_grid = ctx.state.setdefault("joint", {})
        if site.grid not in by_grid:
            by_grid[site.grid] = self._groups(ctx, site.grid)
        groups, edits = by_grid[site.grid], list[Any]()
        for (texts, cells), rows in zip(groups, rows_of(ctx, len(groups)), strict=True):
            edits += reads(texts, cells, site.text_length, rows)
        return edits

    def _groups(self, ctx: Context, grid: tuple[int, int]) -> list[tuple[list[list[int]], list[tuple[Tensor, Tensor]]]]:
        """Of each prompt, the text rows of its objects and their cells, with all other cells."""
        each = each_list(self.objects)
        prompts, _ = own_prompts(ctx, len(each))
        groups = []
        for prompt, phrases, masks in zip(prompts, each, each_stack(self.masks), strict=True):
            texts = text_rows(ctx.encoded, prompt, phrases)
            check_separate(texts, phrases)
            cells = owned_tokens(partition(masks, self.overlap), grid)
            groups.append((texts, [(inside, ~inside) for inside in cells]))
        return groups

    def _prepare(self, ctx: Context) -> tuple[Tensor, list[_Prompt]]:
        """E [prompts (K + 1), L, D], of each prompt its E_i and last E_base, and its masks; once for a generation."""
        objects = each_list(self.objects)
        texts, plain = own_prompts(ctx, len(objects))
        each = embed(ctx, texts, objects, self.base_index, self.find, plain, self.rest)
        prompts = [self._masks(one.slots.spans, m) for one, m in zip(each, each_stack(self.masks), strict=True)]
        return torch.cat([one.stacked for one in each]), prompts

    def _masks(self, spans: Sequence[Span], masks: Tensor) -> _Prompt:
        regions = partition(masks, self.overlap)
        may_act = regions[:-1] if self.bias == "region" else masks
        shut_out = [(range(*span), ~cells) for span, cells in zip(spans, may_act, strict=True)]
        return _Prompt([(k, region) for k, region in enumerate(regions) if region.any()], shut_out)
