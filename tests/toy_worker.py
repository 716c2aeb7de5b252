"""A scanner without a model, for tests of who does what: its scores follow from the prompts alone.

Prompts that begin with a word of `DOES` make it fail in that way.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unleak.errors import BadInput, NotFinite


class Toy:
    """`folder`: where it notes what it did once, such as dying; "" for a worker whose model is not there."""

    def __init__(self, folder: str, batch: int = 4, slow: float = 0.0) -> None:
        if not folder:
            raise BadInput("cannot read the model 'm': no such folder")
        self.folder, self.batch, self.slow = Path(folder), batch, slow

    def about(self, _: None = None) -> dict[str, Any]:
        return {
            "model": "toy", "fingerprint": "toy", "detectors": ["d"], "score": "d", "steps": 1, "seeds": [0],
            "batch": self.batch, "call": {}, "calibrated": False, "threshold": None, "weights": {}, "bias": 0.0,
        }  # fmt: skip

    def unfit(self, prompts: Sequence[str]) -> list[str | None]:
        return ["too long" if "long" in prompt else None for prompt in prompts]

    def records(self, prompts: Sequence[str]) -> list[dict[str, Any]]:
        time.sleep(self.slow)
        for prompt in prompts:
            if prompt.startswith("nan"):
                raise NotFinite("the prediction is NaN")
            once = self.folder / "died"
            if prompt.startswith("kill") or (prompt.startswith("once") and not once.exists()):
                once.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return [self._record(prompt) for prompt in prompts]

    def _record(self, prompt: str) -> dict[str, Any]:
        score = hashlib.sha256(prompt.encode()).digest()[0] / 255
        return {"prompt": prompt, "score": score, "memorized": None, "scores": {"d": score}, "images": {"d": [score]}}
