"""What unleak wrote and reads again: its fields by their annotations, every number finite and in its range.

A type says what a file must hold: a dataclass or TypedDict whose annotations are plain types, unions, lists, fixed
tuples, dicts, `Any` (any JSON) and ``Annotated[float, Rule(...)]``. `conform` compares, `Saved` reads the file.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

from unleak.errors import BrokenFile

T = TypeVar("T")
MOST = 2**28  #: bytes of a file that is read as one document


@dataclass(frozen=True)
class Rule:
    """What holds of a value beside its type, and how to say so: "between 0 and 1"."""

    says: str
    holds: Callable[[Any], bool]


Share = Annotated[float, Rule("between 0 and 1", lambda x: 0 <= x <= 1)]
Count = Annotated[int, Rule("0 or more", lambda n: n >= 0)]
Number = Annotated[int, Rule("1 or more", lambda n: n >= 1)]
Seed = Annotated[int, Rule("0 or more and below 2**63", lambda n: 0 <= n < 2**63)]
Name = Annotated[str, Rule("a name", lambda text: bool(text.strip()))]


def length(least: int, most: int | None = None) -> Rule:
    """So many entries. `most`: default: any number from `least` on."""
    says = f"{least} or more entries" if most is None else f"{least} entries" if least == most else ""
    return Rule(says or f"{least} to {most} entries", lambda x: least <= len(x) and (most is None or len(x) <= most))


class Wrong(Exception):
    """A value is not what its annotation says. `at` is its place ("compared.norm.auroc[1]"), "" for the whole."""

    def __init__(self, at: str, says: str) -> None:
        super().__init__(at, says)
        self.at, self.says = at, says

    def __str__(self) -> str:
        return f"the field {self.at} {self.says}" if self.at else f"it {self.says}"


@dataclass(frozen=True)
class Saved(Generic[T]):
    """A kind of file.

    Attributes:
        what: how one is called: "calibration". of: the type of what it holds.
        remedy: what to do about a bad one: "make one with `unleak calibrate`".
        schema: what its field ``schema`` says, "unleak/<kind>/<version>"; None: it has no such field.
        check: raises ValueError or Wrong where the fields do not fit together.
    """

    what: str
    of: type[T]
    remedy: str
    schema: str | None = None
    check: Callable[[T], None] | None = None

    def load(self, path: str | Path) -> T:
        """What the file holds. Raises BrokenFile: it cannot be read; a field is missing or wrong."""
        return self.parse(read_document(path, self.what), path)

    def parse(self, data: Any, path: str | Path) -> T:
        """What plain data from `path`, JSON text, or an object of it, hold. Raises BrokenFile."""
        try:
            value = parse_json(data) if isinstance(data, str | bytes) else data
            if self.schema is not None:
                value = _without_schema(value, self.schema)
            result: T = conform(self.of, value)
            if self.check is not None:
                self.check(result)
        except RecursionError:
            raise self.broken(path, "it is nested too deeply") from None
        except (Wrong, ValueError) as e:
            raise self.broken(path, e) from None
        return result

    def broken(self, path: str | Path, problem: object) -> BrokenFile:
        """The error that says so of a file."""
        return BrokenFile(f"{str(path)!r} is no {self.what}, or is damaged: {problem}; {self.remedy}")


def _without_schema(value: Any, schema: str) -> dict[str, Any]:
    """The fields but `schema` and `versions`, which no type has."""
    if not isinstance(value, dict):
        raise Wrong("", f"holds {_shown(value)}, not a JSON object of schema {schema}")
    there, (kind, _, version) = value.get("schema"), schema.rpartition("/")
    if there != schema:
        newer = isinstance(there, str) and there.rpartition("/")[0] == kind
        hint = f", and this unleak reads version {version}" if newer else ""
        raise Wrong("schema", f"is {_shown(there)}, not {schema!r}{hint}" if "schema" in value else "is missing")
    return {name: field for name, field in value.items() if name not in ("schema", "versions")}


def read_document(path: str | Path, what: str = "file") -> bytes:
    """All bytes of a regular file of at most `MOST`. Raises BrokenFile; `what` names it."""
    file = regular(path, what)
    try:
        with file.open("rb") as stream:
            data = stream.read(MOST + 1)
    except OSError as e:
        raise _unread(path, what, e.strerror or e) from e
    if len(data) > MOST:
        raise _unread(path, what, f"it is larger than {MOST} bytes")
    return data


def regular(path: str | Path, what: str = "file") -> Path:
    """The path of a regular file. Raises BrokenFile: there is none."""
    try:
        file = Path(path)
        if not file.is_file():
            file.stat()
            raise _unread(path, what, "it is a folder" if file.is_dir() else "it is no regular file")
    except (OSError, ValueError) as e:
        raise _unread(path, what, getattr(e, "strerror", None) or e) from e
    return file


def _unread(path: str | Path, what: str, why: object) -> BrokenFile:
    return BrokenFile(f"cannot read the {what} {str(path)!r}: {why}")


def parse_json(text: str | bytes) -> Any:
    """A JSON document, in UTF-8, -16 or -32. Raises ValueError: it is none, or an object has a field twice."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as e:
        raise ValueError(f"it cannot be read as JSON ({e})") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {next(n for n in names if names.count(n) > 1)!r} stands there twice")
    return fields


def conform(hint: Any, value: Any, at: str = "") -> Any:
    """JSON data as the annotation `hint` says: lists become tuples and objects dataclasses where it says so.

    Raises Wrong: another type (True is no number, "1" neither), NaN or infinity, a wrong length, a missing or an
    unknown field, a broken `Rule`.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        result = conform(args[0], value, at)
        for rule in args[1:]:
            if not rule.holds(result):
                raise Wrong(at, f"is {_shown(value)}, not {rule.says}")
        return result
    if origin in (Union, UnionType):
        return _one_of(args, value, at)
    if origin is Literal:
        if not any(value == one and type(value) is type(one) for one in args):
            raise Wrong(at, f"is {_shown(value)}, not {' or '.join(map(repr, args))}")
        return value
    if origin is tuple:
        entries = [args[0]] * len(_list(value, at)) if args[1:] == (...,) else args
        if len(_list(value, at)) != len(entries):
            raise Wrong(at, f"is {_shown(value)}, not {len(entries)} entries")
        return tuple(conform(one, x, f"{at}[{i}]") for i, (one, x) in enumerate(zip(entries, value, strict=True)))
    if origin in (list, Sequence, Iterable):
        return [conform(args[0], x, f"{at}[{i}]") for i, x in enumerate(_list(value, at))]
    if origin in (dict, Mapping):
        return {_key(k, at): conform(args[1], x, _inside(at, k)) for k, x in _fields(value, at).items()}
    if dataclasses.is_dataclass(hint) or is_typeddict(hint):
        return _record(hint, value, at)
    return _plain(hint, value, at)


def _one_of(hints: Sequence[Any], value: Any, at: str) -> Any:
    wrong: list[Wrong] = []
    for hint in hints:
        try:
            return conform(hint, value, at)
        except Wrong as e:
            wrong.append(e)
    deepest = max(wrong, key=lambda e: (len(e.at), "null" not in e.says))
    raise deepest


def _record(kind: Any, value: Any, at: str) -> Any:
    hints, needed = _shape(kind)
    fields = _fields(value, at)
    for name in fields:
        if name not in hints:
            near = difflib.get_close_matches(str(name), hints, n=1)
            raise Wrong(_inside(at, name), "is unknown" + (f"; did you mean {near[0]!r}?" if near else ""))
    for name in needed:
        if name not in fields:
            raise Wrong(_inside(at, name), "is missing")
    return kind(**{name: conform(hints[name], x, _inside(at, name)) for name, x in fields.items()})


@lru_cache(None)
def _shape(kind: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The annotation of each field, and which of them must be there."""
    hints = get_type_hints(kind, include_extras=True)
    if is_typeddict(kind):
        return hints, tuple(name for name in hints if name in kind.__required_keys__)
    fields = [f for f in dataclasses.fields(kind) if f.init]
    missing = dataclasses.MISSING
    needed = tuple(f.name for f in fields if f.default is missing and f.default_factory is missing)
    return {f.name: hints[f.name] for f in fields}, needed


def _plain(hint: Any, value: Any, at: str) -> Any:
    if hint is not Any and hint not in _CALLED and isinstance(value, hint):
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, int) and abs(value) >= 2**63:
        raise Wrong(at, "is too large a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise Wrong(at, f"is {value}, not a finite number")
    if hint is Any:
        return _any(value, at)
    if hint is float and number:
        return float(value)
    if hint is str and isinstance(value, str):
        return _key(value, at)
    if (hint is int and number and isinstance(value, int)) or (hint in (bool, NoneType) and isinstance(value, hint)):
        return value
    raise Wrong(at, f"is {_shown(value)}, not {_CALLED.get(hint, hint.__name__)}")


_CALLED = {float: "a number", int: "a whole number", str: "text", bool: "true or false", NoneType: "null"}


def _any(value: Any, at: str) -> Any:
    """Any JSON, with finite numbers."""
    if isinstance(value, dict):
        return {_key(k, at): conform(Any, x, _inside(at, k)) for k, x in value.items()}
    if isinstance(value, list):
        return [conform(Any, x, f"{at}[{i}]") for i, x in enumerate(value)]
    return _key(value, at) if isinstance(value, str) else value


def _key(text: Any, at: str) -> Any:
    """Text that can be written again. Raises Wrong for half a surrogate pair."""
    if not isinstance(text, str) or any("\ud800" <= c <= "\udfff" for c in text):
        raise Wrong(at, f"holds {_shown(text)}, which is no text")
    return text


def _list(value: Any, at: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise Wrong(at, f"is {_shown(value)}, not a list")
    return value


def _fields(value: Any, at: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise Wrong(at, f"is {_shown(value)}, not a JSON object")
    return value


def _inside(at: str, name: Any) -> str:
    plain = isinstance(name, str) and name.isidentifier()
    return (f"{at}.{name}" if at else name) if plain else f"{at}[{_shown(name)}]"


def _shown(value: Any) -> str:
    """As JSON has it, at most 60 characters."""
    text = json.dumps(value, default=repr) if isinstance(value, bool | NoneType) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
