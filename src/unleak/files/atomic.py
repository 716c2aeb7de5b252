"""Files that a reader sees whole or not at all, and places that one run at a time writes to.

A link is followed: the file that it leads to is replaced. A device or a pipe is written through.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import warnings
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import BinaryIO, Protocol

from filelock import FileLock, Timeout

from unleak.errors import BadInput, CannotWrite, Conflict

Identity = tuple[int, int]
"""Device and number of a file: the same for all its names."""


class Guard(Protocol):
    """Who watches over what is written: see `unleak.files.outputs.Door`."""

    written: MutableMapping[Path, Identity]

    def may_replace(self, path: Path) -> None: ...


guard: Guard | None = None
"""Of the command that runs now."""


def identity(path: Path) -> Identity | None:
    """Of the file that a path leads to; None where there is none."""
    try:
        there = path.stat()
    except (OSError, ValueError):
        return None
    return there.st_dev, there.st_ino


def is_special(path: Path) -> bool:
    """Whether the path leads to what cannot be replaced: a device, a pipe, a file that this process has open."""
    return _descriptor(path) is not None or (path.exists() and not path.is_file() and not path.is_dir())


def _descriptor(path: Path) -> int | None:
    """The number of the open file that the path stands for, as /dev/stdout or /dev/fd/3 do."""
    for _ in range(40):
        where = f"{os.path.realpath(path.parent)}/{path.name}"
        if found := re.fullmatch(rf"/(?:dev|proc/{os.getpid()})/fd/(\d+)", where):
            return int(found[1])
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return None


def beside(path: Path, ending: str) -> Path:
    """A hidden name in the folder of `path`, cut where it would be too long: x.json -> .x.json.lock."""
    return path.with_name(f".{os.fsencode(path.name)[:200].decode('utf-8', 'ignore')}{ending}")


def target(path: Path) -> Path:
    """The file that is written where `path` is asked for: the end of all links, even if it is not there yet.

    Raises OSError: a loop of links, a folder, or a file that is read-only. BadInput: an input of the command that runs.
    """
    try:
        there = path.stat()
    except FileNotFoundError:
        return Path(os.path.realpath(path))
    if stat.S_ISDIR(there.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    if guard is not None:
        guard.may_replace(path)
    return path if is_special(path) else Path(os.path.realpath(path))


@contextlib.contextmanager
def replacing(path: Path, drop_empty: bool = False) -> Iterator[BinaryIO]:
    """A file that takes the place of `path`, with its mode, when the block ends without an error; else it is gone.

    Args:
        drop_empty: where the block has written nothing, there is no file afterwards.

    Raises OSError. Nobody can guess its name, and nothing that is there already, such as a link, is opened.
    """
    path = target(path)
    if is_special(path):
        with _through(path) as file:
            yield file
        return
    part = beside(path, f".{secrets.token_hex(8)}.part")
    made = False
    try:
        with part.open("xb") as file:
            made = True
            if path.exists():
                shutil.copymode(path, part)
            yield file
            file.flush()
            os.fsync(file.fileno())
            empty = file.tell() == 0
        if drop_empty and empty:
            path.unlink(missing_ok=True)
        else:
            part.replace(path)
            wrote(path)
        sync_folder(path.parent)
    finally:  # also when interrupted
        if made:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def _through(path: Path) -> BinaryIO:
    """A device, a pipe or an open file, to be written to."""
    number = _descriptor(path)
    if number is not None:
        return os.fdopen(os.dup(number), "wb")
    try:
        number = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as e:
        if e.errno != errno.ENXIO:
            raise
        warnings.warn(f"nobody reads the pipe {path} yet: waiting", stacklevel=4)
        number = os.open(path, os.O_WRONLY)
    os.set_blocking(number, True)
    return os.fdopen(number, "wb")


def wrote(path: Path) -> None:
    """Note for the command that runs that this file is its result."""
    if guard is not None and (now := identity(path)) is not None:
        guard.written[path] = now


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where folders can be opened."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a file so that a reader sees the old or the new content, never a part. Raises CannotWrite.

    A device or a pipe gets the data; a pipe that nobody reads is waited for.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data)
    except (OSError, ValueError) as e:
        if isinstance(e, BadInput):
            raise
        raise CannotWrite(
            f"cannot write {path}: {getattr(e, 'strerror', None) or e}; choose another output folder"
        ) from e


@contextlib.contextmanager
def locked(path: Path, kind: str = "run") -> Iterator[None]:
    """Nobody else writes the file, or to the folder, `path` inside the block; a process that dies lets go.

    Raises Conflict: another one does; `kind` names it. BadInput: it cannot be written, or what has the name of the lock
    is none.
    """
    lock = path / ".lock" if path.is_dir() else beside(path, ".lock")
    with contextlib.suppress(FileNotFoundError):
        there = lock.lstat()
        if not stat.S_ISREG(there.st_mode) or there.st_size:
            raise BadInput(
                f"{lock} is there already and is no lock of unleak: move it, or choose another output with -o"
            )
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
    with locked(folder):
        yield
