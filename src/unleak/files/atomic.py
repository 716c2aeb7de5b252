"""Files that a reader sees whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

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


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Nobody else writes to this folder inside the block; a process that dies lets go. Raises BadInput."""
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise BadInput(f"another run writes to {folder}: wait for it, or choose another folder with -o") from None
    except OSError as e:
        raise BadInput(f"cannot write to the folder {folder}: {e.strerror or e}; choose another with -o") from e
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink()  # while it is held: whoever opened it before sees that it is gone
        lock.release()
