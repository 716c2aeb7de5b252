"""Several images in one call: a batch of edits is the single ones, whatever each image's prompts and masks are."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from tiny import tiny
from unleak.engine.session import attach
from unleak.errors import BadInput
from unleak.regions.edit import edit
from unleak.regions.masks.own_masks import own_masks
from unleak.regions.methods.blend import Blend
from unleak.regions.methods.ddcm import DDCM
from unleak.regions.methods.ore import ORE
from unleak.regions.methods.p2p import P2P
from unleak.regions.methods.rgbcam import RGBCAM
from unleak.regions.plan import Edit

SIZE = (64, 96)


@pytest.fixture(scope="module")
def one():
    return tiny("sd1")


def picture(seed, size=SIZE):
    return np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)


def box(y, x, size=SIZE):
    mask = np.zeros(size, bool)
    mask[slice(*y), slice(*x)] = True
    return mask


LEFT, RIGHT, MIDDLE = box((0, 32), (0, 40)), box((24, 64), (48, 96)), box((16, 56), (24, 72))
INVERTS = {"target_guidance": 2.0, "tolerance": 1e-3}  # two steps up and down the whole schedule magnify rounding
PICTURES = [picture(seed) for seed in range(3)]
EDITS = [
    [Edit("blue cup", "red cup", LEFT), Edit("cat", "big black dog", RIGHT)],
    [Edit("horse", "striped zebra", MIDDLE), Edit("a small bus", "car", LEFT)],
    [Edit("apple", "pepper", RIGHT), Edit("wooden table", "pool table", MIDDLE)],
]


def edited(pipe, images, edits, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return edit(pipe, images, edits, **{"steps": 2, "size": SIZE, "dilation": 0.0, **options})


def same(pipe, tolerance=1e-4, **options):
    """The batch, after it was compared with each image alone."""
    together, alone = (edited(pipe, PICTURES, EDITS, batch=n, **options) for n in (8, 1))
    for ours, own in zip(together, alone, strict=True):
        assert torch.equal(ours.masks, own.masks) and ours.plan == own.plan
        assert torch.allclose(ours.latents, own.latents, atol=tolerance)
        assert np.abs(ours.image.astype(int) - own.image).max() <= 1
        assert not torch.allclose(own.latents, own.clean, atol=1e-2), "nothing was edited"
    assert [r.together for r in alone] == [1, 1, 1]
    return together


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_a_batch_of_edits_is_the_single_ones(name):
    made = same(tiny(name), negative_prompt="tree")
    assert [r.together for r in made] == [3, 3, 3] and made[0].log[-1]["denoiser_calls"] == 2
    assert made[1].to_dict()["denoiser_rows"] == 2 * 4


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "ale-official"},
        {"rgbcam": False, "target_guidance": 1.0},
        {"ore": False},
        {"preset": "p2p", "blend": True},
        {"preset": "masactrl"},
        {"preset": "infedit"},
        {"preset": "ddim", **INVERTS},
        {"preset": "pnp", "blend": True, **INVERTS},
    ],
    ids=str,
)
def test_every_method_that_draws_images_together_draws_the_single_ones(one, options):
    assert same(one, **options)[0].together == 3


@pytest.mark.parametrize("options", [{"preset": "p2p"}, {"preset": "direct", **INVERTS}], ids=str)
def test_baselines_follow_each_images_own_pooled_vectors(options):
    same(tiny("sdxl"), **options)


def test_a_method_that_optimises_for_one_image_draws_one_at_a_time(one):
    made = edited(one, PICTURES[:2], EDITS[:2], preset="null-text", iterations=1)
    assert [r.together for r in made] == [1, 1]


def test_images_are_grouped_by_size_and_number_of_edits_and_keep_their_order(one):
    images = [*PICTURES, picture(3), picture(4, (96, 64)), picture(5)]
    edits = [*EDITS, [EDITS[0][0]], [Edit("cup", "hat", LEFT.T)], []]
    made = edited(one, images, edits, size=None, batch=2)
    assert [r.together for r in made] == [2, 2, 1, 1, 1, 1]
    assert [r.edits for r in made] == [tuple(some) for some in edits]
    assert [r.before.shape[0] < r.before.shape[1] for r in made] == [True, True, True, True, False, True]
    again = edited(one, images[3], edits[3], size=None)
    assert torch.allclose(made[3].latents, again.latents, atol=1e-4)


def test_the_models_own_masks_are_those_of_each_image_alone(one):
    clean = torch.randn(3, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    prompts, objects = ["a cat and a cup", "a horse", "a tea cup, a big bus"], [["cat", "cup"], ["horse"], ["big bus"]]
    together = own_masks(one, clean, prompts, objects, SIZE)
    for i, masks in enumerate(together):
        (alone,) = own_masks(one, clean[i : i + 1], prompts[i : i + 1], objects[i : i + 1], SIZE)
        assert torch.equal(masks, alone)
    found = edited(one, PICTURES[:2], [[Edit("cat", "dog")], [Edit("horse", "bus", LEFT)]])
    assert [r.given for r in found] == [(False,), (True,)] and torch.equal(found[1].masks[0], torch.from_numpy(LEFT))


def test_parts_serve_several_prompts_and_images_of_each(one):
    """Two prompts with two images each: whatever is given for each prompt serves its own images."""
    one.scheduler = DDIMScheduler.from_config(one.scheduler.config, clip_sample=False)
    clean, start = (torch.randn(4, 4, 8, 12, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    noise = torch.randn(2, 1, 4, 8, 12, generator=torch.Generator().manual_seed(2))
    sources, targets = ("a cat and a cup", "a bus and a red car"), ("a dog and a hat", "a big horse and a blue car")
    objects = ("dog", "hat"), ("big horse", "blue car")
    masks = torch.from_numpy(np.stack([[LEFT, RIGHT], [MIDDLE, RIGHT]]))

    def drawn(prompts, pick, source, phrases, planes, **call):
        parts = [DDCM(clean[pick], source, noise=noise), RGBCAM(phrases, planes), Blend(planes)]
        with attach(one, *parts):
            return one(prompts, latents=start[pick], num_inference_steps=2, height=64, width=96, guidance_scale=2.0,
                       num_images_per_prompt=2, output_type="latent").images  # fmt: skip

    both = drawn(list(targets), slice(0, 4), sources, objects, masks)
    each = [
        drawn(targets[i], slice(2 * i, 2 * i + 2), sources[i], objects[i], masks[i]) for i in (0, 1)
    ]  # fmt: skip
    assert torch.allclose(both, torch.cat(each), atol=1e-4)


def test_what_is_told_must_fit_the_prompts_of_the_call(one):
    prompts, masks = ["a cat", "a dog", "a cup"], torch.from_numpy(np.stack([[LEFT], [RIGHT]]))
    for part, what in (
        (RGBCAM([["cat"], ["dog"]], masks), "2 prompts does not fit a call of 3"),
        (ORE(["cat"]), "give a list for each"),
        (P2P([("a bus", "a cat"), ("a bus", "a dog")]), "3 target prompts, and 2"),
    ):
        with pytest.raises(BadInput, match=what), attach(one, DDCM(torch.zeros(1, 4, 8, 12), "a bus"), part):
            one(prompts, num_inference_steps=1, height=64, width=96, output_type="latent")
    with pytest.raises(BadInput, match="one mask for each"):
        RGBCAM(["cat", "dog"], masks)
