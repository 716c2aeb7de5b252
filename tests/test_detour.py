"""Detour: another text while the prompt leads to the copy, the prompt itself afterwards; on every layout."""

from __future__ import annotations

import math

import pytest
import torch

from test_guard import guidance, near
from tiny import draw
from unleak.copies.methods.detour import OTHER, Detour
from unleak.core.intervention import Intervention, Window
from unleak.engine.session import attach
from unleak.errors import BadInput

PROMPT = "a red mouse and a laptop"


def scale(pipe) -> dict[str, float]:
    return {"scale": 4.0} if type(pipe).__name__.startswith("Flux") else {}


def test_while_the_prompt_leads_to_the_copy_the_picture_is_the_other_texts(any_pipe):
    call = {"steps": 2, "seeds": (3,)} | guidance(any_pipe)
    expected = draw(any_pipe, "a zebra", **call)
    with attach(any_pipe, Detour("a zebra", near=-1.0, **scale(any_pipe))):
        assert near(draw(any_pipe, PROMPT, **call), expected)


def test_only_the_first_step_is_another_where_nothing_is_near(sd1):
    bare = draw(sd1, PROMPT, steps=3)
    with attach(sd1, Detour(PROMPT, near=1.0)) as run:
        assert near(draw(sd1, PROMPT, steps=3), bare)  # a detour by the prompt itself leads nowhere else
    assert len(run.results[OTHER]) == 3 and run.results[OTHER][0] == pytest.approx([1.0])
    with attach(sd1, Detour(near=0.999)) as run:
        assert not near(draw(sd1, PROMPT, steps=3), bare)
    assert torch.equal(draw(sd1, PROMPT, steps=3), bare)


def test_it_goes_back_to_the_prompt_where_that_leads_elsewhere(sd1):
    with attach(sd1, Detour("a zebra", near=-1.0)) as run:
        always = draw(sd1, PROMPT, steps=2)
    second = run.results[OTHER][1][0]
    assert second < 0.999
    with attach(sd1, Detour("a zebra", near=-1.0, window=Window(0.0, 0.0))):
        once = draw(sd1, PROMPT, steps=2)
    with attach(sd1, Detour("a zebra", near=(1 + second) / 2)):
        drawn = draw(sd1, PROMPT, steps=2)
    assert near(drawn, once) and not near(drawn, always)


def test_rows_are_paid_for_while_it_lasts(sd1):
    with attach(sd1, Detour(near=-1.0)) as run:
        draw(sd1, PROMPT, steps=3, seeds=(0, 1), num_images_per_prompt=2)
    assert run.log[0]["denoiser_rows"] == 3 * 6
    steps = iter([[True, False], [True, True], [False, True]])

    class Scripted(Detour):
        def _others(self, ctx, preds, away):
            return super()._others(ctx, preds, [i for i, yes in enumerate(next(steps)) if yes])

    with attach(sd1, Scripted()) as run:
        draw(sd1, PROMPT, steps=3, seeds=(0, 1), num_images_per_prompt=2)
    assert run.log[0]["denoiser_rows"] == (4 + 1) + (4 + 2) + (4 + 2)  # the row of the step before comes once more


@pytest.mark.parametrize("prompts", [["a red mouse", "a zebra and a dog"]])
def test_a_batch_equals_its_singles(sd1, prompts):
    with attach(sd1, Detour(near=0.9)):
        batch = draw(sd1, prompts, seeds=range(4), num_images_per_prompt=2, negative_prompt=["a bus"] * 2)
        singles = [draw(sd1, prompts[i // 2], seeds=(i,), negative_prompt="a bus") for i in range(4)]
    assert near(batch, torch.cat(singles))


def test_what_the_gate_leaves_alone_is_bitwise_the_bare_picture(any_pipe):
    call = {"steps": 2} | guidance(any_pipe)
    bare = draw(any_pipe, PROMPT, **call)
    with attach(any_pipe, Detour(gate=math.inf, **scale(any_pipe))) as run:
        assert torch.equal(draw(any_pipe, PROMPT, **call), bare)
    assert run.log[0]["denoiser_rows"] == 4 and OTHER not in run.results


def test_each_prompt_of_a_list_is_gated_for_itself_with_all_of_its_images(sd1):
    prompts = ["a red mouse and a dog", "a zebra"]
    call = {"seeds": range(4), "num_images_per_prompt": 2, "negative_prompt": ["a bus", "a cat"], "steps": 2}
    bare = draw(sd1, prompts, **call)
    with attach(sd1, Detour()):
        every = draw(sd1, prompts, **call)
    with attach(sd1, Detour(gate=math.inf)) as run:
        draw(sd1, prompts, **call)
    scores = [g["score"] for g in run.results["gate"]]
    assert scores[0] == scores[1] != scores[2] == scores[3]
    with attach(sd1, Detour(gate=max(scores))) as run:
        found = draw(sd1, prompts, **call)
    acted = [g["acted"] for g in run.results["gate"]]
    assert acted in ([True, True, False, False], [False, False, True, True])
    for i, chosen in enumerate(acted):
        assert near(found[i], (every if chosen else bare)[i])


def test_without_guidance_it_follows_the_other_text_alone(sd1):
    with attach(sd1, Detour("a zebra", near=-1.0)):
        found = draw(sd1, PROMPT, guidance_scale=1.0)
    assert (found - draw(sd1, "a zebra", guidance_scale=1.0)).abs().max() < 1e-3


def test_bad_use():
    with pytest.raises(BadInput, match="cosine"):
        Detour(near=2.0)
    assert Intervention.from_dict(Detour(near=0.4).to_dict()) == Detour(near=0.4)
