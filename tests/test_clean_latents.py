"""Clean latents of a prediction: pipelines negate it, reverse time, pack, list and guide as they like."""

from __future__ import annotations

import math

import pytest
import torch

import unleak
from conformance import family
from conformance.family import PROMPT
from tiny import draw
from unleak.copies.detect.detectors import Collapse
from unleak.copies.methods.attenuate import Attenuate
from unleak.copies.methods.detour import OTHER, Detour
from unleak.core.predictions import sign_of
from unleak.engine.session import attach
from unleak.errors import UnsupportedModel

NEGATED = {"lumina2", "z-image", "hidream"}
FAMILIES = [*sorted(NEGATED), "sd3.5", "flux.1", "flux.1-true-cfg", "qwen-image", "chroma", "sana", "aura-flow"]


def known_picture(pipe, sign: int):
    """Let the denoiser predict, for any text, the flow to one picture, as its pipeline takes it. Returns the picture
    of each shape, and the hook."""
    pictures: dict[tuple[int, ...], torch.Tensor] = {}

    def flow(x: torch.Tensor) -> torch.Tensor:
        random = torch.Generator().manual_seed(1)
        z0 = pictures.setdefault(tuple(x.shape), torch.randn(x.shape, generator=random))
        i = pipe.scheduler.step_index or 0
        return sign * (x - z0) / pipe.scheduler.sigmas[i]

    def predict(module, args, kwargs, output):
        x = args[0] if args else next(iter(kwargs.values()))
        made = [flow(one) for one in x]
        if isinstance(output, tuple):
            return (made if isinstance(output[0], list) else torch.stack(made), *output[1:])
        name = next(iter(output.keys()))
        return type(output)(**{name: made if isinstance(output[name], list) else torch.stack(made)})

    return pictures, pipe.transformer.register_forward_hook(predict, with_kwargs=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_true_flow_of_a_picture_is_read_as_that_picture(name):
    one = family(name)
    pipe = one.pipe()
    pictures, hook = known_picture(pipe, -1 if name in NEGATED else 1)
    clean, drawn = [], []

    def predicted(ctx, preds):
        ctx.state["cond"] = preds["cond"]

    def stepped(ctx, latents):
        clean.append(ctx.clean_latents(ctx.state["cond"]))
        drawn.append(latents)

    with attach(pipe, unleak.hook(on_prediction=predicted, on_latents=stepped)):
        one.draw(pipe, output_type="latent", num_inference_steps=3)
    (z0,) = pictures.values()
    assert len(clean) == 3
    for found in (*clean, drawn[-1]):  # what the sampler arrives at says that the flow is the pipeline's
        assert (found.flatten() - z0.flatten()).abs().max() < 1e-3
    hook.remove()


@pytest.mark.parametrize("name", ["lumina2", "z-image", "sd3.5"])
def test_a_detour_stays_by_the_picture_that_the_prompt_leads_to(name):
    one = family(name)
    pipe = one.pipe()
    _, hook = known_picture(pipe, -1 if name in NEGATED else 1)
    with attach(pipe, Detour(PROMPT, near=0.9), Collapse()) as run:
        one.draw(pipe, output_type="latent", num_inference_steps=3, prompt=[PROMPT] * 2)
    assert torch.tensor(run.results[OTHER]).flatten().tolist() == pytest.approx([1.0] * 6, abs=1e-4)
    assert torch.stack(list(run.results["collapse"].values())).flatten().tolist() == pytest.approx([1.0] * 6, abs=1e-3)
    hook.remove()


@pytest.mark.parametrize("name", ["lumina2", "z-image", "sd3.5"])
def test_a_detour_by_the_prompt_itself_changes_nothing(name):
    """What the scheduler is given keeps its sign, also in steps that are not guided."""
    one = family(name)
    pipe = one.pipe()
    call = {"cfg_trunc_ratio": 0.5} if name == "lumina2" else {}
    bare = one.draw(pipe, output_type="latent", **call)
    with attach(pipe, Detour(PROMPT, near=-1.0)):
        found = one.draw(pipe, output_type="latent", **call)
    assert abs(found - bare).max() < 1e-3


def test_a_gate_that_reads_clean_latents_too_early_is_refused():
    one = family("z-image")
    gated = Attenuate(gate=-math.inf, reads=(("collapse", 1.0),))
    with attach(one.pipe(), gated) as run, pytest.raises(UnsupportedModel, match="first step"):
        one.draw(run.pipe, [PROMPT] * 2)


def test_what_no_combination_gives_is_refused(sd1):
    step = sd1.scheduler.step

    def other(output, *args, **kwargs):
        return step(output.flip(-1).cos(), *args, **kwargs)

    sd1.scheduler.step = other
    try:
        with attach(sd1, Collapse()), pytest.raises(UnsupportedModel, match="no combination"):
            draw(sd1, seeds=(0, 1), num_images_per_prompt=2)
    finally:
        del sd1.scheduler.step


@pytest.mark.parametrize("sign", [1, -1])
def test_the_sign_is_that_of_the_sum_of_the_weights(sign):
    u, c, p = torch.randn(3, 2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    combined = u + 7.5 * (c - u) + 3.0 * (c - p)
    factors = torch.tensor([0.7, 1.2])[:, None, None, None]  # of each image, as rescaled guidance has them
    each = [torch.stack(rows) for rows in zip(u, c, p, strict=True)]
    assert sign_of(sign * factors * combined, each, 4) == sign
    assert sign_of(sign * c, [torch.stack([one, one]) for one in c], 4) == sign
    assert sign_of(torch.cat([combined, p], 1), [torch.cat([rows, rows], 1) for rows in each], 4) == 1
    assert sign_of(combined.cos(), each, 4) is None and sign_of(combined[:1], each, 4) is None
