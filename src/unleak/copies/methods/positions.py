"""Which text positions of each image's prompt are words, end of text and pads, as the denoiser's rows have them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unleak.errors import UnsupportedModel
from unleak.text.spans import Tokens, tokenize

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context
    from unleak.text.call import Encoded


def prompt_tokens(encoded: Encoded) -> list[Tokens]:
    """The prompts of a generation, cut by the first encoder whose rows open the denoiser's text.

    Raises:
        UnsupportedModel: the pipeline was called without prompts, or no encoder's rows open its text.
    """
    first = [c for name, c in encoded.calls.items() if (at := encoded.columns(name)) is not None and at.start == 0]
    if not first:
        raise UnsupportedModel("which text rows are words and pads is known only where the pipeline gets `prompt`")
    call = first[0]
    return [tokenize(call.tokenizer, text, call.length, call.name) for text in call.prompts]


def end_of_text(ctx: Context, image: int) -> int:
    """Position of the end-of-text row of an image's prompt; pads follow it."""
    if "tokens" not in ctx.state:
        ctx.state["tokens"] = prompt_tokens(ctx.encoded)
    end: int = ctx.state["tokens"][image // ctx.encoded.images_per_prompt].tail.start
    return end


def rows_by_end(ctx: Context, site: AttentionCall, *labels: str) -> dict[int, list[int]]:
    """Batch rows with one of these labels, by the end-of-text position of their prompt."""
    found: dict[int, list[int]] = {}
    for label in labels:
        for row in site.rows.of(label):
            found.setdefault(end_of_text(ctx, site.rows.images[row]), []).append(row)
    return found
