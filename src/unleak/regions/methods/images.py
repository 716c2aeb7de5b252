"""Several images in one call, each with a prompt of its own: what is whose.

A part is told of one prompt (``"a cup"``, its phrases ``("cup",)``, masks [K, H, W]), which serves every image of the
call, or of one for each prompt of it (``("a cup", "a dog")``, ``(("cup",), ("dog",))``, masks [prompts, K, H, W]).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor

from unleak.errors import BadInput

if TYPE_CHECKING:
    from unleak.core.context import Context

Prompts: TypeAlias = str | Sequence[str]
"""A prompt, or one for each prompt of the call."""
Phrases: TypeAlias = Sequence[str] | Sequence[Sequence[str]]
"""Phrases of a prompt, or a list of them for each."""


def frozen(given: Any) -> Any:
    """Prompts or phrases as they are given, with tuples for lists."""
    return given if isinstance(given, str) else tuple(frozen(one) for one in given)


def each_list(given: Phrases) -> tuple[tuple[str, ...], ...]:
    """One list of phrases or several, as several."""
    phrases = tuple(one for one in given if isinstance(one, str))
    return (phrases,) if phrases or not given else tuple(tuple(some) for some in given)


def each_stack(masks: Tensor) -> Tensor:
    """One stack of masks [K, H, W] or several, as several."""
    return masks.reshape(-1, *masks.shape[-3:])


def prompt_of(ctx: Context, n: int) -> list[int]:
    """Which of n prompts each image of the call belongs to.

    Raises BadInput: the call has neither one prompt for all of its images nor n.
    """
    prompts = ctx.encoded.prompts
    if n not in (1, len(prompts)):
        raise BadInput(f"what is given for {n} prompts does not fit a call of {len(prompts)}: give one for each")
    return [0 if n == 1 else ctx.prompt_of(image) for image in range(len(ctx.encoded.image_prompts))]


def per_image(ctx: Context, values: Tensor) -> Tensor:
    """What belongs to n prompts, [n, ...], as [1 or images, ...]; see `prompt_of`."""
    return values if len(values) == 1 else values[prompt_of(ctx, len(values))]


def rows_of(ctx: Context, n: int, label: str = "cond") -> list[tuple[int, ...]]:
    """The rows called `label` of each of n prompts (1: of all)."""
    if n == 1:
        return [ctx.rows.of(label)]
    prompt_of(ctx, n)
    groups = ctx.rows.by_prompt(label)
    return [tuple(groups.get(prompt, ())) for prompt in range(n)]


def own_prompts(ctx: Context, n: int) -> tuple[list[str], list[Tensor]]:
    """The n prompts of the call, and the rows [L, D] of each.

    Raises BadInput: the call has other prompts than n, or, for one, more than one.
    """
    prompts, rows = ctx.encoded.prompts, ctx.encoded.cond
    if rows is None or (n == 1 and len(set(prompts)) != 1):
        raise BadInput(f"masks belong to one prompt, and the call has {len(set(prompts))}: give a list for each")
    prompt_of(ctx, n)
    return prompts[:n], [rows[ctx.encoded.images_of(prompt)][0] for prompt in range(n)]
