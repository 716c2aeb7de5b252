"""A method that raises at any seam, at any moment: the pipeline is what it was, bit by bit."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from harness import examples, pipe
from hypothesis import given
from hypothesis import strategies as st

from tiny import NAMES, draw
from unleak.core.hook import hook
from unleak.core.intervention import SEAMS
from unleak.engine.session import attach
from unleak.errors import BadInput

ERRORS = (ValueError, KeyError, OSError, RuntimeError, BadInput, KeyboardInterrupt, SystemExit, MemoryError)


class _Raises:
    """A seam that raises when it is asked for the n-th time."""

    def __init__(self, error: type[BaseException], at: int) -> None:
        self.error, self.left = error, at

    def __call__(self, *_: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.error("on purpose")


@cache
def first(name: str) -> tuple[torch.Tensor, dict[int, int]]:
    """The plain picture, and how many hooks every module has before anything is attached."""
    return draw(pipe(name), steps=2), hooks(name)


def hooks(name: str) -> dict[int, int]:
    parts = [part for part in pipe(name).components.values() if isinstance(part, torch.nn.Module)]
    return {id(m): len(m._forward_hooks) + len(m._forward_pre_hooks) for part in parts for m in part.modules()}


@pytest.mark.parametrize("name", NAMES)
def test_the_next_plain_call_is_bitwise_the_first(name: str) -> None:
    every = sorted(SEAMS)

    @examples(3, 0.04 / len(NAMES))
    @given(st.sampled_from(every), st.sampled_from(ERRORS), st.integers(0, 6), st.integers(0, 1))
    def check(seam: str, error: type[BaseException], at: int, calls: int) -> None:
        picture, before = first(name)
        raising = _Raises(error, at)
        arguments: dict[str, Any] = {seam: raising} | ({"modules": _modules(name)} if seam == "on_module" else {})
        try:
            with attach(pipe(name), hook(**arguments)):
                for _ in range(calls + 1):
                    draw(pipe(name), steps=2)
        except error as e:
            assert "on purpose" in str(e)
        assert hooks(name) == before
        assert not {"encode_prompt", "check_inputs"} & vars(pipe(name)).keys()
        assert not {"set_timesteps", "step"} & vars(pipe(name).scheduler).keys()
        assert torch.equal(draw(pipe(name), steps=2), picture)

    check()


def _modules(name: str) -> list[str]:
    """One module of the denoiser."""
    denoiser = getattr(pipe(name), "unet", None) or pipe(name).transformer
    return [next(n for n, m in denoiser.named_modules() if n and list(m.parameters(recurse=False)))]
