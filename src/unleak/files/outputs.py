"""What a command reads and what it writes: told apart before it runs, guarded while it runs, there when it ends.

A command marks its parameters with `Reads` and `Writes`; `Door` holds the values. Files are compared by what they are
and not by their names, so that links, hard links, `..` and names that differ in case only are seen through.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import combinations
from pathlib import Path
from types import TracebackType

from unleak.errors import BadInput, CannotWrite
from unleak.files import atomic
from unleak.files.atomic import Identity, identity, is_special

MODEL = ("*.safetensors", "*config*.json", "*index*.json", "*.model", "vocab*", "merges.txt", "tokenizer*.json",
         "special_tokens_map.json", "unleak.json")  # fmt: skip
"""Files of a saved model, in its folder and the folders of its parts."""


def itself(text: str) -> Iterator[Path]:
    """The path; `-` is stdin."""
    yield Path("/dev/stdin" if text == "-" else text)


def behind_at(text: str) -> Iterator[Path]:
    """The file in ``WHAT@FILE``."""
    _, at, file = text.rpartition("@")
    if at:
        yield Path(file)


def model_files(text: str) -> Iterator[Path]:
    """The files of a model's folder; none of a hub id."""
    if "\0" in text:
        return
    for pattern in MODEL:
        yield from Path(text).glob(pattern)
        yield from Path(text).glob(f"*/{pattern}")


def prompt_files(text: str) -> Iterator[Path]:
    """The files that a source of prompts names, see `prompt_file.files_of`; none where there are none."""
    from unleak.files.prompt_file import files_of

    with contextlib.suppress(BadInput, ValueError):
        yield from itself(text) if text == "-" else files_of(text)


def shards_in(text: str) -> Iterator[Path]:
    """The outputs of the shards in a folder, and what stands beside them."""
    if "\0" not in text:
        yield from Path(text).glob("*.json*")


@dataclass(frozen=True)
class Reads:
    """Marks a parameter that names what a command reads. `files`: those that a value of it stands for.

    In `what`, {} is the name that a value ``NAME=...@FILE`` begins with.
    """

    what: str
    files: Callable[[str], Iterable[Path]] = itself


@dataclass(frozen=True)
class Writes:
    """Marks a parameter that names what a command writes.

    `names`: patterns of what it writes in a folder; empty: it is a file.
    """

    option: str
    names: Sequence[str] = ()


class Door:
    """``with Door(inputs, outputs) as door``: nothing inside the block replaces an input.

    Args:
        inputs: what is read -> its path; several may have one name.
        outputs: the marks of the outputs that are given, and their paths.

    Raises (at once):
        BadInput: an output is an input, or another output, or can never be written.
    """

    def __init__(self, inputs: Iterable[tuple[str, Path]], outputs: Iterable[tuple[Writes, Path]]) -> None:
        self.inputs = list(inputs)
        self.written: MutableMapping[Path, Identity] = {}
        self.files: list[tuple[str, Path]] = []
        self.folders: list[tuple[Writes, Path]] = []
        outputs = list(outputs)
        for mark, path in outputs:
            if mark.names:
                check_folder(path)
                self.folders.append((mark, path))
        for mark, path in outputs:
            if not mark.names:
                check_file(path, mark.option, [folder for _, folder in self.folders])
                self.files.append((mark.option, path))
        self._check_files()
        self._check_folders()

    def __enter__(self) -> Door:
        self._before: atomic.Guard | None = atomic.guard
        atomic.guard = self
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        atomic.guard = self._before

    def may_replace(self, path: Path) -> None:
        """Raises BadInput: the file is one of those that are read."""
        if not os.path.lexists(path):
            return
        for what, given in self.inputs:
            if same_file(path, given):
                raise BadInput(f"{str(path)!r} would be written and is the {what} that is read: choose another output")

    def check_there(self) -> None:
        """Raises CannotWrite: what was written is there no more, or something else stands in its place."""
        lost = [path for path, written in self.written.items() if identity(path) != written]
        if lost:
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            raise CannotWrite(
                f"{lost[0]}{more} was written and is gone: it was removed or replaced meanwhile; run again"
            )

    def _check_files(self) -> None:
        for (one, path), (two, other) in combinations(self.files, 2):
            if same_file(path, other):
                raise BadInput(f"{one} and {two} both write {str(path)!r}: name two files")
        for option, path in self.files:
            for what, given in self.inputs:
                if same_file(path, given):
                    raise BadInput(f"{option} {str(path)!r} is the {what} that is read: choose another file")

    def _check_folders(self) -> None:
        for mark, folder in self.folders:
            inside = _real(folder)
            for option, path in self.files:
                if _real(path) == inside or _real(path) in inside.parents:
                    raise BadInput(
                        f"{option} {str(path)!r} is to be a file, and is a folder of {mark.option}: name another"
                    )
                if _real(path).parent == inside and any(fnmatch(path.name.lower(), name) for name in mark.names):
                    raise BadInput(f"{option} and {mark.option} both write {str(path)!r}: choose another file")
            for name in mark.names:
                for there in folder.glob(name):
                    for what, given in self.inputs:
                        if same_file(there, given):
                            raise BadInput(f"{mark.option} {str(folder)!r} would replace {str(there)!r}, which is the"
                                           f" {what} that is read: choose another folder")  # fmt: skip


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def same_file(one: Path, two: Path) -> bool:
    """Whether two paths are one file. Two that are not there yet become one if their names differ in case only."""
    there = identity(one), identity(two)
    if there == (None, None):
        return _folded(one) == _folded(two)
    return there[0] == there[1]


def _folded(path: Path) -> str:
    return unicodedata.normalize("NFC", str(_real(path))).casefold()


def check_name(path: Path) -> None:
    """Raises BadInput: no file can have this path."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise BadInput(f"the path {str(path)!r} is not valid UTF-8 text; choose another") from None
    if "\0" in str(path):
        raise BadInput(f"the path {str(path)!r} holds a NUL; choose another")


def check_folder(folder: Path) -> Path:
    """The folder, which can be made and written to; nothing is made yet. Raises BadInput."""
    check_name(folder)
    try:
        if folder.is_symlink() and not folder.exists():
            raise BadInput(
                f"cannot write to the folder {folder}: it is a link to what is not there; choose another with -o"
            )
        there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
        return folder
    except OSError as e:
        raise BadInput(f"cannot write to the folder {folder}: {e.strerror or e}; choose another with -o") from e


def check_file(path: Path, option: str, folders: Sequence[Path] = ()) -> None:
    """A file that an option names can be written: it is there, or its folder is, or is one of `folders`, to be made.

    Raises BadInput.
    """
    check_name(path)
    made = {_real(folder) for folder in folders}
    try:
        if str(path) in ("", ".", "-") or path.is_dir() or _real(path) in made:
            raise BadInput(f"{option} {str(path)!r} is no file name: write {option} FILE")
        there = path.stat()
    except FileNotFoundError:
        path = _real(path)  # a link leads to the file that will be made
        if not path.parent.is_dir() and path.parent not in made:
            raise BadInput(f"{option} {str(path)!r}: there is no folder {str(path.parent)!r}; make it first") from None
        check_folder(path.parent)
        return
    except OSError as e:
        raise BadInput(f"{option} {str(path)!r} cannot be written: {e.strerror or e}; choose another file") from e
    if stat.S_ISSOCK(there.st_mode) or stat.S_ISBLK(there.st_mode):
        raise BadInput(f"{option} {str(path)!r} is neither a file nor a pipe; choose another")
    if not os.access(path, os.W_OK):
        raise BadInput(f"{option} {str(path)!r} cannot be written: it is read-only; choose another file")
    if not is_special(path):
        check_folder(_real(path).parent)
