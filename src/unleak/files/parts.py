"""Finished parts of a long run, one file each, so that a run that was interrupted goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unleak.errors import BrokenFile
from unleak.files.atomic import write_atomic
from unleak.saved import Wrong, conform, parse_json, read_document


class Parts:
    """Finished parts of a run, one JSON file each.

    A part is reused only if its inputs are the same, and `common`, what all parts depend on, such as a hash of the code
    that makes them. A damaged one, of whose value the digest in it is another, is computed again, and `note` is told.
    """

    def __init__(self, folder: Path, note: Callable[[str], None] = warnings.warn, common: Sequence[Any] = ()):
        self.folder, self.note, self.common = folder / "parts", note, list(common)

    def get(self, name: str, inputs: Any, compute: Callable[[], Any]) -> Any:
        """The value of a part, as JSON data; from its file, or what `compute` returns."""
        everything = [self.common, inputs] if self.common else inputs
        key = _digest(json.dumps(everything, sort_keys=True, default=str))
        file = self.folder / f"{name}.json"
        if file.exists():
            try:
                part = conform(Part, parse_json(read_document(file)))
                if part.inputs == key:
                    if part.digest != _digest(json.dumps(part.value)):
                        raise Wrong("value", "is not what was written")
                    return part.value
            except (BrokenFile, ValueError, Wrong) as e:
                self.note(f"the finished part {file.name} was damaged and is computed again ({e})")
        value = compute()
        if file.is_dir():
            self.note(f"the part {file.name} cannot be kept, since a folder stands in its place: remove {file}")
        else:
            text = json.dumps(value)
            write_atomic(file, json.dumps({"inputs": key, "digest": _digest(text), "value": json.loads(text)}))
        return value


@dataclass(frozen=True)
class Part:
    """What a file holds: digests of the inputs and of the value's JSON, and the value."""

    inputs: str
    digest: str
    value: object


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
