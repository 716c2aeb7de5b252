"""Where text and picture stand at the sites of a denoiser, told by what changes there.

The order of text and picture, register tokens, padding and reference images differ from one denoiser to the next, and
nothing declares them. So the denoiser is asked. Before its first call of a kind it runs three times on the same
arguments: as they are, with other text rows, with other latents. Queries and values whose numbers change with the text
are its rows, those that change with the latents are the picture's cells. That holds up to the first site where cells
read text, since both are mixed behind it; there each of these runs is broken off. Later sites are told by their
lengths. Pads and registers beside the cells, or beside the words, read them at the first site and change with them
behind it: which they are is told there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from unleak.core.anatomy import Grid, Site, eager
from unleak.core.attention import Layout
from unleak.engine.arguments import rows_of
from unleak.engine.tap import Running, Tap
from unleak.engine.undo import Undo
from unleak.errors import UnsupportedModel

CHANGED = 0.05  #: of the spread of all: what a pooled text does to the picture stays below
MOVED = 1e-3  #: the same where other latents are given, which reach no text before the first site that mixes them
DIGITS = 8  #: numbers that stand for a position
FIRST = 2  #: sites of the first attempt; several times as many follow where text is mixed in later


Positions = TypeVar("Positions", slice, slice | None)


class Sides(NamedTuple):
    """A few numbers for each query and value of a site's call, others when these are: [R, N, 8] and [R, K, 8]."""

    queries: Tensor
    values: Tensor


class _Enough(Exception):
    """Breaks off a run of the denoiser."""


@dataclass(eq=False)
class Layouts:
    """The layouts of one denoiser's sites, for calls with these lengths of text and latents."""

    grid: Grid
    by_site: dict[tuple[str, int, int], Layout | None] = field(default_factory=dict)
    by_length: dict[tuple[bool, int, int], Layout] = field(default_factory=dict)

    def tell(self, site: str, has_text: bool, queries: int, keys: int, layout: Layout) -> None:
        self.by_site[site, queries, keys] = layout
        self.by_length.setdefault((has_text, queries, keys), layout)

    def of(self, site: str, has_text: bool, queries: int, keys: int) -> Layout | None:
        """The layout of a call with so many queries and keys; None if it fits no kind of site.

        `has_text`: the module was given rows beside its own.
        """
        key = site, queries, keys
        if key not in self.by_site:
            self.by_site[key] = self._by_length(has_text, queries, keys)
        return self.by_site[key]

    def _by_length(self, has_text: bool, queries: int, keys: int) -> Layout | None:
        for (other_has_text, *lengths), layout in self.by_length.items():
            if lengths == [queries, keys] and (other_has_text == has_text or layout.kind == "joint"):
                return layout
        if has_text:
            layouts = ((k, layout) for (_, _, k), layout in self.by_length.items() if layout.kind == "cross")
            text = next((layout.text_keys for k, layout in layouts if k == keys), None)
            return None if text is None else Layout("cross", slice(0, queries), None, None, text)
        return Layout.self_(queries) if queries == keys and self.grid.of(queries) is not None else None


def learn(
    denoiser: nn.Module,
    sites: Sequence[Site],
    inputs: Mapping[str, Any],
    latents: str,
    text: str,
    grid: Grid,
    outer: Undo,
) -> Layouts:
    """Run the denoiser three times up to the first site where cells read text, and read off the layouts.

    Args:
        inputs: the arguments of its call by name; `latents` and `text` name those with the latents and the prompt's
            rows.
        grid: of its latents.
        outer: what the session takes away at its end; an interrupt may leave hooks of these runs to it.

    Raises:
        UnsupportedModel: text and picture are interleaved, or nothing tells them apart.
    """
    with_other_cells = partial(_with_other_cells, packed=grid.packed, cells=grid.cells)
    others = (
        {**inputs, text: _each_row(inputs[text], _with_other_text)},
        {**inputs, latents: _each_row(inputs[latents], with_other_cells)},
    )
    length = max(len(rows) for rows in rows_of(inputs[text]))  # masked rows at the end may be left out
    first = FIRST
    while True:
        plain, *changed = (_watch(denoiser, sites, call, first, outer) for call in (inputs, *others))
        layouts, mixed, alone = Layouts(grid), False, _Alone()
        for call, by_text, by_latents in zip(plain, *changed, strict=True):
            layout = alone.seen(call, _told(call, by_text, by_latents))
            mixed = layout is not None and layout.kind in ("cross", "joint")
            if mixed and layout is not None and layout.text_length < length:
                tail = {**inputs, text: _each_row(inputs[text], partial(_with_other_text, start=layout.text_length))}
                values = _watch(denoiser, sites, tail, plain.index(call) + 1, outer)[-1].sides.values
                if _changed(call.sides.values, values, call.site) is not None:  # others than the first rows are read
                    layout = None
            if layout is not None:
                layouts.tell(call.site, call.has_text, call.sides.queries.shape[1], call.sides.values.shape[1], layout)
            if mixed:
                break
        if mixed or len(plain) < first:
            return layouts
        first *= 4


class _Alone:
    """Which positions of a sequence of so many hold the picture, or the words, where these meet nothing else."""

    def __init__(self) -> None:
        self.cells: dict[int, slice] = {}
        self.words: dict[int, slice] = {}

    def seen(self, call: Watched, layout: Layout | None) -> Layout | None:
        """The layout of a site, without positions that only read cells or words at an earlier one."""
        if layout is None:
            return None
        queries = call.sides.queries.shape[1]
        if layout.kind == "self":
            self.cells.setdefault(queries, layout.image_queries)
        elif layout.kind == "text" and layout.text_queries is not None:
            self.words.setdefault(queries, layout.text_queries)
        return replace(
            layout,
            image_queries=_within(layout.image_queries, self.cells),
            image_keys=_within(layout.image_keys, self.cells),
            text_queries=_within(layout.text_queries, self.words),
            text_keys=_within(layout.text_keys, self.words),
        )


def _within(positions: Positions, alone: Mapping[int, slice]) -> Positions:
    """Of positions that are a whole sequence those that it held at first."""
    if positions is None or (own := alone.get(positions.stop - positions.start)) is None:
        return positions
    return slice(positions.start + own.start, positions.start + own.stop)


class Watched(NamedTuple):
    """A site's call in one of the runs."""

    site: str
    has_text: bool
    sides: Sides


def text_of(denoiser: nn.Module, site: Site, inputs: Mapping[str, Any], outer: Undo) -> Tensor:
    """What a site is given as text, [n, L, d], in a run of the denoiser that is broken off there.

    Raises UnsupportedModel: it does not come to that site.
    """
    given: list[Tensor] = []

    def keep(running: Running, plain: Callable[[], Tensor], named: Mapping[str, Any]) -> Tensor:
        if isinstance(running.text, Tensor):
            given.append(running.text)
        raise _Enough

    _broken_off(denoiser, [site], inputs, keep, outer)
    if not given:
        raise UnsupportedModel(f"the denoiser does not come to {site.name} with another text")
    return given[0]


def _watch(
    denoiser: nn.Module, sites: Sequence[Site], inputs: Mapping[str, Any], first: int, outer: Undo
) -> list[Watched]:
    """The first calls of the sites in one run of the denoiser, which is then broken off."""
    calls: list[Watched] = []

    def keep(running: Running, plain: Callable[[], Tensor], named: Mapping[str, Any]) -> Tensor:
        sides = Sides(_digest(named["query"]), _digest(named["value"]))
        calls.append(Watched(running.site.name, running.has_text, sides))
        if len(calls) == first:
            raise _Enough
        return plain()

    _broken_off(denoiser, sites, inputs, keep, outer)
    return calls


def _broken_off(denoiser: nn.Module, sites: Sequence[Site], inputs: Mapping[str, Any], keep: Any, outer: Undo) -> None:
    """Run the denoiser until `keep`, a handler of the sites' calls, has enough."""
    undo, tap = Undo(), Tap(lambda site: True, keep, lambda running: False)
    outer.add(undo.run)
    try:
        tap.install(undo, sites)
        with torch.no_grad():
            _forward(eager(denoiser))(**inputs)
    except _Enough:
        pass
    finally:
        undo.run()


def _forward(denoiser: nn.Module) -> Callable[..., Any]:
    """The forward of a denoiser: as offloading wrapped it, but not as a cache of someone else replaced it, which would
    keep what it sees here."""
    offloads = hasattr(denoiser, "_hf_hook") or hasattr(denoiser, "_diffusers_hook")
    return denoiser.forward if offloads else partial(type(denoiser).forward, denoiser)


def _digest(x: Tensor) -> Tensor:
    """`DIGITS` numbers [B, N, DIGITS] for each position of queries, keys or values [B, H, N, d]."""
    weights = torch.randn(x.shape[1], x.shape[3], DIGITS, generator=torch.Generator().manual_seed(0))
    return torch.einsum("bhnd,hdw->bnw", x.float(), weights.to(x.device))


def _told(plain: Watched, by_text: Watched, by_latents: Watched) -> Layout | None:
    """What stands where at one site; None where neither text nor picture reaches it."""
    text_queries, text_keys = (_changed(a, b, plain.site) for a, b in zip(plain.sides, by_text.sides, strict=True))
    pairs = zip(plain.sides, by_latents.sides, strict=True)
    cells, image_keys = (_changed(a, b, plain.site, MOVED) for a, b in pairs)
    for rows, other in ((text_queries, cells), (text_keys, image_keys)):
        if rows is not None and other is not None and max(rows.start, other.start) < min(rows.stop, other.stop):
            raise UnsupportedModel(f"{plain.site} reads text and picture at the same positions")
    if cells is None:
        return None if text_keys is None else Layout("text", slice(0, 0), None, text_queries, text_keys)
    if text_keys is None:
        return None if image_keys is None else Layout("self", cells, image_keys, None, None)
    return Layout("cross" if image_keys is None else "joint", cells, image_keys, text_queries, text_keys)


def _changed(before: Tensor, after: Tensor, site: str, least: float = CHANGED) -> slice | None:
    """The positions whose numbers are others, in some row of the batch, by `least` of the spread of all.

    Raises UnsupportedModel where these are not in one piece.
    """
    apart = (before - after).abs().amax(-1) > least * before.std().clamp_min(1e-12)
    where = torch.nonzero(apart.any(0)).flatten().tolist()
    if not where:
        return None
    if len(where) != where[-1] - where[0] + 1:
        raise UnsupportedModel(f"text and picture are interleaved at {site}: which row is which word is not known")
    return slice(where[0], where[-1] + 1)


def _each_row(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """An argument with each of its rows changed: a tensor stays a tensor, a list a list."""
    if isinstance(value, Tensor):
        return torch.stack([change(row) for row in value.unbind(0)])
    return type(value)(change(row) for row in value)


def _with_other_text(rows: Tensor, start: int = 0) -> Tensor:
    """Rows [L, D] with a change in each from `start` on, and nearly none in their mean, which some denoisers read as a
    vector."""
    sign = torch.tensor([1.0, -1.0], device=rows.device).repeat(len(rows) // 2 + 1)[: len(rows), None]
    sign[:start] = 0
    return rows + (sign * _noise(rows[:1]) * rows.float().std()).to(rows.dtype)


def _with_other_cells(latents: Tensor, packed: bool, cells: int) -> Tensor:
    """Latents of one image with other numbers in its cells; tokens of reference images stay."""
    other = latents + (_noise(latents) * latents.float().std()).to(latents.dtype)
    return torch.cat([other[:cells], latents[cells:]]) if packed else other


def _noise(like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(like.device)
