"""What a pipeline without weights tells: its models stand on the meta device, where a call has shapes and no values.

The pipeline itself runs on the CPU. Every model of it gets its arguments on the meta device, and what it returns comes
back as random numbers of the same shapes. So a generation runs up to its first call of the denoiser, in which every
attention kernel is called.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from unleak.core.anatomy import Anatomy, Grid


class _DenoisedError(Exception):
    """The first call of the denoiser is over: nothing more is looked at."""


def has_weights(pipe: Any) -> bool:
    """Whether every model of a pipeline has values."""
    parts = (part for part in pipe.components.values() if isinstance(part, nn.Module))
    return not any(parameter.is_meta for part in parts for parameter in part.parameters())


def site_kinds(anatomy: Anatomy, call: Mapping[str, Any]) -> dict[str, str]:
    """Attention sites by the shapes of their kernel calls: "cross", "joint" or "self".

    Sites that call no kernel, and those whose tokens are neither cells nor text, are left out.

    Raises:
        Exception: whatever the pipeline raises where it decides by values.
    """
    calls: dict[str, tuple[int, int]] = {}
    inputs: dict[str, Any] = {}
    running: list[str] = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is Tensor.__bool__ and args[0].is_meta:
                return False  # "is nothing masked?" and its like
            if function is torch.nn.functional.scaled_dot_product_attention and running:
                q, k = (*args, *(kwargs or {}).values())[:2]
                calls.setdefault(running[-1], (q.shape[-2], k.shape[-2]))
            return function(*args, **(kwargs or {}))

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: running.append(name)

    def leave(*_: Any) -> None:
        running.pop()

    def on_meta(part: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if part is anatomy.denoiser and not inputs:
                inputs.update(inspect.signature(forward).bind(*args, **kwargs).arguments)
            with Watch():
                output = forward(*tree_map(_to_meta, args), **tree_map(_to_meta, kwargs))
            if part is anatomy.denoiser:
                raise _DenoisedError
            return tree_map(_made_up, output)

        return run

    with ExitStack() as stack:
        for part in anatomy.pipe.components.values():
            if isinstance(part, nn.Module):
                stack.callback(part.__dict__.pop, "forward", None)
                stack.callback(part.__dict__.pop, "_hf_hook", None)
                part.forward = on_meta(part, part.forward)
                part.__dict__["_hf_hook"] = SimpleNamespace(execution_device=torch.device("cpu"), offload=None)
        for site in anatomy.sites:
            stack.callback(site.module.register_forward_pre_hook(enter(site.name)).remove)
            stack.callback(site.module.register_forward_hook(leave).remove)
        with contextlib.suppress(_DenoisedError), torch.no_grad():
            anatomy.pipe(prompt="a red cup and a dog", output_type="latent", return_dict=False, **call)
    latents = next(value for value in tree_flatten(list(inputs.values()))[0] if isinstance(value, Tensor))
    lengths = {v.shape[1] for v in inputs.values() if isinstance(v, Tensor) and v.ndim == 3 and v is not latents}
    grid = Grid(latents if latents.ndim > 2 else latents[None], inputs, (call.get("height"), call.get("width")))
    kinds = {name: _kind(grid, lengths, *lengths_of) for name, lengths_of in calls.items()}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def _kind(grid: Grid, texts: set[int], queries: int, keys: int) -> str | None:
    if queries != keys:
        return "cross" if keys in texts else None
    if grid.of(queries):
        return "self"
    return "joint" if any(grid.of(queries - text) for text in texts) else None


def _to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def _made_up(value: Any) -> Any:
    """Random numbers of a tensor's shape and type."""
    return torch.randn(value.shape).to(value.dtype) if isinstance(value, Tensor) and value.is_meta else value
