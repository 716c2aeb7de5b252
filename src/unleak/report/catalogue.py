"""`unleak.methods` and `unleak.preset`: every named method of all rooms, and one of them made by its name."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any, ClassVar

from unleak.copies.presets import DETECTORS, MITIGATIONS
from unleak.core.presets import Preset, Presets
from unleak.core.result import Result
from unleak.errors import choose
from unleak.regions.presets import EDITORS
from unleak.words.presets import REPAIRS

TABLES: tuple[Presets[Any], ...] = (REPAIRS, EDITORS, MITIGATIONS, DETECTORS)
"""The tables of the rooms; each says what kind its presets are."""


@dataclass(frozen=True, repr=False)
class Methods(Result):
    """Some of the named methods: `presets` by kind ("repair", "editor", "mitigation", "detector")."""

    verb: ClassVar[str] = "methods"
    presets: dict[str, tuple[Preset, ...]]

    def lines(self) -> list[str]:
        every = [preset for some in self.presets.values() for preset in some]
        if len(every) == 1:
            return _described(next(iter(self.presets)), every[0])
        if len(self.presets) == 1:
            kind = next(iter(self.presets))
            return [f"{len(every)} {kind}s", *(f"  {p.name:<18} {p.summary}" for p in every)]
        lines = [f"{len(every)} methods; unleak.methods(NAME) describes one"]
        for kind, some in self.presets.items():
            names = textwrap.wrap(", ".join(p.name for p in some), 100, break_on_hyphens=False)
            lines += [f"  {len(some)} {kind}s", *(f"      {line}" for line in names)]
        return lines

    def data(self) -> dict[str, Any]:
        return {
            "methods": [
                {
                    "name": p.name, "kind": kind, "method": p.method.__name__, "summary": p.summary,
                    "source": p.source, "layouts": list(p.layouts),
                    "parameters": [
                        {"name": x.name, "type": x.type, "default": _plain(x.default)} for x in p.parameters
                    ],
                }
                for kind, some in self.presets.items()
                for p in some
            ]
        }  # fmt: skip


def methods(name: str | None = None) -> Methods:
    """The named methods: what they do, their source, their parameters, and the denoisers that they work on.

    Args:
        name: of one of them, or of a kind ("repair", "editor", "mitigation", "detector"); default: all.

    Raises BadInput: there is no such method.
    """
    kinds = {table.kind: tuple(table.values()) for table in TABLES}
    if name is None:
        return Methods(kinds)
    if name in kinds:
        return Methods({name: kinds[name]})
    table = _table(name)
    return Methods({table.kind: (table[name],)})


def preset(name: str, *args: Any, **parameters: Any) -> Any:
    """A named method with some of its parameters changed: ``preset("guard", tau=2.0)``, ``preset("patch", "mouse")``.

    Args:
        args: what the method acts on, such as the items of a repair.

    Returns:
        The intervention, for `unleak.attach`; of an editor its options, which `unleak.edit` takes by its name.

    Raises BadInput: no such method, no such parameter, or a value that the method refuses.
    """
    return _table(name)[name].make(*args, **parameters)


def _table(name: str) -> Presets[Any]:
    choose("method", name, [one for table in TABLES for one in table])
    return next(table for table in TABLES if name in table)


def _described(kind: str, preset: Preset) -> list[str]:
    lines = [f"{preset.name}: {preset.summary}", f"  {kind}, {preset.method.__name__}", f"  source: {preset.source}"]
    lines.append(f"  works on denoisers with {' or '.join(preset.layouts)}")
    return lines + ["  parameters:"] * bool(preset.parameters) + [f"    {parameter}" for parameter in preset.parameters]


def _plain(value: Any) -> Any:
    """A default as JSON data; what JSON cannot carry as text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return [_plain(one) for one in value] if isinstance(value, tuple | list) else str(value)
