"""The judge reads clean images exactly, does not see chimeras, and refuses what it cannot read."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from unleak import world as package
from unleak.bench.world import judge_accuracy
from unleak.errors import BadInput
from unleak.judges.copies import memorized
from unleak.judges.glyphs import glyph_judge
from unleak.text.items import Item
from unleak.world import Placement, Scene
from unleak.world.grammar import scene
from unleak.world.prompts import prompts
from unleak.world.render import Renderer

WORLD, JUDGE = package.load(), glyph_judge()


def uint8(images) -> np.ndarray:
    return (images.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)


@pytest.mark.parametrize("edition", package.vocabulary.EDITIONS)
def test_it_reads_renders_of_every_sprite(edition: int) -> None:
    """Glyph, colour, place and background of each sprite on its own."""
    world, judge = package.load(edition), glyph_judge(edition)
    scenes = [
        Scene(list(world.backgrounds)[i % 6], (Placement(s["glyph"], i % 5, i // 5 % 5, s["tint"]),))
        for i, s in enumerate(world.data["sprites"])
    ]
    right = 0
    for s, r in zip(scenes, judge.read(Renderer(world)(scenes)), strict=True):
        p = s.placements[0]
        right += [(f.glyph, f.tint, f.x, f.y) for f in r.found] == [
            (p.glyph, p.tint, p.x, p.y)
        ] and r.background == s.background
    assert right / len(scenes) >= 0.99


@pytest.mark.parametrize("edition", package.vocabulary.EDITIONS)
def test_its_own_error_on_held_out_scenes_is_small(edition: int) -> None:
    assert judge_accuracy(glyph_judge(edition), package.load(edition), n=200).mean() >= 0.99


def test_half_a_glyph_beside_half_of_another_is_neither() -> None:
    def tile(glyph: str) -> np.ndarray:
        return uint8(Renderer(WORLD)([Scene("white", (Placement(glyph, 2, 2),))]))[0]

    seen = 0
    pairs = [("mouse", "computer_mouse"), ("cat", "dog"), ("key", "guitar"), ("house", "boat"), ("bat", "ring")]
    for a, b in pairs:
        mixed = tile(a)
        mixed[:, 32:] = tile(b)[:, 32:]
        found = JUDGE.read([Image.fromarray(mixed)])[0]
        seen += found.count(a) + found.count(b)
    assert seen <= 1


def test_items_are_looked_for_in_the_sense_that_is_meant() -> None:
    items = [Item("mouse"), Item("mouse", sense="computer mouse"), Item("blue car"), Item("bat", sense="ping pong bat")]
    assert JUDGE.senses(items) == ["furry mouse", "computer mouse", "blue car", "ping pong bat"]
    image = uint8(Renderer(WORLD)([Scene("gray", (Placement("computer_mouse", 0, 0), Placement("car", 4, 4, "blue")))]))
    assert JUDGE.present(image, items).tolist() == [[False, True, True, False]]


def test_it_refuses_what_it_cannot_read() -> None:
    with pytest.raises(BadInput, match=r"no 'mosue'.*mouse"):
        JUDGE.senses([Item("mosue")])
    with pytest.raises(BadInput, match="64x64"):
        JUDGE.read(np.zeros((1, 32, 32, 3), np.uint8))


def test_copies_are_told_from_other_pictures() -> None:
    captions = [c for c in WORLD.memorized if c.kind == "verbatim"][:6]
    rng = random.Random(0)
    own = uint8(Renderer(WORLD)([c.scene for c in captions]))[:, None]
    other = [scene(WORLD, list(c.things), "and", None, rng) for c in prompts(WORLD, "pair", n=6)]
    psnr, hit = memorized(own, captions, WORLD)
    assert hit.all() and psnr.min() > 45
    psnr, hit = memorized(uint8(Renderer(WORLD)(other))[:, None], captions, WORLD)
    assert psnr.max() < 20


def test_the_score_of_a_thing_is_high_where_it_is_drawn_and_low_where_it_is_not() -> None:
    images = uint8(Renderer(WORLD)([Scene("yellow", (Placement(WORLD.nouns["car"], 0, 0, "green"),))]))
    green, red, absent, both = JUDGE.score(images, ["green car", "red car", "dog", "green car and dog"])[0]
    assert green > 99 and red < 1 and absent < 1
    assert both == pytest.approx((green + absent) / 2)
    with pytest.raises(BadInput, match="no 'unicorns'"):
        JUDGE.score(images, ["unicorns"])
