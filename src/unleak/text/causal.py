"""Does a text encoder look ahead? Answered by what it does, not by what it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from unleak.errors import UnsupportedModel

Encode = Callable[[list[str]], tuple[Tensor, Any]]
"""texts -> (ids [B, L], encoder output)."""

_known: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def is_causal(module: nn.Module, encode: Encode) -> bool:
    """True when rows before an edited token stay bit-identical, so that meaning flows left to right only.

    Two short texts that first differ at their last word are encoded, one by one; the answer is kept for as
    long as the module lives.
    """
    if module not in _known:
        _known[module] = _probe(encode)
    return _known[module]


def _probe(encode: Encode) -> bool:
    (one_ids, one), (two_ids, two) = encode(["a a a"]), encode(["a a"])
    differ = (one_ids[0] != two_ids[0]).nonzero().flatten()
    if len(differ) == 0 or differ[0] == 0:
        raise UnsupportedModel("This text encoder's tokenizer does not tell 'a a a' from 'a a' after its first token.")
    j = int(differ[0])
    return torch.equal(one.last_hidden_state[0, :j], two.last_hidden_state[0, :j])
