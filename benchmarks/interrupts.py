"""Ctrl-C at random moments of sessions: how often the next plain call is bitwise the first.

    python benchmarks/interrupts.py --count 1000 --seed 0

A timer sends a signal at a uniform moment of entering a session, drawing in it and leaving it, and the handler raises
KeyboardInterrupt as that of Ctrl-C does, in turn on every layout of tests/tiny.py. Exit status 1: some call differed.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from test_core_interrupts import Everywhere, left
from tiny import NAMES, draw, tiny
from unleak.engine.session import attach
from unleak.words.methods.boost import Boost
from unleak.words.methods.patch import Patch


class Layout:
    """One tiny pipeline, what it draws and how long a session on it takes."""

    def __init__(self, name: str) -> None:
        self.pipe = tiny(name)
        self.call: dict[str, Any] = {"steps": 1}
        if name == "flux":
            self.call |= {"negative_prompt": "a cat", "true_cfg_scale": 3.0}
        own = (Everywhere(),) if name.startswith("sd1") else ()
        self.interventions = (Patch("mouse", others=("laptop",)), Boost("mouse", 2.0, region="all"), *own)
        self.bare = draw(self.pipe, **self.call)
        self.before = left(self.pipe)
        self.session()
        start = time.perf_counter()
        self.session()
        self.seconds = time.perf_counter() - start

    def session(self) -> None:
        with attach(self.pipe, *self.interventions):
            draw(self.pipe, **self.call)

    def interrupted(self, after: float) -> bool:
        """A session with an interrupt so many seconds after its beginning; whether one came in it."""
        try:
            signal.setitimer(signal.ITIMER_REAL, after)
            self.session()
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            return True
        return False

    def restored(self) -> bool:
        return left(self.pipe) == self.before and torch.equal(draw(self.pipe, **self.call), self.bare)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="interrupts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="stop after so long, whatever the count")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    sys.unraisablehook = lambda unraisable: None  # an interrupt inside __del__ is dropped by Python
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    moments, layouts = random.Random(given.seed), [Layout(name) for name in NAMES]
    came = restored = tries = 0
    end = time.monotonic() + 60 * given.minutes if given.minutes else float("inf")
    while came < given.count and time.monotonic() < end:
        layout = layouts[tries % len(layouts)]
        tries += 1
        try:
            in_time = layout.interrupted(moments.uniform(1e-4, layout.seconds))
        except KeyboardInterrupt:
            in_time = True
        came += in_time
        restored += in_time and layout.restored()
        if tries % 50 == 0:
            print(f"{came} interrupts, {restored} restored", file=sys.stderr, flush=True)
    print(f"interrupts {came}, next plain call bitwise the first {restored} (seed {given.seed})")
    return int(restored < came or not came)


if __name__ == "__main__":
    sys.exit(main())
