"""Ren et al., ECCV 2024: hide the summary rows and strengthen the begin-of-text row.

Memorized prompts put their attention on the rows after the text, which summarise it. Pads (and, if asked, the end of
text) are masked for prompt and empty prompt alike, and the logits of position 0 are multiplied by c1 for the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from unleak.core.edits import KeyScale, Mask
from unleak.core.intervention import Intervention
from unleak.text.positions import prompt_tokens

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context


@dataclass(frozen=True)
class MaskSummary(Intervention):
    """Mask the summary positions at every cross site and step.

    Attributes:
        c1: factor of position 0's logits; a negative logit falls.
        mask_pads: hide the rows after the end of text.
        drop_eos: hide the end of text too.
    """

    c1: float = 1.25
    mask_pads: bool = True
    drop_eos: bool = False
    uses_text: ClassVar[bool] = True

    def on_attention(self, ctx: Context, site: AttentionCall) -> list[Any] | None:
        if site.kind == "self":
            return None
        edits: list[Any] = []
        for end, rows in rows_by_end(ctx, site, "cond", "uncond").items() if self.mask_pads or self.drop_eos else ():
            first, last = (end if self.drop_eos else end + 1), (site.text_length if self.mask_pads else end + 1)
            if first < last:
                edits.append(Mask(range(first, last), queries="image", rows=rows))
        return [*edits, KeyScale([0], self.c1)] if self.c1 != 1 else edits


def rows_by_end(ctx: Context, site: AttentionCall, *labels: str) -> dict[int, list[int]]:
    """Batch rows with one of these labels, by the end-of-text position of their prompt; pads follow it."""
    if "ends" not in ctx.state:
        ctx.state["ends"] = [tokens.end for tokens in prompt_tokens(ctx.encoded)]
    grouped: dict[int, list[int]] = {}
    for label in labels:
        for prompt, rows in site.rows.by_prompt(label).items():
            grouped.setdefault(ctx.state["ends"][prompt], []).extend(rows)
    return grouped
