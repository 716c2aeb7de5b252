"""`unleak.hook(...)`: an intervention of functions, for a look or a trial that deserves no class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from unleak.core.intervention import ALL, ALWAYS, SEAMS, Intervention, SiteFilter, SiteLike, Window
from unleak.errors import BadInput, choose

if TYPE_CHECKING:
    from unleak.core.anatomy import Anatomy


def hook(
    *, window: Window = ALWAYS, sites: SiteLike = ALL, modules: Sequence[str] = (), **seams: Callable[..., Any]
) -> Intervention:
    """An intervention of functions: `hook(on_attention=lambda ctx, site: unleak.KeyScale([1], 2.0))`.

    Args:
        window, sites: when, and at which attention sites.
        modules: names of the denoiser's modules that `on_module` is asked about.
        seams: functions by the name of their seam, with the arguments and returned values of `Intervention`'s methods.

    Raises:
        BadInput: no seam has that name, something is no function, or `on_module` and `modules` do not come together.
    """
    for name, function in seams.items():
        if not callable(function):
            raise BadInput(f"{choose('seam', name, SEAMS)} is a {type(function).__name__}; give a function")
        choose("seam", name, SEAMS)
    if ("on_module" in seams) != bool(modules):
        raise BadInput("on_module and modules=[names of the denoiser's modules] belong together")
    return Hook(seams, tuple(modules), window=window, sites=SiteFilter.of(sites))


@dataclass(frozen=True, eq=False)
class Hook(Intervention):
    """What `hook` makes."""

    seams: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, function in self.seams.items():
            object.__setattr__(self, name, function)  # stands before the method of the class

    def has(self, seam: str) -> bool:
        return seam in self.seams

    def modules(self, anatomy: Anatomy) -> Sequence[str]:
        return self.names

    def to_dict(self) -> dict[str, Any]:
        """Raises BadInput."""
        raise BadInput("functions cannot be saved; write a class of Intervention with these seams, which can")
