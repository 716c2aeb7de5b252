"""The text side: learn the prompts from `encode_prompt`, rewrite rows where the text encoders make them."""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unleak.errors import BadInput, PromptTruncated, UnsupportedModel
from unleak.text.call import Encoded, TextCall, tensors, text_rows, tokens
from unleak.text.encoders import Encoder
from unleak.text.template import Template, TokenIds


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
        self._reasons: dict[str, str] = {}
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
            rows = self._with_them(_parts_of(returned, len(_texts(given.get("prompt"))) or None))
            self.encoded.uncond = rows[0]
            return returned
        self.encoded = Encoded(
            prompts=_texts(given.get("prompt")),
            images_per_prompt=given.get("num_images_per_prompt") or 1,
        )
        if self.rewriting and not self.encoded.prompts:
            raise BadInput("an intervention changes text rows, but the call has only `prompt_embeds`; pass `prompt`")
        self._expected = self._positive(given) if self.encoded.prompts else {}
        self._again = lambda texts: original(**_for_texts(given, signature.parameters, texts))
        self._ran, self._cut, self._reasons = set(), {}, {}
        self._inside = True
        try:
            returned = original(*args, **kwargs)
        finally:
            missed, self._expected, self._inside = self._expected, {}, False
        if self.rewriting and (missed.keys() & self._ran or not self.encoded.calls):
            why = "".join(f"; {name}: {reason}" for name, reason in self._reasons.items())
            raise UnsupportedModel(f"the prompt was not recognised in the token ids of {sorted(missed)}{why}")
        n = len(self.encoded.prompts) * self.encoded.images_per_prompt
        rows = self._with_them(_parts_of(returned, n or None))
        guided = any(name.startswith("negative") for name in signature.parameters)
        negative = [part for part in rows[1:] if guided and part.shape[-1] == rows[0].shape[-1]]
        self.encoded.cond, self.encoded.uncond = rows[0], negative[0] if negative else None
        self._leave_out()
        return returned

    def _with_them(self, parts: tuple[list[Tensor], list[Tensor], list[Tensor]]) -> list[Tensor]:
        """The text rows of `_parts_of`; what goes with them is remembered."""
        rows, masks, pooled = parts
        self.encoded.masks += masks
        self.encoded.pooled += pooled
        self.encoded.more += rows[1:]
        return rows

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
                    call.check_length(key)
            with self._pause(), torch.no_grad():
                returned = self._again(list(key))
            rows, masks, pooled = _parts_of(returned, len(key))
            same = all(any(_row_of(part, own) for own in self.encoded.more) for more in rows[1:] for part in more)
            self.encoded.others_have_more |= not same
            self._others[key] = TextRows(rows[0], pooled[0] if pooled else None, masks[0] if masks else None)
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
        args, kwargs = _named(module, args, kwargs)
        ids, mask = _given(args, kwargs)
        prompts = self._expected[encoder.name]
        if ids is None or not isinstance(output, Mapping):
            return None
        found = self._recognised(encoder, prompts, ids, mask)
        if found is None:
            return None
        rows, template, given = found
        del self._expected[encoder.name]
        call = TextCall(
            encoder.name,
            encoder.module,
            encoder.tokenizer,
            prompts,
            ids if rows is None else ids[rows],
            output if rows is None else _picked(output, rows, len(ids)),
            self._rerun(args, kwargs, encoder),
            template,
            given,
        )
        try:
            if given is not None:
                call.cut(prompts)
        except UnsupportedModel as error:
            warnings.warn(f"{error}. {encoder.name} is left as it is", stacklevel=2)
            return None
        self.encoded.calls[encoder.name] = call
        try:
            if self.strict:
                call.check_length(prompts)
        except PromptTruncated as error:
            self._cut[encoder.name] = error
            return None
        before = call.output
        self.on_call(call)
        if call.output is before:
            return None
        return call.output if rows is None else _put_back(output, rows, call.output, len(ids))

    def _recognised(
        self, encoder: Encoder, prompts: list[str], ids: Tensor, mask: Tensor | None
    ) -> tuple[list[int] | None, Template, tuple[TokenIds, ...] | None] | None:
        """Whether these ids are of the prompts: the prompts alone, or what the pipeline itself makes of them.

        Returns:
            The batch rows of the prompts (None: all), the template, and the prompts' tokens in it (None: they stand
            alone); None: the ids are of other texts.
        """
        assert self._again is not None
        inputs = functools.partial(self._inputs, encoder, self._again)
        template = Template(encoder.tokenizer, inputs, encoder.name)
        if _same_ids(encoder.tokenizer, prompts, ids):
            return None, template, None
        try:
            given = inputs(prompts)
        except Exception as error:  # whatever a pipeline raises when it encodes a prompt without the rest of its call
            self._reasons[encoder.name] = f"{type(error).__name__}: {error}"
            return None
        here = _token_ids(encoder.tokenizer, ids, mask)
        if here == given:
            return None, template, tuple(given)
        if len(here) < len(given):
            self._reasons[encoder.name] = "it is given one prompt after another: call the pipeline with one prompt"
            return None
        rows = list[int]()
        for one in given:  # negative and positive prompts in one batch
            places = [i for i, other in enumerate(here) if other == one and i not in rows]
            if not places:
                return None
            rows.append(places[-1])
        rows = sorted(rows) if len(set(given)) < len(given) else rows
        return rows, template, tuple(given)

    def _inputs(self, encoder: Encoder, again: Callable[[list[str]], Any], texts: Sequence[str]) -> list[TokenIds]:
        """What the pipeline gives the encoder for each text. The encoder does not run on the last of them."""
        given = list[TokenIds]()

        def stop(module: nn.Module, args: tuple, kwargs: dict) -> None:
            ids, mask = _given(*_named(module, args, kwargs))
            if ids is None:
                raise UnsupportedModel(f"{encoder.name} is called without token ids, so no word is found in its rows")
            given.extend(_token_ids(encoder.tokenizer, ids, mask))
            if len(given) >= len(texts):
                raise _Seen

        hook = encoder.module.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
        try:
            with self._pause(), torch.no_grad():
                again(list(texts))
        except _Seen:
            pass
        finally:
            hook.remove()
        if len(given) != len(texts):
            raise UnsupportedModel(f"{encoder.name} is given {len(given)} rows of tokens for {len(texts)} texts")
        return given

    def _rerun(self, args: tuple, kwargs: dict, encoder: Encoder) -> Callable[..., Any]:
        def encode(ids: Tensor, mask: Tensor | None, overrides: dict[str, Any]) -> Any:
            first, old_mask = _given(args, kwargs)
            assert first is not None
            mask = torch.ones_like(ids) if mask is None else mask
            named = {**kwargs, **_per_token(kwargs, first, old_mask, ids, mask), **overrides}
            if "attention_mask" not in overrides and isinstance(old_mask, Tensor):
                named["attention_mask"] = mask.to(old_mask)
            with self._pause():
                if "input_ids" not in kwargs:
                    return encoder.module(ids.to(first), *args[1:], **named)
                return encoder.module(*args, **{**named, "input_ids": ids.to(first)})

        return encode

    @contextlib.contextmanager
    def _pause(self) -> Iterator[None]:
        before, self._rerunning = self._rerunning, True
        try:
            yield
        finally:
            self._rerunning = before


class _Seen(Exception):
    """The encoder's input is known; it need not run."""


def _named(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The arguments of an encoder by name, but for the first, which may be called anything."""
    names = [*inspect.signature(module.forward).parameters][1 : len(args)]
    return args[:1], {**dict(zip(names, args[1:], strict=False)), **kwargs}


def _given(args: tuple, kwargs: Mapping[str, Any]) -> tuple[Tensor | None, Tensor | None]:
    """The token ids [n, L] that an encoder is called with, and its attention mask of that form; None: it has none."""
    ids = kwargs.get("input_ids", args[0] if args else None)
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point():
        return None, None
    mask = kwargs.get("attention_mask")
    return ids, mask if isinstance(mask, Tensor) and mask.shape == ids.shape else None


def _token_ids(tokenizer: Any, ids: Tensor, mask: Tensor | None) -> list[TokenIds]:
    """By row; without a mask, the run of pad tokens at either end is pads (the first that ends a text is not)."""
    if mask is not None:
        real = mask.bool().tolist()
    else:
        pad = tokenizer.pad_token_id
        after_first = int(pad is not None and pad == tokenizer.eos_token_id)
        real = []
        for row in (ids == (-1 if pad is None else pad)).tolist():
            start = next((i for i, is_pad in enumerate(row) if not is_pad), 0)
            stop = next((len(row) - i for i, is_pad in enumerate(row[::-1]) if not is_pad), len(row))
            real.append([start <= i < stop + after_first for i in range(len(row))])
    return [TokenIds(tuple(row), tuple(own)) for row, own in zip(ids.tolist(), real, strict=True)]


def _per_token(
    kwargs: Mapping[str, Any], old_ids: Tensor, old_mask: Tensor | None, ids: Tensor, mask: Tensor
) -> dict[str, Tensor]:
    """Further arguments with a number for each token (positions, types), for other tokens.

    Raises UnsupportedModel: they are neither the same everywhere, nor count the tokens, nor those that are no pads.
    """
    old_real = torch.ones_like(old_ids) if old_mask is None else old_mask.to(old_ids)
    if ids.shape == old_ids.shape and torch.equal(mask.to(old_real), old_real):
        return {}
    counted = [
        lambda real: torch.arange(real.shape[1], device=real.device).expand(real.shape),
        lambda real: (real.long().cumsum(-1) - 1).clamp(min=0),
    ]
    out = {}
    for name, value in kwargs.items():
        each = isinstance(value, Tensor) and name not in ("input_ids", "attention_mask")
        if not each or value.ndim < 2 or value.shape[-2:] != old_ids.shape:
            continue
        shape = (*value.shape[:-2], *ids.shape)
        if bool((value == value.flatten()[0]).all()):
            out[name] = value.flatten()[0].expand(shape)
            continue
        same = [count for count in counted if bool((value == count(old_real).to(value)).all())]
        if not same:
            raise UnsupportedModel(f"a text encoder is given {name!r}, which is not known for other texts")
        out[name] = same[0](mask.to(value.device)).to(value.dtype).expand(shape)
    return out


def _picked(output: Any, rows: list[int], n: int) -> Any:
    """Some batch rows of an encoder's output for n texts."""
    return _each_tensor(output, lambda name, part: part[rows] if len(part) == n else part)


def _put_back(output: Any, rows: list[int], changed: Any, n: int) -> Any:
    """An encoder's output for n texts with some batch rows changed."""
    new = dict(tensors(changed))

    def put(name: str, part: Tensor) -> Tensor:
        if len(part) != n:
            return part
        out = part.clone()
        out[rows] = new[name]
        return out

    return _each_tensor(output, put)


def _each_tensor(output: Any, change: Callable[[str, Tensor], Tensor]) -> Any:
    changed: dict[str, Any] = {}
    for name, value in output.items():
        if isinstance(value, tuple) and all(isinstance(part, Tensor) for part in value):
            changed[name] = tuple(change(f"{name}.{i}", part) for i, part in enumerate(value))
        else:
            changed[name] = change(name, value) if isinstance(value, Tensor) else value
    return type(output)(**changed)


def _for_texts(given: Mapping[str, Any], takes: Collection[str], texts: list[str]) -> dict[str, Any]:
    """The arguments of an `encode_prompt` call for other texts: one row each, nothing negative or encoded before."""
    kept = {name: value for name, value in given.items() if not name.startswith(("prompt", "negative", "pooled"))}
    kept |= {name: None for name in given if name in ("prompt_2", "prompt_3", "prompt_4")}  # each reads the same text
    alone = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False, "batch_size": len(texts)}
    kept |= {name: value for name, value in alone.items() if name in given}
    if "do_classifier_free_guidance" in takes:
        kept["do_classifier_free_guidance"] = False
    if "lora_scale" in given:  # the pipeline has set it already
        kept["lora_scale"] = None
    return {**kept, "prompt": texts}


def _parts_of(returned: Any, n: int | None) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """What `encode_prompt` returned for n rows: text rows [n, K, D], masks [n, K] of 0 and 1, pooled vectors [n, P].

    Text ids and positions are whole numbers, a mask is 0 and 1; a pooled vector is neither.
    Raises UnsupportedModel: there are no text rows.
    """
    parts = returned if isinstance(returned, tuple) else (returned,)
    if isinstance(returned, list) and text_rows(returned) is None:
        parts = tuple(returned)
    rows = [one for part in parts if (one := text_rows(part, n)) is not None]
    if not rows:
        raise UnsupportedModel("encode_prompt returned no text rows [batch, tokens, width]")
    flat = [part for part in parts if isinstance(part, Tensor) and part.ndim == 2 and len(part) == len(rows[0])]
    whole = [part for part in flat if not part.is_floating_point() or bool((part == part.round()).all())]
    masks = [part for part in whole if part.shape == rows[0].shape[:2] and bool(((part == 0) | (part == 1)).all())]
    if not masks and any(isinstance(part, list) for part in (returned, *parts)):
        masks = [(rows[0] != 0).any(-1)]
    pooled = [part for part in flat if not any(part is other for other in whole)]
    return rows, masks, pooled


def _row_of(part: Tensor, rows: Tensor) -> bool:
    """Whether a text's rows [K, D] are those of one of several texts [n, K, D]."""
    return part.shape == rows.shape[1:] and any(torch.equal(part, row) for row in rows)


def _texts(prompt: Any) -> list[str]:
    return [] if prompt is None else [prompt] if isinstance(prompt, str) else list(prompt)


def _same_ids(tokenizer: Any, prompts: Sequence[str], ids: Tensor) -> bool:
    """Whether these are the ids of the prompts alone, cut by a tokenizer that reports offsets."""
    if tokenizer.pad_token is None or not tokenizer.is_fast:
        return False
    prompt_ids = tokens(tokenizer, prompts, ids.shape[1]).input_ids
    return prompt_ids.shape == ids.shape and bool((prompt_ids == ids.cpu()).all())
