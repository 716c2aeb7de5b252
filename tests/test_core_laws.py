"""The seven laws of the core, each over every supported layout."""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
from dataclasses import dataclass, field

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from diffusers.models.attention_dispatch import attention_backend
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import nn
from torch.overrides import _get_current_function_mode_stack

from reference import dense, full_map
from tiny import NAMES, draw, tiny
from unleak.core.anatomy import Anatomy
from unleak.core.edits import Bias, KeyScale, KeyValueSwap, Mask, Partition, Region
from unleak.core.intervention import SEAMS, Intervention, Window
from unleak.core.rows import Branch
from unleak.core.scores import RunningMean
from unleak.engine.session import attach
from unleak.engine.tap import kernels
from unleak.errors import Conflict, NoSite, NotFinite, Unobservable, UnsupportedModel
from unleak.words.methods.boost import Boost
from unleak.words.methods.maps import Maps


@dataclass(frozen=True)
class Look(Intervention):
    """Looks through every seam and changes nothing; collects text columns."""

    def on_text(self, ctx, call):
        return None

    def on_attention(self, ctx, site):
        maps = ctx.results.setdefault("maps", RunningMean())
        ctx.results.setdefault("kinds", {})[site.name] = site.kind
        if site.kind != "self" and site.rows.of("cond"):
            maps.add((site.name, site.grid), site.columns([1, 2, 3]))

    def on_prediction(self, ctx, preds):
        return None

    def on_latents(self, ctx, latents):
        return None


@dataclass(frozen=True)
class Scale(Intervention):
    factor: float = 3.0
    tokens: tuple[int, ...] = (2, 3)
    queries: torch.Tensor | None = field(default=None, compare=False)

    def on_attention(self, ctx, site):
        if site.kind != "self":
            return KeyScale(self.tokens, self.factor, queries=self.queries)


@dataclass(frozen=True)
class Regions(Intervention):
    """Forbids tokens inside a box, drawn on the latent grid."""

    def on_attention(self, ctx, site):
        if site.kind != "self":
            mask = ctx.state.setdefault("mask", torch.zeros(ctx.grid.size, dtype=torch.bool))
            mask[: mask.shape[0] // 2] = True
            return [Mask([2], mask), Bias(-2.0, [3], mask)]


@dataclass(frozen=True)
class Fail(Intervention):
    """Raises in one seam, at the second step where there are steps."""

    seam: str = "on_text"
    error: type[BaseException] = RuntimeError

    def _maybe(self, ctx, seam):
        if seam == self.seam and (seam == "on_text" or ctx.step == 1):
            raise self.error("on purpose")

    def on_text(self, ctx, call):
        self._maybe(ctx, "on_text")

    def branches(self, ctx):
        self._maybe(ctx, "branches")
        return [Branch("extra")]

    def on_attention(self, ctx, site):
        self._maybe(ctx, "on_attention")

    def modules(self, anatomy):
        return [name for name, _ in anatomy.denoiser.named_children()][:1]

    def on_module(self, ctx, name, output):
        self._maybe(ctx, "on_module")

    def on_prediction(self, ctx, preds):
        self._maybe(ctx, "on_prediction")

    def on_latents(self, ctx, latents):
        self._maybe(ctx, "on_latents")


def traces(pipe):
    """Everything a session could leave behind."""
    modules = [m for part in pipe.components.values() if isinstance(part, nn.Module) for m in part.modules()]
    names = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
    hooks = sum(len(getattr(module, name)) for module in modules for name in names)
    shadows = [n for owner in (pipe, pipe.scheduler) for n in vars(owner) if n in vars(type(owner)) or n == "step"]
    forwards = sum("forward" in vars(module) for module in modules)
    return hooks, shadows, forwards, len(_get_current_function_mode_stack())


@pytest.fixture
def pristine(any_pipe):
    """What is on the pipeline before a test, once it has run (its libraries leave hooks of their own)."""
    bare = draw(any_pipe)
    return bare, traces(any_pipe)


def guided(name):
    return {"negative_prompt": "a cat", "true_cfg_scale": 3.0} if name == "flux" else {"negative_prompt": "a cat"}


# -- 1 identity ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interventions", [(), (Look(),), (Scale(1.0),), (Look(), Look())], ids=str)
def test_doing_nothing_is_bitwise_the_bare_pipeline(any_pipe, interventions):
    bare = draw(any_pipe)
    with attach(any_pipe, *interventions):
        assert torch.equal(draw(any_pipe), bare)
    assert torch.equal(draw(any_pipe), bare)


def test_attaching_nothing_installs_nothing(any_pipe, pristine):
    with attach(any_pipe) as run:
        assert traces(any_pipe) == pristine[1]
    assert run.log == []
    with attach(any_pipe, Look()):
        assert traces(any_pipe) != pristine[1], "this test would not see what a session leaves behind"


def test_the_public_verb(sd1):
    import unleak

    with unleak.attach(sd1, Look()) as run:
        draw(sd1, steps=1)
    assert run.results["kinds"]


@pytest.mark.parametrize("name", NAMES)
def test_fused_projections_are_observed_alike(name):
    pipe = tiny(name)
    if name == "sd3":  # diffusers fuses neither dual attention nor query norms here
        config = {**pipe.transformer.config, "dual_attention_layers": (), "qk_norm": None}
        pipe.transformer = SD3Transformer2DModel.from_config(config).eval()
    with attach(pipe, Look()) as run:
        draw(pipe, steps=1)
    denoiser = Anatomy.of(pipe).denoiser
    denoiser.fuse_qkv_projections()
    bare = draw(pipe, steps=1)
    with attach(pipe, Look()) as fused:
        assert torch.equal(draw(pipe, steps=1), bare)
    assert fused.results["kinds"] == run.results["kinds"]
    for key in run.results["maps"]:
        assert (fused.results["maps"].mean(key) - run.results["maps"].mean(key)).abs().max() < 1e-4


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter, wrapped as adapter libraries do."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer, rank = base, 2
        self.a = nn.Parameter(torch.full((rank, base.in_features), 0.05))
        self.b = nn.Parameter(torch.full((base.out_features, rank), 0.05))

    def forward(self, x):
        return self.base_layer(x) + x @ self.a.T @ self.b.T


def test_adapted_layers_are_observed_and_edited(any_pipe):
    pipe = tiny({"S": "sd1", "F": "flux"}.get(type(any_pipe).__name__[0], "sd3"))
    for site in Anatomy.of(pipe).sites:
        for layer in ("to_q", "to_k", "to_v", "add_v_proj"):
            if isinstance(getattr(site.module, layer, None), nn.Linear):
                setattr(site.module, layer, Adapted(getattr(site.module, layer)))
    bare = draw(pipe)
    with attach(pipe, Look()):
        assert torch.equal(draw(pipe), bare)
    with attach(pipe, Scale(4.0)):
        assert not torch.equal(draw(pipe), bare)


def test_autocast_is_observed_and_edited_in_its_own_precision(any_pipe):
    with torch.autocast("cpu", torch.bfloat16):
        bare = draw(any_pipe, steps=1)
        with attach(any_pipe, Look()) as run:
            assert torch.equal(draw(any_pipe, steps=1), bare)
        with attach(any_pipe, Regions(), Scale(3.0)):
            assert not torch.equal(draw(any_pipe, steps=1), bare)
    maps = run.results["maps"]
    assert all(maps.mean(key).dtype == torch.float32 for key in maps)


# -- 2 restore -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("seam", SEAMS)
def test_everything_is_restored_after_an_error_in_any_seam(any_pipe, pristine, seam, error):
    with pytest.raises(error, match="on purpose"), attach(any_pipe, Scale(2.0), Fail(seam, error), Look()):
        draw(any_pipe)
    assert traces(any_pipe) == pristine[1]
    assert torch.equal(draw(any_pipe), pristine[0])


def test_a_session_used_twice_draws_the_same_twice(sd1):
    bare, run = draw(sd1), attach(sd1, Scale(3.0), Look())
    pictures, kept = [], []
    for _ in range(2):
        with run:
            pictures.append(draw(sd1))
        kept.append(run.results)
        assert len(run.log) == 1 and torch.equal(draw(sd1), bare)
    assert torch.equal(*pictures) and not torch.equal(pictures[0], bare)
    assert kept[0] is not kept[1] and kept[0].keys() == kept[1].keys()


def test_two_pipelines_with_one_scheduler_are_left_in_any_order():
    pipes = tiny("sd1"), tiny("sd1", seed=1)
    pipes[1].scheduler = pipes[0].scheduler
    bare, before = [draw(pipe) for pipe in pipes], [traces(pipe) for pipe in pipes]
    first, second = (attach(pipe, Scale(3.0)) for pipe in pipes)
    first.__enter__()
    second.__enter__()
    other, acted = (draw(pipe) for pipe in pipes)
    assert not torch.equal(other, bare[0]) and len(first.log) == len(second.log) == 1
    first.__exit__()
    assert torch.equal(draw(pipes[0]), bare[0]) and torch.equal(draw(pipes[1]), acted)
    second.__exit__()
    assert torch.equal(draw(pipes[1]), bare[1]) and not torch.equal(acted, bare[1])
    assert [traces(pipe) for pipe in pipes] == before


def test_an_interrupt_inside_an_attention_module(any_pipe, pristine):
    site = Anatomy.of(any_pipe).sites[1]
    inner = next(site.module.children())
    handle = inner.register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt), torch.device("cpu"), attach(any_pipe, Look()):
        draw(any_pipe)
    handle.remove()
    assert traces(any_pipe) == pristine[1]
    assert torch.equal(draw(any_pipe), pristine[0])


def test_a_session_goes_on_after_an_interrupt_that_was_caught(sd1):
    bare, before = draw(sd1), traces(sd1)
    with attach(sd1, Look(), Fail("on_attention", KeyboardInterrupt)):
        with pytest.raises(KeyboardInterrupt):
            draw(sd1)
        assert torch.equal(draw(sd1, steps=1), draw(sd1, steps=1))
    assert traces(sd1) == before and torch.equal(draw(sd1), bare)


def test_the_users_own_attributes_and_hooks_survive(sd1):
    own = functools.wraps(sd1.encode_prompt)(lambda *args, **kw: type(sd1).encode_prompt(sd1, *args, **kw))
    vars(sd1)["encode_prompt"] = own
    handle = sd1.unet.register_forward_hook(lambda *_: None)
    with attach(sd1, Look()):
        draw(sd1, steps=1)
    assert vars(sd1).pop("encode_prompt") is own and len(sd1.unet._forward_hooks) == 1
    handle.remove()


def test_sessions_do_not_nest_and_may_follow_each_other(sd1):
    before = traces(sd1)
    with attach(sd1, Look()):
        with pytest.raises(Conflict, match="one attach"), attach(sd1, Scale()):
            pass
        draw(sd1, steps=1)
    with attach(sd1, Scale()):
        draw(sd1, steps=1)
    assert traces(sd1) == before


def test_a_session_keeps_no_pipeline_alive():
    import weakref

    pipe = tiny("flux")
    with attach(pipe, Look()):
        draw(pipe, steps=1)
    watch = weakref.ref(pipe.transformer)
    del pipe
    gc.collect()
    assert watch() is None


# -- 3 composition ---------------------------------------------------------------------------------------------


def test_two_scales_are_their_product(any_pipe):
    with attach(any_pipe, Scale(6.0)):
        once = draw(any_pipe)
    with attach(any_pipe, Scale(2.0), Scale(3.0)):
        twice = draw(any_pipe)
    assert (once - twice).abs().max() < 1e-4 * once.abs().max()


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3"])
def test_n_interventions_are_one_kernel_call(name):
    pipe, calls = tiny(name), []

    @dataclass(frozen=True)
    class Count(Intervention):
        def on_attention(self, ctx, site):
            plain = site.plain_call
            site.plain_call = lambda: (calls.append(site.name), plain())[1]

    with attach(pipe, Scale(2.0), Scale(3.0, (1,)), Count(), Scale(1.5)) as run:
        draw(pipe, steps=1)
    touched = {name for edits in run.log[0]["edits"].values() for sites in edits.values() for name in sites}
    assert touched and not touched & set(calls)
    assert all(set(sites.values()) == {1} for e in run.log[0]["edits"].values() for sites in e.values())


# -- 4 executors agree: tests/test_core_edits.py; here, through whole pipelines ----------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_executors_agree_through_a_pipeline(name, monkeypatch):
    from unleak.engine import denoising

    pipe, drawn = tiny(name), {}
    Anatomy.of(pipe).denoiser.double()
    for part in (*(e.module for e in Anatomy.of(pipe).encoders), pipe.vae):
        part.double()
    for how, carry_out in (("fused", denoising.execute), ("dense", lambda call, edits, kernel: dense(call, edits))):
        monkeypatch.setattr(denoising, "execute", carry_out)
        with attach(pipe, Regions(), Scale(2.0)):
            drawn[how] = draw(pipe, steps=2)
    assert (drawn["fused"] - drawn["dense"]).abs().max() < 1e-9 * drawn["dense"].abs().max()
    assert (drawn["dense"] - draw(pipe, steps=2)).abs().max() > 1e-3


# -- 5 batch = singles -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_equals_its_singles(name):
    pipe, prompts = tiny(name), ["a red mouse and a dog", "a zebra and a cat"]
    interventions = (Regions(), Scale(2.0), Look())
    with attach(pipe, *interventions):
        kwargs = guided(name)
        negative = [kwargs.pop("negative_prompt")] * 2
        batch = draw(pipe, prompts, seeds=(5, 6), negative_prompt=negative, **kwargs)
        singles = [draw(pipe, p, seeds=(s,), **guided(name)) for p, s in zip(prompts, (5, 6), strict=True)]
    assert (batch - torch.cat(singles)).abs().max() < 1e-4 * batch.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_images_per_prompt_are_repeated_prompts(name):
    pipe = tiny(name)
    with attach(pipe, Regions(), Scale(2.0)):
        repeated = draw(pipe, ["a dog", "a dog"], seeds=(5, 6))
        per_prompt = draw(pipe, "a dog", seeds=(5, 6), num_images_per_prompt=2)
    assert (repeated - per_prompt).abs().max() < 1e-4 * repeated.abs().max()


# -- 6 non-square ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 96), (112, 64), (80, 48)])
def test_maps_and_masks_have_the_shape_of_the_image(any_pipe, size):
    with attach(any_pipe, Look(), Regions()) as run:
        draw(any_pipe, size=size, steps=1)
    grids = {grid for _, grid in run.results["maps"]}
    patch = 8 if "UNet" in type(Anatomy.of(any_pipe).denoiser).__name__ else 16
    height, width = size[0] // patch, size[1] // patch
    largest = max(grids, key=lambda g: g[0] * g[1])
    assert largest in {(height, width), (-(-height // 2), -(-width // 2))}
    for key in run.results["maps"]:
        assert run.results["maps"].mean(key).shape == (1, *key[1], 3)
    assert run.log[0]["edits"]["1.Regions"]


# -- 7 nothing is silent ---------------------------------------------------------------------------------------


def test_a_filter_that_matches_nothing_fails_before_the_run(any_pipe):
    with pytest.raises(NoSite):
        attach(any_pipe, Scale(sites="nowhere.*"))


def test_an_edit_is_confined_to_its_sites(any_pipe):
    name, other = (Anatomy.of(any_pipe).sites[i].name for i in (-1, -2))
    with attach(any_pipe, Scale(sites=name)) as run:
        draw(any_pipe, steps=1)
    assert list(run.log[0]["edits"]["0.Scale"]["KeyScale"]) == [name]
    with attach(any_pipe, Scale(sites=name), Look(sites=other), Scale()) as run:  # others look at more
        draw(any_pipe, steps=1)
    assert list(run.log[0]["edits"]["0.Scale"]["KeyScale"]) == [name]
    assert set(run.log[0]["edits"]["2.Scale"]["KeyScale"]) > {name}


def test_an_edit_is_confined_to_its_window(any_pipe):
    with attach(any_pipe, Scale(window=Window(0.5, 0.5))) as run:
        draw(any_pipe, steps=3)
    assert set(run.log[0]["edits"]["0.Scale"]["KeyScale"].values()) == {1}


@pytest.mark.parametrize(
    "hide",
    [lambda pipe: pipe.unet.set_attn_processor(AttnProcessor()), lambda pipe: pipe.enable_attention_slicing(1)],
    ids=["eager", "sliced"],
)
def test_attention_that_cannot_be_seen_is_an_error(hide):
    pipe = tiny("sd1")
    hide(pipe)
    bare, before = draw(pipe), traces(pipe)
    with attach(pipe):
        assert torch.equal(draw(pipe), bare)
    with attach(pipe, Look()), pytest.raises(Unobservable, match=r"Processor.*disable_attention_slicing"):
        draw(pipe)
    assert traces(pipe) == before and torch.equal(draw(pipe), bare)
    pipe.unet.set_attn_processor(AttnProcessor2_0())
    with attach(pipe, Look()):
        draw(pipe)


def test_nothing_is_asked_of_attention_outside_the_window():
    pipe = tiny("sd1")
    pipe.enable_attention_slicing(1)

    @dataclass(frozen=True)
    class LatentsOnly(Intervention):
        def on_latents(self, ctx, latents):
            return latents

    bare = draw(pipe)
    with attach(pipe, LatentsOnly()):
        assert torch.equal(draw(pipe), bare)
    steps = set()

    @dataclass(frozen=True)
    class Asked(Intervention):
        def on_attention(self, ctx, site):
            steps.add(ctx.step)

    with attach(tiny("sd1"), Asked(window=Window(0.4, 0.6))) as run:
        draw(run.pipe, steps=5)
    assert steps == {2}


@pytest.mark.skipif(sys.version_info >= (3, 15), reason="torch.compile lags behind new Pythons")
def test_compiled_modules_are_observed_or_refused():
    pipe = tiny("flux")
    bare = draw(pipe, steps=1)
    with attach(pipe, Look()) as run:
        pipe.transformer.compile(backend="eager")
        assert (draw(pipe, steps=1) - bare).abs().max() < 1e-4
    assert len(run.results["kinds"]) == 4
    torch._dynamo.reset()
    draw(pipe, steps=1)
    with attach(pipe, Look()) as run, contextlib.suppress(Unobservable):  # or its words say what to do
        draw(pipe, steps=1)
        assert len(run.results["kinds"]) == 4
    torch._dynamo.reset()
    with attach(pipe, Look()) as run:
        draw(pipe, steps=1)
    assert len(run.results["kinds"]) == 4
    torch._dynamo.reset()


def test_a_wrapped_compiled_denoiser_has_the_same_site_names():
    pipe = tiny("flux")
    names = [site.name for site in Anatomy.of(pipe).sites]
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    assert [site.name for site in Anatomy.of(pipe).sites] == names
    with attach(pipe, Look()) as run:
        draw(pipe, steps=1)
    assert list(run.results["kinds"]) == names
    torch._dynamo.reset()


def test_nan_latents_are_an_error(sd1):
    @dataclass(frozen=True)
    class Spoil(Intervention):
        def on_latents(self, ctx, latents):
            return latents * float("nan")

    with attach(sd1, Spoil()), pytest.raises(NotFinite, match=r"0\.Spoil"):
        draw(sd1)


def test_nan_latents_of_the_model_are_an_error_where_someone_looks():
    @dataclass(frozen=True)
    class See(Intervention):
        def on_latents(self, ctx, latents):
            return None

    pipe = tiny("sd1")
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(float("inf"))
    draw(pipe, steps=1)
    with attach(pipe, See()), pytest.raises(NotFinite, match="after step 0"):
        draw(pipe, steps=1)


def test_changed_latents_go_on(sd1):
    @dataclass(frozen=True)
    class Set(Intervention):
        value: float = 0.0

        def on_latents(self, ctx, latents):
            return torch.full_like(latents, self.value)

    with attach(sd1, Set(1.0), Set(2.0)):
        assert torch.equal(draw(sd1), torch.full((1, 4, 8, 8), 2.0))


# -- what the methods need -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OtherRows(Intervention):
    """All image cells read another prompt's text, at every cross site."""

    prompt: str = "a dog"
    keep_keys: bool = False

    def on_text(self, ctx, call):
        ctx.state["text"] = call.rerun(self.prompt)[0][0]

    def on_attention(self, ctx, site):
        if site.kind == "cross":
            everywhere = ctx.state.setdefault("mask", torch.ones(ctx.grid.size, dtype=torch.bool))
            return Partition([Region(everywhere, text=ctx.state["text"], keep_keys=self.keep_keys)])


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_a_full_region_with_another_text_is_that_prompt(name):
    pipe = tiny(name)
    expected = draw(pipe, "a dog")
    with attach(pipe, OtherRows("a dog")):
        found = draw(pipe, "a zebra and a lion")
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    with attach(pipe, OtherRows("a dog", keep_keys=True)):
        assert (draw(pipe, "a zebra and a lion") - expected).abs().max() > 1e-2


@dataclass(frozen=True)
class Mutual(Intervention):
    """Self-attention of the second image reads the first's keys and values, in both guidance branches."""

    def on_attention(self, ctx, site):
        if site.kind == "self":
            return [KeyValueSwap((site.rows.of(name)[1],), (site.rows.of(name)[0],)) for name in ("cond", "uncond")]


def test_self_attention_may_read_another_image(sd1):
    prompts = ["a cat", "a dog"]
    bare = draw(sd1, prompts, seeds=(0, 1))
    with attach(sd1, Mutual()):
        found = draw(sd1, prompts, seeds=(0, 1))
    assert (found[0] - bare[0]).abs().max() < 1e-5 * bare.abs().max()
    assert (found[1] - bare[1]).abs().max() > 1e-2


def test_the_whole_map_on_request(sd1):
    @dataclass(frozen=True)
    class Full(Intervention):
        def on_attention(self, ctx, site):
            ctx.results[site.name] = full_map(site)

    with attach(sd1, Full(sites="mid_block*")) as run:
        draw(sd1, steps=1)
    assert all((value.sum(-1) - 1).abs().max() < 1e-5 for value in run.results.values())


def test_single_stream_sites_alone_learn_the_text_order_from_a_double_one(flux):
    with attach(flux, Look(sites="single_transformer_blocks*")) as run:
        draw(flux, steps=1)
    assert set(run.results["kinds"].values()) == {"joint"} and len(run.results["kinds"]) == 2


def test_single_stream_sites_tell_by_themselves_where_the_text_is():
    @dataclass(frozen=True)
    class Places(Intervention):
        def on_attention(self, ctx, site):
            ctx.results.setdefault("layouts", []).append(site.layout)

    pipe = tiny("flux")
    with attach(pipe, Places()) as run:
        draw(pipe, steps=1)
    with_double = run.results["layouts"]
    pipe.transformer = FluxTransformer2DModel.from_config({**pipe.transformer.config, "num_layers": 0})
    with attach(pipe, Places()) as run:
        draw(pipe, steps=1)
    assert all(layout == with_double[0] for layout in with_double + run.results["layouts"])


# -- kernels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["native", "_native_math", "flex"])
def test_every_kernel_of_the_dispatcher_is_seen_and_plain_calls_stay_in_it(backend):
    pipe, before = tiny("flux"), dict(kernels())
    third = torch.zeros(8, 8, dtype=torch.bool)
    third[:3] = True
    methods = Scale(3.0), Scale(0.2, queries=third)
    with attach(pipe, *methods):
        edited = draw(pipe, steps=2)
    with attention_backend(backend):
        bare = draw(pipe, steps=2)
        with attach(pipe, Maps("mouse,laptop"), Boost("mouse", gain=1.0, region="all")) as run:
            assert torch.equal(draw(pipe, steps=2), bare)
        assert run.results["maps"][0].map("mouse").any()
        with attach(pipe, *methods) as run:
            assert (draw(pipe, steps=2) - edited).abs().max() < 1e-4
        assert len(run.log[0]["edits"]["0.Scale"]["KeyScale"]) == 4
        assert torch.equal(draw(pipe, steps=2), bare)
    assert kernels() == before and not _get_current_function_mode_stack()


# -- ways of calling a pipeline --------------------------------------------------------------------------------


def test_inference_mode(any_pipe):
    bare = draw(any_pipe)
    with torch.inference_mode(), attach(any_pipe, Look(), Regions(), Scale(1.0)) as run:
        draw(any_pipe)
    assert run.log[0]["edits"]["1.Regions"]
    with torch.inference_mode(), attach(any_pipe, Look()):
        assert torch.equal(draw(any_pipe), bare)


def test_embeddings_encoded_by_hand_are_recognised(any_pipe):
    @dataclass(frozen=True)
    class Labels(Intervention):
        def on_prediction(self, ctx, preds):
            ctx.results.setdefault("labels", set()).update(preds)

    pipe = any_pipe
    length = {"max_sequence_length": 32} if hasattr(pipe, "transformer") else {}
    device = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    if "Flux" in type(pipe).__name__:
        rows, pooled, _ = pipe.encode_prompt("a dog", device="cpu", **length)
        given = {"prompt_embeds": rows, "pooled_prompt_embeds": pooled}
    elif "3" in type(pipe).__name__ or "XL" in type(pipe).__name__:
        more = {"prompt_3": None} if length else {}
        found = pipe.encode_prompt("a dog", prompt_2=None, **more, **device, **length)
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        given = dict(zip(names, found, strict=True))
    else:
        found = pipe.encode_prompt("a dog", **device)
        given = dict(zip(("prompt_embeds", "negative_prompt_embeds"), found, strict=True))
    with attach(pipe, Labels(), Scale(2.0)) as run:
        draw(pipe, None, steps=1, **given)
    assert run.results["labels"] == ({"cond"} if "Flux" in type(pipe).__name__ else {"cond", "uncond"})
    assert run.log[0]["edits"]["1.Scale"] and run.log[0]["prompts"] == []


def test_rows_that_are_no_prompt_are_not_guessed(sd1):
    def swap(pipe, i, t, kwargs):
        return {"prompt_embeds": torch.randn_like(kwargs["prompt_embeds"])}

    own = {"callback_on_step_end": swap, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}

    @dataclass(frozen=True)
    class See(Intervention):
        def on_prediction(self, ctx, preds):
            return None

    for intervention in (See(), Scale()):
        with attach(sd1, intervention), pytest.raises(UnsupportedModel, match="equal no encoded prompt"):
            draw(sd1, steps=2, **own)


class WithImagePrompt(AttnProcessor2_0):
    """Adds, as image prompts do, a second attention call over four keys of its own."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, *args, **kwargs):
        out = super().__call__(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
        if encoder_hidden_states is None:
            return out
        q = attn.to_q(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        k, v = (
            f(encoder_hidden_states[:, :4]).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for f in (attn.to_k, attn.to_v)
        )
        return out + nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def test_the_attention_of_an_image_prompt_is_left_alone():
    pipe = tiny("sd1")
    pipe.unet.set_attn_processor(WithImagePrompt())
    bare = draw(pipe)
    with attach(pipe, Look()) as run:
        assert torch.equal(draw(pipe), bare)
    assert list(run.results["kinds"].values()).count("cross") == 16
    with attach(pipe, Scale()) as run:
        assert not torch.equal(draw(pipe), bare)
    assert set(run.log[0]["edits"]["0.Scale"]["KeyScale"].values()) == {3}


def test_keys_of_an_unknown_kind_are_refused():
    class Odd(AttnProcessor2_0):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, *args, **kwargs):
            text = None if encoder_hidden_states is None else encoder_hidden_states[:, ::2]
            return super().__call__(attn, hidden_states, text, *args, **kwargs)

    pipe = tiny("sd1")
    pipe.unet.set_attn_processor(Odd())
    with attach(pipe, Look()), pytest.raises(Unobservable, match="neither cross"):
        draw(pipe)


def test_half_precision_keeps_its_dtype(any_pipe):
    name = {"StableDiffusionXLPipeline": "sdxl", "FluxPipeline": "flux"}.get(type(any_pipe).__name__, "sd3")
    pipe = tiny(name).to(torch.bfloat16)
    bare = draw(pipe, steps=2)
    with attach(pipe, Look(), Scale(1.0)):
        assert torch.equal(draw(pipe, steps=2), bare)
    with attach(pipe, Regions(), Scale(2.0)):
        assert draw(pipe, steps=2).dtype == bare.dtype


def test_an_image_to_image_pipeline_made_of_the_same_parts(sd1):
    import diffusers

    pipe = diffusers.StableDiffusionImg2ImgPipeline(**sd1.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    with attach(pipe, Look()) as run:
        pipe("a cat", image=torch.rand(1, 3, 64, 96), strength=0.5, num_inference_steps=4, output_type="latent")
    assert (8, 12) in {grid for _, grid in run.results["maps"]}
