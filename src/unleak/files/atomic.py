"""Files that a reader sees whole or not at all, and places that one run at a time writes to."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from unleak.errors import BadInput, Conflict


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path`, with its mode, when the block ends without an error; else it is gone.

    Raises OSError. Nobody can guess its name, and nothing that is there already, such as a link, is opened.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    file = part.open("xb")
    try:
        with file:
            if path.exists():
                shutil.copymode(path, part)
            yield file
        part.replace(path)
    finally:  # also when interrupted
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a file so that a reader sees the old or the new content, never a part. Raises BadInput."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(data.encode("utf-8") if isinstance(data, str) else data)
    except OSError as e:
        raise BadInput(f"cannot write {path}: {e.strerror or e}; choose another output folder") from e


@contextlib.contextmanager
def locked(lock: Path, path: Path, kind: str = "run") -> Iterator[None]:
    """Nobody else holds the file `lock` of `path` inside the block; a process that dies lets go.

    Raises Conflict: another one holds it; `kind` names it. BadInput: the file cannot be written.
    """
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise Conflict(f"another {kind} writes to {path}: wait for it, or choose another output with -o") from None
    except OSError as e:
        raise BadInput(f"cannot write {path}: {e.strerror or e}; choose another output with -o") from e
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows keeps a file that is open
            lock.unlink()  # while it is held: whoever opened it before sees that it is gone
        held.release()


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Nobody else writes to this folder inside the block. Raises as `locked`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise BadInput(f"cannot write to the folder {folder}: {e.strerror or e}; choose another with -o") from e
    with locked(folder / ".lock", folder):
        yield
