"""Which rows of a denoiser call are the source's and which the target's.

Beside `DDCM` the source has branches of its own ("source_cond"). In a plain call with several prompts the first is
the source's and the others are targets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from unleak.errors import BadInput

if TYPE_CHECKING:
    from unleak.core.context import Context


class SourceTargetRows(NamedTuple):
    """Rows of one kind ("cond" or "uncond"): every target row, the source rows that serve them in turn, and which
    target prompt, counted from 0, each target row belongs to."""

    targets: tuple[int, ...]
    sources: tuple[int, ...]
    prompts: tuple[int, ...]


def source_and_target_rows(ctx: Context, label: str, targets: int | None = None) -> SourceTargetRows:
    """The rows called `label` in this call.

    Args:
        targets: the number of target prompts that the caller knows; None: any.

    Raises BadInput: there is no source beside the target, or the call has more target prompts than `targets`.
    """
    rows, prompts, beside = ctx.rows, len(ctx.encoded.prompts), f"source_{label}" in ctx.rows.known
    if not beside and prompts < 2:
        raise BadInput("there is no source: call the pipeline with [source, target, ...] prompts, or name DDCM first")
    drawn = prompts if beside else prompts - 1
    if targets is not None and drawn > targets:
        raise BadInput(f"the call has {drawn} target prompts, and {targets} are given: give those of all")
    prompt_of = {row: ctx.prompt_of(rows.images[row]) for row in rows.of(label)}
    if beside:
        return SourceTargetRows(tuple(prompt_of), rows.of(f"source_{label}"), tuple(prompt_of.values()))
    target_rows = tuple(row for row, prompt in prompt_of.items() if prompt)
    source_rows = tuple(row for row, prompt in prompt_of.items() if not prompt)
    return SourceTargetRows(target_rows, source_rows, tuple(prompt_of[row] - 1 for row in target_rows))
