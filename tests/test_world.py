"""The embedded world keeps its promises: sizes, splits, truth of captions, pixels of scenes."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unleak import world as package
from unleak.errors import BadInput
from unleak.world import Placement, Scene
from unleak.world.grammar import CONNECTIVES, SPAN, caption, place, resolve, scene, thing
from unleak.world.prompts import KINDS, prompts
from unleak.world.render import Renderer

WORLD = package.load()


def test_it_is_as_large_as_promised() -> None:
    assert len(WORLD.glyphs) >= 64
    assert len(WORLD.polysemes) >= 10
    assert len(WORLD.expressions) >= 8
    assert len(WORLD.tintable) >= 8 and len(WORLD.tints) >= 5
    assert len(WORLD.backgrounds) >= 6
    kinds = [c.kind for c in WORLD.memorized]
    assert kinds.count("verbatim") >= 24
    families = [c.family for c in WORLD.memorized if c.kind == "template"]
    assert len(set(families)) >= 4 and all(families.count(f) >= 8 for f in set(families))
    assert len(WORLD.ordinary) >= len(WORLD.memorized)


def test_every_trigger_and_every_part_of_an_expression_is_an_object() -> None:
    for p in WORLD.polysemes.values():
        assert set(p.triggers) <= set(WORLD.nouns)
        assert p.default != p.other
    for expression, part in WORLD.expressions.items():
        assert part in WORLD.nouns
        assert any(part.startswith(w.lower()) for w in expression.split())  # "Mount" Fuji names a mountain


def test_captions_of_a_template_family_share_background_and_fixed_placements() -> None:
    for f in {c.family for c in WORLD.memorized if c.family >= 0}:
        scenes = [c.scene for c in WORLD.memorized if c.family == f]
        n = next(c.fixed for c in WORLD.memorized if c.family == f)
        assert len({(s.background, s.placements[:n]) for s in scenes}) == 1
        assert len({s.placements[n:] for s in scenes}) == len(scenes)


def test_memorized_and_ordinary_captions_are_all_different() -> None:
    texts = [c.text for c in WORLD.memorized + WORLD.ordinary]
    assert len(set(texts)) == len(texts)


def test_a_trigger_flips_the_sense_and_other_company_does_not() -> None:
    for p in WORLD.polysemes.values():
        harmless = next(w for w in WORLD.nouns if w not in p.triggers)
        for company, glyph in [(t, p.other) for t in p.triggers] + [(harmless, p.default)]:
            things = resolve(WORLD, [thing(WORLD, p.word), thing(WORLD, company)])
            assert things[0].glyph == glyph
        named = resolve(WORLD, [thing(WORLD, p.default_name), thing(WORLD, p.triggers[0])])
        assert named[0].glyph == p.default


def test_captions_read_as_written() -> None:
    words = ["mouse", "umbrella", "glasses", "Statue of Liberty", "Mount Fuji", "ice cream"]
    things = [thing(WORLD, w) for w in words]
    assert [t.article(WORLD) for t in things] == [
        "a mouse", "an umbrella", "glasses", "the Statue of Liberty", "Mount Fuji", "ice cream",
    ]  # fmt: skip
    blue = thing(WORLD, "umbrella", "blue")
    assert caption(WORLD, [blue, things[0]], "left of", "red") == "a blue umbrella left of a mouse on a red background"
    assert caption(WORLD, things[:3]) == "a mouse, an umbrella and glasses"


@given(st.integers(1, 3), st.sampled_from(sorted(CONNECTIVES)), st.integers(0, 10**6))
def test_places_are_inside_and_do_not_overlap(n: int, connective: str, seed: int) -> None:
    corners = place(n, connective, random.Random(seed))
    room = WORLD.image // WORLD.cell - SPAN
    assert all(0 <= x <= room and 0 <= y <= room for x, y in corners)
    for i, (x, y) in enumerate(corners):
        for u, v in corners[:i]:
            assert abs(x - u) >= SPAN or abs(y - v) >= SPAN


@pytest.mark.parametrize(("connective", "holds"), [
    ("left of", lambda a, b: a.x < b.x), ("right of", lambda a, b: a.x > b.x),
    ("above", lambda a, b: a.y < b.y), ("below", lambda a, b: a.y > b.y),
])  # fmt: skip
def test_the_picture_is_arranged_as_the_caption_says(connective, holds) -> None:
    things = [thing(WORLD, "cat"), thing(WORLD, "boat")]
    for seed in range(20):
        assert holds(*scene(WORLD, things, connective, None, random.Random(seed)).placements)


def test_held_out_and_development_sets_are_disjoint_and_repeatable() -> None:
    for kind in KINDS:
        held, dev = ({c.prompt for c in prompts(WORLD, kind, s, 50)} for s in ("heldout", "dev"))
        assert len(held) == len(dev) == 50
        assert kind == "single" or len(held & dev) <= (12 if kind == "neutral" else 0)  # a lone word has no split
        assert held == {c.prompt for c in prompts(WORLD, kind, "heldout", 50)}
    with pytest.raises(BadInput, match="no split"):
        prompts(WORLD, "pair", "train")


def test_prompts_of_a_kind_ask_for_what_the_kind_is_about() -> None:
    for c in prompts(WORLD, "trigger", n=80):
        p = WORLD.polysemes[c.polyseme]
        assert [t.glyph for t in c.wanted] == [p.other] and c.absent == (p.default,) and c.trigger in p.triggers
        assert (c.prompt.index(c.polyseme) < c.prompt.index(c.trigger)) == c.first
    for c in prompts(WORLD, "neutral", n=80):
        assert [t.glyph for t in c.wanted] == [WORLD.polysemes[c.polyseme].default]
    for c in prompts(WORLD, "expression", n=40):
        assert c.wanted and not {t.glyph for t in c.things} & set(c.absent)


def test_the_renderer_puts_sprites_where_the_scene_says() -> None:
    s = Scene("white", (Placement("cat", 0, 4), Placement("car", 4, 0, "blue")))
    image = Renderer(WORLD)([s])
    assert image.shape == (1, 3, 64, 64) and image.min() >= 0 and image.max() <= 1
    white = torch.tensor(WORLD.backgrounds["white"])[:, None, None] / 255
    drawn = (image[0] - white).abs().sum(0) > 0.05
    assert not drawn[:32, :32].any() and not drawn[32:, 32:].any()
    assert drawn[32:, :32].any() and drawn[:32, 32:].any()
    car = image[0, :, :32, 32:]
    assert car[2].mean() > car[1].mean()  # blue outweighs green
    with pytest.raises(BadInput, match="tintable"):
        WORLD.sprite_index("cat", "blue")


def test_training_never_shows_a_held_out_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The captions of the training mixture and the held-out prompts do not meet."""
    from pathlib import Path

    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "training"))
    from mixture import Mixture

    mix, rng = Mixture(WORLD), random.Random(3)
    contexts = set().union(*WORLD.contexts.values())
    for _ in range(4000):
        s = mix.draw(rng)
        words = [t.word for t in s.things]
        assert not WORLD.excluded(words), s.text
        if s.kind == "trigger":
            first = words[0] in WORLD.polysemes
            link = next(c for c in CONNECTIVES if f" {c} " in s.text)
            polyseme, trigger = words if first else words[::-1]
            assert (polyseme, trigger, link, first) not in contexts, s.text
