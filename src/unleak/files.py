"""Files that a reader sees whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from unleak.errors import BadInput


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a file so that a reader sees the old or the new content, never a part. Raises BadInput."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
        part.replace(path)
    except OSError as e:
        raise BadInput(f"cannot write {path}: {e.strerror or e}; choose another output folder") from e
    finally:  # also when interrupted
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
