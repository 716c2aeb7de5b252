"""Hooks that a guider puts on the denoiser for one of its calls: it leaves layers out, or perturbs their attention."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


class Perturbations:
    """The hooks of diffusers that came to a denoiser since this was made."""

    def __init__(self, denoiser: nn.Module) -> None:
        self._denoiser = denoiser
        self._before = {(module, hook) for module, _, hook in _hooks(denoiser)}

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
        return ((module, name) for module, name, hook in _hooks(self._denoiser) if (module, hook) not in self._before)


def _hooks(denoiser: nn.Module) -> Iterator[tuple[nn.Module, str, object]]:
    for module in denoiser.modules():
        registry = getattr(module, "_diffusers_hook", None)
        for name, hook in () if registry is None else registry.hooks.items():
            if not hook._is_stateful:  # those are caches
                yield module, name, hook
