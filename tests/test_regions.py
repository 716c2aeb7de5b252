"""Editing by region: each part obeys its equation, on every supported layout."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny import draw, tiny
from unleak.core.intervention import Intervention, Window
from unleak.core.predictions import Level, predicted
from unleak.engine.session import attach
from unleak.errors import AmbiguousItem, BadInput, ItemNotFound, PromptTruncated, SpanMismatch
from unleak.regions.masks.masks import foreground, partition
from unleak.regions.methods.ale import Ale
from unleak.regions.methods.blend import Blend
from unleak.regions.methods.ddcm import DDCM, SOURCE, ddcm_step
from unleak.regions.methods.ore import ORE, embed, embeddings
from unleak.regions.methods.rgbcam import RGBCAM
from unleak.regions.methods.selfattn import SelfInjection
from unleak.regions.methods.slots import OwnText, Slot, Slots, _cut, _slot, among_things
from unleak.regions.plan import Edit, located, named, plan
from unleak.regions.presets import EDITORS, OFFICIAL
from unleak.text.call import TextCall
from unleak.text.items import Item

LAYOUTS = ("sd1", "sd2", "sdxl")
PROMPT, OBJECTS = "a red cup and a big dog", ("red cup", "big dog")
SIZE = (64, 96)


@pytest.fixture(scope="module", params=LAYOUTS)
def pipe(request):
    return tiny(request.param)


@pytest.fixture(scope="module")
def one():
    return tiny("sd1")


def boxes(size=SIZE):
    masks = torch.zeros(2, *size, dtype=torch.bool)
    masks[0, 8:40, 8:40] = True
    masks[1, 24:56, 48:88] = True
    return masks


@dataclass(frozen=True)
class Peek(Intervention):
    """Leaves what `look(ctx, site)` returns of every attention call, under the site's name."""

    look: object = None

    def on_attention(self, ctx, site):
        found = self.look(ctx, site)
        if found is not None:
            ctx.results.setdefault(site.name, []).append(found)


# -- the core's part: other texts, and what the denoiser is given -------------------------------------------------


def test_other_texts_are_encoded_as_the_pipeline_encodes_its_prompt_in_one_call(pipe):
    calls = []
    hook = pipe.text_encoder.register_forward_hook(lambda *_: calls.append(1))

    @dataclass(frozen=True)
    class Ask(Intervention):
        def on_prediction(self, ctx, preds):
            if ctx.step == 0:
                calls.clear()
            found = ctx.encode(["a dog", *ctx.encoded.prompts])
            assert ctx.encode(["a dog", *ctx.encoded.prompts]) is found
            ctx.results["found"] = found, ctx.encoded.cond

    with attach(pipe, Ask()) as run:
        draw(pipe, PROMPT, size=SIZE)
    hook.remove()
    (rows, pooled, _), cond = run.results["found"]
    assert len(calls) == 1 and len(rows) == 2
    assert torch.allclose(rows[1], cond[0], atol=1e-5) and (pooled is not None) == hasattr(pipe, "text_encoder_2")
    assert (rows[0] - rows[1]).abs().max() > 1e-2


def test_a_text_that_does_not_fit_is_an_error(one):
    @dataclass(frozen=True)
    class Ask(Intervention):
        def on_prediction(self, ctx, preds):
            ctx.encode(["dog " * 100])

    with pytest.raises(PromptTruncated), attach(one, Ask()):
        draw(one, steps=1)


# -- ORE -------------------------------------------------------------------------------------------------------------

LENGTH = 12
SLOTS = Slots((Slot((2, 4), own=(1, 3), end=3), Slot((5, 6), own=(1, 2), end=2)), stop=6)


def rows(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_an_object_keeps_only_its_own_rows_and_its_own_end():
    plain, alone = rows(0, LENGTH, 4), rows(1, 2, LENGTH, 4)
    made = embeddings(plain, alone, SLOTS)
    first, second = made.own
    assert torch.equal(first[0], plain[0]) and torch.equal(second[0], plain[0])
    assert torch.equal(first[2:4], alone[0, 1:3]) and torch.equal(second[5:6], alone[1, 1:2])
    assert torch.equal(first[6:], alone[0, 3:9]) and torch.equal(second[6:], alone[1, 2:8])
    assert not first[[1, 4, 5]].any() and not second[1:5].any()
    assert torch.equal(made.base[[0, 1, 4, *range(6, 12)]], plain[[0, 1, 4, *range(6, 12)]])
    assert torch.equal(made.base[2:4], alone[0, 1:3]) and torch.equal(made.base[5:6], alone[1, 1:2])


def test_the_release_takes_rows_of_the_base_from_the_wrong_place():
    plain, alone = rows(0, LENGTH, 4), rows(1, 2, LENGTH, 4)
    paper, official = (embeddings(plain, alone, SLOTS, how) for how in ("paper", "official"))
    assert torch.equal(paper.own, official.own)
    assert torch.equal(official.base[5:6], alone[1, 5:6]) and not torch.equal(official.base, paper.base)


def test_among_things_all_rows_of_the_neutral_prompt_but_the_other_objects_are_kept():
    plain, neutral = rows(0, LENGTH, 4), rows(1, 2, LENGTH, 4)
    objects = Slot((2, 4), (2, 4), 6, (1, 4), (1, 4)), Slot((5, 6), (4, 5), 5, (1, 4), (1, 3))
    slots = Slots(objects, stop=6)
    first, second = embeddings(plain, neutral, slots, rest="neutral").own
    assert torch.equal(first[0], plain[0]) and torch.equal(first[2:4], neutral[0, 2:4])
    assert torch.equal(first[6:], neutral[0, 6:]) and torch.equal(first[[1, 4]], neutral[0, [1, 4]])
    assert torch.equal(second[5:6], neutral[1, 4:5]) and torch.equal(second[6:], neutral[1, 5:11])
    assert torch.equal(second[[1, 4]], neutral[1, [1, 3]])
    assert not first[5].any() and not second[2:4].any()  # where the other object stands
    longer = embeddings(plain, neutral, Slots((objects[0]._replace(end=8), objects[1]), 6), rest="neutral").own[0]
    assert torch.equal(longer[6:10], neutral[0, 8:]) and torch.equal(longer[10:], neutral[0, [11, 11]])
    kept = embeddings(plain, neutral, slots, rest="prompt").own[0]
    assert torch.equal(kept[[0, 1, *range(4, 12)]], plain[[0, 1, *range(4, 12)]])


@pytest.mark.parametrize(
    ("prompt", "objects", "texts"),
    [
        ("a cup and an owl", ["a cup", "an owl"], ["a cup and a thing", "a thing and an owl"]),
        ("red cup, big dog", ["red cup", "big dog"], ["red cup, thing", "thing, big dog"]),
        ("an owl beside the red cup", ["owl", "red cup"], ["an owl beside the thing", "a thing beside the red cup"]),
        ("cup and cup", ["cup#1", "cup#2"], ["cup and thing", "thing and cup"]),
        ("the cup on a cup", ["cup#2"], ["the cup on a cup"]),
    ],
)
def test_among_things_every_other_object_is_a_thing_and_the_kept_one_is_found(prompt, objects, texts):
    items = [Item.of(one) for one in objects]
    made = among_things(prompt, items)
    assert [one.text for one in made] == texts
    for item, one in zip(items, made, strict=True):
        assert one.text[slice(*one.at)] == prompt[slice(*item.find(prompt))]
        assert all(one.text[slice(*at)] == "thing" for _, at in one.others)


def embedded(pipe, prompt, objects, find="words", rest="alone"):
    @dataclass(frozen=True)
    class Ask(Intervention):
        def on_prediction(self, ctx, preds):
            ctx.results["made"] = embed(ctx, [prompt], [objects], "paper", find, rest=rest)[0]

    with attach(pipe, Ask()) as run:
        draw(pipe, prompt, steps=1)
    return run.results["made"]


@pytest.mark.parametrize("rest", ["alone", "neutral"])
def test_changing_one_object_leaves_the_embedding_of_the_other(pipe, rest):
    one, other = (embedded(pipe, f"red cup and {word}", ("red cup", word), rest=rest) for word in ("dog", "cat"))
    assert torch.equal(one.own[0], other.own[0])
    assert not torch.equal(one.own[1], other.own[1]) and not torch.equal(one.base, other.base)


def test_release_style_search_takes_the_first_match_and_words_the_right_one(one):
    prompt = "red cup and red"
    objects = located(prompt, ["red cup", "red"])
    words, first = (embedded(one, prompt, objects, find).slots for find in ("words", "first"))
    assert words.spans[0] == first.spans[0] and words.spans[0][0] == 1
    assert first.spans[1][0] == 1 and words.spans[1][1] == words.stop


@pytest.mark.parametrize(
    ("objects", "error"), [(("blue cup",), ItemNotFound), (("a",), AmbiguousItem), (("r",), ItemNotFound)]
)
def test_objects_must_be_in_the_prompt_once(one, objects, error):
    with pytest.raises(error), attach(one, ORE(objects)):
        draw(one, PROMPT, steps=1)


def test_ore_without_masks_changes_the_run_and_leaves_the_pipe(pipe):
    bare = draw(pipe, PROMPT, size=SIZE)
    results = []
    for keys in ("plain", "base"):
        with attach(pipe, ORE(OBJECTS, key_embed=keys)):
            results.append(draw(pipe, PROMPT, size=SIZE))
    assert len({tuple(x.flatten().tolist()) for x in (bare, *results)}) == 3
    assert torch.equal(draw(pipe, PROMPT, size=SIZE), bare)


# -- RGB-CAM ---------------------------------------------------------------------------------------------------------


def dense(site, made, regions, masks, logit=-100.0, keys=None):
    """The paper's equation with the whole map, for one row."""
    height, width = site.grid
    bias = torch.zeros(height * width, site.text_length)
    small = torch.nn.functional.interpolate(masks[None].float(), (height, width))[0] > 0.5
    for span, mask in zip(made.slots.spans, small, strict=True):
        bias[~mask.flatten(), slice(*span)] = logit
    (row,) = site.rows.of("cond")
    own_keys, values = site.encode(made.stacked)
    keys = site.k[row] if keys is None else own_keys[-1]
    weights = (site.q[row] @ keys.mT * site.scale + bias).softmax(-1)
    where = torch.nn.functional.interpolate(regions[None].float(), (height, width))[0].flatten(1)
    return sum(r[:, None] * (weights @ v) for r, v in zip(where, values, strict=True))


@pytest.mark.parametrize("key_embed", ["plain", "base"])
def test_region_guided_attention_is_the_materialised_equation(pipe, key_embed):
    masks, checked = boxes(), []
    part = RGBCAM(OBJECTS, masks, key_embed=key_embed)

    def look(ctx, site):
        if site.kind != "cross":
            return
        from unleak.engine.execute import execute

        edits = part.on_attention(ctx, site)
        out = execute(site, edits, lambda q, k, v, m: torch.nn.functional.scaled_dot_product_attention(q, k, v, m))
        made = ctx.state.setdefault("made", embed(ctx, [PROMPT], [OBJECTS], "paper", "words", ctx.encoded.cond)[0])
        wanted = dense(site, made, partition(masks), partition(masks)[:-1], keys=None if key_embed == "plain" else 1)
        (row,) = site.rows.of("cond")
        assert (out[row] - wanted).abs().max() < 1e-5
        assert torch.allclose(out[list(site.rows.of("uncond"))], site.plain()[list(site.rows.of("uncond"))])
        checked.append(site.name)

    with attach(pipe, Peek(look)):
        draw(pipe, PROMPT, steps=1, size=SIZE)
    assert len(checked) >= 4


def test_words_of_an_object_have_no_weight_outside_its_region(one):
    from unleak.engine.resolve import resolve

    masks = boxes()
    part = RGBCAM(OBJECTS, masks)
    seen = []

    def look(ctx, site):
        if site.kind == "cross":
            biases = [e for e in resolve(site, part.on_attention(ctx, site)) if e.bias is not None]
            (row,) = site.rows.of("cond")
            logits = site.q[row] @ site.k[row].mT * site.scale
            for effect in biases:
                weights = (logits + effect.bias[0]).softmax(-1)[:, effect.queries[0]]
                shut = effect.bias[0, 0, 0] < 0
                seen.append(float(weights[..., shut].max()))

    with attach(one, Peek(look)):
        draw(one, PROMPT, steps=1, size=SIZE)
    assert seen and max(seen) < 1e-30


def test_one_object_everywhere_is_the_prompt_itself(pipe):
    """K = 1 and a full mask: E_1 is the encoding of the prompt, so nothing changes."""
    whole = torch.ones(1, *SIZE, dtype=torch.bool)
    bare = draw(pipe, "red cup", size=SIZE)
    with attach(pipe, RGBCAM(("red cup",), whole)):
        assert (draw(pipe, "red cup", size=SIZE) - bare).abs().max() < 1e-4


def test_regional_prompts_act_in_plain_generation_without_growing_it(pipe):
    with attach(pipe, RGBCAM(OBJECTS, boxes())) as run:
        regional = draw(pipe, PROMPT, size=SIZE)
    assert (regional - draw(pipe, PROMPT, size=SIZE)).abs().max() > 1e-3
    assert run.log[-1]["denoiser_rows"] == 2 * 3


def test_several_images_of_a_prompt_are_the_single_ones(one):
    part = RGBCAM(OBJECTS, boxes())
    with attach(one, part):
        both = draw(one, PROMPT, seeds=(0, 1), size=SIZE, num_images_per_prompt=2)
        single = [draw(one, PROMPT, seeds=(seed,), size=SIZE) for seed in (0, 1)]
    assert (both - torch.cat(single)).abs().max() < 1e-4


def test_the_bias_alone_leaves_the_values(one):
    runs = []
    for part in (RGBCAM(OBJECTS, boxes()), RGBCAM(OBJECTS, boxes(), values="plain")):
        with attach(one, part) as run:
            runs.append(draw(one, PROMPT, size=SIZE))
        assert {"Partition", "Bias"} >= run.log[-1]["edits"]["0.RGBCAM"].keys()
    assert (runs[0] - runs[1]).abs().max() > 1e-4


def test_parts_refuse_what_they_cannot_mean():
    with pytest.raises(BadInput, match="one mask for each"):
        RGBCAM(("cup",), boxes())
    for wrong in ({"overlap": "largest"}, {"bias": "no"}, {"base_index": "mine"}, {"key_embed": "x"}, {"values": "x"}):
        with pytest.raises(BadInput, match="Choose from"):
            RGBCAM(OBJECTS, boxes(), **wrong)
    with pytest.raises(BadInput, match="share of the steps"):
        SelfInjection(1.5)
    with pytest.raises(BadInput, match="eta"):
        DDCM(torch.zeros(1, 4, 8, 8), "a", eta=2.0)


def test_parts_survive_json(one):
    import json

    part = RGBCAM(OBJECTS, boxes()[:, ::8, ::8], overlap="order", window=Window(0.2, 0.8))
    again = Intervention.from_dict(json.loads(json.dumps(part.to_dict())))
    assert torch.equal(again.masks, part.masks) and again.objects == part.objects and again.window == part.window


# -- DDCM, self-attention, blending ----------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99), st.sampled_from(["epsilon", "v_prediction", "sample"]))
def test_a_denoisers_output_is_read_alike_in_every_parametrisation(a, after, kind):
    z, n = rows(1, 1, 4, 3, 3).double(), rows(2, 1, 4, 3, 3).double()
    x = a**0.5 * z + (1 - a) ** 0.5 * n
    output = {"epsilon": n, "v_prediction": a**0.5 * n - (1 - a) ** 0.5 * z, "sample": z}[kind]
    found = predicted(output, x, kind, Level.of(a))
    assert torch.allclose(found.clean, z, atol=1e-9) and torch.allclose(found.noise, n, atol=1e-9)


def test_a_terminal_alpha_of_zero_is_no_division():
    x = rows(0, 1, 4, 3, 3)
    found = predicted(rows(1, 1, 4, 3, 3), x, "v_prediction", Level.of(0.0))
    assert torch.equal(found.clean, -rows(1, 1, 4, 3, 3)) and torch.equal(found.noise, x)


def test_ddcm_draws_fresh_noise_of_its_seed_at_every_step():
    like, drawn = torch.zeros(1, 4, 32, 32), {}
    for seed in (0, 0, 1):
        ctx = SimpleNamespace(state={}, step=0, steps=2)
        steps = [DDCM(like, "a", seed=seed)._noise(ctx, like) for _ in range(2)]
        assert not torch.equal(*steps) and all(0.9 < float(n.std()) < 1.1 for n in steps)
        drawn.setdefault(seed, []).append(steps[0])
    assert torch.equal(*drawn[0]) and not torch.equal(drawn[0][0], drawn[1][0])


@settings(max_examples=50, deadline=None)
@given(st.floats(0.05, 0.95), st.floats(0.05, 0.95), st.floats(0, 1))
def test_a_ddcm_step_carries_only_the_difference(a, after, eta):
    x_t, x_s, z0, n, e_t, e_s = (rows(i, 1, 4, 3, 3).double() for i in range(6))
    read = lambda e, x: predicted(e, x, "epsilon", Level.of(a))  # noqa: E731
    z_t, new_t, new_s = ddcm_step(read(e_t, x_t), read(e_s, x_s), x_s, z0, n, Level.of(a), Level.of(after), eta)
    assert torch.allclose(z_t, z0 + ((x_t - x_s) - (1 - a) ** 0.5 * (e_t - e_s)) / a**0.5)
    assert torch.allclose(new_t - new_s, after**0.5 * (z_t - z0))
    same, same_t, same_s = ddcm_step(read(e_s, x_s), read(e_s, x_s), x_s, z0, n, Level.of(a), Level.of(after), eta)
    assert torch.equal(same, z0) and torch.equal(same_t, same_s)
    if eta == 1:
        assert torch.equal(new_s, after**0.5 * z0 + (1 - after) ** 0.5 * n)
    x_s = a**0.5 * z0 + (1 - a) ** 0.5 * n  # a source that is exactly on its way, and no fresh noise
    _, _, straight = ddcm_step(read(e_s, x_s), read(e_s, x_s), x_s, z0, n, Level.of(a), Level.of(after), 0.0)
    assert torch.allclose(straight, after**0.5 * z0 + (1 - after) ** 0.5 * n)


def test_the_target_is_the_source_and_the_sum_of_guided_differences():
    """Without blending: z_t(c + 1) = z_t(c) - sqrt((1 - a) / a) (eps_t - eps_s)."""
    z0 = rows(0, 1, 4, 3, 3).double()
    x_t = x_s = rows(1, 1, 4, 3, 3).double()
    total, alphas = z0.clone(), (0.01, 0.2, 0.5, 0.9)
    for c, (a, after) in enumerate(zip(alphas, (*alphas[1:], alphas[-1]), strict=True)):
        e_t, e_s, n = (rows(10 * c + i, 1, 4, 3, 3).double() for i in (2, 3, 4))
        target, source = predicted(e_t, x_t, "epsilon", Level.of(a)), predicted(e_s, x_s, "epsilon", Level.of(a))
        z_t, x_t, x_s = ddcm_step(target, source, x_s, z0, n, Level.of(a), Level.of(after), 1.0)
        total = total - ((1 - a) / a) ** 0.5 * (e_t - e_s)
        assert torch.allclose(z_t, total, rtol=1e-6)


def run_edit(
    pipe, method, targets=("red cup", "big dog"), masks=None, sources=("blue cup", "big cat"), extra=(), **call
):
    masks = boxes() if masks is None else masks
    channels = pipe.unet.config.in_channels
    clean = rows(7, 1, channels, *(side // pipe.vae_scale_factor for side in masks.shape[-2:]))
    noise = rows(8, method.steps, *clean.shape)
    source, target = " and ".join(sources), " and ".join(targets)
    parts = method.parts((source, located(source, sources)), (target, located(target, targets)), masks, clean, noise)
    guided = (method.source_guidance, method.target_guidance) != (1.0, 1.0)
    with attach(pipe, *parts, *extra) as run:
        final = pipe(
            target, num_inference_steps=method.steps, height=masks.shape[1], width=masks.shape[2],
            guidance_scale=2.0 if guided else 1.0, latents=rows(9, *clean.shape), output_type="latent", **call,
        ).images  # fmt: skip
    return final, clean, run


@dataclass(frozen=True)
class Trace(Intervention):
    def on_latents(self, ctx, latents):
        ctx.results.setdefault("trace", []).append((latents.clone(), ctx.results[SOURCE].clone()))


@pytest.fixture(scope="module", params=LAYOUTS)
def vp(request):
    """A pipeline whose scheduler an edit can follow."""
    from diffusers import DDIMScheduler

    made = tiny(request.param)
    made.scheduler = DDIMScheduler.from_config(made.scheduler.config, clip_sample=False)
    return made


def test_the_background_is_exactly_the_source(vp):
    final, clean, run = run_edit(vp, Ale(steps=4), extra=(Trace(),))
    kept = foreground(boxes(), tuple(clean.shape[-2:])) == 0
    assert torch.equal(final[..., kept], clean[..., kept]) and not torch.equal(final, clean)
    for target, source in run.results["trace"]:
        assert torch.equal(target[..., kept], source[..., kept])
    assert run.log[-1]["denoiser_calls"] == 4 and run.log[-1]["denoiser_rows"] == 4 * 4


def test_one_object_that_becomes_itself_everywhere_is_the_source(vp):
    whole = torch.ones(1, *SIZE, dtype=torch.bool)
    method = Ale(steps=3, target_guidance=1.5, source_guidance=1.5)
    final, clean, _ = run_edit(vp, method, ("red cup",), whole, ("red cup",))
    assert (final - clean).abs().max() < 1e-4 * clean.abs().max() + 1e-4
    final, clean, _ = run_edit(vp, replace(method, target_guidance=1.0, source_guidance=1.0), ("red cup",), whole,
                               ("red cup",))  # fmt: skip
    assert (final - clean).abs().max() < 1e-3


def test_without_guidance_there_are_two_rows_and_no_more(one):
    _, _, run = run_edit(one, Ale(steps=3, target_guidance=1.0))
    assert run.log[-1]["denoiser_rows"] == 3 * 2
    with pytest.raises(BadInput, match="guidance_scale"), attach(one, DDCM(rows(0, 1, 4, 8, 8), "a dog")):
        draw(one, guidance_scale=1.0)


def test_a_full_mask_blends_nothing(one):
    clean = rows(7, 1, 4, 8, 12)
    whole = torch.ones(1, *SIZE, dtype=torch.bool)
    results = []
    for blend in ([], [Blend(whole)]):
        with attach(one, DDCM(clean, "a cat"), *blend):
            results.append(draw(one, "a dog", size=SIZE))
    assert torch.equal(*results)


def test_a_blend_needs_someone_who_follows_the_source(one):
    with pytest.raises(BadInput, match="before Blend"), attach(one, Blend(boxes()), DDCM(rows(7, 1, 4, 8, 12), "a")):
        draw(one, size=SIZE)


@pytest.mark.parametrize(("steps", "until", "wanted"), [(4, 0.0, 0), (15, 0.5, 7), (5, 0.6, 2), (4, 1.0, 3)])
def test_injection_happens_at_as_many_steps_as_the_formula_says(one, steps, until, wanted):
    """(c + 1) / N < S; the last step is never injected."""
    assert sum((c + 1) / steps < until for c in range(steps)) == wanted
    clean = rows(7, 1, 4, 4, 4)
    with attach(one, DDCM(clean, "a cat"), SelfInjection(until)) as run:
        draw(one, "a dog", steps=steps, size=(32, 32))
    counts = run.log[-1]["edits"].get("1.SelfInjection", {}).get("RowSwap", {})
    assert set(counts.values()) == ({2 * wanted} if wanted else set())


def test_the_injected_map_is_the_sources_with_the_targets_values(one):
    checked = []

    def look(ctx, site):
        if site.kind == "self" and ctx.step == 0:
            from unleak.engine.resolve import swap

            q, k, v = swap(site, SelfInjection(1.0).on_attention(ctx, site))
            for target, source in (("cond", "source_cond"), ("uncond", "source_uncond")):
                (t,), (s,) = site.rows.of(target), site.rows.of(source)
                assert torch.equal(q[t], site.q[s]) and torch.equal(k[t], site.k[s]) and torch.equal(v[t], site.v[t])
                checked.append(site.name)

    with attach(one, DDCM(rows(7, 1, 4, 8, 12), "a cat"), Peek(look)):
        draw(one, "a dog", steps=2, size=SIZE)
    assert checked


def test_nothing_of_the_source_depends_on_the_target(one):
    """Its rows are beside the target's in every call, and untouched by the target's edits."""

    def source_of(targets):
        @dataclass(frozen=True)
        class Keep(Intervention):
            def on_prediction(self, ctx, preds):
                ctx.results.setdefault("eps", []).append(preds["source_cond"].clone())

        return run_edit(one, Ale(steps=2), targets, extra=(Keep(),))[2].results["eps"]

    for ours, theirs in zip(source_of(("red cup", "big dog")), source_of(("blue hat", "small cat")), strict=True):
        assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("name", sorted(OFFICIAL.keys() - {"posterior", "find"}))
def test_each_departure_of_the_release_can_be_switched_alone(one, name):
    masks = boxes()
    masks[1, 24:56, 30:88] = True  # overlap
    base, _, _ = run_edit(one, Ale(steps=3), masks=masks)
    switched, clean, _ = run_edit(one, Ale(steps=3, **{name: OFFICIAL[name]}), masks=masks)
    if name == "bias":  # the winner of a cell is under its own mask, so only losers' words differ
        switched, clean, _ = run_edit(one, Ale(steps=3, bias="mask", masked_logit=-3.0), masks=masks)
        base, _, _ = run_edit(one, Ale(steps=3, masked_logit=-3.0), masks=masks)
    assert not torch.equal(base, switched)
    kept = foreground(masks, tuple(clean.shape[-2:])) == 0
    exact = torch.equal(switched[..., kept], clean[..., kept])
    assert exact == (name not in ("bb_final", "foreground"))


def test_the_release_does_not_keep_the_background(one):
    final, clean, _ = run_edit(one, EDITORS["ale-official"].make(steps=3))
    kept = foreground(boxes(), tuple(clean.shape[-2:]), "multiscale") == 0
    assert (final - clean)[..., kept].abs().max() > 1e-3


def test_several_images_share_an_edit_and_are_the_single_ones(one):
    clean, masks = rows(7, 1, 4, 8, 12), boxes()
    noise, start = rows(8, 3, 2, 4, 8, 12), rows(9, 2, 4, 8, 12)

    def edited(pick):
        parts = Ale(steps=3).parts(
            ("blue cup and big cat", ("blue cup", "big cat")), (PROMPT, OBJECTS), masks, clean, noise[:, pick]
        )
        with attach(one, *parts):
            return one(PROMPT, num_inference_steps=3, height=64, width=96, guidance_scale=2.0, latents=start[pick],
                       num_images_per_prompt=len(start[pick]), output_type="latent").images  # fmt: skip

    both = edited(slice(0, 2))
    assert (both - torch.cat([edited(slice(0, 1)), edited(slice(1, 2))])).abs().max() < 1e-3


# -- plans -----------------------------------------------------------------------------------------------------------


def test_prompts_are_joined_or_made_from_the_caption():
    edits = [Edit("cup", "red cup"), Edit("dog", "cup")]
    joined = plan(edits)
    assert (joined.source, joined.target) == ("cup and dog", "red cup and cup")
    assert joined.targets == ("red cup", "cup#2")
    told = plan([Edit("dog", "black cat"), Edit("cup", "hat")], "a cup beside a dog on a table")
    assert told.target == "a hat beside a black cat on a table" and told.sources == ("dog", "cup")
    assert plan([Edit("cup#2", "hat")], "a cup and a cup").target == "a cup and a hat"


@pytest.mark.parametrize(
    ("edits", "caption", "error"),
    [
        ([("cat", "dog")], "a cup", ItemNotFound),
        ([("cup", "dog")], "a cup and a cup", AmbiguousItem),
        ([("red cup", "dog"), ("cup", "hat")], "a red cup", BadInput),
        ([("cup", "dog")], " ", BadInput),
    ],
)
def test_sources_must_be_in_the_caption_once(edits, caption, error):
    with pytest.raises(error):
        plan([Edit(*pair) for pair in edits], caption)


def test_articles_are_left_out_where_an_object_is_looked_for():
    prompt = "the cat, a cat and An owl"
    assert named(prompt, ["a cat", "the cat", "An owl", "cat#2"]) == ("cat#2", "cat#1", "owl", "cat#2")


def test_edits_are_read_from_the_command_line():
    made = Edit.parse(" yellow car = red car @ some dir/car.png")
    assert (made.source, made.target, made.mask) == ("yellow car", "red car", "some dir/car.png")
    assert Edit.parse("a=b").mask is None
    for wrong in ("car", "=b", "a=", "a=b@", "a=@m.png", ""):
        with pytest.raises(BadInput):
            Edit.parse(wrong)
    with pytest.raises(BadInput, match="empty"):
        Edit("car", " ")


def test_presets_know_their_options():
    assert EDITORS["ale-official"].make().base_index == "official" and EDITORS["ale"].make(steps=4).steps == 4
    with pytest.raises(BadInput, match="no editor is called 'alf'; did you mean 'ale'"):
        EDITORS["alf"]
    for wrong in ({"target_guidance": float("nan")}, {"steps": 0}, {"posterior": "mean"}):
        with pytest.raises(BadInput, match=next(iter(wrong))):
            EDITORS["ale"].make(**wrong)
    with pytest.raises(BadInput, match="'dilatation'; did you mean 'dilation'"):
        EDITORS["ale"].make(dilatation=1)


@pytest.mark.parametrize("name", EDITORS)
def test_an_editor_names_its_source_and_is_set_by_name(name):
    editor = EDITORS[name]
    assert "arXiv" in editor.source and editor.make().citation == editor.source
    assert editor.make(**editor.parse(["steps=7", "overlap=order"])) == editor.make(steps=7, overlap="order")
    assert {p.name: p.default for p in editor.parameters}.items() <= vars(editor.make()).items()


def encoder_call(pipe):
    """A call of a pipeline's text encoder, of which only how it cuts texts matters."""
    return TextCall("enc", pipe.text_encoder, pipe.tokenizer, [], torch.zeros(1, 77), None, lambda *given: None)


def test_a_phrase_cut_otherwise_alone_is_an_error():
    encoder = encoder_call(tiny("sd1"))
    with pytest.raises(SpanMismatch, match="find='words'"):
        _slot(encoder, _cut(encoder, "a cat"), Item("cat"), OwnText("zebra crossing", (0, 14)), "first")


def test_words_between_objects_that_are_cut_otherwise_in_an_objects_text_are_an_error():
    encoder = encoder_call(tiny("sd1"))
    own = OwnText("a thing beside a red dog", (21, 24), (((2, 5), (2, 7)),))
    with pytest.raises(SpanMismatch, match=r"between the objects .* rest='alone'"):
        _slot(encoder, _cut(encoder, "a cup and a dog"), Item("dog"), own, "words")


# -- DDIM inversion --------------------------------------------------------------------------------------------------


def test_inversion_is_what_diffusers_computes_for_predicted_noise(one):
    from diffusers import DDIMInverseScheduler

    from unleak.regions.methods.inversion import invert

    clean, own = rows(7, 1, 4, 4, 6), one.scheduler
    path = invert(one, clean, "a dog", (32, 48), 4)
    assert path.shape == (5, 1, 4, 4, 6) and torch.equal(path[0], clean) and one.scheduler is own
    one.scheduler = DDIMInverseScheduler.from_config(own.config)
    wanted = one("a dog", latents=clean, num_inference_steps=4, height=32, width=48, guidance_scale=1.0,
                 output_type="latent").images  # fmt: skip
    one.scheduler = own
    assert torch.allclose(path[-1], wanted, atol=1e-4)


def test_inversion_leads_back_to_the_image_the_better_the_more_steps():
    from diffusers import DDIMScheduler

    from unleak.regions.methods.inversion import invert

    pipe = tiny("sd1")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="v_prediction")
    clean, errors = rows(7, 1, 4, 4, 4), []
    for steps in (3, 15):
        noise = invert(pipe, clean, "a dog", (32, 32), steps)[-1]
        back = pipe("a dog", latents=noise, num_inference_steps=steps, height=32, width=32, guidance_scale=1.0,
                    output_type="latent").images  # fmt: skip
        errors.append(float((back - clean).abs().mean()))
    assert errors[1] < 0.7 * errors[0]
