"""How a pipeline reads its text encoders, learned from one `encode_prompt`; no denoiser is needed."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unleak.errors import UnsupportedModel
from unleak.text.blocks import prompt_encoder
from unleak.text.call import TextCall
from unleak.text.encoders import text_encoders
from unleak.text.prompts import Prompts


class EncoderCall(NamedTuple):
    """One encoder whose rows the denoiser gets: its call, to be repeated, and the layer that is read of it."""

    call: TextCall
    layer: Callable[[Any], Tensor]


@torch.no_grad()
def encoder_calls(pipe: Any, prompt: str = "a", **call: Any) -> list[EncoderCall]:
    """The encoders of `pipe` whose rows reach the denoiser, with the pipeline's own length, masks and layer.

    Encoders of which only a pooled vector is used are left out. Of `call`, how the pipeline is called otherwise, only
    what `encode_prompt` takes matters (``max_sequence_length=32``).

    Raises:
        UnsupportedModel: the pipeline has no text encoder, or no `encode_prompt` (block) that takes a prompt alone.
    """
    encoders = text_encoders(getattr(pipe, "components", {}))
    encode_prompt = prompt_encoder(pipe, [encoder.name for encoder in encoders])
    if not encoders or encode_prompt is None:
        raise UnsupportedModel(f"{type(pipe).__name__} has no text encoder with an encode_prompt")
    prompts = Prompts(pipe, encoders, strict=False, rewriting=False, on_call=lambda call: None)
    with contextlib.ExitStack() as undo:
        for encoder in encoders:
            hook = partial(prompts.after_encoder, encoder)
            undo.callback(encoder.module.register_forward_hook(hook, with_kwargs=True).remove)
        prompts.encode_prompt(encode_prompt, (), _arguments(pipe, encode_prompt, prompt, call))
    encoded = prompts.encoded
    layers = {name: encoded.layer(name) for name in encoded.calls}
    calls = [EncoderCall(encoded.calls[name], layer) for name, layer in layers.items() if layer is not None]
    if not calls:
        raise UnsupportedModel(f"{type(pipe).__name__} gives the denoiser none of the rows of {sorted(layers)}")
    return calls


def _arguments(pipe: Any, encode_prompt: Callable[..., Any], prompt: str, call: Mapping[str, Any]) -> dict[str, Any]:
    """What `encode_prompt` must be given: the prompt, no negative one, and what of `call` concerns it."""
    known: dict[str, Any] = {"device": pipe.device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    chosen = {"prompt": prompt}
    for name, parameter in inspect.signature(encode_prompt).parameters.items():
        required = parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        if name == "do_classifier_free_guidance" or (required and name in known):
            chosen[name] = known[name]
        elif required and name != "prompt":
            if not name.startswith("prompt"):
                raise UnsupportedModel(f"encode_prompt of {type(pipe).__name__} needs {name!r}, which a prompt is not")
            chosen[name] = prompt
        elif name in call and not name.startswith("negative"):
            chosen[name] = call[name]
    return chosen
