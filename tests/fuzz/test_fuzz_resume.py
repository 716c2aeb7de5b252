"""A run that was killed at any record, or whose output lost any bytes, ends with those of an uninterrupted one."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from harness import CALL, examples, pipe
from hypothesis import given
from hypothesis import strategies as st

from unleak.copies.scan import scan_file as module
from unleak.copies.scan import scanner
from unleak.copies.scan.scan import fits, plan
from unleak.files.parts import Parts
from unleak.words.lint import lint_file
from unleak.words.lint.lint import CHUNK, ItemLint, PromptLint
from unleak.words.lint.prompt_file import Line, line

HEAD = {"schema": "unleak/lint/1", "source": "x"}
ITEM = ItemLint("mouse", (2, 7), 0.5, 1.0, "text_encoder", None, {})
WORDS = ["cat", "dog", "bat", "ball", "hat", "bus", "car", "horse", "zebra", "", "\x1b[31m", "x" * 2000]


def killed(at: int, do: Callable[..., Any]) -> Callable[..., Any]:
    """`do`, which is interrupted when it is called for the n-th time."""
    left = at

    def doing(*arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return do(*arguments)

    return doing


def goes_on(out: Path, kills: Sequence[tuple[int, int]], run: Callable[[int], Any]) -> bytes:
    """What `out` holds after runs that were killed at a step, and then lost bytes, and one that was not."""
    for at, lost in kills:
        with contextlib.suppress(KeyboardInterrupt):
            run(at)
        if out.exists():
            data = out.read_bytes()
            out.write_bytes(data[: max(0, len(data) - lost)])
    run(10**9)
    return out.read_bytes()


kills = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 300)), max_size=3)


def _scores(_: Any, prompts: Sequence[str], what: Any) -> dict[str, np.ndarray]:
    """Any scores that follow from the prompts alone."""
    digests = [hashlib.sha256(text.encode()).digest() for text in prompts]
    return {name: np.array([[d[i + s] / 255 for s in range(2)] for d in digests]) for i, name in enumerate(what.names)}


@cache
def _check() -> Callable[[str], None]:
    """Whether a prompt fits, which is the same for every plan here."""
    return fits(pipe(), plan(pipe(), 2, call=CALL))


@examples(12, 0.05)
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=9), st.integers(1, 4), kills)
def test_a_scan_that_was_killed_ends_with_the_same_bytes(
    words: list[str], batch: int, cuts: list[tuple[int, int]]
) -> None:
    with tempfile.TemporaryDirectory() as made:
        file, out, other = (Path(made) / name for name in ("p.txt", "o.jsonl", "whole.jsonl"))
        file.write_text("\n".join(f"a {word}" if word else "" for word in words))
        what = plan(pipe(), 2, batch=batch, call=CALL)

        def run(to: Path) -> Callable[[int], None]:
            def scan(at: int) -> None:
                with (
                    patch.object(scanner, "measure", killed(at, _scores)),
                    patch.object(scanner, "fits", lambda *_: _check()),
                ):
                    module.scan_file(pipe(), file, to, what)

            return scan

        assert goes_on(out, cuts, run(out)) == goes_on(other, [], run(other))
        rejects = [module.rejects_of(path) for path in (out, other)]
        assert [r.read_bytes() if r.exists() else b"" for r in rejects[:1]] == [
            r.read_bytes() if r.exists() else b"" for r in rejects[1:]
        ]
        assert {path.name for path in Path(made).iterdir()} <= {
            "p.txt",
            out.name,
            other.name,
            *(r.name for r in rejects),
        }


class _Linter:
    """Answers at once, and is interrupted at a chunk."""

    def __init__(self, at: int) -> None:
        self.chunk = killed(at, self._chunk)

    def _chunk(self, lines: Sequence[Line]) -> list[PromptLint]:
        return [PromptLint(x.number, x.prompt, [ITEM], x.error) for x in lines]


@examples(12, 0.05)
@given(st.integers(1, 3 * CHUNK), st.sets(st.integers(1, 3 * CHUNK), max_size=5), kills)
def test_a_lint_that_was_killed_ends_with_the_same_bytes(n: int, bad: set[int], cuts: list[tuple[int, int]]) -> None:
    lines = [Line(k, error="no prompt") if k in bad and n > 5 else line(k, f"a [mouse] {k}") for k in range(1, n + 1)]
    with tempfile.TemporaryDirectory() as made:
        out, other = Path(made) / "o.jsonl", Path(made) / "whole.jsonl"

        def run(to: Path) -> Callable[[int], Any]:
            return lambda at: lint_file.run(_Linter(at), lines, HEAD, to)

        assert goes_on(out, cuts, run(out)) == goes_on(other, [], run(other))


@examples(12, 0.02)
@given(st.lists(st.integers(0, 5), max_size=4), st.integers(1, 5))
def test_parts_of_a_run_that_was_killed_are_kept(cuts: list[int], n: int) -> None:
    with tempfile.TemporaryDirectory() as made:
        done: list[int] = []

        def compute(k: int) -> int:
            done.append(k)
            return k * k

        for at in [*cuts, 10**9]:
            one = killed(at, compute)
            try:
                values = [Parts(Path(made)).get(f"{k}", [k], lambda k=k, one=one: one(k)) for k in range(n)]
            except KeyboardInterrupt:
                continue
            assert values == [k * k for k in range(n)]
        assert sorted(done) == sorted(set(done)) == list(range(n))
