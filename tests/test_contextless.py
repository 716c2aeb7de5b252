"""Contextless rows: each word's rows are means of encodings in which no other word of the prompt stands."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tiny import NAMES, draw, tiny
from unleak import Contextless, attach, hook
from unleak.errors import BadInput, PromptTruncated
from unleak.words.presets import REPAIRS, RepairTask


def encoded(pipe: Any, prompt: str | list[str], *interventions: Any) -> Tensor:
    """The denoiser's text [images, K, D]."""
    texts: list[Tensor] = []
    keep = hook(on_latents=lambda ctx, latents: texts.append(ctx.encoded.cond.clone()))
    with attach(pipe, *interventions, keep):
        draw(pipe, prompt, steps=1, seeds=range(1 if isinstance(prompt, str) else len(prompt)))
    return texts[0]


def alike(pipe: Any) -> tuple[str, str]:
    """Two words that every tokenizer of the pipeline cuts into as many, but other, tokens."""
    cutters = [part for name, part in pipe.components.items() if name.startswith("tokenizer") and part is not None]
    cut = lambda word: [cutter(word).input_ids for cutter in cutters]  # noqa: E731
    return next(
        (a, b)
        for a, b in itertools.combinations(("cat", "dog", "red", "ear", "car", "tin", "hat"), 2)
        if all(len(x) == len(y) and x != y for x, y in zip(cut(a), cut(b), strict=True))
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_word_has_the_same_rows_in_any_company(name: str) -> None:
    pipe = tiny(name)
    first, other = (f"a mouse and a {word}" for word in alike(pipe))
    plain = [encoded(pipe, text) for text in (first, other)]
    apart = [encoded(pipe, text, Contextless()) for text in (first, other)]
    where = (plain[0] - plain[1]).abs().amax((0, 2)) > 0
    still = (apart[0] - apart[1]).abs().amax((0, 2)) > 1e-6
    assert 0 < still.sum() < where.sum()  # the rows of the words that differ
    assert torch.isfinite(apart[0]).all() and not torch.equal(apart[0], plain[0])


def test_the_rows_are_the_equation_by_hand() -> None:
    pipe = tiny("sd1")
    fillers = ("thing", "red")

    def rows(text: str) -> Tensor:
        ids = pipe.tokenizer(text, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return pipe.text_encoder(ids)[0][0]

    cat, horse = (pipe.tokenizer(word, add_special_tokens=False).input_ids for word in ("cat", "horse"))
    found = encoded(pipe, "cat horse", Contextless(fillers))[0]
    spans = {"cat": (1, 1 + len(cat)), "horse": (1 + len(cat), 1 + len(cat) + len(horse))}
    base = pipe.tokenizer("cat horse", padding="max_length", truncation=True, return_tensors="pt").input_ids

    def filled(*words: str) -> list[Tensor]:
        out = []
        for filler in fillers:
            ids, own = base.clone(), pipe.tokenizer(filler, add_special_tokens=False).input_ids
            for word in words:
                for k, p in enumerate(range(*spans[word])):
                    ids[0, p] = own[k % len(own)]
            out.append(pipe.text_encoder(ids)[0][0])
        return out

    for word, others in (("cat", ("horse",)), ("horse", ("cat",))):
        at = slice(*spans[word])
        assert torch.allclose(found[at], torch.stack(filled(*others)).mean(0)[at], atol=1e-6)
    rest = [0, *range(spans["horse"][1], len(found))]
    assert torch.allclose(found[rest], torch.stack(filled("cat", "horse")).mean(0)[rest], atol=1e-6)
    kept = encoded(pipe, "cat horse", Contextless(fillers, eos_pads="keep"))[0]
    assert torch.equal(kept[rest], rows("cat horse")[rest])


def test_a_lone_word_stays_bitwise_what_it_is() -> None:
    pipe = tiny("sd1")
    bare = draw(pipe, "mouse", steps=1)
    with attach(pipe, Contextless(eos_pads="keep")):
        assert torch.equal(draw(pipe, "mouse", steps=1), bare)


def test_prompts_of_a_batch_are_read_each_for_itself() -> None:
    pipe = tiny("sd1")
    texts = ["a mouse and a laptop", "a horse"]
    together = encoded(pipe, texts, Contextless())
    for text, rows in zip(texts, together, strict=True):
        assert torch.allclose(rows, encoded(pipe, text, Contextless())[0], atol=1e-6)


def test_it_is_a_repair_that_needs_no_item_names() -> None:
    task = RepairTask((), (), ())
    assert REPAIRS["contextless"].build(task, {"eos_pads": "keep"}) == Contextless(eos_pads="keep")


def test_bad_input_is_refused() -> None:
    pipe = tiny("sd1")
    with pytest.raises(BadInput, match="fillers"):
        Contextless(())
    with pytest.raises(BadInput, match="eos_pads"):
        Contextless(eos_pads="none")
    with pytest.raises(BadInput, match="no token"), attach(pipe, Contextless(" ")):
        draw(pipe, steps=1)
    with pytest.raises(PromptTruncated), attach(pipe, Contextless()):
        draw(pipe, "a mouse " * 60, steps=1)
