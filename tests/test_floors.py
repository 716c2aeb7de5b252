"""Imports of the package point down only: no upward arrow, no neighbouring room, no circle.

Every import counts, also one inside a function or for types alone. `docs/design.md` says what each floor is for.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "unleak"

FLOORS = (
    {"errors"},
    {"saved"},
    {"world", "models"},
    {"text"},
    {"files", "stats"},
    {"judges"},
    {"metrics"},
    {"core"},
    {"engine"},
    {"drawing"},
    {"words", "regions", "copies"},
    {"integrations"},
    {"report"},
    {"bench"},
    {"app"},
    {"cli"},
    {"", "__main__", "parity"},  # "" is the package itself: the public face
)
"""From the lowest to the highest. Those of one floor stand side by side and do not import each other."""

KNOWN: set[tuple[str, str]] = set()
"""Arrows, from one module to another, that still point up or close a circle. This list only shrinks."""


def modules() -> dict[str, Path]:
    """Every module of the package by its name inside it ("core.rows"); a package by its own ("core")."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, known: set[str]) -> Iterator[str]:
    """Names of the package's modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports from the package's name on"
            here = node.module or ""
            names = [f"{here}.{alias.name}" for alias in node.names]
            names = [name if name.removeprefix("unleak.") in known else here for name in names]
        else:
            continue
        yield from (name.removeprefix("unleak").removeprefix(".") for name in names if name.split(".")[0] == "unleak")


def arrows() -> dict[str, set[str]]:
    """What each module imports, by module."""
    found = modules()
    return {name: set(imported(path, set(found))) - {name} for name, path in found.items()}


def room(module: str) -> str:
    return module.partition(".")[0]


def floor(module: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room(module) in rooms)


def test_every_module_stands_on_a_floor() -> None:
    listed = set().union(*FLOORS)
    assert {room(name) for name in modules()} == listed


def test_imports_point_down() -> None:
    pairs = {(name, other) for name, others in arrows().items() for other in others}
    upward = {(name, other) for name, other in pairs if floor(other) > floor(name)}
    assert not upward - KNOWN
    assert not KNOWN - pairs, "mended: take these off KNOWN"


def test_no_room_imports_its_neighbour() -> None:
    pairs = {(name, other) for name, others in arrows().items() for other in others}
    sideways = {
        (name, other)
        for name, other in pairs
        if floor(other) == floor(name) and room(other) != room(name) and floor(name) < len(FLOORS) - 1
    }
    assert not sideways


def test_no_circles() -> None:
    graph = arrows()
    for name, other in KNOWN:
        graph[name].discard(other)
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, (*path, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())
