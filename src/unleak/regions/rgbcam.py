"""Region-guided blending of cross-attention (RGB-CAM): in each region, only that region's words and values.

Source: ALE (arXiv 2412.04715). With masks m_i, M = softmax(Q K^T / sqrt d + bias) and V_i the values of object i's
own embedding E_i,

    A = sum_i (M . m_i) V_i + (M . m_bg) V_base,        bias = -100 for words of i outside m_i.

The masks partition the queries, so this is one attention per region over its own queries: no map is materialised and
the cost does not grow with the number of objects. Only the prompt's own rows are touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from unleak.core.edits import Bias, Partition, Region
from unleak.core.intervention import Intervention
from unleak.errors import BadInput
from unleak.regions.masks import OVERLAP, as_stack, partition
from unleak.regions.ore import BASE_INDEX, FIND, KEY_EMBED, choose, embed, one_prompt, reads_text

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context

VALUES = ("restricted", "plain")
BIAS = ("region", "mask")


class _Ready(NamedTuple):
    stacked: Tensor
    regions: Tensor
    biases: list[Bias]
    which: list[tuple[int, Tensor]]


@dataclass(frozen=True, eq=False)
class RGBCAM(Intervention):
    """Words of an object act in its region alone, with the object's own embedding; also in plain generation.

    ``with attach(pipe, RGBCAM(["red car", "dog"], masks)): pipe("red car and dog")`` puts each into its place.

    Attributes:
        objects: phrases of the prompt ("red car", "red car#2"), one for each mask.
        masks: bool [K, H, W] over the image, any size; what no mask holds is background.
        overlap: who owns a cell under several masks, see `masks.partition`.
        bias: ``"region"``: words of i are shut out wherever i does not own the cell. ``"mask"``: only outside
            mask i, also where i lost the cell (the release).
        values: ``"restricted"``: of object-restricted embeddings. ``"plain"``: of the prompt, so that only the
            bias acts.
        base_index, key_embed, find: see `ore.ORE`.
        masked_logit: added to the logits of words that are shut out, finite.
    """

    objects: tuple[str, ...]
    masks: Tensor
    overlap: str = "smallest"
    bias: str = "region"
    values: str = "restricted"
    base_index: str = "paper"
    key_embed: str = "plain"
    find: str = "words"
    masked_logit: float = -100.0
    uses_text = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "objects", tuple(self.objects))
        object.__setattr__(self, "masks", as_stack(self.masks))
        if len(self.objects) != len(self.masks):
            raise BadInput(f"{len(self.objects)} objects and {len(self.masks)} masks: give one mask for each")
        choose("overlap", self.overlap, OVERLAP)
        choose("bias", self.bias, BIAS)
        choose("values", self.values, VALUES)
        choose("base_index", self.base_index, BASE_INDEX)
        choose("key_embed", self.key_embed, KEY_EMBED)
        choose("find", self.find, FIND)

    def on_attention(self, ctx: Context, site: AttentionCall) -> list[Any] | None:
        if not reads_text(site):
            return None
        if "ready" not in ctx.state:
            ctx.state["ready"] = self._prepare(ctx)
        ready: _Ready = ctx.state["ready"]
        if self.values == "plain":
            return [*ready.biases]
        keys, values = site.encode(ready.stacked)  # [K + 1, H, L, d], the base last
        base = keys[-1] if self.key_embed == "base" else None
        return [Partition([Region(mask, keys=base, values=values[i]) for i, mask in ready.which]), *ready.biases]

    def _prepare(self, ctx: Context) -> _Ready:
        """Embeddings and masks, made once for a generation."""
        prompt, plain = one_prompt(ctx)
        made = embed(ctx, prompt, self.objects, self.base_index, self.find, plain)
        regions = partition(self.masks, self.overlap)
        open_to = regions[:-1] if self.bias == "region" else self.masks
        biases = [
            Bias(self.masked_logit, keys=tuple(range(*span)), queries=~place)
            for span, place in zip(made.slots.spans, open_to, strict=True)
        ]
        which = [(i, region) for i, region in enumerate(regions) if region.any()]
        return _Ready(made.stacked, regions, biases, which)
