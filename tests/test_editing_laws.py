"""Laws of editing by region that no other test states: who may look where, how often, and what stays the source."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tiny import draw, latents, tiny
from unleak.core.edits import Partition
from unleak.core.intervention import Intervention
from unleak.engine.execute import execute
from unleak.engine.session import attach
from unleak.metrics.leakage import leakage
from unleak.regions.methods.ddcm import DDCM, SOURCE
from unleak.regions.methods.inversion import invert
from unleak.regions.methods.rgbcam import RGBCAM
from unleak.regions.methods.schedule import followed
from unleak.regions.methods.selfattn import SelfInjection
from unleak.regions.presets import EDITORS

SIZE, STEPS = (64, 96), 3
PROMPT, OBJECTS = "a red cup and a big dog", ("red cup", "big dog")
SOURCE_SIDE, TARGET_SIDE = ("a red cup and a cat", ("cat",)), ("a red cup and a dog", ("dog",))


@pytest.fixture(scope="module")
def one():
    return tiny("sd1")


def boxes():
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[0, 8:40, 8:40] = masks[1, 24:56, 48:88] = True
    return masks


@dataclass(frozen=True)
class Peek(Intervention):
    look: object = None

    def on_attention(self, ctx, site):
        if site.kind == "cross":
            self.look(ctx, site)


def carried_out(site, edits):
    return execute(site, edits, lambda q, k, v, mask: scaled_dot_product_attention(q, k, v, mask))


# -- attention -------------------------------------------------------------------------------------------------------


def test_other_values_of_one_object_change_nothing_in_the_region_of_another(one):
    """V_2 acts in region 2 alone: perturbed, it leaves region 1 and the background bit by bit."""
    part, checked = RGBCAM(OBJECTS, boxes()), []

    def look(ctx, site):
        edits = part.on_attention(ctx, site)
        (regions,) = [edit.regions for edit in edits if isinstance(edit, Partition)]
        other = [*regions[:1], replace(regions[1], values=regions[1].values + 1.0), *regions[2:]]
        moved = [Partition(other, edit.rows) if isinstance(edit, Partition) else edit for edit in edits]
        (row,) = site.rows.of("cond")
        change = (carried_out(site, moved) - carried_out(site, edits))[row].abs().amax((0, 2)).unflatten(0, site.grid)
        inside = torch.nn.functional.interpolate(boxes()[None].float(), site.grid)[0, 1] > 0.5
        assert not change[~inside].any() and (change[inside] > 0.5).all()
        checked.append(site.name)

    with attach(one, Peek(look)):
        draw(one, PROMPT, steps=1, size=SIZE)
    assert len(checked) >= 4


def test_rows_of_the_source_and_of_no_prompt_are_those_of_the_plain_site(one):
    part, checked = RGBCAM(OBJECTS, boxes()), []

    def look(ctx, site):
        out, plain = carried_out(site, part.on_attention(ctx, site)), site.plain()
        for name in ("uncond", "source_uncond", "source_cond"):
            rows = list(site.rows.of(name))
            assert len(rows) == 1 and torch.allclose(out[rows], plain[rows], atol=1e-6)
        (row,) = site.rows.of("cond")
        checked.append(float((out[row] - plain[row]).abs().max()))

    with attach(one, DDCM(latents(), SOURCE_SIDE[0]), Peek(look)):
        draw(one, PROMPT, steps=1, size=SIZE)
    assert len(checked) >= 4 and max(checked) > 1e-3


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [(15, {0.0: 0, 0.5: 7, 0.6: 8, 1.0: 14}), (12, {0.5: 5, 0.6: 7, 1.0: 11}), (4, {0.5: 1, 0.6: 2, 1.0: 3}),
     (20, {0.5: 9, 0.6: 11, 1.0: 19})],
)  # fmt: skip
def test_self_attention_is_injected_at_as_many_steps_as_published(steps, wanted):
    for until, times in wanted.items():
        part, site = SelfInjection(until), SimpleNamespace(kind="self")
        runs = [part.on_attention(SimpleNamespace(step=c, steps=steps), site) for c in range(steps)]
        assert sum(edits is not None for edits in runs) == times, until


# -- sources that are walked back ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Walk(Intervention):
    """Leaves what the source's row is given, and the source's latents after each step."""

    def on_prediction(self, ctx, preds):
        ctx.results.setdefault("given", []).append(ctx.latents("source_cond").clone())

    def on_latents(self, ctx, latents):
        ctx.results.setdefault("walked", []).append(ctx.results[SOURCE].clone())


def test_direct_inversion_leads_the_source_back_exactly_and_the_target_elsewhere(one):
    """Guided steps from inverted noise miss the image; the source's rows do not, at any step."""
    method = EDITORS["direct"].make(steps=STEPS)
    with followed(one, STEPS, reversible=True):
        path = invert(one, latents(), SOURCE_SIDE[0], SIZE, STEPS)
        finals = []
        for target in (SOURCE_SIDE, TARGET_SIDE):
            parts = method.parts(SOURCE_SIDE, target, boxes()[:1], latents(), path)
            with attach(one, *parts, Walk()) as run:
                finals.append(one(target[0], latents=path[-1], num_inference_steps=STEPS, height=SIZE[0],
                                  width=SIZE[1], guidance_scale=2.0, output_type="latent").images)  # fmt: skip
            assert run.log[-1]["denoiser_rows"] == 3 * STEPS and run.log[-1]["edits"]
            assert torch.equal(torch.stack(run.results["given"]), path.flip(0)[:-1])
            assert torch.equal(torch.stack(run.results["walked"]), path.flip(0)[1:])
            assert torch.equal(run.results[SOURCE], latents())
    assert (finals[0] - latents()).abs().max() > 1e-2 and (finals[0] - finals[1]).abs().max() > 1e-2


# -- metrics ---------------------------------------------------------------------------------------------------------


def test_performance_under_a_full_mask_is_the_score_of_the_whole_image():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    score = lambda images, texts: images.reshape(len(images), -1).mean(1)[:, None] * np.ones((1, len(texts)))  # noqa: E731
    assert leakage(image, np.ones((1, 8, 8)), ["dog"], score).performance == pytest.approx(float(image.mean()))
