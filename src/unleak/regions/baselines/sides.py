"""Which rows of a denoiser call are the source's and which the target's.

Beside `DDCM` the source has branches of its own ("source_cond"). In a plain call with several prompts the first is
the source's and the others are targets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from unleak.errors import BadInput

if TYPE_CHECKING:
    from unleak.core.context import Context


class Sides(NamedTuple):
    """Rows of one kind ("cond" or "uncond"): every target row, the source rows that serve them in turn, and which
    target prompt, counted from 0, each target row belongs to."""

    targets: tuple[int, ...]
    sources: tuple[int, ...]
    prompts: tuple[int, ...]


def sides(ctx: Context, label: str) -> Sides:
    """The rows called `label` in this call.

    Raises BadInput: there is no source beside the target.
    """
    rows = ctx.rows
    if f"source_{label}" in rows.known:
        targets = rows.of(label)
        return Sides(targets, rows.of(f"source_{label}"), (0,) * len(targets))
    each = ctx.encoded.images_per_prompt
    if len(ctx.encoded.prompts) < 2:
        raise BadInput("there is no source: call the pipeline with [source, target, ...] prompts, or name DDCM first")
    prompt_of = {row: rows.images[row] // each for row in rows.of(label)}
    targets = tuple(row for row, prompt in prompt_of.items() if prompt)
    sources = tuple(row for row, prompt in prompt_of.items() if not prompt)
    return Sides(targets, sources, tuple(prompt_of[row] - 1 for row in targets))
