"""The hooks of diffusers on a denoiser: caches, and what a guider puts there for one call to leave layers out or to
perturb their attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


class Perturbations:
    """The hooks of diffusers that came to a denoiser since this was made."""

    def __init__(self, denoiser: nn.Module) -> None:
        self._denoiser = denoiser
        self._before = {(module, hook) for module, _, hook in _passing(denoiser)}

    def names(self) -> list[str]:
        """What the hooks that are new are called; one name for each module that has it."""
        return [name for _, name in self._new()]

    def on(self, module: nn.Module) -> bool:
        """Whether a module has a hook that is new."""
        return any(other is module for other, _ in self._new())

    def remove(self) -> None:
        """Take away what the guider could not, because its call raised."""
        for module, name in list(self._new()):
            module._diffusers_hook.remove_hook(name, recurse=False)  # type: ignore[operator,union-attr]

    def _new(self) -> Iterator[tuple[nn.Module, str]]:
        return ((module, name) for module, name, hook in _passing(self._denoiser) if (module, hook) not in self._before)


def caches(denoiser: nn.Module) -> list[str]:
    """The hooks of diffusers in a denoiser that keep something from one call to the next."""
    return sorted({name for _, name, hook in _hooks(denoiser) if hook._is_stateful})


def _passing(denoiser: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """The hooks that are no caches."""
    return (each for each in _hooks(denoiser) if not each[2]._is_stateful)


def _hooks(denoiser: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    for module in denoiser.modules():
        registry = vars(module).get("_diffusers_hook")  # asked at every call, and a module's getattr is slow to say no
        for name, hook in () if registry is None else registry.hooks.items():
            yield module, name, hook
