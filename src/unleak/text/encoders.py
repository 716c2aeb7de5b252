"""The text encoders of a pipeline, each with its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, eq=False)
class Encoder:
    """One text encoder with its tokenizer; `suffix` ("", "_2", ...) is that of its prompt argument."""

    name: str
    suffix: str
    module: nn.Module
    tokenizer: Any


def text_encoders(parts: Mapping[str, Any]) -> list[Encoder]:
    """Text encoders that are loaded together with the tokenizer of the same suffix."""
    encoders = []
    for name, part in parts.items():
        suffix = name.removeprefix("text_encoder")
        tokenizer = parts.get(f"tokenizer{suffix}")
        if name.startswith("text_encoder") and isinstance(part, nn.Module) and tokenizer is not None:
            encoders.append(Encoder(name, suffix, part, tokenizer))
    return encoders
