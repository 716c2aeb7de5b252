"""Does a text encoder look ahead? Answered by what it does, not by what it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from unleak.errors import UnsupportedModel
from unleak.text.rows import last_layer

Encode = Callable[[list[str]], tuple[Tensor, Any]]
"""texts -> (ids [B, L], encoder output)."""

_known: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def is_causal(module: nn.Module, encode: Encode) -> bool:
    """True when rows before an edited token stay bit-identical, so that meaning flows left to right only.

    Two short texts of the same length that first differ at their last word are encoded, one by one; the answer is kept
    for as long as the module lives.
    """
    if module not in _known:
        _known[module] = _probe(encode)
    return _known[module]


def _probe(encode: Encode) -> bool:
    for texts in (("a a a", "a a b"), ("a a a", "a a")):
        (one_ids, one), (two_ids, two) = (encode([text]) for text in texts)
        if one_ids.shape != two_ids.shape:
            continue
        differ = (one_ids[0] != two_ids[0]).nonzero().flatten()
        if len(differ) and (j := int(differ[0])):
            return torch.equal(last_layer(one)[0, :j], last_layer(two)[0, :j])
    raise UnsupportedModel("This text encoder's tokenizer does not tell 'a a a' from 'a a b' after its first token.")
