"""Pads that say nothing (arXiv 2605.02908): where pads repeat the end of text they repeat its summary of the prompt.

The prompt is read with "!" as its pad token, and the end of text is hidden from the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from unleak.copies.methods.summary import rows_by_end
from unleak.core.edits import Mask
from unleak.core.intervention import Intervention
from unleak.errors import BadInput
from unleak.text.rows import each_layer

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context
    from unleak.text.call import TextCall


@dataclass(frozen=True)
class PadSwap(Intervention):
    """Pad rows of the prompt become those of `pad`; with `mask_eos` the end-of-text key is forbidden."""

    pad: str = "!"
    mask_eos: bool = True

    def on_text(self, ctx: Context, call: TextCall) -> Any:
        tokens = call.tokenizer(self.pad, add_special_tokens=False).input_ids
        if len(tokens) != 1 or tokens[0] == call.tokenizer.unk_token_id:
            raise BadInput(f"{call.name} reads the pad {self.pad!r} as {len(tokens)} tokens: choose one of one token")
        pads = [[p for p in cut.after_text[1:] if not cut.real[p]] for cut in call.cut(call.prompts)]
        ids = call.ids.clone()
        for row, places in zip(ids, pads, strict=True):
            row[places] = tokens[0]
        padded = call.rerun(ids)

        def swapped(layer: Any) -> Tensor:
            rows: Tensor = layer(call.output).clone()
            for b, places in enumerate(pads):
                rows[b, places] = layer(padded)[b, places]
            return rows

        return each_layer(swapped, call.output)

    def on_attention(self, ctx: Context, site: AttentionCall) -> list[Any] | None:
        if site.kind == "self" or not self.mask_eos:
            return None
        ends = rows_by_end(ctx, site, "cond")
        return [Mask([end], queries="image", rows=rows) for end, rows in ends.items()]
