"""Masks from the model itself: attention, and where words help it to predict the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tiny import tiny
from unleak.drawing import photo
from unleak.errors import EmptyMask
from unleak.models import load
from unleak.regions.masks.own_masks import levels, local_mean, own_masks, unit_range
from unleak.text.items import Item
from unleak.text.without import each_without
from unleak.world import load as load_world
from unleak.world.edits import edit_cases
from unleak.world.render import Renderer

SIZE = (64, 96)


def test_an_item_is_just_a_thing_with_its_article_and_its_colour_gone():
    items = [Item.of("orange cup"), Item.of("the mouse"), Item.of("owl")]
    assert each_without("an orange cup, the mouse and an owl", items) == [
        "a thing, the mouse and an owl",
        "an orange cup, the thing and an owl",
        "an orange cup, the mouse and a thing",
    ]


def test_a_level_takes_both_attention_and_gain_and_a_local_mean_keeps_what_is_flat():
    flat = torch.full((1, 8, 12), 2.0)
    assert torch.allclose(local_mean(flat), flat)
    attention, gain = torch.zeros(1, 8, 12), torch.full((1, 8, 12), -1.0)
    attention[:, :, :8], gain[:, :, 4:] = 3.0, 2.0
    found = levels(attention, gain)
    assert (found[:, :, 6:7] == 1).all() and (found[:, :, :3] == 0).all() and (found[:, :, 9:] == 0).all()
    assert torch.equal(levels(attention, None), attention)
    assert (unit_range(flat) == 0).all()  # nothing stands out


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_images_with_one_and_two_objects_are_asked_in_one_call_and_the_pipeline_is_as_before(name):
    pipe = tiny(name)
    scheduler = pipe.scheduler
    clean = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    one, two = own_masks(pipe, clean, ["a cup", "a cat and a dog"], [["cup"], ["cat", "dog"]], SIZE)
    assert one.shape == (1, *SIZE) and two.shape == (2, *SIZE) and two.any((1, 2)).all() and not two.all(0).any()
    assert pipe.scheduler is scheduler


def test_a_word_that_says_nothing_has_no_place():
    clean = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    with pytest.raises(EmptyMask, match="alike"):
        own_masks(tiny("sd1"), clean, ["a thing and a cup"], [["thing"]], SIZE)


def test_an_object_is_found_beside_things_that_the_caption_does_not_name():
    """Attention spreads over them; what helps to predict the image does not."""
    pipe, world = load("emoji-sd"), load_world()
    cases = [case for case in edit_cases(world, "dev", 12) if len(case.edited) == 1 and case.distractors][:16]
    pictures = Renderer(world).pictures([case.scene for case in cases])
    clean = torch.cat([photo.to_latents(pipe, Image.fromarray(picture)) for picture in pictures])
    captions, objects = [case.caption(world) for case in cases], [[case.sources[0].phrase] for case in cases]
    fit = {}
    for masks_from in ("own", "attention"):
        masks = own_masks(pipe, clean, captions, objects, pictures.shape[1:3], masks_from=masks_from)
        both = [(mask.numpy(), case.masks(world)) for mask, case in zip(masks, cases, strict=True)]
        fit[masks_from] = np.mean([(a & b).sum() / (a | b).sum() for a, b in both])
    assert fit["own"] > 0.65 and fit["own"] > fit["attention"] + 0.1
