"""Item masks, Boost and DeLeaker: their equations against dense references, and what they must leave alone."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from reference import MapEdit
from tiny import draw, tiny
from unleak.core.intervention import Intervention, Window
from unleak.engine.session import attach
from unleak.errors import BadInput, NoSite, UnsupportedModel
from unleak.words.methods.boost import Boost
from unleak.words.methods.deleaker import HISTORIES, DeLeaker
from unleak.words.methods.item_masks import above_threshold, item_masks, opened_and_closed
from unleak.words.methods.maps import Maps
from unleak.words.methods.patch import Patch

PROMPT = "a red cat and a horse by a bus"
ITEMS = ("red cat", "horse", "bus")
SIZE = (128, 192)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*stands out nowhere"),
    pytest.mark.usefixtures("map_edits"),
]


def far(a, b):
    return (a - b).abs().max().item()


# -- item masks -------------------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_smoothing_is_that_of_scipy_with_nothing_outside(height, width, seed):
    mask = torch.rand(2, height, width, generator=torch.Generator().manual_seed(seed)) < 0.7
    for ours, m in zip(opened_and_closed(mask), mask.numpy(), strict=True):
        box = torch.ones(3, 3).numpy()
        m = ndimage.binary_dilation(ndimage.binary_erosion(m, box, border_value=1), box)
        m = ndimage.binary_erosion(ndimage.binary_dilation(m, box, 2), box, 2, border_value=1)
        assert torch.equal(ours, torch.from_numpy(m))


def test_what_stands_out_is_above_mean_and_deviation_of_its_own_plane():
    a = torch.zeros(2, 1, 2, 3)
    a[0, 0, 0, 0] = 1.0
    a[1] = 100.0
    assert above_threshold(a, 1.0).nonzero().tolist() == [[0, 0, 0, 0]]
    with pytest.warns(UserWarning, match="'dog' stands out nowhere"):
        item_masks(a, ["dog"], morphology=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        item_masks(a[:1], ["dog"], morphology=False)


# -- DeLeaker ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Release(Intervention):
    """The released equations on one materialised map, written from their description; batch of one."""

    like: DeLeaker = field(default=DeLeaker(ITEMS))
    tokens: tuple[tuple[int, ...], ...] = ()

    def on_attention(self, ctx, site):
        Z, image, it = site.scale * site.q @ site.k.mT, site.layout.image_queries, self.like
        A = torch.softmax(Z, -1)
        seen = ctx.state.setdefault("seen", [])
        seen.append(A)
        mean = torch.stack(seen).mean(0)[0, :, image]
        cells = [
            (m := mean[:, :, list(own)].mean((0, 2))) > m.mean() + it.std_threshold * m.std() for own in self.tokens
        ]
        ninf = float("-inf")
        for e, f in combinations(range(len(cells)), 2):
            for x, y in ((e, f), (f, e)):
                rows, own, other = cells[x].nonzero().flatten() + image.start, self.tokens[x], self.tokens[y]
                if it.weaken:
                    Z[:, :, rows[:, None], list(other)] = ninf
                Z[:, :, rows[:, None], list(own)] *= it.gain
                if it.text_text:
                    Z[:, :, own[0], other[0]] = ninf
            if it.image_image:
                a = A[0, :, image, image].mean(0)
                for x, y in ((e, f), (f, e)):
                    w = a * torch.outer(cells[x], cells[y])
                    some = w[w != 0]
                    Z[:, :, image, image] += torch.where(w > some.mean() + it.link_threshold * some.std(), ninf, 0.0)
            A = torch.softmax(Z, -1)
        return MapEdit(lambda _: A)


@pytest.fixture(scope="module")
def plain(flux):
    return draw(flux, PROMPT, size=SIZE, steps=2)


def leaked(pipe, method, **kwargs):
    with attach(pipe, method) as run:
        return draw(pipe, kwargs.pop("prompt", PROMPT), **{"size": SIZE, "steps": 2, **kwargs}), run


ALWAYS: dict[str, Any] = {"gather": Window(), "act": Window(), "morphology": False}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weaken": False},
        {"image_image": False, "text_text": True},
        {"gain": 1.0, "std_threshold": 0.5, "link_threshold": 2.0},
    ],
)
def test_pairwise_is_the_release_also_for_three_items(flux, plain, options):
    method = DeLeaker(ITEMS, pairwise=True, **ALWAYS, **options)
    with attach(flux, Maps(ITEMS)) as run:
        draw(flux, PROMPT, steps=1)
    at = next(iter(run.contexts[0].state["positions"].at))
    theirs, _ = leaked(flux, Release(method, tuple(own[0] for own in at)))
    ours, _ = leaked(flux, method)
    assert far(ours, theirs) < 1e-5 * theirs.abs().max() * 3
    assert far(ours, plain) > 1e-3


def test_no_order_matters_unless_pairwise(flux):
    back = ITEMS[::-1]
    for pairwise, same in ((False, True), (True, False)):
        one, _ = leaked(flux, DeLeaker(ITEMS, pairwise=pairwise, **ALWAYS))
        two, _ = leaked(flux, DeLeaker(back, pairwise=pairwise, **ALWAYS))
        assert (far(one, two) < 1e-5) is same


@dataclass(frozen=True)
class Looked(DeLeaker):
    """Keeps the maps that masks are made of (a running mean goes on in place), and edits nothing."""

    def masks_of(self, ctx, a):
        ctx.results.setdefault("maps", []).append(a[0].clone())
        return super().masks_of(ctx, a)

    def on_attention(self, ctx, site):
        super().on_attention(ctx, site)


def test_a_history_is_the_mean_of_the_maps_with_or_without_that_of_the_call(flux):
    maps = {h: torch.stack(leaked(flux, Looked(ITEMS, history=h, **ALWAYS))[1].results["maps"]) for h in HISTORIES}
    calls, n = maps["none"], len(maps["none"])
    means = torch.stack([calls[: k + 1].mean(0) for k in range(n)])
    assert n > 4 and far(maps["mean"], means) < 1e-6
    assert far(maps["earlier"], torch.cat([calls[:1], means[:-1]])) < 1e-6


def test_masks_of_a_history_that_is_complete_are_made_once(flux):
    for history in ("mean", "earlier"):
        method = Looked(ITEMS, **{**ALWAYS, "gather": Window(0, 0.3)}, history=history)
        _, run = leaked(flux, method)
        gathered = sum(one / len(run.anatomy.sites) / 2 <= 0.3 for one in range(2 * len(run.anatomy.sites)))
        assert len(run.results["maps"]) == gathered + 1


def test_nothing_to_do_is_the_stock_pipeline(flux, plain):
    off = {"gain": 1.0, "weaken": False, "image_image": False}
    assert far(leaked(flux, DeLeaker(ITEMS, **off, **ALWAYS))[0], plain) < 1e-5
    assert far(leaked(flux, DeLeaker("horse", gain=1.0, **ALWAYS))[0], plain) < 1e-5
    assert torch.equal(draw(flux, PROMPT, size=SIZE, steps=2), plain)


def test_its_windows_count_sites(flux):
    """Acting from the middle of the first step on leaves its first half alone."""
    _, run = leaked(flux, DeLeaker(ITEMS, **{**ALWAYS, "act": Window(0.24, 0.5)}))
    edits = run.log[0]["edits"]["0.DeLeaker"]["KeyScale"]
    names = [site.name for site in run.anatomy.sites]
    assert edits == {names[0]: 3, names[2]: 3, names[3]: 3}  # the second half of step 0 and the start of step 1


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_deleaker_on_a_batch_of_prompts_is_its_singles(name):
    pipe, prompts = tiny(name), [PROMPT, "a bus by a horse and a red cat"]
    method = DeLeaker(ITEMS, **ALWAYS)
    both, _ = leaked(pipe, method, prompt=prompts, seeds=(1, 2), size=(96, 128))
    for one, prompt, seed in zip(both, prompts, (1, 2), strict=True):
        assert far(leaked(pipe, method, prompt=prompt, seeds=(seed,), size=(96, 128))[0][0], one) < 1e-4


def test_deleaker_needs_joint_attention(sd1):
    with pytest.raises(UnsupportedModel, match="Boost"):
        leaked(sd1, DeLeaker("cat,horse"), prompt="a cat and a horse", steps=1, size=(64, 64))


# -- Boost -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Watch(Intervention):
    """Keeps the map after all edits of the last site that reads text, at every step."""

    def on_attention(self, ctx, site):
        if site.layout.text_keys is not None:
            ctx.results.setdefault("text starts", {})[site.name] = site.layout.text_keys.start
        kept = ctx.results.setdefault("kept", {})

        def keep(weights):
            kept[ctx.step, site.name] = weights[list(site.rows.of("cond"))][:, :, site.layout.image_queries]
            return weights

        return MapEdit(keep) if site.kind != "self" else None


def watched(pipe, *methods, **kwargs):
    with attach(pipe, *methods, Watch()) as run:
        latents = draw(pipe, "a red mouse and a laptop", **kwargs)
    return latents, run.results["kept"], run


def tokens_of(run):
    return sorted(set().union(*run.contexts[0].state["positions"].at[0][0]))


def keys_of(run, site_name, tokens):
    return [run.results["text starts"][site_name] + token for token in tokens]


def test_a_bias_multiplies_the_odds_of_the_item_everywhere(any_pipe):
    boost = Boost("laptop", gain=3.0, operation="bias", region="all")
    _, plain, run = watched(any_pipe, Boost("laptop", gain=1.0, region="all"), steps=1)
    first = next(iter(plain))
    keys = keys_of(run, first[1], tokens_of(run))
    _, boosted, _ = watched(any_pipe, boost, steps=1)
    p, q = (kept[first][..., keys].sum(-1) for kept in (plain, boosted))
    assert far(q, 3 * p / (1 + 2 * p)) < 1e-5  # odds times three
    assert far(q, p) > 1e-3


def test_a_scale_is_the_softmax_of_scaled_logits(any_pipe):
    _, plain, run = watched(any_pipe, Boost("laptop", gain=1.0, region="all"), steps=1)
    first = next(iter(plain))
    keys = keys_of(run, first[1], tokens_of(run))
    _, boosted, _ = watched(any_pipe, Boost("laptop", gain=1.5, region="all"), steps=1)
    a, b = (kept[first].double().clamp_min(1e-30).log() for kept in (plain, boosted))
    rest = [k for k in range(a.shape[-1]) if k not in keys]
    assert far((a - a[..., rest[:1]])[..., rest], (b - b[..., rest[:1]])[..., rest]) < 1e-2
    assert far(a[..., keys], b[..., keys]) > 1e-3


def test_a_boost_of_one_changes_nothing_and_the_region_is_learned_first(any_pipe):
    prompt = "a red mouse and a laptop"
    bare = draw(any_pipe, prompt, size=(64, 96))
    with attach(any_pipe, Boost("laptop", gain=1.0, morphology=False)) as run:
        assert far(draw(any_pipe, prompt, size=(64, 96)), bare) < 1e-4
    seen = run.log[0]["edits"]["0.Boost"]["KeyScale"]
    assert set(seen.values()) == {2}, "two of three steps act"
    with attach(any_pipe, Boost("laptop", gain=4.0, morphology=False)):
        assert far(draw(any_pipe, prompt, size=(64, 96)), bare) > 1e-3
    assert torch.equal(draw(any_pipe, prompt, size=(64, 96)), bare)


def test_a_boost_stays_in_the_items_region(flux):
    """The second step acts in the region of the first, and nowhere else."""
    plain, boosted = (
        watched(flux, Boost("laptop", gain=gain, operation="bias", morphology=False), size=SIZE, steps=2)
        for gain in (1.0, 2.0)
    )
    with attach(flux, Maps("laptop", window=Window(0, 0))) as run:
        draw(flux, "a red mouse and a laptop", size=SIZE, steps=2)
    own = above_threshold(run.results["maps"][0].planes(), 1.0)[0].flatten()
    first = next(key for key in plain[1] if key[0] == 1)
    keys = keys_of(boosted[2], first[1], tokens_of(boosted[2]))
    before, after = (kept[first][0, :, :, keys].sum(-1) for _, kept, _ in (plain, boosted))
    assert far(before[:, ~own], after[:, ~own]) < 1e-5
    assert own.any() and (after[:, own] > before[:, own]).all()


def test_everything_composes_on_lists_with_negative_prompts_and_several_images(any_pipe):
    """Patch, Boost and Maps in one session; a batch is its singles."""
    methods = (Patch("mouse", others="laptop"), Boost("laptop", morphology=False), Maps("mouse,laptop"))
    prompts, negative = ["a mouse and a laptop", "a laptop by a mouse"], {}
    if not hasattr(any_pipe, "transformer"):
        negative = {"negative_prompt": ["dog", "tree"], "guidance_scale": 4.0}
    options = {"size": (64, 96), "steps": 2, "num_images_per_prompt": 2}
    with attach(any_pipe, *methods):
        batch = draw(any_pipe, prompts, seeds=(0, 1, 2, 3), **options, **negative)
    with attach(any_pipe, *methods):
        second = draw(
            any_pipe,
            prompts[1],
            seeds=(2, 3),
            **options,
            **{**negative, **({"negative_prompt": "tree"} if negative else {})},
        )
    assert far(batch[2:], second) < 1e-5 * batch.abs().max()


def test_bad_boosts_say_so(sd1):
    with pytest.raises(BadInput, match="region='all'"), attach(sd1, Boost("laptop")):
        draw(sd1, "a laptop", steps=1)
    for wrong in ({"gain": 0.0}, {"gain": math.nan}, {"operation": "magic"}, {"region": "here"}):
        with pytest.raises(BadInput):
            Boost("laptop", **wrong)
    with pytest.raises(BadInput, match="history"):
        DeLeaker("cat,horse", history="binary")
    with pytest.raises(BadInput, match="gain"):
        DeLeaker("cat,horse", gain=-1)


def test_they_survive_json():
    for one in (Boost("a,b#2", gain=2.0, operation="bias"), DeLeaker(["a", "b"], gather=Window(0.1, 0.2))):
        assert Intervention.from_dict(one.to_dict()) == one
    assert replace(Boost("a"), gain=2.0).items == ("a",)


def test_sites_without_text_are_an_error(sd1):
    with pytest.raises(NoSite, match="reads text"), attach(sd1, Boost("laptop", sites="*attn1")):
        draw(sd1, "a laptop", steps=2)
