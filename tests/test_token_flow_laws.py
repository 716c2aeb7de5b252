"""The invariants of token flow, each over the five layouts: which tests hold them, and those that stand alone.

TF-1   nothing removed is bit-exact       test_probe keeping_everything, test_patch removing_nothing
TF-2   self-patch is a no-op              test_patch removing_nothing_and_patching_an_item_with_itself
TF-3   keep none = empty prompt           test_probe keeping_nothing
TF-4   algebra of removal                 test_text_rows, test_probe keeping_twice
TF-5   locality                           test_patch, test_probe, test_redundancy: rows, dtype, negative, inputs
TF-6   pads are contextual                test_text_encode pads_depend_on_length_and_context, cached ones
TF-7   causality                          test_text_encode, test_flow, test_flow_images
TF-8   text rows are a set                here
TF-9   batch = singles, seeds             test_probe image_j, test_patch list_of_prompts; bit-equal: here
TF-10  spans, per encoder                 test_text_spans by tokenizer; in every pipeline: here
TF-11  attention edits                    test_deleaker
TF-12  known answer on real weights       optional; on the embedded model: test_e2e
TF-13  restore                            test_core_laws; for every method of words: here
TF-14  the classifier's guard             test_redundancy
TF-15  removal is not shortening          test_probe, test_redundancy; for every method of words: here
TF-16  the verdict table                  test_diagnose
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import unleak
from tiny import draw
from unleak.core.anatomy import Anatomy
from unleak.core.intervention import Intervention
from unleak.drawing.generate import rehearse
from unleak.errors import BadInput, UnsupportedModel
from unleak.text.spans import item_span, tokenize
from unleak.words.diagnosis.neglect import KeepItem
from unleak.words.methods.lens import Lens

PROMPT = "a hot dog and a laptop"
#: every method of words, on text rows, attention or both
METHODS: dict[str, Callable[[str], Intervention]] = {
    "patch": lambda encoder: unleak.Patch("hot dog", others="laptop"),
    "prune": lambda encoder: unleak.Prune(unleak.Subset.token("hot dog", 0, encoder)),
    "keep": lambda encoder: unleak.Keep(unleak.Subset.of("hot dog")),
    "says": lambda encoder: KeepItem("hot dog", ("laptop",)),
    "lens": lambda encoder: Lens(0.5),
    "structure": lambda encoder: unleak.StructureDiffusion("hot dog,laptop"),
    "cutoff": lambda encoder: unleak.Cutoff("hot dog,laptop"),
    "tebopt": lambda encoder: unleak.TEBOpt("hot dog,laptop"),
    "boost": lambda encoder: unleak.Boost("hot dog", region="all"),
    "deleaker": lambda encoder: unleak.DeLeaker("hot dog,laptop"),
    "maps": lambda encoder: unleak.Maps("hot dog,laptop"),
}


def options(pipe: Any) -> dict[str, Any]:
    return {"max_sequence_length": 32} if hasattr(pipe, "transformer") else {}


def read_first(pipe: Any) -> str:
    """The name of an encoder whose tokens the denoiser reads."""
    encoded = rehearse(pipe, PROMPT, **options(pipe)).prompts.encoded
    return next(name for name in encoded.calls if encoded.layer(name) is not None)


def test_tf8_text_rows_are_a_set(any_pipe) -> None:
    """Permuting the rows that the denoiser is given moves its output by rounding alone."""
    plain = draw(any_pipe, PROMPT, steps=1)
    order: list[int] = []

    def permute(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        rows = kwargs["encoder_hidden_states"]
        order[:] = torch.randperm(rows.shape[1], generator=torch.Generator().manual_seed(0)).tolist()
        return args, {**kwargs, "encoder_hidden_states": rows[:, order]}

    handle = Anatomy.of(any_pipe).denoiser.register_forward_pre_hook(permute, with_kwargs=True)
    try:
        permuted = draw(any_pipe, PROMPT, steps=1)
    finally:
        handle.remove()
    assert order and order != sorted(order)
    assert (permuted - plain).norm() / plain.norm() < 1e-5


def test_tf9_the_same_seed_twice_is_the_same_picture(any_pipe) -> None:
    with unleak.attach(any_pipe, unleak.Patch("hot dog", others="laptop")):
        assert torch.equal(draw(any_pipe, PROMPT, steps=1), draw(any_pipe, PROMPT, steps=1))


@pytest.mark.parametrize("item", ["hot dog", "laptop", "T-shirt", "мышь", "电脑"])
def test_tf10_a_span_spells_its_item_in_every_encoder(any_pipe, item: str) -> None:
    """Also where the tokenizer splits a script into bytes: all of them, nothing of a neighbour. Where it knows neither
    the letters nor bytes, that is an error."""
    prompt = f"a red {item}, a table"
    for encoder in Anatomy.of(any_pipe).encoders:
        tokens = tokenize(encoder.tokenizer, prompt, 60, encoder.name)
        if encoder.tokenizer.unk_token_id in encoder.tokenizer(item, add_special_tokens=False).input_ids:
            with pytest.raises(BadInput, match="another word"):
                item_span(encoder.tokenizer, prompt, item, 60)
            continue
        a, b = item_span(encoder.tokenizer, prompt, item, 60)
        at = prompt.index(item)
        spelled = {c for i in range(a, b) for c in range(*tokens.offsets[i])}
        assert spelled and {c for c in spelled if not prompt[c].isspace()} <= set(range(at, at + len(item)))
        assert set(range(at, at + len(item))) - spelled <= {c for c in range(len(prompt)) if prompt[c].isspace()}


@pytest.mark.parametrize("method", METHODS)
def test_tf13_tf15_every_method_keeps_the_length_and_leaves_nothing_behind(any_pipe, method: str) -> None:
    """Rows keep their number; after the block, also one that raised, the pipeline draws what it drew before."""
    bare = draw(any_pipe, PROMPT, steps=1)
    made, seen = METHODS[method](read_first(any_pipe)), set()
    handle = Anatomy.of(any_pipe).denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: seen.add(kwargs["encoder_hidden_states"].shape[1]), with_kwargs=True
    )
    draw(any_pipe, PROMPT, steps=1)
    try:
        with unleak.attach(any_pipe, made):
            draw(any_pipe, PROMPT, steps=1)
    except UnsupportedModel:  # joint or cross-attention alone
        assert method in ("deleaker", "structure", "tebopt")
    finally:
        handle.remove()
    assert len(seen) == 1
    assert torch.equal(draw(any_pipe, PROMPT, steps=1), bare)
