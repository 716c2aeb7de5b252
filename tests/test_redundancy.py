"""Representative tokens, `Prune`, and the classifier of redundant tokens (TF-1, TF-14, TF-15)."""

from __future__ import annotations

import json
from functools import reduce
from operator import or_

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import unleak
from conformance import family
from test_probe import encode, layers, no_grad, pooled  # noqa: F401
from tiny import NAMES, draw, tiny
from unleak import Prune, Subset
from unleak.errors import BadInput, BrokenFile, ItemNotFound, UnsupportedModel, WrongEncoder
from unleak.text.items import Item
from unleak.text.spans import item_span
from unleak.words.tokens import learn as bench
from unleak.words.tokens.classifier import Classifier, features, read_by, remove
from unleak.words.tokens.learning import Examples, cross_validate, folds, train
from unleak.words.tokens.reading import rows_read
from unleak.words.tokens.redundancy import causal, plan, tokens

PROMPT = "a laptop and squirrels on a table"
SMALL = {"height": 64, "width": 64, "num_inference_steps": 1}

every_layout = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def pipes():
    return {name: tiny(name) for name in NAMES}


class Scripted:
    """A judge that finds an item in the images of the views it is told: [view, item] -> share of seeds."""

    name = "scripted"

    def __init__(self, rates):
        self.rates = iter(rates)

    def senses(self, items):
        if any(item.text == "table" for item in items):
            raise BadInput("I cannot read a table")
        return [item.text for item in items]

    def present(self, images, items):
        rate = next(self.rates, 0.0)
        return np.tile(np.arange(len(images))[:, None] < rate * len(images), (1, len(items)))


def pieces(pipe):
    """The pieces of "squirrels" in the encoder whose tokens are counted."""
    made = plan(pipe, PROMPT, "squirrels", call=SMALL)
    return made.encoder, len(made.items[0].tokens)


# -- pruning ----------------------------------------------------------------------------------------------------


@every_layout
def test_pruned_rows_are_pads_and_all_others_stay(pipes, name):
    encoder, m = pieces(pipes[name])
    assert m >= 2
    plain, _ = encode(pipes[name], PROMPT)
    pruned, _ = encode(pipes[name], PROMPT, Prune(Subset.token("squirrels", m - 1, encoder)))
    for other, call in pruned.items():
        pads = call.rerun([""])
        a, b = item_span(call.tokenizer, PROMPT, "squirrels", call.length)
        changed = [i for i in range(call.length)
                   if not torch.equal(layers(call.output)[0][:, i], layers(plain[other].output)[0][:, i])]  # fmt: skip
        assert set(changed) < set(range(a, b))
        if other == encoder:
            assert changed == [b - 1]
        for new, pad, H in zip(layers(call.output), layers(pads), layers(plain[other].output), strict=True):
            assert new.shape == H.shape and all(torch.equal(new[:, i], pad[:, i]) for i in changed)
        assert all(map(torch.equal, pooled(call.output), pooled(plain[other].output)))


@every_layout
def test_an_item_never_loses_all_of_its_tokens(pipes, name):
    encoder, m = pieces(pipes[name])
    everything = reduce(or_, [Subset.token("squirrels", k, encoder) for k in range(m)])
    with pytest.raises(BadInput, match="leave no token of 'squirrels'"):
        encode(pipes[name], PROMPT, Prune(everything))


def test_prune_refuses_rows_that_are_not_an_items_tokens():
    for subset in (Subset.of(kinds=["eos"]), Subset.of(kinds=["bos"]), Subset.of("mouse"), Subset.nothing()):
        with pytest.raises(BadInput, match="single tokens"):
            Prune(subset)
    with pytest.raises(BadInput, match="single tokens"):
        Prune(Subset.token("mouse", 0) | Subset.pads())
    assert unleak.Intervention.from_dict(Prune(Subset.token("mouse", 1)).to_dict()) == Prune(Subset.token("mouse", 1))


# -- representative tokens --------------------------------------------------------------------------------------


@every_layout
def test_tokens_are_those_of_an_encoder_that_the_denoiser_reads(pipes, name):
    made = plan(pipes[name], PROMPT, "squirrels,laptop", call=SMALL)
    readers = list(rows_read(pipes[name], [PROMPT], **SMALL))
    assert made.encoder in readers and ("text_encoder" in readers) is (name != "flux")
    for one in made.items:
        assert "".join(t.text for t in one.tokens).lstrip("▁") == one.item.text
        assert [PROMPT[slice(*t.chars)] or "▁" for t in one.tokens] == [t.text for t in one.tokens]
    assert causal(pipes[name], readers[-1]) is (name not in ("sd3", "flux"))
    with pytest.raises(BadInput, match="the denoiser reads is called 'nobody'"):
        plan(pipes[name], PROMPT, "laptop", encoder="nobody", call=SMALL)


def test_a_token_is_representative_from_half_of_the_seeds_on(sd1):
    m = len(plan(sd1, PROMPT, "squirrels", call=SMALL).items[0].tokens)
    views = [0, 1, 0, 1, 1]  # nothing, words, EOS and pads, everything, the whole item
    study = tokens(sd1, PROMPT, "squirrels", judge=Scripted([*views, 0.25, 0.5, *[1] * m]), call=SMALL)
    assert [study.representative(0, k) for k in range(m)] == [False, True, *[True] * (m - 2)]
    assert study.redundant(0) == [0]
    assert study.prune() == Prune(Subset.token("squirrels", 0, "text_encoder"))
    assert list(study.seen["nothing"][:, 0]) == [False] * 4 and study.settings["pad"] == "empty"


def test_an_item_that_no_token_carries_is_left_whole(sd1):
    study = tokens(sd1, PROMPT, "squirrels", judge=Scripted([]), call=SMALL)
    assert study.redundant(0) == [] and study.prune() is None


def test_without_a_judge_nothing_is_claimed(sd1):
    study = tokens(sd1, PROMPT, "squirrels", seeds=[0], call=SMALL)
    assert study.seen is None and study.representative(0, 0) is None and study.prune() is None


def test_only_a_causal_encoder_has_the_fast_path(sd1, flux):
    made = plan(sd1, PROMPT, "squirrels", last_only=True, call=SMALL)
    assert [t.view is not None for t in made.items[0].tokens] == [False] * (len(made.items[0].tokens) - 1) + [True]
    with pytest.raises(BadInput, match="both ways"):
        plan(flux, PROMPT, "squirrels", last_only=True, call=SMALL)


@pytest.mark.parametrize(("prompt", "items", "says"), [
    (PROMPT, "", "empty"),
    (PROMPT, (), "No item"),
    (PROMPT, "table", "cannot read"),
    ("squirrels", "squirrels", "whole prompt"),
    (PROMPT, "laptop and,and squirrels", "overlap"),
])  # fmt: skip
def test_bad_items_are_refused(sd1, prompt, items, says):
    with pytest.raises(BadInput, match=says):
        tokens(sd1, prompt, items, judge=Scripted([]), call=SMALL)
    with pytest.raises(ItemNotFound):
        tokens(sd1, PROMPT, "cat", call=SMALL)
    with pytest.raises(BadInput, match="at least 4"):
        tokens(sd1, PROMPT, "laptop", judge=Scripted([]), seeds=range(3), call=SMALL)


# -- the classifier ---------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(0, 1), st.floats(0, 1))
def test_no_item_is_removed_and_a_higher_threshold_removes_less(scores, one, two):
    low, high = sorted((one, two))
    assert len(remove(np.array(scores), 0.0)) == len(scores) - 1
    assert set(remove(np.array(scores), high)) <= set(remove(np.array(scores), low))


def examples(n=24, seed=0, noise=0.3):
    """Items of three tokens; the sign of the first feature says which are redundant."""
    rng = np.random.default_rng(seed)
    y = rng.random((n, 3)) < 0.5
    x = np.stack([np.where(y, 1.0, -1.0), *rng.normal(0, noise, (7, n, 3))], -1).reshape(-1, 8)
    return Examples(
        x / np.linalg.norm(x, axis=1, keepdims=True), y.ravel(), np.repeat([f"item {i}" for i in range(n)], 3)
    )


def test_folds_share_no_item():
    items = np.array(["a", "a", "b", "c", "c", "d", "e", "f", "f"])
    tested = []
    for learn, test in folds(items):
        assert not set(items[learn]) & set(items[test])
        tested += list(test)
    assert sorted(tested) == list(range(len(items)))


@pytest.mark.parametrize("kind", ["knn", "linear"])
def test_what_can_be_learnt_is_learnt_and_noise_is_not_claimed(kind):
    clear = cross_validate(examples(), kind)
    assert clear["precision"] >= 0.9 and clear["recall"] >= 0.8 and 0.3 < clear["base_rate"] < 0.7
    x, y, items = examples()
    lost = cross_validate(Examples(np.random.default_rng(1).normal(size=x.shape), y, items), kind)
    assert lost["recall"] <= 0.5, "precision comes first: where nothing can be known little is removed"


@pytest.mark.parametrize("kind", ["knn", "linear"])
def test_a_saved_classifier_is_the_same(tmp_path, kind, sd1):
    rows = features(sd1, [PROMPT] * 2, [Item("squirrels"), Item("laptop")], "text_encoder", **SMALL)
    rng = np.random.default_rng(0)
    x = np.concatenate([r + rng.normal(0, 0.02, r.shape) for r in rows * 4])
    names = np.concatenate([[f"{i}"] * len(r) for i, r in enumerate(rows * 4)])
    y = np.concatenate([np.arange(len(r)) < len(r) - 1 for r in rows * 4])
    made = train(Examples(x, y, names), kind, "text_encoder", read_by(sd1, PROMPT, **SMALL))
    (tmp_path / "model").write_bytes(made.to_bytes())
    again = Classifier.load(tmp_path / "model")
    assert np.allclose(again.scores(rows[0]), made.scores(rows[0])) and again.report == made.report
    repair = again.prune(sd1, PROMPT, "squirrels,laptop", **SMALL)
    assert repair == made.prune(sd1, PROMPT, "squirrels,laptop", **SMALL)
    if repair is not None:
        encode(sd1, PROMPT, repair)  # never a whole item
    moved = tiny("sd1")
    moved.text_encoder.name_or_path = "another/folder"
    assert again.prune(moved, PROMPT, "squirrels,laptop", **SMALL) == repair
    with pytest.raises(WrongEncoder, match="train one for yours"):
        again.prune(tiny("sd1", seed=1), PROMPT, "squirrels", **SMALL)
    with pytest.raises(ItemNotFound):
        again.prune(sd1, PROMPT, "cat", **SMALL)


def test_a_broken_classifier_is_refused(tmp_path):
    file = tmp_path / "model"
    with pytest.raises(BrokenFile):
        Classifier.load(file)
    whole = train(examples(), "knn", "text_encoder", {"text_encoder": "x"}).to_bytes()
    for data in (b"", b"{}", whole[:-40], whole.replace(b"unleak/redundancy/2", b"unleak/redundancy/1"),
                 whole.replace(b'"knn', b'"cnn').replace(b'\\"knn', b'\\"cnn')):  # fmt: skip
        file.write_bytes(data)
        with pytest.raises(BrokenFile, match="train it again"):
            Classifier.load(file)


def test_too_little_to_learn_from():
    x, y, items = examples()
    with pytest.raises(BadInput, match="4 or more"):
        train(Examples(x[:9], y[:9], items[:9]), "knn", "text_encoder", {})
    with pytest.raises(BadInput, match="all 72 tokens are redundant"):
        train(Examples(x, np.ones_like(y), items), "linear", "text_encoder", {})
    with pytest.raises(BadInput, match="no classifier"):
        train(Examples(x, y, items), "forest", "text_encoder", {})


def test_extras_describe_the_token(flux):
    plain = features(flux, [PROMPT], [Item("squirrels")], "text_encoder_2", **SMALL)[0]
    more = features(flux, [PROMPT], [Item("squirrels")], "text_encoder_2", extras=True, **SMALL)[0]
    m, unit = len(plain), plain[:, :-1]
    assert np.allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-5) and np.allclose(plain[:, -1], unit @ unit[-1])
    assert more.shape == (m, plain.shape[1] + 6)
    assert np.array_equal(more[:, :-6], plain)
    assert np.allclose(more[:, -6] * 6, m) and np.allclose(more[:, -5] * 6, range(m)) and list(more[:, -4] > 0)[-1]


# -- training for the user's own encoder ------------------------------------------------------------------------

WORDS = ("burgers", "limes", "mountains", "zebras")


LINES = "\n".join(json.dumps({"prompt": f"a red {word} and a cat", "items": [word]}) for word in WORDS)


class Alternating:
    """A judge that sees an item in every other view, and never in what the empty prompt draws, its first view."""

    name = "alternating"

    def __init__(self):
        self.first, self.asked = None, 0

    def senses(self, items):
        return [item.text for item in items]

    def present(self, images, items):
        self.first = images if self.first is None else self.first
        nothing = np.abs(images.astype(int) - self.first).max() <= 2
        self.asked += not nothing
        return np.full((len(images), len(items)), not nothing and self.asked % 2 == 1)


def test_training_resumes(sd1, tmp_path):
    (tmp_path / "prompts.jsonl").write_text(LINES + "\n\n")
    records, judge, told, out = bench.read_records(tmp_path / "prompts.jsonl"), Alternating(), [], tmp_path / "model"
    planned = bench.plans(sd1, records, SMALL)
    trained = bench.learn(sd1, planned, out, judge=judge, kind="knn", call=SMALL, progress=told.append)
    assert sum(told) == 4 * sum(len(p.subsets) for p in planned)
    assert trained.counts["used"] == len(WORDS) and trained.chosen == "knn"
    assert Classifier.load(out).encoders == read_by(sd1, "a cat", **SMALL)
    data, asked = trained.to_dict(), judge.asked
    assert data["schema"] == "unleak/redundancy/2" and set(data["classifiers"]) == {"knn", "linear"}
    again = bench.learn(sd1, planned, out, judge=judge, kind="knn", call=SMALL)
    assert judge.asked == asked and again.to_dict() == data


@pytest.mark.parametrize(("text", "says"), [
    ("\n", "no prompts"),
    ("{", "line 1"),
    ('{"prompt": "a cat"}', "line 1: no item"),
    ('{"prompt": "a cat", "items": ["cat"]}\n{"prompt": "a cat", "items": ["dog"]}', "line 2: 'dog'"),
    ('{"prompt": "a cat", "items": []}', "line 1: no item"),
    ('{"prompt": 3, "items": ["cat"]}', "line 1: the prompt is a int"),
])  # fmt: skip
def test_unreadable_prompt_files(tmp_path, text, says):
    file = tmp_path / "prompts.jsonl"
    file.write_text(text)
    with pytest.raises(BadInput, match=says):
        bench.read_records(file)
    with pytest.raises(BadInput, match="cannot read"):
        bench.read_records(tmp_path / "none.jsonl")


def test_pruning_leaves_the_pipeline_as_it_was(sd1):
    before = draw(sd1, PROMPT)
    with unleak.attach(sd1, Prune(Subset.token("squirrels", 0, "text_encoder"))):
        assert not torch.equal(draw(sd1, PROMPT), before)
    assert torch.equal(draw(sd1, PROMPT), before)


def test_rows_inside_a_template_are_refused_not_misread():
    """There row i of what the denoiser reads is not that of token i of the prompt."""
    klein = family("flux.2-klein")
    with pytest.raises(UnsupportedModel, match="template around the prompt"):
        features(klein.pipe(), [PROMPT], [Item("laptop")], "text_encoder", **SMALL)
