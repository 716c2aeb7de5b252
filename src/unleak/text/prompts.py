"""The text side: learn the prompts from `encode_prompt`, rewrite rows where the text encoders make them."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unleak.errors import BadInput, PromptTruncated, UnsupportedModel
from unleak.text.call import Encoded, TextCall, check_length, tokens
from unleak.text.encoders import Encoder


class TextRows(NamedTuple):
    """What the denoiser is given for n texts: rows [n, L, D], pooled vectors [n, P] and mask [n, L] if it has any."""

    rows: Tensor
    pooled: Tensor | None
    mask: Tensor | None = None


class Prompts:
    """Watches `encode_prompt` and the text encoders of one pipeline during a session.

    `strange`: an encoder ran outside of it since the last prompt.
    """

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
        self._cut: dict[str, PromptTruncated] = {}
        self._rerunning = False
        self._inside = False
        self.strange = False
        self._passes: int | None = None
        self._others: dict[tuple[str, ...], TextRows] = {}
        self._again: Callable[[list[str]], Any] | None = None

    def begin_generation(self, called: bool) -> None:
        """A generation begins. Once the pipeline is `called`, and until the denoiser runs, a second pass through
        an `encode_prompt` without a negative prompt of its own encodes the negative prompt."""
        self.encoded, self._passes = Encoded(), 0 if called else None
        self._others, self._again = {}, None
        self._rerunning = False

    def begin_denoising(self) -> None:
        self._passes = None

    def encode_prompt(self, original: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        """Run the pipeline's own `encode_prompt` and remember what it was given and what it returned."""
        signature = inspect.signature(original)
        given = signature.bind_partial(*args, **kwargs).arguments
        self.strange = False
        if self._passes is not None:
            self._passes += 1
        if self._passes == 2 and "negative_prompt" not in signature.parameters:
            with self._pause():
                returned = original(*args, **kwargs)
            self.encoded.uncond = _rows_of(returned)[0]
            return returned
        self.encoded = Encoded(
            prompts=_texts(given.get("prompt")),
            images_per_prompt=given.get("num_images_per_prompt") or 1,
        )
        if self.rewriting and not self.encoded.prompts:
            raise BadInput("an intervention changes text rows, but the call has only `prompt_embeds`; pass `prompt`")
        self._expected = self._positive(given) if self.encoded.prompts else {}
        self._again = lambda texts: original(**_for_texts(given, texts))
        self._ran, self._cut = set(), {}
        self._inside = True
        try:
            returned = original(*args, **kwargs)
        finally:
            missed, self._expected, self._inside = self._expected, {}, False
        if self.rewriting and (missed.keys() & self._ran or not self.encoded.calls):
            raise UnsupportedModel(f"the prompt was not recognised in the token ids of {sorted(missed)}")
        rows = _rows_of(returned)
        self.encoded.cond, self.encoded.uncond = rows[0], rows[1] if len(rows) > 1 else None
        self._leave_out()
        return returned

    def _leave_out(self) -> None:
        """Encoders that lost a part of the prompt are left out, with a warning, where the denoiser reads another that
        holds it whole. Raises PromptTruncated where it reads none."""
        encoded = self.encoded
        whole = [name for name in encoded.calls if name not in self._cut and encoded.columns(name) is not None]
        if self._cut and not whole:
            read = [name for name in self._cut if encoded.columns(name) is not None]
            raise self._cut[(read or list(self._cut))[-1]]
        for name in self._cut:
            encoded.cut[name] = encoded.calls.pop(name)
            warnings.warn(
                f"{name} reads {encoded.cut[name].length} tokens and loses a part of the prompt; it is left as it is. "
                f"Items are found in {' and '.join(whole)}, which the denoiser reads and which holds all of it",
                stacklevel=2,
            )

    def encode(self, texts: Sequence[str]) -> TextRows:
        """Other texts as the pipeline encodes its prompt, in one batched call; no intervention sees them.

        Kept for the same texts during a generation.

        Raises:
            PromptTruncated: a text is longer than an encoder.
            UnsupportedModel: the pipeline was given no prompt, so how it encodes one is not known.
        """
        key = tuple(texts)
        if key not in self._others:
            if self._again is None or not self.encoded.calls:
                raise UnsupportedModel("the pipeline encoded no prompt, so other texts cannot be: pass `prompt`")
            for name, call in self.encoded.calls.items():
                if self.encoded.cond is None or self.encoded.columns(name) is not None:
                    check_length(name, call.tokenizer, key, call.length)
            with self._pause(), torch.no_grad():
                returned = self._again(list(key))
            rows = _rows_of(returned)[0]
            flat = [part for part in returned if isinstance(part, Tensor) and part.ndim == 2]
            masks = [part for part in flat if part.shape == rows.shape[:2] and bool(((part == 0) | (part == 1)).all())]
            pooled = [part for part in flat if not any(part is mask for mask in masks)]
            self._others[key] = TextRows(rows, pooled[0] if pooled else None, masks[0] if masks else None)
        return self._others[key]

    def _positive(self, given: Mapping[str, Any]) -> dict[str, list[str]]:
        texts = {}
        for encoder in self.encoders.values():
            texts[encoder.name] = _texts(given.get(f"prompt{encoder.suffix}")) or _texts(given["prompt"])
        return texts

    def after_encoder(self, encoder: Encoder, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        """Forward hook of a text encoder: the first call on the positive prompt goes to the interventions."""
        self.strange |= not (self._rerunning or self._inside)
        if self._rerunning or encoder.name not in self._expected:
            return None
        self._ran.add(encoder.name)
        ids: Tensor = args[0] if args else kwargs["input_ids"]
        prompts = self._expected[encoder.name]
        if not _same_ids(encoder.tokenizer, prompts, ids):
            return None
        del self._expected[encoder.name]
        call = TextCall(
            encoder.name,
            encoder.module,
            encoder.tokenizer,
            prompts,
            ids,
            output,
            self._rerun(args, kwargs, encoder),
        )
        self.encoded.calls[encoder.name] = call
        try:
            if self.strict:
                check_length(encoder.name, encoder.tokenizer, prompts, ids.shape[1])
        except PromptTruncated as error:
            self._cut[encoder.name] = error
            return None
        self.on_call(call)
        return call.output if call.output is not output else None

    def _rerun(self, args: tuple, kwargs: dict, encoder: Encoder) -> Callable[..., Any]:
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


def _for_texts(given: Mapping[str, Any], texts: list[str]) -> dict[str, Any]:
    """The arguments of an `encode_prompt` call for other texts: one row each, nothing negative or encoded before."""
    kept = {name: value for name, value in given.items() if not name.startswith(("prompt", "negative", "pooled"))}
    kept |= {name: None for name in given if name in ("prompt_2", "prompt_3")}  # each encoder reads the same text
    alone = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    return {**kept, **{name: value for name, value in alone.items() if name in given}, "prompt": texts}


def _rows_of(returned: Any) -> list[Tensor]:
    """The text rows [n, L, D] that `encode_prompt` returned: the prompt's, then the negative prompt's."""
    parts = returned if isinstance(returned, tuple | list) else (returned,)
    text_rows = [part for part in parts if isinstance(part, Tensor) and part.ndim == 3]
    if not text_rows:
        raise UnsupportedModel("encode_prompt returned no text rows [batch, tokens, width]")
    return text_rows


def _texts(prompt: Any) -> list[str]:
    return [] if prompt is None else [prompt] if isinstance(prompt, str) else list(prompt)


def _same_ids(tokenizer: Any, prompts: Sequence[str], ids: Tensor) -> bool:
    prompt_ids = tokens(tokenizer, prompts, ids.shape[1]).input_ids
    return prompt_ids.shape == ids.shape and bool((prompt_ids == ids.cpu()).all())
