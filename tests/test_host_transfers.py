"""At a steady step no attention site asks the device for a number or sends it one: a GPU would stand still there."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import unleak
from tiny import draw, tiny
from unleak.core.edits import Bias, KeyScale, Mask, RowSwap

ASKS = ("_local_scalar_dense", "nonzero", "_unique2", "equal")
"""Operators whose result the host waits for."""
SENDS = ("lift_fresh", "lift_fresh_copy")
"""Operators that take a tensor which was made of Python numbers."""


class Transfers(TorchDispatchMode):
    """Counts by (step, kind) what would cross between host and device while a site runs."""

    def __init__(self) -> None:
        super().__init__()
        self.step, self.inside, self.counts = -1, False, Counter[tuple[int, str]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if self.inside and name in (*ASKS, *SENDS):
            self.counts[self.step, name] += 1
        return func(*args, **(kwargs or {}))


def transfers(model: str, *methods: Any, steps: int = 4) -> dict[int, dict[str, int]]:
    """step -> operator -> how often, inside of attention modules."""
    pipe, watch = tiny(model), Transfers()
    denoiser = getattr(pipe, "unet", None) or pipe.transformer

    def step(*_: Any) -> None:
        watch.step += 1

    def inside(on: bool) -> Any:
        def hook(*_: Any) -> None:
            watch.inside = on

        return hook

    with unleak.attach(pipe, *methods) as run:
        handles = [denoiser.register_forward_pre_hook(step)]
        for site in run.anatomy.sites:
            handles += [site.module.register_forward_pre_hook(inside(True), prepend=True)]
            handles += [site.module.register_forward_hook(inside(False))]
        with watch:
            draw(pipe, "a red mouse and a laptop", steps=steps)
        for handle in handles:
            handle.remove()
    assert watch.step >= steps - 1
    found: dict[int, dict[str, int]] = {at: {} for at in range(steps)}
    for (at, name), count in watch.counts.items():
        found.setdefault(at, {})[name] = count
    return found


LEFT = torch.zeros(8, 8, dtype=torch.bool)
LEFT[:, :4] = True
RIGHT = ~LEFT
EDITS = {
    "scaled tokens": lambda ctx, site: [KeyScale((2, 5), 1.5)],
    "scaled in a region": lambda ctx, site: [KeyScale((2, 5), 1.5, queries=LEFT)],
    "two regions": lambda ctx, site: [KeyScale((2,), 1.5, queries=LEFT), KeyScale((5,), 0.5, queries=RIGHT)],
    "biased tokens": lambda ctx, site: [Bias(0.5, keys=(2, 5))],
    "a bias that may forbid": lambda ctx, site: [Bias(torch.zeros(2), keys=(2, 5))],
    "forbidden tokens": lambda ctx, site: [Mask((2, 5), LEFT)],
    "rows swapped": lambda ctx, site: [RowSwap((1,), (0,), parts="q")],
    "columns": lambda ctx, site: ctx.results.update(seen=site.columns((2, 5, 7))),
    "shares": lambda ctx, site: ctx.results.update(seen=site.text_shares()),
}


@pytest.mark.parametrize("name", EDITS)
def test_no_edit_crosses_between_host_and_device_at_a_site(name: str) -> None:
    edit = EDITS[name]
    method = unleak.hook(on_attention=lambda ctx, site: edit(ctx, site) if site.kind == "cross" else None)
    counts = transfers("sd1", method)
    assert all(not counts[step] for step in range(2, 4)), counts


@pytest.mark.parametrize("model", ["sd1", "flux"])
def test_maps_cross_nothing_at_a_site(model: str) -> None:
    counts = transfers(model, unleak.Maps("mouse,laptop"))
    assert all(not counts[step] for step in range(2, 4)), counts


def test_what_is_kept_of_a_generation_is_bounded() -> None:
    """Masks that are new in each call do not pile up."""
    from unleak.core import attention

    sizes = []

    def fresh(ctx: Any, site: Any) -> Any:
        sizes.append(len(site.cache.get("once", {})))
        return [KeyScale((2,), 1.5, queries=LEFT.clone())] if site.kind == "cross" else None

    kept, attention.KEPT = attention.KEPT, 6
    try:
        transfers("sd1", unleak.hook(on_attention=fresh))
    finally:
        attention.KEPT = kept
    assert max(sizes) <= 6
