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


def sides(ctx: Context, label: str, targets: int | None = None) -> Sides:
    """The rows called `label` in this call; `targets`: how many target prompts are told of.

    Raises BadInput: there is no source beside the target, or the call has more target prompts than are told of.
    """
    rows, prompts, beside = ctx.rows, len(ctx.encoded.prompts), f"source_{label}" in ctx.rows.known
    if not beside and prompts < 2:
        raise BadInput("there is no source: call the pipeline with [source, target, ...] prompts, or name DDCM first")
    given = prompts if beside else prompts - 1
    if targets is not None and given > targets:
        raise BadInput(f"the call has {given} target prompts, and {targets} are told of: give those of all")
    prompt_of = {row: ctx.prompt_of(rows.images[row]) for row in rows.of(label)}
    if beside:
        return Sides(tuple(prompt_of), rows.of(f"source_{label}"), tuple(prompt_of.values()))
    mine = tuple(row for row, prompt in prompt_of.items() if prompt)
    sources = tuple(row for row, prompt in prompt_of.items() if not prompt)
    return Sides(mine, sources, tuple(prompt_of[row] - 1 for row in mine))
