"""One text encoder's call on the positive prompt, and what a generation's prompts became."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unleak.errors import BadInput, NotFinite, PromptTruncated
from unleak.text.vectors import expanded


@dataclass(eq=False)
class TextCall:
    """One encoder's call on the positive prompt.

    `ids` is [B, L] with B prompts; `output` is the encoder's model output with whatever hidden states the
    pipeline asked for, already changed by earlier interventions.
    """

    name: str
    module: nn.Module
    tokenizer: Any
    prompts: list[str]
    ids: Tensor
    output: Any
    encode: Callable[[Tensor, Tensor | None, dict[str, Any]], Any]

    @property
    def length(self) -> int:
        return self.ids.shape[1]

    def tokenize(self, prompts: Sequence[str]) -> Any:
        """Tokenizer output [B, L] of other texts under the length and padding of this call.

        Raises:
            PromptTruncated: a text is longer than the length.
        """
        check_length(self.name, self.tokenizer, prompts, self.length)
        return tokens(self.tokenizer, prompts, self.length)

    def rerun(self, prompts: str | Sequence[str] | Tensor, **overrides: Any) -> Any:
        """The same module call on other prompts, or ids [B, L]; `overrides` replace keyword arguments."""
        if isinstance(prompts, Tensor):
            return self.encode(prompts, None, overrides)
        encoding = self.tokenize([prompts] if isinstance(prompts, str) else list(prompts))
        return self.encode(encoding.input_ids, encoding.attention_mask, overrides)


@dataclass(eq=False)
class Encoded:
    """What one generation's prompts became: per encoder the call, and the rows the denoiser gets.

    `cut` has the calls of encoders that lost a part of a prompt which another one holds whole; no item is looked for
    in these.
    """

    prompts: list[str] = field(default_factory=list)
    images_per_prompt: int = 1
    calls: dict[str, TextCall] = field(default_factory=dict)
    cond: Tensor | None = None
    uncond: Tensor | None = None
    cut: dict[str, TextCall] = field(default_factory=dict)

    @property
    def image_prompts(self) -> list[str]:
        """The prompt of each image."""
        return [prompt for prompt in self.prompts for _ in range(self.images_per_prompt)]

    def images_of(self, prompt: int) -> slice:
        """The images of a prompt, by its number."""
        return slice(prompt * self.images_per_prompt, (prompt + 1) * self.images_per_prompt)

    def columns(self, encoder: str) -> slice | None:
        """Where this encoder's L rows stand among the denoiser's text rows; None if only its pooled vector
        is used.

        Found by content. Rows that the pipeline changed on the way (a final norm) are placed by length, which
        is decisive when one encoder alone fills the text.
        """
        match = self._columns_and_layer(encoder)
        return None if match is None else match[0]

    def layer(self, encoder: str) -> Callable[[Any], Tensor] | None:
        """Which rows [B, L, d] of this encoder's outputs the denoiser gets; None if only its pooled vector is
        used. Where the pipeline changed them on the way (a final norm), the last layer."""
        match = self._columns_and_layer(encoder)
        return None if match is None else lambda output: _sequences(output)[match[1]]

    def _columns_and_layer(self, encoder: str) -> tuple[slice, int] | None:
        if self.cond is None or encoder not in self._every:
            return None
        places = {name: self._place(call) for name, call in self._every.items()}
        call = self._every[encoder]
        if places[encoder] is None and not any(places.values()) and call.length == self.cond.shape[1]:
            return slice(0, call.length), 0
        return places[encoder]

    def _place(self, call: TextCall) -> tuple[slice, int] | None:
        """Columns of the denoiser's rows that equal a layer of this call, and which layer."""
        assert self.cond is not None
        rows, length = self.cond[0], call.length
        starts = sorted({0, rows.shape[0] - length, *(other.length for other in self._every.values())})
        for k, state in enumerate(_sequences(call.output)):
            state = state[0].to(rows)
            for start in starts:
                part = rows[start : start + length]
                if start < 0 or len(part) != length or state.shape[-1] > rows.shape[-1]:
                    continue
                widths = sorted({0, part.shape[-1] - state.shape[-1], *self._widths()})
                if any(torch.equal(part[:, w : w + state.shape[-1]], state) for w in widths):
                    return slice(start, start + length), k
        return None

    @property
    def _every(self) -> dict[str, TextCall]:
        return {**self.calls, **self.cut}

    def _widths(self) -> set[int]:
        return {state.shape[-1] for call in self._every.values() for state in _sequences(call.output)[:1]}


def tokens(tokenizer: Any, prompts: Sequence[str], length: int) -> Any:
    """The tokenizer call of diffusers pipelines: padded and cut to `length`."""
    given = [expanded(tokenizer, prompt) for prompt in prompts]
    return tokenizer(given, padding="max_length", max_length=length, truncation=True, return_tensors="pt")


def check_length(name: str, tokenizer: Any, prompts: Sequence[str], length: int) -> None:
    """Raise `PromptTruncated` where a prompt has more tokens than the encoder is given."""
    for prompt in prompts:
        ids = tokenizer(expanded(tokenizer, prompt), truncation=False, verbose=False).input_ids
        if len(ids) > length:
            lost = tokenizer.decode(ids[length - 1 : -1])
            longer = f", or raise max_sequence_length above {length}" if length < tokenizer.model_max_length else ""
            raise PromptTruncated(
                f"{name} reads {length} tokens and the prompt has {len(ids)}; it would lose {lost!r}. Shorten the "
                f"prompt{longer}"
            )


def replace_output(call: TextCall, new: Any) -> list[list[int]]:
    """Take an intervention's model output, if the pipeline can go on with it.

    Returns:
        For each prompt, the token positions whose rows changed in some part of the output.
    """
    if type(new) is not type(call.output):
        raise BadInput(f"on_text returned a {type(new).__name__}, not a {type(call.output).__name__}")
    old_parts, new_parts = dict(_parts(call.output)), dict(_parts(new))
    if old_parts.keys() != new_parts.keys():
        raise BadInput(f"on_text returned fields {sorted(new_parts)}, not {sorted(old_parts)}")
    changed = torch.zeros_like(call.ids, dtype=torch.bool)
    for name, old in old_parts.items():
        part = new_parts[name]
        if part.shape != old.shape or part.dtype != old.dtype:
            was, now = f"{tuple(old.shape)} {old.dtype}", f"{tuple(part.shape)} {part.dtype}"
            raise BadInput(f"on_text changed {name} of {call.name} from {was} to {now}")
        if not torch.isfinite(part).all():
            raise NotFinite(f"on_text left NaN or infinity in {name} of {call.name}")
        if part.ndim == 3:
            changed |= (part != old).any(-1).to(changed.device)
    call.output = new
    return [torch.nonzero(row).flatten().tolist() for row in changed]


def _parts(output: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a model output with its name ("hidden_states.2")."""
    items = output.items() if isinstance(output, Mapping) else enumerate(output)
    for name, value in items:
        if isinstance(value, Tensor):
            yield str(name), value
        elif isinstance(value, tuple | list):
            yield from ((f"{name}.{i}", item) for i, item in enumerate(value) if isinstance(item, Tensor))


def _sequences(output: Any) -> list[Tensor]:
    return [part for _, part in _parts(output) if part.ndim == 3]
