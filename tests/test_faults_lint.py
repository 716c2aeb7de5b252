"""Lint where a prompt holds one object, or more than two."""

from __future__ import annotations

import pytest

from unleak import models, world
from unleak.words.lint.lint import Linter
from unleak.words.lint.neutral import NEUTRAL, _others
from unleak.words.lint.prompt_file import line
from unleak.words.lint.shift import shifts, variants
from unleak.world.leaks import FORMS, SIZES, bystanders, leak_prompts, trigger_pairs


@pytest.fixture(scope="module")
def linter():
    return Linter(models.load("emoji-sd", text_only=True))


def lint(linter, *prompts):
    return linter.chunk([line(k, prompt) for k, prompt in enumerate(prompts, 1)])


@pytest.mark.e2e
def test_a_lone_object_is_not_flagged(linter):
    prompts = [
        *(f"a [{word}] on a {colour} background" for word, colour in zip(
            ("cat", "mouse", "horse", "cup", "clock", "note"), world.load().backgrounds, strict=True)),
        "a [bat]", "[glasses] on a white background", "a picture of a [red car]", "the [moon] on a red background",
    ]  # fmt: skip
    for result in lint(linter, *prompts):
        assert result.error is None and result.items[0].by is None and result.risk < 0.3, result.prompt


@pytest.mark.e2e
def test_a_lone_objects_background_is_measured_by_other_objects_in_its_place(linter):
    bank = next(iter(linter.banks.values()))
    red, bare = bank.alone("a ", " on a red background"), bank.alone("", " on a red background")
    assert set(red) == {"own", "after"} and red["after"].deviation > 0 and bare is not red
    assert _others("house clock balloon umbrella boat cactus rocket moon") == list(NEUTRAL)  # never none


@pytest.mark.e2e
def test_a_leak_among_three_objects_is_seen(linter):
    leak, neutral = lint(linter, "a [banana], a [guitar] and a [key]", "a [banana], a [house] and a [key]")
    assert leak.items[2].risk > 0.5 > max(leak.items[0].risk, leak.items[1].risk) and leak.items[2].by == "guitar"
    assert neutral.items[2].risk < 0.5


@pytest.mark.e2e
def test_a_far_trigger_is_seen(linter):
    (leak,) = lint(linter, "a [guitar], a [banana] and a [key]")
    assert leak.items[2].risk > 0.5 and leak.items[2].by == "guitar"


@pytest.mark.e2e
@pytest.mark.parametrize("prompt, leaking, by", [
    ("a [cat], a [mouse] and a [laptop]", 1, "laptop"), ("a [mouse], a [cat] and a [laptop]", 0, "laptop"),
    ("a [laptop], a [mouse] and a [cat]", 1, "laptop"), ("a [cat], a [dog], a [mouse] and a [laptop]", 2, "laptop"),
])  # fmt: skip
def test_a_word_before_its_trigger_is_seen_among_other_objects(linter, prompt, leaking, by):
    leak, neutral = lint(linter, prompt, prompt.replace("laptop", "house"))
    assert [item.risk > 0.5 for item in leak.items] == [i == leaking for i in range(len(leak.items))]
    assert leak.items[leaking].by == by and neutral.risk < 0.5


@pytest.mark.e2e
def test_what_one_item_does_to_another_is_the_mean_of_the_prompt_and_of_the_two_alone(linter):
    long, pair = lint(linter, "a [cat], a [mouse] and a [laptop]", "a [mouse] and a [laptop]")
    ((name, encoder),) = linter.encoders.items()
    made = variants(long.prompt, [item.span for item in long.items])
    rows = dict(zip(made, encoder.read([encoder.cut(s) for s in made.values()]), strict=True))
    for channel, inside in shifts(rows, 1, 2).items():
        alone = pair.items[0].encoders[name].channels[channel]
        both = long.items[1].encoders[name].channels[channel]
        assert both.loss == pytest.approx((inside.loss + alone.loss) / 2, abs=2e-3)
        assert both.size == pytest.approx((inside.size + alone.size) / 2, abs=2e-3)


@pytest.mark.parametrize("split", ["dev", "heldout"])
def test_labelled_prompts_are_what_their_form_says(split):
    w = world.load()
    prompts = leak_prompts(w, split, 12)
    assert {of.form for of in prompts} == set(FORMS) and len({of.prompt for of in prompts}) == len(prompts)
    for of in prompts:
        words = [t.word for t in of.things]
        assert len(words) == SIZES[of.form]
        for word, leaks in zip(words, of.leaks, strict=True):
            assert leaks == (word in w.polysemes and bool(set(words) & set(w.polysemes[word].triggers)))
        assert any(of.leaks) == (len(of.unit) == 2)
        if of.form == "far" and any(of.leaks):
            assert {words[0], words[2]} == set(of.unit)
        if of.form == "two polysemes":
            assert sum(word in w.polysemes for word in words) == 2


def test_the_splits_share_no_pair_and_no_plain_bystander():
    w = world.load()
    dev, heldout = ((set(trigger_pairs(w, s)), set(bystanders(w, s))) for s in ("dev", "heldout"))
    assert not dev[0] & heldout[0] and len(dev[0] | heldout[0]) == 22
    triggers = {t for p in w.polysemes.values() for t in p.triggers}
    assert not (dev[1] & heldout[1]) - triggers
