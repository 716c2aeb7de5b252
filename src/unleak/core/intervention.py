"""What one method may do to a run: its seams, when (`Window`) and where (`SiteFilter`).

An `Intervention` is a frozen dataclass; it overrides only the seams it needs and is carried out by
`unleak.attach`. Subclasses register themselves, so that `Intervention.from_dict` finds them.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from unleak.errors import BadInput, EmptyWindow, NoSite, choose

if TYPE_CHECKING:
    from torch import Tensor

    from unleak.core.anatomy import Anatomy, Site
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context
    from unleak.core.rows import Branch
    from unleak.text.call import TextCall

SEAMS = ("on_text", "branches", "on_attention", "on_module", "on_prediction", "on_latents")


@dataclass(frozen=True)
class Window:
    """A closed interval of trajectory fractions: 0 is the first denoising step, 1 the last.

    A run of a single step has fraction 0.
    """

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.start <= self.end <= 1.0:
            raise BadInput(f"a window needs 0 <= start <= end <= 1, not [{self.start}, {self.end}]")

    def __contains__(self, fraction: float) -> bool:
        return self.start - 1e-9 <= fraction <= self.end + 1e-9

    def among(self, n: int) -> list[int]:
        """Which of n steps (or layers), counted from 0, lie inside: i has the fraction i / (n - 1), an only one 0."""
        return [i for i in range(n) if (i / (n - 1) if n > 1 else 0.0) in self]

    def need(self, n: int, whose: str, what: str = "steps") -> list[int]:
        """`among`, if it holds any. Raises EmptyWindow."""
        inside = self.among(n)
        if not inside:
            raise EmptyWindow(
                f"{whose} acts from {self.start:g} to {self.end:g} of the run, and none of its {n} {what} lies there: "
                f"widen the window or take more {what}"
            )
        return inside


ALWAYS = Window()


@dataclass(frozen=True)
class SiteFilter:
    """Attention sites by exact names, globs (`"mid_block*"`) or a predicate on `Site`; empty chooses all."""

    patterns: tuple[str, ...] = ()
    predicate: Callable[[Site], bool] | None = None

    @classmethod
    def of(cls, which: SiteFilter | str | Callable[[Site], bool] | Iterable[str]) -> SiteFilter:
        """Whatever a user may write for `sites`, as a filter."""
        if isinstance(which, SiteFilter):
            return which
        if isinstance(which, str):
            return cls((which,))
        if callable(which):
            return cls(predicate=which)
        patterns = tuple(which)
        if not patterns:
            raise NoSite("an empty list of sites chooses nothing; leave `sites` out to choose all")
        return cls(patterns)

    def select(self, sites: Sequence[Site]) -> list[Site]:
        """The chosen sites, in the order of the denoiser.

        Raises:
            NoSite: some pattern, or the predicate, matched no site.
        """
        chosen = {site.name for site in sites} if not self.patterns else set()
        for pattern in self.patterns:
            matched = {site.name for site in sites if site.name == pattern or fnmatchcase(site.name, pattern)}
            if not matched:
                near = difflib.get_close_matches(pattern, [site.name for site in sites], n=3, cutoff=0.3)
                raise NoSite(f"no attention site is called {pattern!r}; the nearest are {near}")
            chosen |= matched
        picked = [s for s in sites if s.name in chosen and (self.predicate is None or self.predicate(s))]
        if not picked:
            raise NoSite(f"the predicate accepted none of the {len(sites)} attention sites")
        return picked


ALL = SiteFilter()
SiteLike: TypeAlias = "SiteFilter | str | Callable[[Site], bool] | Iterable[str]"
"""What a user may write for `sites`."""
CROSS, JOINT = "cross-attention", "joint attention"


@dataclass(frozen=True)
class Intervention:
    """Base of every method. Override the seams you need; every seam may return None for "nothing"."""

    window: Window = field(default=ALWAYS, kw_only=True)
    sites: SiteLike = field(default=ALL, kw_only=True)

    uses_text: ClassVar[bool] = False
    """True: addresses text tokens, so a truncated prompt is an error (overriding `on_text` implies it)."""

    uses_self_attention: ClassVar[bool] = False
    """True: edits the attention among image cells, so a site where it cannot be seen is an error. Else only sites that
    are given text must be seen; some denoisers have another mechanism among their cells."""

    merges: ClassVar[tuple[str, ...]] = ()
    """Labels of rows of which those with equal inputs may be computed once in a call; predictions are as without."""

    layouts: ClassVar[tuple[str, ...]] = (CROSS, JOINT)
    """Where text may reach the image for this method to work; on other denoisers it raises UnsupportedModel."""

    _registry: ClassVar[dict[str, type[Intervention]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Intervention._registry[_type_name(cls)] = cls

    def __post_init__(self) -> None:
        object.__setattr__(self, "sites", SiteFilter.of(self.sites))

    def on_text(self, ctx: Context, call: TextCall) -> Any:
        """The positive prompt was encoded: return a changed model output (same type and shapes) or None."""

    def branches(self, ctx: Context) -> Sequence[Branch] | None:
        """Extra rows for this denoiser call."""

    def on_attention(self, ctx: Context, site: AttentionCall) -> Any:
        """One attention call: return an edit, a list of edits, or None. Never execute it here."""

    def modules(self, anatomy: Anatomy) -> Sequence[str]:
        """Names of the denoiser's modules whose outputs `on_module` is asked about."""
        return ()

    def on_module(self, ctx: Context, name: str, output: Any) -> Any:
        """A module of `modules` has run: return a changed output (same type and shapes) or None."""

    def on_prediction(self, ctx: Context, preds: Mapping[str, Tensor]) -> Any:
        """The predictions of this step by branch name, each [images, ...].

        Return a tensor to settle the combined prediction (one intervention per session may), a mapping to
        replace predictions for those that follow, or None.
        """

    def on_latents(self, ctx: Context, latents: Tensor) -> Tensor | None:
        """After the scheduler's step: return replaced latents (same shape) or None."""

    def has(self, seam: str) -> bool:
        """Whether this intervention overrides `seam`."""
        return getattr(type(self), seam) is not getattr(Intervention, seam)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data with the type's name under "type".

        Raises:
            BadInput: a field holds something JSON cannot carry, such as a predicate.
        """
        pairs = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self) if f.init)
        return {"type": _type_name(type(self)), **{name: _encode(name, value) for name, value in pairs}}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Intervention:
        """The inverse of `to_dict`; the defining module must have been imported."""
        values = dict(data)
        name = values.pop("type", None)
        kind = Intervention._registry[choose("intervention", name, sorted(Intervention._registry))]
        return kind(**{key: _decode(value) for key, value in values.items()})


def _type_name(cls: type) -> str:
    """Bare for the project's own types, `module:name` for all others, so that names cannot clash."""
    return cls.__name__ if cls.__module__.startswith("unleak.") else f"{cls.__module__}:{cls.__qualname__}"


def _encode(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Intervention):
        return value.to_dict()
    if isinstance(value, Window):
        return {"type": "Window", "start": value.start, "end": value.end}
    if isinstance(value, SiteFilter) and value.predicate is None:
        return {"type": "SiteFilter", "patterns": list(value.patterns)}
    if isinstance(value, Mapping):
        return {str(key): _encode(name, item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_encode(name, item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type | SiteFilter):
        return _encode(name, dataclasses.asdict(value))  # decoded as a mapping, which its owner reads
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        return {"type": "Tensor", "dtype": str(value.dtype).rpartition(".")[2], "data": value.tolist()}
    raise BadInput(f"field {name!r} holds a {type(value).__name__}, which JSON cannot carry")


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    if not isinstance(value, Mapping):
        return value
    kind = value.get("type")
    if kind == "Window":
        return Window(value["start"], value["end"])
    if kind == "SiteFilter":
        return SiteFilter(tuple(value["patterns"]))
    if kind == "Tensor":
        import torch

        return torch.tensor(value["data"], dtype=getattr(torch, value["dtype"]))
    if kind in Intervention._registry:
        return Intervention.from_dict(value)
    return {key: _decode(item) for key, item in value.items()}
