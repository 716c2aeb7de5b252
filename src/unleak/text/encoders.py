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
    """Text encoders that are loaded, each with its tokenizer.

    That is the tokenizer of the same suffix, or the one inside a processor: of that name, or of any other name with the
    suffix where no tokenizer has it.
    """
    encoders = []
    for name, part in parts.items():
        suffix = name.removeprefix("text_encoder")
        if not name.startswith("text_encoder") or not isinstance(part, nn.Module):
            continue
        tokenizer = _tokenizer(parts.get(f"tokenizer{suffix}"))
        if tokenizer is None:
            beside = (_tokenizer(other) for key, other in parts.items() if suffix == _suffix(key))
            tokenizer = next((one for one in beside if one is not None), None)
        if tokenizer is not None:
            encoders.append(Encoder(name, suffix, part, tokenizer))
    return encoders


def _tokenizer(part: Any) -> Any:
    """The part itself if it turns token ids into text and back, or the tokenizer that it holds, or None."""
    held = getattr(part, "tokenizer", None) if not isinstance(part, nn.Module) else None
    for one in (held, part):
        if callable(one) and hasattr(one, "decode") and hasattr(one, "pad_token_id"):
            return one
    return None


def _suffix(name: str) -> str:
    """ "_2" of "processor_2", "" of "processor"."""
    stem, mark, number = name.rpartition("_")
    return mark + number if stem and number.isdecimal() else ""
