"""Ctrl-C at any line of entering, drawing or leaving: nothing is left, and the next plain call is bitwise the first."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import _get_current_function_mode_stack

import unleak
from test_core_laws import traces
from tiny import draw, tiny
from unleak.core.edits import KeyScale
from unleak.core.intervention import Intervention
from unleak.core.rows import Branch
from unleak.engine import session, tap
from unleak.engine.session import attach

PACKAGE = str(Path(unleak.__file__).parent)
Place = tuple[str, int]
WHAT = ("entering and leaving", "entering and leaving, our lines", "drawing, our lines")


@dataclass(frozen=True)
class Everywhere(Intervention):
    """Uses every seam."""

    def on_text(self, ctx: Any, call: Any) -> None:
        call.rerun("a cat")

    def branches(self, ctx: Any) -> Any:
        return [Branch("extra")]

    def on_attention(self, ctx: Any, site: Any) -> Any:
        return None if site.kind == "self" else KeyScale([1], 2.0)

    def modules(self, anatomy: Any) -> list[str]:
        return ["mid_block"]

    def on_module(self, ctx: Any, name: str, output: Any) -> Any:
        return output * 1.0

    def on_prediction(self, ctx: Any, preds: Any) -> Any:
        again = ctx.predict([Branch("again")])["again"]
        return preds["uncond"] + 2.0 * (again - preds["uncond"])

    def on_latents(self, ctx: Any, latents: Any) -> Any:
        return latents * 1.0


class Trace:
    """Counts how often each line of some files runs, and raises KeyboardInterrupt the nth time that `at` does."""

    def __init__(self, files: str, at: Place | None = None, nth: int = 1) -> None:
        self.files, self.at, self.nth = files, at, nth
        self.counts: dict[Place, int] = {}

    def __call__(self, frame: Any, event: str, arg: Any) -> Any:
        if event == "call" and not frame.f_code.co_filename.startswith(self.files):
            return None
        if event == "line":
            place = frame.f_code.co_filename, frame.f_lineno
            self.counts[place] = self.counts.get(place, 0) + 1
            if place == self.at and self.counts[place] == self.nth:
                raise KeyboardInterrupt
        return self

    def during(self, act: Callable[[], Any]) -> None:
        try:
            sys.settrace(self)
            act()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)


def interrupted(act: Callable[[], Any], files: str, every: int) -> Iterator[Place]:
    """Run `act` again and again, interrupted at the first and at the last run of some lines of these files."""
    whole = Trace(files)
    whole.during(act)
    for place, count in list(whole.counts.items())[::every]:
        for nth in sorted({1, count}) if place[0] != __file__ else ():
            Trace(files, place, nth).during(act)
            yield place


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny("sd1")


def left(pipe: Any) -> Any:
    return traces(pipe), _get_current_function_mode_stack(), len(session._attached)


@pytest.mark.filterwarnings("ignore:a session was dropped", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("steps", "files", "every"), [(0, "", 12), (0, PACKAGE, 4), (1, PACKAGE, 40)], ids=WHAT)
def test_nothing_is_left(pipe: Any, steps: int, files: str, every: int) -> None:
    """A sample of the lines is tried."""
    bare, before, number = draw(pipe, steps=1), left(pipe), 0

    def act() -> None:
        with attach(pipe, Everywhere()):
            if steps:
                draw(pipe, steps=steps)

    for place in interrupted(act, files, every):
        number += 1
        assert left(pipe) == before, place
    assert number > 15
    assert torch.equal(draw(pipe, steps=1), bare)


def test_a_mode_that_torch_took_off_does_not_come_back_after_the_session(pipe: Any) -> None:
    """The interrupt comes when torch has taken our mode off its stack, before the call that puts it back begins."""
    bare, before, came = draw(pipe, steps=1), left(pipe), []
    enter = contextlib._GeneratorContextManager.__enter__.__code__

    def at_return(frame: Any, event: str, arg: Any) -> Any:
        if event == "call" and frame.f_code is not enter:
            return None
        if event == "return" and isinstance(arg, tap._Watch):
            came.append(arg)
            raise KeyboardInterrupt
        return at_return

    with pytest.raises(KeyboardInterrupt), attach(pipe, Everywhere()):
        try:
            sys.settrace(at_return)
            draw(pipe, steps=1)
        finally:
            sys.settrace(None)
    assert len(came) == 1
    assert left(pipe) == before
    assert torch.equal(draw(pipe, steps=1), bare)
