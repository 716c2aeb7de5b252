"""See, and if asked replace, the attention of chosen modules without touching the modules.

Forward hooks say which attention module is running. While one is, the call that its processor ends in is seen, after
projections, norms and rotary embedding: `F.scaled_dot_product_attention` by a `TorchFunctionMode`, and the kernels of
diffusers' attention dispatcher that do not end there (flex, flash, sage ...) by wrapped entries of its registry. A call
that nobody edits runs in the user's kernel; an edited one runs in `F.scaled_dot_product_attention`.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from unleak.core.anatomy import Site
from unleak.engine.undo import Undo
from unleak.errors import Unobservable

SDPA = F.scaled_dot_product_attention
ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


@dataclass(eq=False)
class Running:
    """An attention module that is running now: what it was given, and whether its attention was observed.

    `rows` counts the batch rows of its calls so far, where it attends over them in groups. `other_kernel`: it called
    one that does not end in `scaled_dot_product_attention`.
    """

    site: Site
    hidden: Tensor | None
    text: Tensor | None
    mode: TorchFunctionMode
    calls: int = 0
    rows: int = 0
    observed: bool = False
    other_kernel: bool = False

    @property
    def has_text(self) -> bool:
        """Whether the module was given other rows beside its own."""
        return self.text is not None and self.text is not self.hidden


Handler = Callable[[Running, Callable[[], Tensor], dict[str, Any]], Tensor | None]
"""(what runs, the call as it stands, its arguments by name) -> output, or None if it is not the site's own call."""


class _Watch(TorchFunctionMode):
    """While it is on, `handle` gets every attention call. It belongs to one tap."""

    def __init__(self, tap: Tap, handle: Callable[[tuple, dict], Tensor]) -> None:
        super().__init__()
        self.tap, self.handle = tap, handle

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is SDPA or func is F.scaled_dot_product_attention:
            return self.handle(args, kwargs or {})
        return func(*args, **(kwargs or {}))


class Tap:
    """Watches attention sites. `watched(site)` is called at each entry of one; `handler` gets each attention call.

    `needed(running)`: whether a site that ends without an attention call that the handler took is an error.
    """

    def __init__(self, watched: Callable[[Site], bool], handler: Handler, needed: Callable[[Running], bool]) -> None:
        self._watched, self._handler, self._needed = watched, handler, needed
        self._running: list[Running] = []
        self._paused = False
        self._modes: list[TorchFunctionMode] | None = None

    def install(self, undo: Undo, sites: Iterable[Site]) -> None:
        """Hook the sites until `undo` runs."""
        undo.add(self.reset)
        for site in sites:
            undo.hook(site.module, _for_site(self._enter, site), before=True)
            undo.hook(site.module, _for_site(self._leave, site), always=True)
        backends = kernels()
        for name in backends:
            undo.entry(backends, name, self._dispatched)

    def reset(self) -> None:
        """Forget modules whose forward was left without its exit hook (KeyboardInterrupt)."""
        if self._running:
            self._close_pops()
        self._running, self._paused = [], False
        stack = _get_current_function_mode_stack()
        if self._modes is None and any(self._owns(mode) for mode in stack):
            self._modes = [mode for mode in stack if not self._owns(mode)]
        if self._modes is not None:  # stays until all are back, so that an interrupt here loses none
            while torch._C._len_torch_function_stack():
                torch._C._pop_torch_function_stack()
            for mode in self._modes:
                torch._C._push_on_torch_function_stack(mode)
            self._modes = None

    def _close_pops(self) -> None:
        """Let torch put our modes back now, not later.

        `handle_torch_function` takes a mode off the stack in a generator. An interrupt just after that leaves the
        generator suspended until the exception is freed, which is after the session: then it would put the mode back.
        """
        for found in gc.get_objects():
            if not isinstance(found, types.GeneratorType) or inspect.getgeneratorstate(found) != inspect.GEN_SUSPENDED:
                continue
            if any(self._owns(value) for value in inspect.getgeneratorlocals(found).values()):
                found.close()

    def _owns(self, mode: object) -> bool:
        return isinstance(mode, _Watch) and mode.tap is self

    def _enter(self, site: Site, args: tuple, kwargs: dict) -> None:
        if self._paused or not self._watched(site):
            return
        hidden = kwargs.get("hidden_states", args[0] if args else None)
        text = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
        text = text[0] if isinstance(text, tuple | list) else text
        running = Running(site, hidden, text, _Watch(self, self._attend))
        self._running.append(running)
        running.mode.__enter__()

    def _leave(self, site: Site, args: tuple, kwargs: dict, output: Any) -> None:
        if not self._running or self._running[-1].site is not site or self._paused:
            return
        running = self._running.pop()
        running.mode.__exit__(None, None, None)
        if output is not None and not running.observed and self._needed(running):
            raise unreadable(site) if running.calls else unobservable(site)

    @torch.compiler.disable
    def _attend(self, args: tuple, kwargs: dict) -> Tensor:
        named = {**dict(zip(ARGUMENTS, args, strict=False)), **kwargs}
        return self._handled(named, lambda: SDPA(*args, **kwargs))

    @torch.compiler.disable
    def _dispatched(self, original: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        """A kernel of diffusers' dispatcher, on queries, keys and values [B, L, H, d]."""
        if not self._running or self._paused:
            return original(*args, **kwargs)
        running = self._running[-1]
        before = running.calls
        output = original(*args, **kwargs)
        if running.calls > before:  # it ended in the call that is watched anyway
            return output
        running.other_kernel = True
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        if not isinstance(output, Tensor):
            raise unobservable(running.site)
        named = {name: given[name] for name in ARGUMENTS if given.get(name) is not None}
        named |= {name: named[name].transpose(1, 2) for name in ("query", "key", "value")}
        if (mask := named.get("attn_mask")) is not None and not isinstance(mask, Tensor):
            raise unobservable(running.site)
        if mask is not None and mask.ndim == 2:
            named["attn_mask"] = mask[:, None, None, :]
        try:
            running.mode.__exit__(None, None, None)  # what the handler calls is not the site's own call
            return self._handled(named, lambda: output.transpose(1, 2)).transpose(1, 2)
        finally:
            running.mode.__enter__()

    def _handled(self, named: dict[str, Any], plain: Callable[[], Tensor]) -> Tensor:
        running = self._running[-1]
        running.calls += 1
        out = self._handler(running, plain, named)
        if out is None:
            return plain()
        running.observed = True
        return out

    def capture(self, running: Running, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values the running cross site makes of other text rows [n, L, D] or [L, D]."""
        assert running.hidden is not None
        text = text[None] if text.ndim == 2 else text
        captured: list[tuple[Tensor, Tensor]] = []

        def keep(args: tuple, kwargs: dict) -> Tensor:
            named = {**dict(zip(ARGUMENTS, args, strict=False)), **kwargs}
            if named["key"].shape[2] == text.shape[1]:
                captured.append((named["key"], named["value"]))
            return SDPA(*args, **kwargs)

        one = running.hidden[:1, :1].expand(len(text), 1, -1)
        with self.paused(), _Watch(self, keep):
            running.site.module(one, encoder_hidden_states=text.to(one))
        if not captured:
            raise unobservable(running.site)
        return captured[0]

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let calls of the sites pass unseen."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False


def _for_site(method: Callable[..., None], site: Site) -> Callable[..., None]:
    @torch.compiler.disable
    def hook(module: nn.Module, *rest: Any) -> None:
        method(site, *rest)

    return hook


def kernels() -> dict[Any, Callable[..., Any]]:
    """The kernels of diffusers' attention dispatcher by name: its own table; empty in versions without one."""
    try:
        from diffusers.models.attention_dispatch import _AttentionBackendRegistry as registry
    except ImportError:
        return {}
    table: dict[Any, Callable[..., Any]] = registry._backends
    return table


def unobservable(site: Site) -> Unobservable:
    processor = type(getattr(site.module, "processor", None)).__name__
    return Unobservable(
        f"attention module {site.name} (processor {processor}) ran without scaled_dot_product_attention, so "
        "nothing can be seen or edited there. Use the default attention: "
        "`pipe.disable_attention_slicing()`, `pipe.disable_xformers_memory_efficient_attention()`, "
        "`denoiser.set_attn_processor(AttnProcessor2_0())` or `denoiser.set_attention_backend('native')`"
    )


def unreadable(site: Site) -> Unobservable:
    return Unobservable(
        f"attention module {site.name} mixes queries and keys in a way that is neither cross, joint nor "
        "self-attention; leave it out of `sites`"
    )
