"""Attention of image queries to a few text tokens, without the full map.

A column of the map needs only the log-sum-exp of each query's logits, ``A[i, j] = exp(s q_i k_j - lse_i)``.
The fused kernels compute it anyway; where they do not apply it is built chunk by chunk.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from unleak.errors import NotFinite

CHUNK = 1 << 24
"""Largest number of logits held at once when the log-sum-exp is built in chunks (64 MiB in fp32)."""


R = TypeVar("R")


def _as_given(function: Callable[..., R]) -> Callable[..., R]:
    """Autocast would compute a log-sum-exp in half precision; here numbers keep the precision they come in."""

    @functools.wraps(function)
    def outside_autocast(q: Tensor, *args: Any, **kwargs: Any) -> R:
        if not torch.is_autocast_enabled(q.device.type):
            return function(q, *args, **kwargs)
        with torch.autocast(q.device.type, enabled=False):
            return function(q, *args, **kwargs)

    return outside_autocast


@_as_given
def columns(
    q: Tensor, k: Tensor, tokens: Sequence[int] | slice | Tensor, scale: float, lse: Tensor, mask: Tensor | None
) -> Tensor:
    """Probabilities of some key columns.

    Args:
        q: queries [B, H, N, d].
        k: keys [B, H, K, d].
        tokens: T key positions; a slice or a tensor on the device needs no copy from the host.
        scale: factor of the logits.
        lse: log-sum-exp of each query's logits [B, H, N].
        mask: additive mask broadcastable to [B, H, N, K], already part of `lse`, or None.

    Returns:
        [B, H, N, T] in fp32 (fp64 for fp64 input), each in [0, 1].
    """
    index = tokens if isinstance(tokens, slice | Tensor) else list(tokens)
    logits = _wide(q) @ _wide(k[:, :, index]).mT * scale
    if mask is not None:
        logits = logits + mask.expand(*mask.shape[:-1], k.shape[2])[..., index]
    return torch.exp(logits - lse[..., None])


@_as_given
def shares(q: Tensor, k: Tensor, scale: float, mask: Tensor | None = None, chunk: int = CHUNK) -> Tensor:
    """Attention of the average query to each key [B, H, K], holding at most `chunk` logits at a time."""
    size = max(1, chunk // (q.shape[0] * q.shape[1] * k.shape[2]))
    total = torch.zeros(*k.shape[:-1], dtype=_wide(k).dtype, device=k.device)
    for start in range(0, q.shape[2], size):
        part = slice(start, start + size)
        here = mask if mask is None or mask.shape[-2] == 1 else mask[..., part, :]
        logits = _wide(q[:, :, part]) @ _wide(k).mT * scale
        total += torch.softmax(logits if here is None else logits + here, dim=-1).sum(2)
    return total / q.shape[2]


@_as_given
def log_sum_exp(q: Tensor, k: Tensor, scale: float, mask: Tensor | None = None, chunk: int = CHUNK) -> Tensor:
    """Log-sum-exp [B, H, N] of each query's logits, holding at most `chunk` logits at a time."""
    size = max(1, chunk // (q.shape[0] * q.shape[1] * k.shape[2]))
    keys = _wide(k).mT
    parts = []
    for start in range(0, q.shape[2], size):
        logits = _wide(q[:, :, start : start + size]) @ keys * scale
        if mask is not None:
            logits = logits + (mask if mask.shape[-2] == 1 else mask[..., start : start + size, :])
        parts.append(torch.logsumexp(logits, dim=-1))
    return torch.cat(parts, dim=-1)


@_as_given
def peaks(q: Tensor, k: Tensor, scale: float, mass: bool = False, chunk: int = CHUNK) -> Tensor:
    """The largest logit that each key gets from any query, or with `mass` the largest probability.

    Args:
        q: queries [B, H, N, d], k: keys [B, H, K, d]; computed in their dtype.
        scale: factor of the logits.
        chunk: at most this many logits are held at a time.

    Returns:
        [B, H, K].
    """
    size = max(1, chunk // (q.shape[0] * q.shape[1] * k.shape[2]))
    largest = None
    for start in range(0, q.shape[2], size):
        logits = q[:, :, start : start + size] @ k.mT * scale
        most = (torch.softmax(logits, dim=-1) if mass else logits).amax(2)
        largest = most if largest is None else torch.maximum(largest, most)
    assert largest is not None, "no queries"
    return largest


def fused(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor] | None:
    """Output and log-sum-exp of the kernel that `scaled_dot_product_attention` itself would choose.

    The output is bitwise that of the plain call. None where that kernel offers no log-sum-exp, where gradients
    are wanted, or where it fails a first trial against `log_sum_exp`.
    """
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return None
    kernel = (q.device.type, torch._fused_sdp_choice(q, k, v, None, 0.0, False, scale=scale))
    if kernel not in _KERNELS or not _sound(kernel, q.device, q.dtype, q.shape[-1]):
        return None
    return _run(kernel, q, k, v, scale)


_KERNELS: dict[tuple[str, int], Callable[..., Any]] = {
    ("cpu", 1): lambda q, k, v, s: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=s),
    ("cuda", 1): lambda q, k, v, s: torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=s),
    ("cuda", 2): lambda q, k, v, s: torch.ops.aten._scaled_dot_product_efficient_attention(
        q, k, v, None, True, scale=s
    ),
    ("cuda", 3): lambda q, k, v, s: torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, scale=s),
}
"""By device and value of `torch._fused_sdp_choice` (1 flash, 2 memory-efficient, 3 cuDNN)."""


def _run(kernel: tuple[str, int], q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse, *_ = _KERNELS[kernel](q, k, v, scale)
    return out, lse.reshape(*q.shape[:2], -1)[..., : q.shape[2]]


@functools.cache
def _sound(kernel: tuple[str, int], device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Try a kernel once on a small problem: these operators are not a stable interface of torch."""
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, width, generator=random).to(device, dtype) for n in (40, 24, 24))
    try:
        out, lse = _run(kernel, q, k, v, 0.3)
    except RuntimeError:
        return False
    same = torch.allclose(_wide(lse), log_sum_exp(q, k, 0.3), atol=1e-2)
    return same and torch.allclose(out, F.scaled_dot_product_attention(q, k, v, scale=0.3), atol=1e-2)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class RunningMean:
    """Means of tensors by key, one running value per key, on the device of what is added."""

    def __init__(self) -> None:
        self._mean: dict[Hashable, Tensor] = {}
        self._count: dict[Hashable, int] = {}

    def add(self, key: Hashable, value: Tensor) -> None:
        """Take one more value; all values of a key have one shape."""
        count = self._count[key] = self._count.get(key, 0) + 1
        if count == 1:
            self._mean[key] = value.detach().clone()
        else:
            self._mean[key].lerp_(value.detach(), 1.0 / count)

    def __iter__(self) -> Iterator[Hashable]:
        """The keys, in the order of their first value."""
        return iter(self._mean)

    def mean(self, key: Hashable) -> Tensor:
        """The mean of all values of `key`.

        Raises:
            NotFinite: some value was NaN or infinite (checked here, once, to keep the device busy before).
        """
        if not torch.isfinite(self._mean[key]).all():
            raise NotFinite(f"the mean of {key!r} is not finite; run the model in a wider dtype")
        return self._mean[key]

    def count(self, key: Hashable) -> int:
        return self._count.get(key, 0)


def default_scale(q: Tensor, scale: float | None) -> float:
    """The factor of the logits: as given to the call, or 1 / sqrt(head width)."""
    return 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
