"""Encode texts through one encoder as a diffusers pipeline does, once; and its pad rows.

The cache never answers for a changed encoder: its key holds a fingerprint of the weights, dtype and settings,
the padded token ids (so the text, L and the pad definition), the mask policy and the layer.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unleak.errors import BadInput, PromptTruncated, choose
from unleak.text.causal import is_causal
from unleak.text.rows import last_layer
from unleak.text.spans import Tokens, tokenize

PADS = ("empty", "allpad", "padtoken", "zero", "mean")


class EncodedTexts(NamedTuple):
    """ids [B, L]; rows [B, L, d]; pooled [B, dp], or None where the encoder has no pooled vector."""

    ids: Tensor
    rows: Tensor
    pooled: Tensor | None


class TextEncoder:
    """``encoder(texts) -> EncodedTexts``: each text padded to L and encoded alone, as a pipe encodes one prompt.

    Args:
        module: a transformers text encoder. tokenizer: its tokenizer, with character offsets.
        length: L; default the tokenizer's own.
        layer: None for the last hidden state, an index into ``hidden_states`` (-2: the last but one), or a
            function of the encoder's output that returns rows [B, L, d].
        masked: give the encoder the tokenizer's attention mask (most pipelines do not).
        name: how error messages call it.
        remember: number of texts kept in the cache.
    """

    def __init__(
        self,
        module: nn.Module,
        tokenizer: Any,
        *,
        length: int | None = None,
        layer: int | Callable[[Any], Tensor] | None = None,
        masked: bool = False,
        name: str = "the text encoder",
        remember: int = 256,
    ) -> None:
        self.module, self.tokenizer, self.name = module, tokenizer, name
        self.length = length or tokenizer.model_max_length
        self.layer, self.masked = layer, masked
        self.mean: EncodedTexts | None = None
        self._remember = remember
        self._cache: OrderedDict[Hashable, EncodedTexts] = OrderedDict()

    def tokens(self, text: str) -> Tokens:
        """How the text is cut; PromptTruncated if it does not fit into L."""
        tokens = tokenize(self.tokenizer, text, self.length, self.name)
        if tokens.lost:
            raise PromptTruncated(
                f"{self.name} keeps {self.length} tokens; {text!r} has {len(tokens.lost)} more. Shorten it."
            )
        return tokens

    def __call__(self, texts: Sequence[str]) -> EncodedTexts:
        """Raises BadInput when no text is given; PromptTruncated when one does not fit."""
        if not texts:
            raise BadInput("There is no text to encode.")
        state = fingerprint(self.module)
        encoded = [self._once(tokens.ids, tokens.real, state) for tokens in map(self.tokens, texts)]
        pooled = [one.pooled for one in encoded if one.pooled is not None]
        return EncodedTexts(
            torch.cat([one.ids for one in encoded]),
            torch.cat([one.rows for one in encoded]),
            torch.cat(pooled) if pooled else None,
        )

    def pads(self, pad: str = "empty") -> EncodedTexts:
        """Pad rows C [1, L, d] and their pooled vector.

        Args:
            pad: ``"empty"``: the empty text, encoded as a prompt is. ``"allpad"``: L pad tokens.
                ``"padtoken"``: the pad token's string, encoded as a prompt is. ``"zero"``: zeros.
                ``"mean"``: what `learn_mean` stored.
        """
        check_pad(pad)
        if pad == "mean":
            if self.mean is None:
                raise BadInput(f"{self.name} has no mean rows yet: call learn_mean(texts), or use pad='empty'.")
            return self.mean
        pad_rows = self._once(*pad_ids(self.tokenizer, pad, self.length, self.name), fingerprint(self.module))
        if pad == "zero":
            pooled = None if pad_rows.pooled is None else torch.zeros_like(pad_rows.pooled)
            return EncodedTexts(pad_rows.ids, torch.zeros_like(pad_rows.rows), pooled)
        return pad_rows

    def learn_mean(self, texts: Sequence[str]) -> None:
        """Store the mean row of each position over ``texts``, for ``pads("mean")``."""
        ids, rows, pooled = self(texts)
        self.mean = EncodedTexts(
            torch.full_like(ids[:1], -1), rows.mean(0, True), None if pooled is None else pooled.mean(0, True)
        )

    @property
    def causal(self) -> bool:
        """Does meaning flow left to right only?"""

        def encode(texts: list[str]) -> tuple[Tensor, Any]:
            tokens = self.tokens(texts[0])
            return self._forward(tokens.ids, tokens.real, hidden=True)

        return is_causal(self.module, encode)

    def _once(self, ids: tuple[int, ...], real: tuple[bool, ...], state: str) -> EncodedTexts:
        key = (state, ids, real if self.masked else None, self.layer)
        if key not in self._cache:
            tensor, output = self._forward(ids, real)
            pooled = output.get("text_embeds")
            pooled = output.get("pooler_output") if pooled is None else pooled
            self._cache[key] = EncodedTexts(tensor, self._rows(output), pooled)
            if len(self._cache) > self._remember:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]

    @torch.no_grad()
    def _forward(self, ids: tuple[int, ...], real: tuple[bool, ...], hidden: bool = False) -> tuple[Tensor, Any]:
        device = next(self.module.parameters()).device
        tensor = torch.tensor([ids], device=device)
        mask = {"attention_mask": torch.tensor([real], device=device).long()} if self.masked else {}
        return tensor, self.module(tensor, output_hidden_states=hidden or self.layer is not None, **mask)

    def _rows(self, output: Any) -> Tensor:
        if self.layer is None:
            return last_layer(output)
        return output.hidden_states[self.layer] if isinstance(self.layer, int) else self.layer(output)


def check_pad(pad: str) -> str:
    """`pad`, if it is one of `PADS`. Raises BadInput."""
    return choose("pad", pad, PADS)


def pad_ids(tokenizer: Any, pad: str, length: int, name: str) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """L token ids whose encoding makes pad rows, and which of them are no pads (the tokenizer's own mask).

    Args:
        pad: ``"empty"``, also the base of ``"zero"``: the empty text. ``"allpad"``: L pad tokens.
            ``"padtoken"``: the pad token's string.

    Raises:
        BadInput: the tokenizer has no pad token.
    """
    if pad in {"allpad", "padtoken"} and tokenizer.pad_token is None:
        raise no_pad(name)
    if pad == "allpad":
        return (tokenizer.pad_token_id,) * length, (True,) * length
    tokens = tokenize(tokenizer, tokenizer.pad_token if pad == "padtoken" else "", length, name)
    return tokens.ids, tokens.real


def no_pad(name: str) -> BadInput:
    return BadInput(f"{name}'s tokenizer has no pad token: use pad='empty'.")


def fingerprint(module: nn.Module, samples: int = 8) -> str:
    """A digest that changes when weights, dtype, adapters or plain settings of ``module`` change.

    It reads ``samples`` spread values of every parameter and buffer, and the numbers, flags and strings among
    the attributes of every submodule (adapter scales, train or eval mode): milliseconds, also for large ones.
    Hooks do not count, nor does the folder that the model came from.
    """
    digest = hashlib.blake2b(digest_size=16)
    values = []
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        if not tensor.is_meta and tensor.numel():
            flat = tensor.detach().flatten()
            values.append(flat[:: max(1, len(flat) // samples)].float())
    for part in values:
        digest.update(part.cpu().numpy().tobytes())
    for name, part in module.named_modules():
        plain = {key: value for key, value in vars(part).items() if _is_plain(value) and _acts(key)}
        digest.update(f"{name}{sorted(plain.items())}".encode())
    return digest.hexdigest()


def weights_digest(module: nn.Module, samples: int = 8) -> str:
    """A digest of the weights alone, to know a model again by: from ``samples`` spread values of every parameter.

    The same from any folder and version of the libraries, in single and in half precision if half holds the weights.
    """
    digest = hashlib.blake2b(digest_size=16)
    for tensor in module.parameters():
        flat = tensor.detach().flatten()
        digest.update(f"{tuple(tensor.shape)}".encode())
        if not tensor.is_meta:
            digest.update(flat[:: max(1, len(flat) // samples)].half().cpu().numpy().tobytes())
    return digest.hexdigest()


def _acts(attribute: str) -> bool:
    """Whether it says what a module computes."""
    return "_hooks" not in attribute and attribute != "name_or_path"


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value) and all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, (bool, int, float, str))
