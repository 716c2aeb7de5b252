"""What copies/ reads and changes under every kind of guidance: one call or two a step, perturbed, distilled."""

from __future__ import annotations

import math

import pytest
import torch

from tiny import draw
from unleak.copies.methods.attenuate import Attenuate
from unleak.copies.methods.detour import Detour
from unleak.copies.methods.guard import Guard
from unleak.copies.methods.prss import PRSS
from unleak.engine.session import attach

TRUE = {"negative_prompt": "a cat", "true_cfg_scale": 3.0}  # two calls of the denoiser a step
MANY = {"seeds": (0, 1), "num_images_per_prompt": 2, "steps": 2}


def drawn(pipe, *methods, **call):
    """Latents, and the log of the generation."""
    with attach(pipe, *methods) as run:
        return draw(pipe, **{**MANY, **call}), run.log[-1]


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() < 1e-4 * b.abs().max())


METHODS = [
    (Guard, {}), (Guard, {"source": "clean"}), (Attenuate, {}), (Detour, {"near": -1.0}), (PRSS, {"loud": 0.1}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "fields"), METHODS, ids=str)
def test_a_gate_decides_where_the_denoiser_is_called_once_per_branch(flux, method, fields):
    bare = draw(flux, **MANY, **TRUE)
    ungated, _ = drawn(flux, method(**fields), **TRUE)
    opened, log = drawn(flux, method(**fields, gate=-math.inf), **TRUE)
    shut, plain = drawn(flux, method(**fields, gate=math.inf), **TRUE)
    assert near(opened, ungated) and not near(opened, bare) and log["denoiser_rows"] >= 8
    assert torch.equal(shut, bare) and plain["denoiser_rows"] == 8


def test_one_flagged_prompt_of_two_is_acted_on_where_branches_are_called_apart(flux):
    prompts = {"prompt": ["a red mouse and a dog", "a zebra"], "negative_prompt": ["a cat"] * 2, "true_cfg_scale": 3.0}
    call = {**prompts, "seeds": range(2), "num_images_per_prompt": 1}
    bare, (with_all, _) = draw(flux, **{**MANY, **call}), drawn(flux, Attenuate(), **call)
    with attach(flux, Attenuate(gate=math.inf)) as run:
        draw(flux, **{**MANY, **call})
    score = [decision["score"] for decision in run.results["gate"]]
    high = score.index(max(score))
    found, _ = drawn(flux, Attenuate(gate=sum(score) / 2), **call)
    assert near(found[high], with_all[high]) and near(found[1 - high], bare[1 - high])
    assert not near(found[high], bare[high])
