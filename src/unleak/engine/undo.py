"""Hooks and shadows that are gone afterwards, even if Ctrl-C arrives while they are set or removed.

Two rules hold for everything that is installed: its undo is registered before it is done, and the undo may run twice.
Whatever is copied or pickled meanwhile is as it was before: a hook is copied as one that does nothing, a shadow as the
method under it.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

from torch import nn

Method = Callable[[Callable[..., Any], tuple, dict], Any]
"""(original, args, kwargs) -> what the call returns."""


class Undo:
    """What is installed, and how to take it away again."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], Any]] = []

    def __bool__(self) -> bool:
        return bool(self._steps)

    def add(self, step: Callable[[], Any]) -> None:
        """Register a step before doing what it undoes."""
        self._steps.append(step)

    def run(self) -> None:
        """Every step, the last one first. An interrupted step runs again; the interrupt is raised at the end."""
        interrupt = None
        while self._steps:
            try:
                while self._steps:
                    self._steps[-1]()
                    self._steps.pop()
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def hook(self, module: nn.Module, hook: Callable[..., Any], before: bool = False, always: bool = False) -> None:
        """A forward hook with keyword arguments, before or after the forward; `always`: also after an error."""
        hook = _Hook(hook)
        self.add(functools.partial(_unhook, module, hook))
        if before:
            module.register_forward_pre_hook(hook, with_kwargs=True)
        else:
            module.register_forward_hook(hook, with_kwargs=True, always_call=always)

    def shadow(self, owner: Any, name: str, method: Method) -> None:
        """Let `owner.name(...)` call `method(original, args, kwargs)`."""
        self._put(vars(owner), name, _Shadow(getattr(owner, name), vars(owner).get(name), method, (owner, name)))

    def entry(self, table: dict[Any, Callable[..., Any]], key: Any, method: Method) -> None:
        """Let the function `table[key]` call `method(original, args, kwargs)`."""
        self._put(table, key, _Shadow(table[key], table[key], method))

    def _put(self, space: dict[Any, Any], name: Any, shadow: _Shadow) -> None:
        def restore() -> None:
            shadow.alive = False
            while isinstance(top := space.get(name), _Shadow) and not top.alive:
                if top.before is None:
                    space.pop(name, None)
                else:
                    space[name] = top.before

        self.add(restore)
        space[name] = shadow

    def shadow_call(self, owner: Any, method: Callable[[Callable[..., Any], tuple, dict], Any]) -> None:
        """Let `owner(...)` call `method(original, args, kwargs)`. Python looks a call up in the class, so the owner
        gets a class of its own, which differs in the call alone."""
        shadow = _CallShadow(type(owner), method)

        def restore() -> None:
            shadow.alive = False
            while isinstance(top := vars(type(owner)).get("_shadow"), _CallShadow) and not top.alive:
                owner.__class__ = top.kind

        self.add(restore)
        owner.__class__ = shadow.watched()


class _Hook:
    """A hook of ours. Copies of its module have `_no_hook` instead."""

    def __init__(self, hook: Callable[..., Any]) -> None:
        self.hook = hook

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.hook(*args, **kwargs)

    def __reduce__(self) -> tuple:
        return _bare_hook, ()


def _bare_hook() -> Callable[..., None]:
    return _no_hook


def _no_hook(*args: Any, **kwargs: Any) -> None:
    """What a copy has in the place of a hook."""


class _Shadow:
    """A method in place of another. Under the shadow of a later session it outlives its own, and then does nothing."""

    def __init__(
        self, original: Callable[..., Any], before: Any, method: Method, owner: tuple[Any, str] | None = None
    ) -> None:
        functools.update_wrapper(self, original)  # also copies the attributes of a shadow below
        self.original, self.before, self.method, self.owner, self.alive = original, before, method, owner, True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.method(self.original, args, kwargs) if self.alive else self.original(*args, **kwargs)

    def __reduce__(self) -> tuple:
        assert self.owner is not None
        return _method_of, self.owner


class _CallShadow:
    """A class in place of another, as `_Shadow` is a method in place of another."""

    def __init__(self, kind: type, method: Callable[..., Any]) -> None:
        self.kind, self.method, self.alive = kind, method, True

    def watched(self) -> Any:
        def call(owner: Any, *args: Any, **kwargs: Any) -> Any:
            original = functools.partial(self.kind.__call__, owner)
            return self.method(original, args, kwargs) if self.alive else original(*args, **kwargs)

        def reduce(owner: Any, protocol: Any) -> tuple:
            return _without_attributes, (self.kind,), dict(vars(owner))

        kind = self.kind
        named = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
        return type(kind.__name__, (kind,), {**named, "__call__": call, "__reduce_ex__": reduce, "_shadow": self})


def _without_attributes(kind: type) -> Any:
    """An instance for a copy: of the class under the shadows, and still without attributes."""
    while isinstance(shadow := vars(kind).get("_shadow"), _CallShadow):
        kind = shadow.kind
    return object.__new__(kind)


def _method_of(owner: Any, name: str) -> Callable[..., Any]:
    """The method of the owner's class, bound to the owner (a copy, when a shadow is copied with it)."""
    return types.MethodType(getattr(type(owner), name), owner)


def _unhook(module: nn.Module, hook: Callable[..., Any]) -> None:
    """Remove a hook by itself: whoever is interrupted while registering it has no handle."""
    before: tuple[dict, ...] = module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs
    after: tuple[dict, ...] = (
        module._forward_hooks,
        module._forward_hooks_with_kwargs,
        module._forward_hooks_always_called,
    )
    for hooks, *flags in (before, after):
        for key in [key for key, other in hooks.items() if other is hook]:
            for table in (*flags, hooks):
                table.pop(key, None)
