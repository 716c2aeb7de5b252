"""Finished parts of a long run, one file each, so that a run that was interrupted goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unleak.files.atomic import write_atomic


class Parts:
    """Finished parts of a run, one JSON file each; a part is reused only if its inputs are the same."""

    def __init__(self, folder: Path):
        self.folder = folder / "parts"

    def get(self, name: str, inputs: Any, compute: Callable[[], Any]) -> Any:
        key = hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:16]
        file = self.folder / f"{name}.json"
        if file.is_file():
            saved = json.loads(file.read_text("utf-8"))
            if saved["inputs"] == key:
                return saved["value"]
        value = compute()
        write_atomic(file, json.dumps({"inputs": key, "value": value}))
        return value
