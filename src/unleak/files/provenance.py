"""What made a figure: the versions, commit, processor and threads that a last bit depends on, and the code itself."""

from __future__ import annotations

import ast
import hashlib
import platform
import subprocess
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = __name__.partition(".")[0]


def versions() -> dict[str, str]:
    """Versions that a figure can depend on."""
    names = ("unleak", "torch", "diffusers", "transformers", "numpy")
    return {"python": platform.python_version()} | {n: version(n) for n in names}


def made_by() -> dict[str, Any]:
    """`commit` and `dirty` (None where the package is not a working copy of git), `processor` and `threads`."""
    import torch

    commit, dirty = working_copy()
    return {"commit": commit, "dirty": dirty, "processor": processor(), "threads": torch.get_num_threads()}


def working_copy() -> tuple[str | None, bool | None]:
    """(commit, whether a file of the package differs from it); (None, None) where git does not know the package."""
    folder = Path(__file__).parent.parent
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    commit, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "--", ".")
    return commit, None if changes is None else bool(changes)


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says in a folder, None where it fails or is not there."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def code_of(*parts: Any) -> str:
    """A hash of the source of modules, and of all modules of the package that they import, however deep.

    Args:
        parts: modules, or classes and functions, which stand for their modules.
    """
    names: set[str] = set()
    todo = [one.__name__ if isinstance(one, ModuleType) else one.__module__ for one in parts]
    while todo:
        name = todo.pop()
        if name not in names:
            names.add(name)
            todo += _imports(name)
    return hashlib.sha256("".join(_source(name) for name in sorted(names)).encode()).hexdigest()[:16]


@lru_cache(None)
def _source(name: str) -> str:
    spec = find_spec(name)
    return Path(spec.origin).read_text("utf-8") if spec is not None and spec.origin else ""


@lru_cache(None)
def _imports(name: str) -> tuple[str, ...]:
    """The modules of the package that a module imports, at its head or in a function."""
    return tuple(sorted({one for node in ast.walk(ast.parse(_source(name))) for one in _named(node)}))


def _named(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom) and node.module:
        for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
            if name.startswith(f"{PACKAGE}.") and _is_module(name):
                yield name
    elif isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name.startswith(f"{PACKAGE}."))


@lru_cache(None)
def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # a name within a module
        return False
