"""Pipelines and sessions: copies, shared parts, encoders, words of several vectors, groups of rows, caches."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import pickle
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers.models.attention_processor import AttnProcessor

from conformance import family
from tiny import autoencoder, draw, sharp, t5_encoder, t5_tokenizer, tiny
from unleak.copies.detect.detectors import Collapse
from unleak.copies.methods.detour import Detour
from unleak.copies.methods.guard import Guard
from unleak.core.edits import KeyScale
from unleak.core.hook import hook
from unleak.core.intervention import Intervention
from unleak.core.predictions import clean_latents
from unleak.engine.session import attach
from unleak.errors import Conflict, ItemNotFound, NoSite, PromptTruncated, Unobservable, UnsupportedModel
from unleak.regions.methods.infedit import UnifiedAttention
from unleak.regions.methods.masactrl import MasaCtrl
from unleak.regions.methods.p2p import P2P
from unleak.regions.methods.pnp import PlugAndPlay
from unleak.regions.methods.selfattn import SelfInjection
from unleak.text.spans import item_span, tokenize
from unleak.words.methods.boost import Boost
from unleak.words.methods.maps import Maps
from unleak.words.methods.patch import Patch

PROMPT = "a red mouse and a laptop"
LONG = PROMPT + " and a cat" * 25
"""It has more tokens than CLIP reads, and fewer than T5."""


def methods() -> dict[str, Intervention]:
    return {
        "Patch": Patch("mouse", others=("laptop",)),
        "Maps": Maps("mouse,laptop"),
        "Boost": Boost("mouse", 2.0, region="all"),
        "Guard": Guard(scale=3.0),
        "Detour": Detour(scale=3.0),
    }


def everything(name: str) -> tuple[Any, dict[str, Any]]:
    """A tiny pipeline and how it is called with guidance."""
    return tiny(name), {"negative_prompt": "a cat", "true_cfg_scale": 3.0} if name == "flux" else {}


@dataclass(frozen=True)
class Rows(Intervention):
    """Notes the labels of every denoiser call, and predictions by label."""

    def on_attention(self, ctx: Any, site: Any) -> None:
        ctx.results.setdefault("labels", []).append(site.rows.labels)

    def on_prediction(self, ctx: Any, preds: Any) -> None:
        ctx.results.setdefault("predictions", []).append({name: value.shape for name, value in preds.items()})


# -- copies inside a session -------------------------------------------------------------------------------------


def pickled(part: Any) -> Any:
    return pickle.loads(pickle.dumps(part))


@pytest.mark.parametrize("name", ["sd1", "flux"])
@pytest.mark.parametrize("again", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
def test_a_copy_made_inside_a_session_is_bare(name: str, again: Any) -> None:
    pipe = tiny(name)
    expected = draw(again(pipe))  # tokenizers of these tiny models are not copied as they are
    with attach(pipe, Patch("mouse", others=("laptop",)), Boost("mouse", 2.0, region="all"), Rows()) as run:
        draw(pipe)
        before = len(run.log), len(run.results["labels"])
        other = again(pipe)
        assert torch.equal(draw(other), expected)
        assert (len(run.log), len(run.results["labels"])) == before
    assert torch.equal(draw(other), expected)


def test_parts_are_copied_and_saved_inside_a_session(tmp_path: Any) -> None:
    pipe = tiny("sd1")
    bare = draw(pipe)
    with attach(pipe, Boost("mouse", 2.0, region="all")) as run:
        acted = draw(pipe)
        unet, scheduler = copy.deepcopy(pipe.unet), copy.deepcopy(pipe.scheduler)
        torch.save(pipe.unet, io.BytesIO())
        pipe.save_pretrained(tmp_path)
        pipe.to("cpu")
        assert torch.equal(draw(pipe), acted) and len(run.log) == 2
    assert torch.equal(draw(pipe), bare)
    pipe.unet, pipe.scheduler = unet, scheduler
    assert torch.equal(draw(pipe), bare)


def test_a_shallow_copy_shares_the_session_and_is_bare_after_it() -> None:
    pipe = tiny("sd1")
    bare = draw(pipe)
    with attach(pipe, Boost("mouse", 3.0, region="all")):
        acted, other = draw(pipe), copy.copy(pipe)
        assert torch.equal(draw(other), acted) and not torch.equal(acted, bare)
    assert torch.equal(draw(other), bare)


# -- shared parts ------------------------------------------------------------------------------------------------


def test_sessions_with_a_shared_scheduler_and_encoder_are_left_in_any_order() -> None:
    one, two = tiny("sd1"), tiny("sd1", seed=1)
    two.scheduler, two.text_encoder = one.scheduler, one.text_encoder
    bare = draw(one), draw(two)
    first, second = (
        attach(p, Boost("mouse", 3.0, region="all"), Patch("mouse", others=("laptop",))) for p in (one, two)
    )
    first.__enter__()
    second.__enter__()
    acted = draw(one), draw(two)
    first.__exit__()
    assert torch.equal(draw(one), bare[0]) and torch.equal(draw(two), acted[1])
    second.__exit__()
    assert torch.equal(draw(two), bare[1]) and not torch.equal(acted[0], bare[0]) and not torch.equal(acted[1], bare[1])


@pytest.mark.parametrize("drawn_before", [False, True])
@pytest.mark.parametrize("kind", ["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"])
def test_another_pipeline_of_the_same_parts_is_not_left_unrepaired_in_silence(kind: str, drawn_before: bool) -> None:
    pipe = tiny("sd1")
    kwargs: dict[str, Any] = {"num_inference_steps": 4, "output_type": "latent"}
    kwargs |= {"image": torch.zeros(1, 3, 64, 64)} if "Img2Img" in kind else {"height": 64, "width": 64}
    with attach(pipe, Patch("mouse", others=("laptop",))):
        if drawn_before:
            draw(pipe)
        other = getattr(diffusers, kind).from_pipe(pipe)
        other.set_progress_bar_config(disable=True)
        with pytest.raises(Conflict, match="another pipeline with the same unet"):
            other(PROMPT, **kwargs)
    with attach(other, Patch("mouse", others=("laptop",))) as run:
        other(PROMPT, **kwargs)
    assert run.log[-1]["text"]


def test_a_copy_with_another_scheduler_is_not_left_to_the_first_step() -> None:
    pipe = tiny("sd1")
    with attach(pipe, Boost("mouse", 3.0)):
        other = copy.copy(pipe)
        other.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        with pytest.raises(UnsupportedModel, match="made no step"):
            draw(other)


def test_one_denoiser_in_two_sessions_is_a_conflict() -> None:
    pipe = tiny("sd1")
    other = diffusers.StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    with attach(pipe, Rows()), pytest.raises(Conflict, match="same denoiser"), attach(other, Rows()):
        pass


def test_a_session_entered_twice_acts_twice() -> None:
    pipe = tiny("sd1")
    session, drawn = attach(pipe, Boost("mouse", 3.0, region="all")), []
    for _ in range(2):
        with session as run:
            drawn.append(draw(pipe))
        assert len(run.log) == 1
    assert torch.equal(*drawn) and not torch.equal(drawn[0], draw(pipe))


# -- encoders whose rows nobody reads ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["Patch", "Maps", "Boost", "Guard"])
@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_an_encoder_that_loses_the_end_of_a_prompt_does_not_veto_one_that_holds_it(name: str, method: str) -> None:
    pipe, call = everything(name)
    call["max_sequence_length"] = 256
    bare = draw(pipe, LONG, steps=2, **call)
    with attach(pipe, methods()[method]) as run, pytest.warns(UserWarning, match="loses a part"):
        acted = draw(pipe, LONG, steps=2, **call)
    assert torch.equal(acted, bare) == (method == "Maps")
    assert run.log[-1]["denoiser_calls"] > 0


@pytest.mark.filterwarnings("ignore:.*loses a part")
def test_an_item_that_no_encoder_holds_is_an_error() -> None:
    pipe, text = tiny("flux"), LONG + " and a zebra"
    with attach(pipe, Maps("zebra")) as run:
        draw(pipe, text, steps=1, max_sequence_length=256)
        assert run.results["maps"][0].map("zebra").sum() > 0
        with pytest.raises(
            PromptTruncated, match=r"text_encoder_2 reads 64 tokens.*raise max_sequence_length above 64"
        ):
            draw(pipe, text, steps=1, max_sequence_length=64)
        with pytest.raises(ItemNotFound):
            draw(pipe, LONG, steps=1, max_sequence_length=256)


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_an_encoder_with_a_fixed_length_is_not_to_be_made_longer(name: str) -> None:
    pipe = tiny(name)
    with attach(pipe, Maps("mouse")), pytest.raises(PromptTruncated) as error:
        draw(pipe, LONG)
    assert "max_sequence_length" not in str(error.value) and "reads 77 tokens" in str(error.value)


def test_a_text_that_only_an_unread_encoder_cannot_hold_is_encoded() -> None:
    pipe, call = everything("flux")
    with attach(pipe, Detour(text=LONG, scale=3.0)) as run:
        draw(pipe, max_sequence_length=256, **call)
    assert run.results["detour"]


# -- words of several vectors -----------------------------------------------------------------------------------


def with_toy(name: str, vectors: int = 3) -> Any:
    """A pipeline whose CLIP encoders know the word `<toy>`, by that many vectors."""
    pipe = tiny(name)
    for suffix in ("", "_2"):
        tokenizer, encoder = (getattr(pipe, part + suffix, None) for part in ("tokenizer", "text_encoder"))
        if isinstance(encoder, transformers.CLIPTextModel | transformers.CLIPTextModelWithProjection):
            tokenizer.add_tokens(["<toy>", *(f"<toy>_{i}" for i in range(1, vectors))])
            encoder.resize_token_embeddings(len(tokenizer))
    return pipe


TOY = "a <toy> and a laptop"


def test_a_word_of_several_vectors_is_one_item() -> None:
    tokenizer = with_toy("sd1").tokenizer
    spans = {item: item_span(tokenizer, TOY, item) for item in ("<toy>", "a <toy>", "laptop", "a laptop")}
    assert spans["<toy>"] == (2, 5) and spans["a <toy>"] == (1, 5)
    assert spans["laptop"][0] == spans["a laptop"][0] + 1 == 7
    assert [TOY[slice(*at)] for at in tokenize(tokenizer, TOY).offsets[1:8]] == [
        *("a", "<toy>", "<toy>", "<toy>", "and", "a", "laptop")
    ]
    assert item_span(tokenizer, "a <toy> and a <toy>", "<toy>#2") == (7, 10)


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
@pytest.mark.parametrize(
    "method",
    [Patch("<toy>", others=("laptop",)), Maps("<toy>,laptop"), Boost("<toy>", 2.0, region="all")],
    ids=lambda method: type(method).__name__,
)
def test_methods_act_on_every_vector_of_a_word(name: str, method: Any) -> None:
    pipe, prompt = with_toy(name), "a laptop and a <toy>" if isinstance(method, Patch) else TOY
    with attach(pipe, method, Rows()) as run:
        draw(pipe, prompt, steps=2)
    if isinstance(method, Patch):
        a, b = item_span(pipe.tokenizer, prompt, "<toy>")
        assert b - a == 3 and {*range(a, b)} <= set(run.log[-1]["text"][0]["rows"][0])
    elif isinstance(method, Maps):
        assert run.results["maps"][0].map("<toy>").sum() > 0
    else:
        edited = run.log[-1]["edits"]["0.Boost"]["KeyScale"]
        assert edited and run.contexts[0].state["positions"].at[0][0][0] == (2, 3, 4)


def test_a_prompt_with_a_word_of_several_vectors_is_measured_in_vectors() -> None:
    pipe = with_toy("sd1", vectors=40)
    with attach(pipe, Maps("laptop")), pytest.raises(PromptTruncated, match="reads 77 tokens and the prompt has 88"):
        draw(pipe, "a <toy> and a <toy> and a laptop")


# -- three groups of rows ---------------------------------------------------------------------------------------

PAG = {
    "sd1": ("StableDiffusionPAGPipeline", "mid"),
    "sdxl": ("StableDiffusionXLPAGPipeline", "mid"),
    "sd3": ("StableDiffusion3PAGPipeline", "transformer_blocks.1"),
}


def perturbed(name: str) -> Any:
    """A pipeline with perturbed-attention guidance: a third group of rows, with the prompt once more."""
    kind, layer = PAG[name]
    cls = getattr(diffusers, kind)
    accepted = inspect.signature(cls.__init__).parameters
    parts = {part: value for part, value in tiny(name).components.items() if part in accepted}
    pipe = cls(
        **parts,
        pag_applied_layers=[layer],
        **({"requires_safety_checker": False} if "requires_safety_checker" in accepted else {}),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("name", PAG)
def test_a_third_group_of_rows_is_told_by_its_text(name: str) -> None:
    pipe = perturbed(name)
    bare = draw(pipe, pag_scale=2.0)
    with attach(pipe, Rows(), Maps("mouse,laptop")) as run:
        assert torch.equal(draw(pipe, pag_scale=2.0), bare)
    assert {("uncond", "cond", "cond"), ("uncond", "cond")} & set(run.results["labels"])
    assert all(shape[0] == 1 for preds in run.results["predictions"] for shape in preds.values())


@pytest.mark.parametrize("name", PAG)
@pytest.mark.parametrize("method", ["Patch", "Boost", "Guard", "Detour"])
def test_methods_act_beside_a_third_group_of_rows(name: str, method: str) -> None:
    pipe = perturbed(name)
    call = {"pag_scale": 2.0, "steps": 2, "seeds": (0, 1), "num_images_per_prompt": 2}
    bare = draw(pipe, **call)
    with attach(pipe, methods()[method]):
        assert not torch.equal(draw(pipe, **call), bare)
    assert torch.equal(draw(pipe, **call), bare)


def test_a_combined_prediction_beside_a_third_group_is_the_one_that_is_used() -> None:
    """Detour at a cosine never reached is guidance by hand: perturbed guidance of scale 0 is the same."""
    pipe = perturbed("sd1")
    plain = diffusers.StableDiffusionPipeline(**tiny("sd1").components, requires_safety_checker=False)
    plain.set_progress_bar_config(disable=True)
    expected = draw(plain, guidance_scale=5.0)
    with attach(pipe, Detour(near=1.0, text=PROMPT)):
        torch.testing.assert_close(
            draw(pipe, guidance_scale=5.0, pag_scale=2.0), expected, rtol=0.05, atol=0.05 * float(expected.abs().max())
        )


def halfway(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """Turn guidance off after the first step."""
    if step == 0:
        pipe._guidance_scale = 0.0
        tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
    return tensors


def swapped(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return tensors | {"prompt_embeds": tensors["prompt_embeds"].flip(0)}


def cloned(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return tensors | {"prompt_embeds": tensors["prompt_embeds"].clone()}


def shifted_negative(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    negative, positive = tensors["prompt_embeds"].chunk(2)
    return tensors | {"prompt_embeds": torch.cat([negative + 0.1, positive])}


@pytest.mark.parametrize("method", methods())
@pytest.mark.parametrize("callback", [halfway, swapped, cloned])
def test_a_callback_may_rearrange_the_rows_of_the_prompt(method: str, callback: Any) -> None:
    pipe = tiny("sd1")
    with attach(pipe, methods()[method]) as run:
        draw(pipe, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    assert run.log[-1]["steps"] == 3


@pytest.mark.parametrize("method", ["Patch", "Maps", "Boost"])
def test_rows_with_the_prompts_content_are_the_prompts_whatever_else_changed(method: str) -> None:
    pipe = tiny("sd1")
    with attach(pipe, methods()[method]) as run:
        draw(pipe, callback_on_step_end=shifted_negative, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    assert run.log[-1]["steps"] == 3


def test_a_row_that_a_callback_changed_is_named_as_that() -> None:
    pipe = tiny("sd1")
    with attach(pipe, Detour()), pytest.raises(UnsupportedModel, match=r"1 of the denoiser's 2 text rows.*callback"):
        draw(pipe, callback_on_step_end=shifted_negative, callback_on_step_end_tensor_inputs=["prompt_embeds"])


# -- precision, helpers that are None, sites left out ------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3", "flux"])
@pytest.mark.parametrize("method", methods())
def test_methods_work_under_autocast_and_in_half_precision(name: str, method: str) -> None:
    pipe, call = everything(name)
    with torch.autocast("cpu", torch.bfloat16), attach(pipe, methods()[method]):
        assert torch.isfinite(draw(pipe, steps=2, **call)).all()
    pipe.to(torch.bfloat16)
    with attach(pipe, methods()[method]):
        assert torch.isfinite(draw(pipe, steps=2, **call)).all()


def test_a_projection_that_exists_and_is_none_is_none() -> None:
    pipe = tiny("sd1")
    for module in pipe.unet.modules():
        if hasattr(module, "to_q"):
            module.add_v_proj = module.to_added_qkv = None
    bare = draw(pipe)
    with attach(pipe, Maps("mouse,laptop")) as run:
        assert torch.equal(draw(pipe), bare)
    assert run.results["maps"][0].map("mouse").sum() > 0


@pytest.mark.parametrize("name", ["cogview4", "hunyuan-image-2.1"])
def test_a_pipeline_whose_projections_are_none_is_seen_or_refused_in_words(name: str) -> None:
    one, kinds = family(name), list[str]()
    pipe = one.pipe()
    bare = one.draw(pipe, num_inference_steps=1)
    with (
        contextlib.suppress(UnsupportedModel),
        attach(pipe, hook(on_attention=lambda ctx, site: kinds.append(site.kind))),
    ):
        assert np.array_equal(one.draw(pipe, num_inference_steps=1), bare)
        assert set(kinds) & {"joint", "cross"}
    assert np.array_equal(one.draw(pipe, num_inference_steps=1), bare)


@dataclass(frozen=True)
class Scale(Intervention):
    def on_attention(self, ctx: Any, site: Any) -> KeyScale:
        return KeyScale([1], 2.0)


def test_a_site_that_was_left_out_is_not_tapped() -> None:
    pipe = tiny("sd1")
    for name, module in pipe.unet.named_modules():
        if name.endswith("attn1"):
            module.set_processor(AttnProcessor())  # nothing can be seen there
    with attach(pipe, Scale(sites="*attn2")) as run:
        draw(pipe)
    assert run.log[-1]["edits"]["0.Scale"]["KeyScale"].keys() == {
        name for name, module in pipe.unet.named_modules() if name.endswith("attn2")
    }
    with attach(pipe, Rows()), pytest.raises(Unobservable):
        draw(pipe)


@pytest.mark.parametrize(
    "method",
    [SelfInjection(), MasaCtrl(), P2P(("a cup", "a dog")), UnifiedAttention(("a cup", "a dog")), PlugAndPlay()],
    ids=lambda method: type(method).__name__,
)
def test_who_edits_attention_among_cells_is_refused_where_there_is_none(method: Intervention) -> None:
    """Sana's cells attend linearly. Methods of text leave these sites out; an edit of them must not be lost."""
    sana = family("sana")
    pipe = sana.pipe()
    with attach(pipe, Maps("mouse,laptop")):
        sana.draw(pipe)
    with pytest.raises((Unobservable, NoSite), match=r"attn1|no residual blocks"), attach(pipe, method):
        sana.draw(pipe)


# -- caches -----------------------------------------------------------------------------------------------------

CACHES = {
    "FirstBlock": lambda: diffusers.FirstBlockCacheConfig(threshold=0.9),
    "Mag": lambda: diffusers.MagCacheConfig(num_inference_steps=4, mag_ratios=[1.0] * 4, threshold=1.0),
    "TaylorSeer": lambda: diffusers.TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=1),
    "PyramidAttention": lambda: diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    ),
}


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("method", ["Boost", "Maps"])
def test_a_cache_of_blocks_is_refused_and_its_cure_is_one(cache: str, method: str) -> None:
    pipe = tiny("flux")
    pipe.transformer.enable_cache(CACHES[cache]())
    with attach(pipe, methods()[method]):
        with pytest.raises(Unobservable, match=r"has a cache.*pipe\.transformer\.disable_cache\(\)"):
            draw(pipe)
        pipe.transformer.disable_cache()
        draw(pipe)


def test_a_cache_applied_by_hand_is_refused_with_another_cure() -> None:
    pipe = tiny("flux")
    diffusers.hooks.apply_first_block_cache(pipe.transformer, diffusers.FirstBlockCacheConfig(threshold=0.9))
    with attach(pipe, Rows()), pytest.raises(Unobservable, match="HookRegistry") as error:
        draw(pipe)
    assert "disable_cache" not in str(error.value)


def test_a_method_of_text_alone_works_with_a_cache() -> None:
    pipe = tiny("flux")
    pipe.transformer.enable_cache(CACHES["FirstBlock"]())
    bare = draw(pipe)
    pipe.transformer._reset_stateful_cache()
    with attach(pipe, Patch("mouse", others=("laptop",))):
        assert not torch.equal(draw(pipe), bare)


@pytest.mark.parametrize("name", ["sd1", "flux"])
def test_a_foreign_cache_is_seen_by_the_calls_that_it_leaves_out(name: str) -> None:
    """A block whose output is kept from the first step, as DeepCache and TeaCache do by replacing its forward."""
    pipe = tiny(name)
    block = pipe.unet.mid_block if name == "sd1" else pipe.transformer.transformer_blocks[1]
    forward, kept = block.forward, []

    def cached(*args: Any, **kwargs: Any) -> Any:
        kept.append(kept[0] if kept else forward(*args, **kwargs))
        return kept[-1]

    block.forward = cached
    with attach(pipe, Rows()), pytest.raises(Unobservable, match=r"left out .* chosen module"):
        draw(pipe)
    assert len(kept) == 2


def test_attention_that_is_divided_among_processes_is_refused() -> None:
    pipe = tiny("flux")
    divided = diffusers.ParallelConfig(context_parallel_config=diffusers.ContextParallelConfig(ring_degree=2))
    with attach(pipe, Rows()):
        draw(pipe)
        for processor in pipe.transformer.attn_processors.values():  # as `enable_parallelism` leaves them
            processor._parallel_config = divided
        with pytest.raises(Unobservable, match=r"context parallel.*without `parallel_config`"):
            draw(pipe)


def test_layers_that_are_skipped_in_a_call_of_their_own_are_no_cache() -> None:
    pipe = tiny("sd3")
    call = {"skip_guidance_layers": [1], "skip_layer_guidance_scale": 2.0, "skip_layer_guidance_start": 0.0}
    call |= {"skip_layer_guidance_stop": 1.0, "steps": 3}
    bare = draw(pipe, **call)
    with attach(pipe, Maps("mouse,laptop")) as run:
        assert torch.equal(draw(pipe, **call), bare)
    assert run.log[-1]["denoiser_calls"] > 3
    with attach(pipe, Detour()):
        assert torch.isfinite(draw(pipe, **call)).all()


# -- schedulers and predictions ---------------------------------------------------------------------------------


def pixart() -> Any:
    """It predicts 8 channels, 4 of them a variance, and masks its text."""
    tokenizer = t5_tokenizer()
    torch.manual_seed(0)
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=32,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=32,
        norm_type="ada_norm_single",
        use_additional_conditions=False,
    )
    pipe = diffusers.PixArtAlphaPipeline(
        tokenizer=tokenizer,
        text_encoder=t5_encoder(tokenizer),
        vae=autoencoder(),
        transformer=sharp(transformer),
        scheduler=diffusers.DDIMScheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("method", [*methods(), "Collapse"])
def test_predictions_with_channels_of_a_variance_work(method: str) -> None:
    pipe = pixart()
    call = {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 64}
    chosen = Collapse() if method == "Collapse" else methods()[method]
    with attach(pipe, chosen):
        assert torch.isfinite(draw(pipe, steps=2, seeds=(0, 1), num_images_per_prompt=2, **call)).all()


def test_another_texts_rows_come_with_its_own_mask() -> None:
    pipe, masks = pixart(), []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: masks.append(kwargs["encoder_attention_mask"]), with_kwargs=True
    )
    call = {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 64}
    with attach(pipe, Detour(text="cat", scale=3.0)):
        draw(pipe, steps=2, **call)
    followed = next(mask for mask in masks if len(mask) == 1)
    assert int(followed.sum()) == len(pipe.tokenizer("cat").input_ids)


@pytest.mark.parametrize("scheduler", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "IPNDMScheduler"])
def test_a_scheduler_that_does_not_tell_the_clean_latents_is_unsupported_in_words(scheduler: str) -> None:
    pipe = tiny("sd1")
    pipe.scheduler = getattr(diffusers, scheduler)()
    with attach(pipe, Guard()):
        draw(pipe)
    with attach(pipe, Detour()), pytest.raises(UnsupportedModel):
        draw(pipe)


@pytest.mark.parametrize(
    "scheduler", ["EulerDiscreteScheduler", "LCMScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler"]
)
def test_detour_works_with_every_scheduler_that_has_alphas(scheduler: str) -> None:
    pipe = tiny("sd1")
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    with attach(pipe, Detour()) as run:
        draw(pipe)
    assert run.results["detour"]


@pytest.mark.parametrize("scheduler", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"])
def test_a_flow_is_known_by_its_noise_levels(scheduler: str) -> None:
    flow = getattr(diffusers, scheduler)()
    flow.set_timesteps(4)
    x, u, t = torch.ones(1, 4, 2, 2), torch.full((1, 4, 2, 2), 2.0), float(flow.timesteps[1])
    assert torch.allclose(clean_latents(flow, x, u, t), x - t / 1000 * u)
