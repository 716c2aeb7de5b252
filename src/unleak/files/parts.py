"""Finished parts of a long run, one file each, so that a run that was interrupted goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from unleak.files.atomic import write_atomic


class Parts:
    """Finished parts of a run, one JSON file each.

    A part is reused only if its inputs are the same, and `common`, what all parts depend on, such as a hash of the code
    that makes them. A damaged one is computed again, and `note` is told.
    """

    def __init__(self, folder: Path, note: Callable[[str], None] = warnings.warn, common: Sequence[Any] = ()):
        self.folder, self.note, self.common = folder / "parts", note, list(common)

    def get(self, name: str, inputs: Any, compute: Callable[[], Any]) -> Any:
        """The value of a part, as JSON data; from its file, or what `compute` returns."""
        everything = [self.common, inputs] if self.common else inputs
        key = hashlib.sha256(json.dumps(everything, sort_keys=True, default=str).encode()).hexdigest()[:16]
        file = self.folder / f"{name}.json"
        if file.is_file():
            try:
                saved = json.loads(file.read_text("utf-8"))
                if saved["inputs"] == key:
                    return saved["value"]
            except (ValueError, KeyError, TypeError):
                self.note(f"the finished part {file.name} was damaged and is computed again")
        value = compute()
        write_atomic(file, json.dumps({"inputs": key, "value": value}))
        return value
