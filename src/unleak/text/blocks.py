"""The block of a modular pipeline that encodes the prompt, called as `encode_prompt` of a classic pipeline is.

A `ModularPipeline` of diffusers is a tree of blocks that read and write one state of named values. The block that
reads a ``prompt`` and expects a text encoder takes the place of `encode_prompt`: what it declares to read are the
arguments, what it declares to write is returned.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator
from typing import Any

from torch import Tensor

IMAGES = "num_images_per_prompt"


def encoding_blocks(blocks: Any, encoders: Collection[str]) -> list[Any]:
    """Those of the blocks of a modular pipeline, at any depth, that read a prompt with some of these components."""
    return [
        block
        for block in _leaves(blocks)
        if "prompt" in block.input_names and not set(encoders).isdisjoint(block.component_names)
    ]


def call_arguments(pipe: Any) -> dict[str, Any]:
    """What a call of the pipeline takes, by name, with its default (None where there is none). A modular pipeline takes
    what its blocks read and none of them writes."""
    if (blocks := getattr(pipe, "_blocks", None)) is not None:
        return {given.name: given.default for given in blocks.inputs if given.name is not None}
    parameters = inspect.signature(pipe.__call__).parameters
    return {name: None if given.default is given.empty else given.default for name, given in parameters.items()}


def prompt_encoder(pipe: Any, encoders: Collection[str]) -> Callable[..., Any] | None:
    """`encode_prompt` of a classic pipeline; of a modular one, the block that takes its place; None of others."""
    blocks = encoding_blocks(getattr(pipe, "_blocks", None), encoders)
    if not blocks:
        return getattr(pipe, "encode_prompt", None)
    from diffusers.modular_pipelines import PipelineState

    return BlockEncoder(blocks[0], pipe, PipelineState())


def _leaves(block: Any) -> Iterator[Any]:
    inner = getattr(block, "sub_blocks", None)
    if inner:
        for part in inner.values():
            yield from _leaves(part)
    elif block is not None:
        yield block


class BlockEncoder:
    """A block as a function of its inputs.

    It returns its outputs for every image of the prompts, as later blocks repeat them.

    Attributes:
        after: the pipeline's state [of named values] after the last call.
    """

    def __init__(self, block: Any, pipe: Any, state: Any, run: Callable[..., Any] | None = None) -> None:
        """`state`: the values that the block finds. `run`: what runs the block, itself if left out."""
        self._run, self._pipe, self._state = run or block, pipe, state
        self._outputs = block.intermediate_output_names
        self._inputs = dict.fromkeys([*block.input_names, IMAGES])
        self.after = state
        self.__signature__ = inspect.Signature(
            [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in self._inputs]
        )

    @property
    def given(self) -> dict[str, Any]:
        """What the state has of the block's inputs."""
        return {name: self._state.values[name] for name in self._inputs if name in self._state.values}

    def __call__(self, **given: Any) -> tuple[Any, ...]:
        groups = {kind: list(names) for kind, names in self._state.kwargs_mapping.items()}
        _, self.after = self._run(self._pipe, type(self._state)({**self._state.values, **given}, groups))
        images = given.get(IMAGES) or 1
        return tuple(_repeated(self.after.values.get(name), images) for name in self._outputs)


def _repeated(value: Any, times: int) -> Any:
    """Every row of a batch so many times, each beside itself."""
    if times == 1:
        return value
    if isinstance(value, Tensor):
        return value.repeat_interleave(times, 0)
    return [item for item in value for _ in range(times)] if isinstance(value, list) else value
