"""StructureDiffusion (ICLR 2023): the values of noun phrases encoded alone, the keys of the whole prompt.

Source: Feng et al., ``O = 1/k sum_j softmax(Q K_P^T) V_j``, where V_j are the values of the prompt's rows with the
rows of phrase j, encoded alone, pasted at its span. The map is the same in every term and values are linear in
rows, so this is one attention over the values of the mean rows: no second attention, one encoding per phrase.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from unleak.core.edits import ValueSwap
from unleak.core.intervention import CROSS
from unleak.errors import BadInput, UnsupportedModel
from unleak.text.phrases import Phrase, phrase
from unleak.text.positions import ItemPositions
from unleak.text.rows import align
from unleak.text.spans import Span, token_span
from unleak.words.methods.on_items import OnItems

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context


@dataclass(frozen=True)
class StructureDiffusion(OnItems):
    """``StructureDiffusion("red car,white dog")``: cross sites read these phrases' values as if each stood alone.

    Attributes:
        items: the noun phrases, with their modifiers. article: of a phrase alone, see `unleak.text.phrases.phrase`.

    Raises:
        UnsupportedModel: text and image share one attention. There the text rows change from block to block and
            are queries too, so a phrase encoded alone has no values in later blocks.
        SpanMismatch: a phrase has other tokens alone than in the prompt. The errors of items, as `Patch`.
    """

    layouts: ClassVar[tuple[str, ...]] = (CROSS,)
    article: str = "auto"

    def on_attention(self, ctx: Context, site: AttentionCall) -> ValueSwap | None:
        if site.kind == "self":
            return None
        if site.kind == "joint":
            raise UnsupportedModel(
                "StructureDiffusion exchanges the values that cross-attention makes of encoded text. In joint "
                "attention the text rows change from block to block, so there are none to exchange: use Patch"
            )
        if "rows" not in ctx.state:
            ctx.state["rows"] = self.mean_rows(ctx)
        values = site.encode(ctx.state["rows"])[1]
        rows = site.rows.of("cond")
        return ValueSwap(values[[site.rows.images[row] for row in rows]], rows=rows) if rows else None

    def mean_rows(self, ctx: Context) -> Tensor:
        """``1/k sum_j H^(j)`` [images, L, D]; H^(j) are the denoiser's text rows with phrase j pasted in."""
        items, positions = self.named, self.positions(ctx)
        encoded = ctx.encoded
        assert encoded.cond is not None
        mean = encoded.cond.clone()
        for b, prompt in enumerate(encoded.prompts):
            phrases = [phrase(prompt, item.find(prompt), item.sense, self.article) for item in items]
            alone = ctx.encode([one.text for one in phrases]).rows.to(mean)
            here = encoded.images_of(b)
            for j, one in enumerate(phrases):
                dst, src, _ = align(_one_span(positions, b, j), self._alone(ctx, positions, one), what=f"'{items[j]}'")
                mean[here, dst] += (alone[j, src] - mean[here, dst]) / len(items)
        return mean

    def _alone(self, ctx: Context, positions: ItemPositions, one: Phrase) -> Span:
        """The rows of a phrase's own words when it is encoded alone: the same in every encoder, or an error."""
        calls = [ctx.encoded.calls[name] for name in positions.encoders]
        cut = [call.cut([one.text])[0] for call in calls]
        spans = {token_span(call.tokenizer, c, one.item, call.name) for call, c in zip(calls, cut, strict=True)}
        if len(spans) != 1:
            raise BadInput(f"the encoders cut {one.text!r} differently, so their joined rows cannot be exchanged.")
        return spans.pop()


def _one_span(positions: ItemPositions, b: int, j: int) -> Span:
    """The item's rows in the prompt, where all encoders agree on them."""
    spans = {(own[0], own[-1] + 1) for own in positions.at[b][j]}
    if len(spans) != 1:
        raise BadInput("the encoders cut an item differently, so their joined rows cannot be exchanged.")
    return spans.pop()
