"""Prompt-to-Prompt and MasaCtrl: the tables between prompts, and what attention control may and may not change."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from tiny import clip_tokenizer, tiny
from unleak.core.anatomy import Anatomy
from unleak.core.intervention import Window
from unleak.engine.session import attach
from unleak.errors import BadInput, EmptyWindow, ItemNotFound
from unleak.regions.methods import alignment
from unleak.regions.methods.local_blend import LocalBlend
from unleak.regions.methods.masactrl import MasaCtrl
from unleak.regions.methods.p2p import P2P
from unleak.regions.presets import EDITORS

SOURCE, TARGET, LONGER = "a red cup and a cat", "a red cup and a dog", "a big red cup and a cat"
STEPS = 3


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def pipe(request):
    return tiny(request.param)


@pytest.fixture(scope="module")
def one():
    return tiny("sd1")


def draw(pipe, *interventions, prompts=(SOURCE, TARGET), size=(64, 96), images=1, steps=STEPS):
    random = torch.Generator().manual_seed(3)
    start = torch.randn(images, 4, *(side // pipe.vae_scale_factor for side in size), generator=random)
    with attach(pipe, *interventions) as run:
        final = pipe(
            list(prompts), latents=start.repeat(len(prompts), 1, 1, 1), num_inference_steps=steps, height=size[0],
            width=size[1], guidance_scale=5.0, num_images_per_prompt=images, output_type="latent",
        ).images  # fmt: skip
    return final, run


# -- tables ----------------------------------------------------------------------------------------------------------


def cut(*prompts):
    return alignment.cut(clip_tokenizer(), prompts)


def test_refining_leaves_out_new_words_and_keeps_the_rest():
    source, target = cut(SOURCE, LONGER)
    found, (first, stop) = alignment.refinement(source, target), target.body
    (big,) = [own for word, own in alignment.words(target) if word == "big"]
    assert [at for at in range(first, stop) if found[at] < 0] == list(big)
    assert all(source.ids[found[at]] == target.ids[at] for at in range(stop + 1) if found[at] >= 0)
    assert found[stop + 1 :] == list(range(stop + 1, target.length))


def test_a_replaced_word_hands_on_all_of_its_attention():
    source, target = cut("a cat and a cup", "a xyzzyqw and a cup")
    own, new = (dict(alignment.words(tokens)[1:2]) for tokens in (source, target))
    own, new = own["cat"], new["xyzzyqw"]
    assert len(own) != len(new), "the case needs words of different lengths"
    for shifted in (True, False):
        made = alignment.replacement(source, target, shifted)
        assert torch.allclose(made[list(own)][:, list(new)].sum(1), torch.ones(len(own)))
    cups = [dict(alignment.words(tokens))["cup"][0] for tokens in (source, target)]
    assert alignment.replacement(source, target)[cups[0], cups[1]] == 1.0
    assert alignment.replacement(source, target, shifted=False)[cups[1], cups[1]] == 1.0


def test_replacing_needs_as_many_words():
    with pytest.raises(BadInput, match="refine"):
        alignment.replacement(*cut(SOURCE, LONGER))


def test_a_word_may_have_a_share_of_the_run_of_its_own():
    (target,) = cut(TARGET)
    made = alignment.shares([target], {"default_": (0.2, 0.6), "dog": 0.4}, 9)[:, 0]
    dog = alignment.positions(target, "dog")
    assert made[:, dog[0]].nonzero().flatten().tolist() == [0, 1, 2, 3]
    assert made[:, 0].nonzero().flatten().tolist() == [2, 3, 4, 5]
    with pytest.raises(BadInput):
        alignment.shares([target], 1.5, 9)


# -- control ---------------------------------------------------------------------------------------------------------


def test_a_share_of_zero_never_acts_and_is_the_plain_batch(pipe):
    never = P2P((SOURCE, TARGET), "replace", cross_steps=0.0, self_steps=0.0)
    assert torch.equal(draw(pipe, never)[0], draw(pipe)[0])


@pytest.mark.parametrize(
    "method",
    [
        MasaCtrl(steps=Window(0.6, 0.9)),
        MasaCtrl(steps=Window(0.3, 1.0), layers=Window(0.99, 0.999)),
        P2P((SOURCE, TARGET), window=Window(0.6, 0.9)),
    ],
)
def test_a_window_that_holds_no_step_is_an_error(one, method):
    """Three steps are at 0, 0.5 and 1."""
    with pytest.raises(EmptyWindow, match="none of its"):
        draw(one, method)


@pytest.mark.parametrize(
    "method",
    [P2P((SOURCE, TARGET), "replace"), P2P((SOURCE, TARGET)), MasaCtrl()],
)
def test_control_changes_the_target_and_never_the_source(pipe, method):
    (final, run), bare = draw(pipe, method), draw(pipe)[0]
    assert (final[0] - bare[0]).abs().max() < 1e-4 < (final[1] - bare[1]).abs().max()
    assert run.log[0]["edits"]


def test_listed_steps_and_layers_are_those_of_a_window(one):
    """Three steps; the second and third lie from 0.5 on."""
    layers = sum(site.name.endswith("attn1") for site in Anatomy.of(one).sites)
    windows, _ = draw(one, MasaCtrl(Window(0.5, 1.0), Window(0.5, 1.0)))
    numbers, run = draw(one, MasaCtrl([1, 2], Window(0.5, 1.0).among(layers)))
    assert torch.equal(windows, numbers)
    _, run = draw(one, MasaCtrl([0], [1]))  # a list needs no step that counts the layers
    assert list(run.log[0]["edits"]["0.MasaCtrl"]["RowSwap"].values()) == [2]
    for wrong in (MasaCtrl([3], [0]), MasaCtrl([0], [layers])):
        with pytest.raises(EmptyWindow, match="counted from 0"):
            draw(one, wrong)


def test_a_target_with_the_sources_prompt_is_the_source(pipe):
    final, _ = draw(pipe, P2P((SOURCE, SOURCE), "same", 1.0, 1.0), prompts=(SOURCE, SOURCE))
    assert (final[0] - final[1]).abs().max() < 1e-4


def test_several_targets_and_images_are_the_single_ones(one):
    prompts = (SOURCE, TARGET, "a red cup and a sun")
    final, _ = draw(one, P2P(prompts, "replace"), prompts=prompts, images=2)
    for i in (1, 2):
        pair = (SOURCE, prompts[i])
        single, _ = draw(one, P2P(pair, "replace"), prompts=pair, images=2)
        assert (final[2 * i : 2 * i + 2] - single[2:]).abs().max() < 1e-3


def test_only_the_reweighted_word_gains(one):
    plain, _ = draw(one, P2P((SOURCE, SOURCE), "same"), prompts=(SOURCE, SOURCE))
    same, _ = draw(one, P2P((SOURCE, SOURCE), "same", weights={"cat": 1.0}), prompts=(SOURCE, SOURCE))
    more, _ = draw(one, P2P((SOURCE, SOURCE), "same", weights={"cat": 4.0}), prompts=(SOURCE, SOURCE))
    assert torch.equal(plain, same)
    assert (more[1] - plain[1]).abs().max() > 1e-3


def test_a_local_blend_keeps_the_source_outside_the_words(one):
    blend = LocalBlend((SOURCE, TARGET), (("cat",), ("dog",)), threshold=0.9, start=0.0)
    final, _ = draw(one, P2P((SOURCE, TARGET), "replace"), blend, size=(128, 192))
    kept = (final[0] == final[1]).all(0)
    assert kept.any() and not kept.all()


@dataclass(frozen=True)
class Sums(LocalBlend):
    """Leaves what the blend has seen of the words: [target rows, source and target, h, w]."""

    def on_latents(self, ctx, latents):
        ctx.results["sums"] = ctx.state["sums"]["words"]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_local_blend_of_edited_maps_sees_what_the_control_leaves(one, share):
    """Nothing of the source's maps, or its maps alone."""
    control = P2P((SOURCE, TARGET), "replace", cross_steps=share, self_steps=0.0)
    words = (("cat",), ("dog",))
    edited = draw(one, control, Sums((SOURCE, TARGET), words, control=control), size=(128, 128))[1].results["sums"]
    own = draw(one, control, Sums((SOURCE, TARGET), words), size=(128, 128))[1].results["sums"]
    assert torch.equal(edited[:, 0], own[:, 0])
    assert torch.allclose(edited[:, 1], own[:, 0 if share else 1], atol=1e-6)
    assert not torch.allclose(own[:, 0], own[:, 1], atol=1e-3)


@pytest.mark.parametrize(
    ("method", "error"),
    [
        (P2P((SOURCE, TARGET), weights={"bird": 2.0}), ItemNotFound),
        (P2P((SOURCE, LONGER), "replace"), BadInput),
        (LocalBlend((SOURCE, TARGET), (("cat",), ("bird",))), ItemNotFound),
    ],
)
def test_what_cannot_be_controlled_says_so(one, method, error):
    with pytest.raises(error):
        draw(one, method, size=(128, 128))


def test_control_needs_a_source(one):
    for method in (P2P((SOURCE, TARGET)), MasaCtrl(Window(), Window())):
        with pytest.raises(BadInput, match="no source"):
            draw(one, method, prompts=(TARGET,))


def test_wrong_parameters_are_refused():
    for wrong in (
        lambda: P2P((SOURCE,)),
        lambda: P2P((SOURCE, TARGET), "swap"),
        lambda: P2P((SOURCE, TARGET), self_steps=2.0),
        lambda: MasaCtrl(steps=Window()),
        lambda: MasaCtrl(steps=[0], layers=Window(0.5, 1.0)),
        lambda: MasaCtrl(steps=[]),
        lambda: MasaCtrl(layers=[-1]),
        lambda: LocalBlend((SOURCE, TARGET), (("cat",),)),
    ):
        with pytest.raises(BadInput):
            wrong()


# -- beside the exact source -----------------------------------------------------------------------------------------


def edited(pipe, target, **options):
    name = options.pop("name")
    method = EDITORS[name].make(steps=STEPS, **options)
    random = torch.Generator().manual_seed(5)
    clean, start, *noise = torch.randn(STEPS + 2, 1, 4, 8, 12, generator=random)
    masks = torch.zeros(1, 64, 96, dtype=torch.bool)
    masks[:, :32, :40] = True
    parts = method.parts((SOURCE, ("cat",)), (target, (target.split()[-1],)), masks, clean, torch.stack(noise))
    with attach(pipe, *parts):
        final = pipe(
            target, num_inference_steps=STEPS, height=64, width=96, guidance_scale=2.0, latents=start,
            output_type="latent",
        ).images  # fmt: skip
    return final, clean


BASELINES = [{"name": "p2p"}, {"name": "masactrl"}, {"name": "infedit", "threshold": 0.1}]


@pytest.mark.parametrize("options", BASELINES)
def test_a_baseline_that_edits_nothing_is_the_source(one, options):
    final, clean = edited(one, SOURCE, source_guidance=2.0, **options)
    assert (final - clean).abs().max() < 1e-3


@pytest.mark.parametrize("options", BASELINES)
def test_a_baseline_leaks_into_the_background_unless_it_is_blended(one, options):
    for blend in (False, True):
        final, clean = edited(one, TARGET, blend=blend, **options)
        assert torch.equal(final[..., 4:, :], clean[..., 4:, :]) == blend
        assert not torch.equal(final[..., :4, :5], clean[..., :4, :5])
