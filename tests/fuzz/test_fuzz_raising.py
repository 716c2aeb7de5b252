"""Whatever a model raises in the middle of a command: words, the documented status, and no half of a file."""

from __future__ import annotations

from typing import Any

import harness
import pytest
from harness import MODEL, contents, examples, fuzz_folder, nothing_half, run, tiny_models
from hypothesis import given
from hypothesis import strategies as st

from unleak.errors import NotFinite, UnsupportedModel

WHOLE: dict[str, tuple[str, ...]] = {
    "generate": ("a red cat",),
    "scan": ("p.txt", "-o", "new.jsonl"),
    "lint": ("p.txt", "-o", "new.jsonl"),
    "guard": ("a red cat", "--gate", "cal.json"),
    "repair": ("a mouse and a laptop", "--items", "mouse,laptop", "--with", "patch"),
    "maps": ("a mouse and a laptop", "--items", "mouse,laptop"),
}
"""Arguments with which a command comes to its end."""
RAISED: dict[str, tuple[BaseException, int]] = {
    "interrupt": (KeyboardInterrupt(), 130), "memory": (MemoryError(), 1), "recursion": (RecursionError(), 1),
    "device": (RuntimeError("CUDA out of memory. Tried to allocate"), 1), "disk": (OSError(28, "No space left"), 1),
    "typed": (UnsupportedModel("on purpose"), 4), "not finite": (NotFinite("on purpose"), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_whatever_a_model_raises_ends_in_words_and_leaves_no_half(name: str) -> None:
    @examples(2, 0.02 / len(WHOLE))
    @given(st.sampled_from(sorted(RAISED)), st.integers(0, 12), st.sampled_from(["unet", "text_encoder"]))
    def check(kind: str, at: int, part: str) -> None:
        error, status = RAISED[kind]
        left = at

        def raises(*_: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise error

        module = getattr(harness.pipe(), part)
        with fuzz_folder() as folder, tiny_models(draws=True):
            before = contents(folder)
            hook = module.register_forward_pre_hook(raises)
            try:
                done = run(name, *WHOLE[name], "-m", MODEL, *(() if name == "lint" else ("--seeds", "0:2")))
            finally:
                hook.remove()
            after = contents(folder)
            assert done.code == (status if left < 0 else 0), (done.code, done.err)
            assert {file: after.get(file) for file in before} == before
            nothing_half(before, after)
            assert not module._forward_pre_hooks and not module._forward_hooks
            if left < 0 and name not in ("scan", "lint"):
                assert after.keys() == before.keys(), sorted(after.keys() - before.keys())

    check()
