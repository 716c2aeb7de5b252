"""Intervals: one for a share, a mean, a paired difference, an AUROC; they hold their value and are never nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from unleak.bench import rows
from unleak.errors import BadInput
from unleak.stats.intervals import balanced_accuracy, mcnemar, mean, median, paired_difference, share, wilson
from unleak.stats.rate import Rate
from unleak.stats.roc import auroc

hits = st.integers(1, 12).flatmap(
    lambda seeds: st.lists(st.lists(st.booleans(), min_size=seeds, max_size=seeds), min_size=1, max_size=12)
)
ragged = st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=12)
shares = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=12)


def width(figure) -> float:
    return figure.high - figure.low


@given(st.integers(1, 400), st.data())
def test_a_share_of_single_images_has_wilsons_interval(n, data):
    k = data.draw(st.integers(0, n))
    theirs = binomtest(k, n).proportion_ci(0.95, method="wilson")
    ours = share(np.arange(n) < k)
    assert np.allclose([ours.low, ours.high], [theirs.low, theirs.high], atol=1e-12)
    assert (Rate(k, n).low, Rate(k, n).high) == (ours.low, ours.high)


@given(ragged)
def test_a_share_lies_in_its_interval_which_turns_with_it(one):
    found, turned = share(one), share([[not hit for hit in case] for case in one])
    assert 0 <= found.low <= found.value <= found.high <= 1 and width(found) > 0
    assert np.allclose([found.low, found.high], [1 - turned.high, 1 - turned.low])
    assert found.value == np.mean(np.concatenate(one))


@given(hits)
def test_images_of_one_case_say_at_most_as_much_as_cases(one):
    assert width(share(one)) >= width(share(np.ravel(one))) - 1e-12


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(2, 8))
def test_more_seeds_that_say_the_same_add_nothing(cases, seeds):
    few, many = share(cases), share([[hit] * seeds for hit in cases])
    assert few.value == many.value and width(many) >= width(few) * (1 - 1 / len(cases)) - 1e-12


def test_a_share_of_clustered_images_holds_the_truth_as_often_as_it_says():
    rng, cases, seeds = np.random.default_rng(0), 30, 6
    held = {"by case": 0, "flat": 0}
    for _ in range(400):
        own = rng.beta(1.2, 0.8, cases)[:, None]  # mean 0.6, images of a case much alike
        drawn = rng.random((cases, seeds)) < own
        for name, found in (("by case", share(drawn)), ("flat", share(drawn.ravel()))):
            held[name] += found.low <= 0.6 <= found.high
    assert held["by case"] / 400 > 0.92 > 0.8 > held["flat"] / 400


@given(shares)
def test_a_mean_of_shares_is_never_certain(values):
    found = mean(values, (0, 1))
    assert 0 <= found.low <= found.value <= found.high <= 1
    if len(set(values)) == 1:
        assert (found.low, found.high) == pytest.approx(wilson(values[0], len(values)))
        assert mean(values) == (values[0],) * 3


def test_a_mean_and_a_difference_hold_the_truth():
    x = np.random.default_rng(0).normal(3.0, 1.0, 200)
    assert mean(x).low < 3.0 < mean(x).high
    d = paired_difference(x, x + 0.5)
    assert d.value == pytest.approx(0.5) and d.low == pytest.approx(0.5)
    assert mean([2.0, 2.0]).low == median([2.0, 2.0]).high == 2.0
    assert median([1.0, 2.0, 9.0]).value == 2.0


@given(shares)
def test_what_changed_nothing_in_few_cases_may_still_change_something(values):
    d = paired_difference(values, values, (0, 1))
    assert d.value == 0 and d.low == -d.high == pytest.approx(-wilson(0.0, len(values))[1])
    wider = paired_difference(np.array(values) * 10, np.array(values) * 10, (0, 10))
    assert wider.high == pytest.approx(10 * d.high)


def test_a_change_in_every_case_is_the_score_interval():
    """Tango's for n of n pairs that change: (n - z^2) / (n + z^2)."""
    z2 = 1.959964**2
    assert paired_difference([0.0] * 20, [1.0] * 20, (0, 1)).low == pytest.approx((20 - z2) / (20 + z2), abs=1e-6)


def test_balanced_accuracy_is_never_certain():
    right = [np.array([True] * 60)] * 4
    found = balanced_accuracy(right)
    assert (found.value, found.high) == (1.0, 1.0) and 0.96 < found.low < 0.98
    assert balanced_accuracy([np.array([True]), np.array([False] * 9)]).value == 0.5
    one = [np.array([True, False, True])]
    assert balanced_accuracy(one) == pytest.approx(share(one[0]))


def test_mcnemar_counts_discordant_pairs():
    before, after = np.array([0, 0, 0, 1, 1], bool), np.array([1, 1, 1, 0, 1], bool)
    fixed, broken, p = mcnemar(before, after)
    assert (fixed, broken) == (3, 1) and p == pytest.approx(0.625)
    assert mcnemar(before, before)[2] == 1.0


groups = st.lists(
    st.lists(st.tuples(st.integers(0, 9).map(float), st.booleans()), min_size=1, max_size=5), min_size=2, max_size=10
).filter(lambda all_: len({label for group in all_ for _, label in group}) == 2)


@given(groups)
def test_an_auroc_of_groups_is_no_surer_than_of_single_scores(some):
    grouped = rows.auroc(some, "m", "s", "x")
    alone = rows.auroc([[pair] for group in some for pair in group], "m", "s", "x")
    assert grouped.value == alone.value and grouped.n == alone.n
    assert grouped.low <= alone.low + 1e-9 <= grouped.value + 2e-9 <= alone.high + 3e-9 <= grouped.high + 4e-9


def test_an_auroc_of_single_scores_is_that_without_groups():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, 30), rng.normal(0, 1, 40)
    assert auroc(a, b, (range(30), range(30, 70))) == pytest.approx(auroc(a, b))
    repeated = auroc(np.repeat(a, 5), np.repeat(b, 5), (np.repeat(range(30), 5), np.repeat(range(30, 70), 5)))
    assert [repeated.low, repeated.high] == pytest.approx([auroc(a, b).low, auroc(a, b).high], abs=0.01)


def test_items_that_are_separated_perfectly_are_not_certain():
    apart = [[(0.1, False), (0.9, True)], [(0.2, False), (0.8, True)]] * 10
    found = rows.auroc(apart, "m", "s", "lint_auroc")
    assert (found.value, found.high, found.n) == (1.0, 1.0, 40) and 0.8 < found.low < 0.9
    with pytest.raises(BadInput, match="both kinds"):
        rows.auroc([[(0.1, False)]], "m", "s", "lint_auroc")


@pytest.mark.parametrize("figure", [share, mean, median])
def test_nothing_has_no_figure(figure):
    with pytest.raises(BadInput, match="take more prompts"):
        figure([])


def test_no_committed_share_is_certain():
    """What is counted or has no bounds may have no interval; shares, their means and differences have one."""
    unbounded = ("background_", "quality", "similarity", "diversity", "seconds_ratio", "encoder_rows", "denoiser_rows")
    for file in (Path(__file__).parent.parent / "docs" / "results").rglob("results.json"):
        for row in json.loads(file.read_text("utf-8"))["rows"]:
            if "metric" not in row or row["metric"] == "lint_prompts":  # a count
                continue
            if not row["metric"].startswith(unbounded) and not row["metric"].endswith("mcnemar_p"):
                assert row["low"] < row["high"], (file, row)
