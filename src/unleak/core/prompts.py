"""The text side: learn the prompts from `encode_prompt`, rewrite rows where the text encoders make them."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unleak.core.anatomy import Encoder
from unleak.errors import BadInput, NotFinite, PromptTruncated, UnsupportedModel


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
        made = self.tokenize([prompts] if isinstance(prompts, str) else list(prompts))
        return self.encode(made.input_ids, made.attention_mask, overrides)


@dataclass(eq=False)
class Encoded:
    """What one generation's prompts became: per encoder the call, and the rows the denoiser gets."""

    prompts: list[str] = field(default_factory=list)
    images_per_prompt: int = 1
    calls: dict[str, TextCall] = field(default_factory=dict)
    cond: Tensor | None = None
    uncond: Tensor | None = None

    def columns(self, encoder: str) -> slice | None:
        """Where this encoder's L rows stand among the denoiser's text rows; None if only its pooled vector
        is used.

        Found by content. Rows that the pipeline changed on the way (a final norm) are placed by length, which
        is decisive when one encoder alone fills the text.
        """
        if self.cond is None or encoder not in self.calls:
            return None
        places = {name: self._place(call) for name, call in self.calls.items()}
        call = self.calls[encoder]
        if places[encoder] is None and not any(places.values()) and call.length == self.cond.shape[1]:
            return slice(0, call.length)
        return places[encoder]

    def _place(self, call: TextCall) -> slice | None:
        assert self.cond is not None
        rows, length = self.cond[0], call.length
        starts = sorted({0, rows.shape[0] - length, *(other.length for other in self.calls.values())})
        for state in _sequences(call.output):
            state = state[0].to(rows)
            for start in starts:
                part = rows[start : start + length]
                if start < 0 or len(part) != length or state.shape[-1] > rows.shape[-1]:
                    continue
                widths = sorted({0, part.shape[-1] - state.shape[-1], *self._widths()})
                if any(torch.equal(part[:, w : w + state.shape[-1]], state) for w in widths):
                    return slice(start, start + length)
        return None

    def _widths(self) -> set[int]:
        return {state.shape[-1] for call in self.calls.values() for state in _sequences(call.output)[:1]}


class Prompts:
    """Watches `encode_prompt` and the text encoders of one pipeline during a session."""

    def __init__(
        self,
        pipe: Any,
        encoders: Sequence[Encoder],
        strict: bool,
        rewriting: bool,
        on_call: Callable[[TextCall], Any],
    ) -> None:
        self.pipe, self.encoders = pipe, {encoder.name: encoder for encoder in encoders}
        self.strict, self.rewriting, self.on_call = strict, rewriting, on_call
        self.encoded = Encoded()
        self._expected: dict[str, list[str]] = {}
        self._ran: set[str] = set()
        self._rerunning = False
        self._passes: int | None = None

    def begin_generation(self, called: bool) -> None:
        """A generation begins. Once the pipeline is `called`, and until the denoiser runs, a second pass through
        an `encode_prompt` without a negative prompt of its own encodes the negative prompt."""
        self.encoded, self._passes = Encoded(), 0 if called else None

    def begin_denoising(self) -> None:
        self._passes = None

    def encode_prompt(self, original: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        """Run the pipeline's own `encode_prompt` and remember what it was given and what it returned."""
        signature = inspect.signature(original)
        given = signature.bind_partial(*args, **kwargs).arguments
        if self._passes is not None:
            self._passes += 1
        if self._passes == 2 and "negative_prompt" not in signature.parameters:
            returned = original(*args, **kwargs)
            self.encoded.uncond = _rows_of(returned)[0]
            return returned
        self.encoded = Encoded(
            prompts=_texts(given.get("prompt")), images_per_prompt=given.get("num_images_per_prompt") or 1
        )
        if self.rewriting and not self.encoded.prompts:
            raise BadInput("an intervention changes text rows, but the call has only `prompt_embeds`; pass `prompt`")
        self._expected = self._positive(given) if self.encoded.prompts else {}
        self._ran = set()
        try:
            returned = original(*args, **kwargs)
        finally:
            missed, self._expected = self._expected, {}
        if self.rewriting and (missed.keys() & self._ran or not self.encoded.calls):
            raise UnsupportedModel(f"the prompt was not recognised in the token ids of {sorted(missed)}")
        rows = _rows_of(returned)
        self.encoded.cond, self.encoded.uncond = rows[0], rows[1] if len(rows) > 1 else None
        return returned

    def _positive(self, given: Mapping[str, Any]) -> dict[str, list[str]]:
        wanted = {}
        for encoder in self.encoders.values():
            prompts = _texts(given.get(f"prompt{encoder.suffix}")) or _texts(given["prompt"])
            convert = getattr(self.pipe, "maybe_convert_prompt", None)  # textual inversion
            wanted[encoder.name] = convert(prompts, encoder.tokenizer) if convert else prompts
        return wanted

    def after_encoder(self, encoder: Encoder, args: tuple, kwargs: dict, output: Any) -> Any:
        """Forward hook of a text encoder: the first call on the positive prompt goes to the interventions."""
        if self._rerunning or encoder.name not in self._expected:
            return None
        self._ran.add(encoder.name)
        ids: Tensor = args[0] if args else kwargs["input_ids"]
        prompts = self._expected[encoder.name]
        if not _same_ids(encoder.tokenizer, prompts, ids):
            return None
        del self._expected[encoder.name]
        if self.strict:
            check_length(encoder.name, encoder.tokenizer, prompts, ids.shape[1])
        call = TextCall(
            encoder.name,
            encoder.module,
            encoder.tokenizer,
            prompts,
            ids,
            output,
            self._again(args, kwargs, encoder),
        )
        self.encoded.calls[encoder.name] = call
        self.on_call(call)
        return call.output if call.output is not output else None

    def _again(self, args: tuple, kwargs: dict, encoder: Encoder) -> Callable[..., Any]:
        def encode(ids: Tensor, mask: Tensor | None, overrides: dict[str, Any]) -> Any:
            first = args[0] if args else kwargs["input_ids"]
            named = {**kwargs, **overrides}
            if "attention_mask" not in overrides and isinstance(kwargs.get("attention_mask"), Tensor):
                given = kwargs["attention_mask"]
                named["attention_mask"] = (torch.ones_like(ids) if mask is None else mask).to(given)
            with self._pause():
                if args:
                    return encoder.module(ids.to(first), *args[1:], **named)
                return encoder.module(**{**named, "input_ids": ids.to(first)})

        return encode

    @contextlib.contextmanager
    def _pause(self) -> Iterator[None]:
        self._rerunning = True
        try:
            yield
        finally:
            self._rerunning = False


def tokens(tokenizer: Any, prompts: Sequence[str], length: int) -> Any:
    """The tokenizer call of diffusers pipelines: padded and cut to `length`."""
    return tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")


def check_length(name: str, tokenizer: Any, prompts: Sequence[str], length: int) -> None:
    """Raise `PromptTruncated` where a prompt has more tokens than the encoder is given."""
    for prompt in prompts:
        ids = tokenizer(prompt, truncation=False).input_ids
        if len(ids) > length:
            lost = tokenizer.decode(ids[length - 1 : -1])
            raise PromptTruncated(
                f"{name} reads {length} tokens and the prompt has {len(ids)}; it would lose {lost!r}. "
                "Shorten the prompt, or raise max_sequence_length where the pipeline has it"
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


def _rows_of(returned: Any) -> list[Tensor]:
    """The text rows [n, L, D] that `encode_prompt` returned: the prompt's, then the negative prompt's."""
    parts = returned if isinstance(returned, tuple | list) else (returned,)
    found = [part for part in parts if isinstance(part, Tensor) and part.ndim == 3]
    if not found:
        raise UnsupportedModel("encode_prompt returned no text rows [batch, tokens, width]")
    return found


def _texts(prompt: Any) -> list[str]:
    return [] if prompt is None else [prompt] if isinstance(prompt, str) else list(prompt)


def _same_ids(tokenizer: Any, prompts: Sequence[str], ids: Tensor) -> bool:
    made = tokens(tokenizer, prompts, ids.shape[1]).input_ids
    return made.shape == ids.shape and bool((made == ids.cpu()).all())
