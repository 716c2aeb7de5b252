"""Named methods with the defaults of their source. Every room has one table of them in its `presets.py`.

The command line, the benchmarks, `unleak.methods()`, help texts and docs read these tables and nothing else, so a new
method is its file and one line in the table of its room.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from unleak.core.intervention import Window
from unleak.errors import BadInput, choose


@dataclass(frozen=True)
class Parameter:
    """One setting of a method: its name, its type as written in the code, and the preset's value of it."""

    name: str
    type: str
    default: Any

    def __str__(self) -> str:
        return f"{self.name}: {self.type} = {self.default!r}"


@dataclass(frozen=True)
class Preset:
    """One named method.

    Attributes:
        name: as it is typed. method: the dataclass that carries it out; its fields are the parameters.
        fields: values in which the preset departs from the dataclass's defaults.
        summary: what it does, in one sentence. source: paper and section or equation, or the release.
        hidden: fields that the caller fills, such as the items of the prompt; no parameters of the preset.
    """

    name: str
    method: type[Any]
    summary: str
    source: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """What `--set` may change, in the order of the dataclass."""
        return tuple(
            Parameter(f.name, str(f.type), self.fields.get(f.name, _default(f)))
            for f in dataclasses.fields(self.method)
            if f.init and f.name not in self.hidden
        )

    @property
    def layouts(self) -> tuple[str, ...]:
        """Where text may reach the image for it to work, as the method's class says: "cross-attention", ..."""
        layouts: tuple[str, ...] = self.method.layouts
        return layouts

    def settings(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The preset's own fields with some of its parameters changed. Raises BadInput: no such parameter."""
        known = [parameter.name for parameter in self.parameters]
        for name in changes:
            choose(f"parameter of {self.name!r}", name, known)
        return {**self.fields, **changes}

    def make(self, *args: Any, **changes: Any) -> Any:
        """The method, with some of its parameters changed; `args` fill the hidden fields in their order.

        Raises BadInput: no such parameter, or a value that the method refuses.
        """
        return self.method(**dict(zip(self.hidden, args, strict=False)), **self.settings(changes))

    def parse(self, assignments: Sequence[str]) -> dict[str, Any]:
        """``["tau=2.5", "sites=mid_block*"]`` as values of the parameters' types, for `--set name=value`.

        A value is read as JSON where the parameter is no text (numbers, true, false, null, lists), else as it stands.
        Raises BadInput: no `name=value`, no such parameter, or a value of another type.
        """
        values: dict[str, Any] = {}
        types = {parameter.name: parameter.type for parameter in self.parameters}
        for assignment in assignments:
            name, equals, text = assignment.partition("=")
            if not equals or not name:
                raise BadInput(f"cannot read the setting {assignment!r}: write name=value, such as tau=2.5")
            self.settings({name: None})
            values[name] = _value(name, text, types[name])
        return values


P = TypeVar("P", bound=Preset)


class Presets(Mapping[str, P], Generic[P]):
    """A room's table of presets by name, in the order in which they are shown.

    `kind` is what one of them is called: "repair", "editor", "mitigation", "detector".
    """

    def __init__(self, kind: str, presets: Iterable[P]) -> None:
        self.kind = kind
        self._by_name = {preset.name: preset for preset in presets}

    def __getitem__(self, name: str) -> P:
        """Raises BadInput, with the nearest name and all that there are."""
        return self._by_name[choose(self.kind, name, self._by_name)]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)


def _default(f: dataclasses.Field[Any]) -> Any:
    if f.default is not dataclasses.MISSING:
        return f.default
    factory: Callable[[], Any] | Any = f.default_factory
    return factory() if factory is not dataclasses.MISSING else None


_ACCEPTED: dict[str, tuple[type, ...]] = {
    "bool": (bool,), "int": (int,), "float": (int, float), "None": (type(None),), "tuple": (list,), "Sequence": (list,),
    "list": (list,), "Subset": (dict,), "SiteLike": (list,), "SiteFilter": (list,),
}  # fmt: skip
"""Types as written -> what JSON may hold for them."""
_TEXT = ("str", "SiteLike", "SiteFilter")
"""Types that a text is a value of."""


def _value(name: str, text: str, written: str) -> Any:
    """A command line's text as a value of a type as written ("float | None", "tuple[str, ...]", "str").

    A `Window` is written 0:0.5 or [0, 0.5]. Raises BadInput.
    """
    kinds = [kind.strip().partition("[")[0] for kind in written.split("|")]
    value = _json(text)
    if kinds == ["Any"]:
        return text if value is ... else value
    if kinds == ["Window"]:
        return _window(name, text)
    accepted = tuple(kind for k in kinds for kind in _ACCEPTED.get(k, ()))
    fits = isinstance(value, accepted) and (bool in accepted or not isinstance(value, bool))
    if fits and not (isinstance(value, float) and not math.isfinite(value)):
        return tuple(value) if isinstance(value, list) else value
    if not any(kind in _TEXT for kind in kinds):
        raise BadInput(f"{name}={text}: {name} is a {written}")
    return text


def _window(name: str, text: str) -> Window:
    """ "0:0.5" or "[0, 0.5]". Raises BadInput."""
    ends = _json("[{}, {}]".format(*text.split(":"))) if text.count(":") == 1 else _json(text)
    if isinstance(ends, list) and len(ends) == 2 and all(type(end) in (int, float) for end in ends):
        return Window(*ends)
    raise BadInput(f"{name}={text}: write the share of the steps where it begins and where it ends, such as 0:0.5")


def _json(text: str) -> Any:
    """What the text says as JSON; Ellipsis where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return ...
