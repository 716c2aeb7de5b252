"""Pipelines that do something otherwise than most: each is handled by what it does, or refused with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.utils import BaseOutput

import unleak
from conformance import family
from unleak.copies.detect.detectors import Collapse
from unleak.core.context import Context
from unleak.core.intervention import Intervention
from unleak.core.predictions import clean_latents
from unleak.core.rows import Branch
from unleak.drawing.generate import generate, global_noise, images_of, pixels
from unleak.drawing.photo import step_of, to_latents
from unleak.engine.batch import take
from unleak.errors import UnsupportedModel
from unleak.regions.methods.blend import latent_grid
from unleak.regions.methods.schedule import follows_flow
from unleak.report.verbs import VERBS, Trial
from unleak.text.prompts import _parts_of


class Video(BaseOutput):
    frames: Any = None


def test_a_pipeline_of_videos_is_refused_where_images_are_looked_at() -> None:
    with pytest.raises(UnsupportedModel, match="returns frames, not images"):
        images_of(SimpleNamespace(), Video(frames=np.zeros((1, 2, 8, 8, 3))))


def test_a_prompt_that_is_encoded_inside_the_call_is_refused() -> None:
    pipe = family("amused").pipe()
    hidden = dict(vars(pipe))
    session = unleak.attach(pipe, unleak.Maps("mouse"))
    with pytest.raises(UnsupportedModel, match="encodes its prompt inside its own call"), session:
        pass
    assert vars(pipe) == hidden


def test_a_reference_image_that_is_encoded_with_global_noise_is_the_same_in_every_drawing() -> None:
    control = family("cogview4-control")
    pipe, call = control.pipe(), control.settings()
    first, again = (generate(pipe, "a cat", [0], **call) for _ in range(2))
    assert np.array_equal(first, again)


def test_global_noise_is_put_back() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with global_noise():
        one = torch.rand(2)
    with global_noise():
        assert torch.equal(one, torch.rand(2))
    torch.manual_seed(3)
    with global_noise(7):
        torch.rand(5)
    assert torch.equal(torch.rand(2), expected)


def test_channels_of_a_condition_are_no_latents() -> None:
    scheduler = diffusers.DDIMScheduler()
    x, output = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    wide = torch.cat([x, torch.randn(2, 5, 8, 8)], 1)
    assert torch.equal(*(clean_latents(scheduler, latents, output, 500) for latents in (x, wide)))
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    packed, velocity = torch.randn(2, 6, 16), torch.randn(2, 6, 16)
    wide = torch.cat([packed, torch.randn(2, 6, 16)], 2)
    t = float(flow.timesteps[3])
    assert torch.equal(*(clean_latents(flow, latents, velocity, t) for latents in (packed, wide)))


@pytest.mark.parametrize("scale", [8, 16])
def test_the_grid_of_packed_latents_is_that_of_the_autoencoder_whatever_the_pipeline_calls_its_scale(
    scale: int,
) -> None:
    vae = SimpleNamespace(config=SimpleNamespace(latent_channels=4))
    ctx: Any = SimpleNamespace(pixels=(64, 96), pipe=SimpleNamespace(vae=vae, vae_scale_factor=scale))
    assert latent_grid(ctx, torch.zeros(1, 4 * 6, 16)) == (8, 12)
    with pytest.raises(UnsupportedModel, match="no picture of 64x96"):
        latent_grid(ctx, torch.zeros(1, 25, 16))


def test_a_pipeline_without_a_scale_of_its_latents_takes_no_photo() -> None:
    with pytest.raises(UnsupportedModel, match="vae_scale_factor"):
        step_of(SimpleNamespace())


def test_a_video_of_one_frame_is_a_picture() -> None:
    frames = np.linspace(0, 1, 2 * 8 * 8 * 3).reshape(2, 1, 8, 8, 3)
    assert images_of(SimpleNamespace(), Video(frames=frames)).shape == (2, 8, 8, 3)
    assert np.array_equal(images_of(SimpleNamespace(), Video(frames=frames)), pixels(frames[:, 0]))


@dataclass(frozen=True)
class Seen(Intervention):
    """Shapes of predictions and latents; the prediction that the pipeline goes on with is doubled."""

    def on_prediction(self, ctx: Context, preds: Any) -> Any:
        ctx.results["shapes"] = {tuple(x.shape[1:]) for x in (*preds.values(), ctx.latents())}
        return 2 * preds["cond"]


@pytest.mark.parametrize("name", ["flux.1-kontext", "flux.1-control"])
def test_predictions_and_latents_are_the_pictures_without_its_conditions(name: str) -> None:
    """Tokens of a reference image and channels of a condition stand behind the picture's own."""
    kind = family(name)
    pipe = kind.pipe()
    bare = kind.draw(pipe)
    with unleak.attach(pipe, Seen()) as run:
        assert not np.array_equal(kind.draw(pipe), bare)
    assert run.results["shapes"] == {(4 * 6, 16)}


@pytest.mark.parametrize("name", ["flux.1-kontext", "flux.1-control"])
def test_a_branch_with_latents_of_its_own_keeps_the_conditions(name: str) -> None:
    """Equal latents give equal predictions, since reference image and condition are those of the rows it copies."""

    @dataclass(frozen=True)
    class Same(Intervention):
        def on_prediction(self, ctx: Context, preds: Any) -> None:
            again = ctx.predict([Branch("again", latents=ctx.latents())])["again"]
            ctx.results.setdefault("apart", []).append(float((again - preds["cond"]).abs().max()))

    kind = family(name)
    pipe = kind.pipe()
    with unleak.attach(pipe, Same()) as run:
        kind.draw(pipe)
    assert max(run.results["apart"]) < 1e-4


@pytest.mark.parametrize("name, call", [("hunyuan-dit", {}), ("animatediff", {"num_frames": 1})])
def test_a_photo_whose_latents_are_not_of_the_size_that_is_drawn_is_not_edited(name: str, call: dict) -> None:
    """A pipeline that chooses among sizes of its own, and one of videos."""
    edits = [unleak.Edit("dog", "cup", np.eye(64, dtype=bool))]
    with pytest.raises(UnsupportedModel, match="draws latents"):
        photo = np.zeros((64, 64, 3), np.uint8)
        unleak.edit(family(name).pipe(), photo, edits, steps=2, size=(64, 64), call=call)


def test_a_solver_of_flow_that_shifts_by_a_constant_is_asked_without_a_dynamic_shift() -> None:
    """DPM-Solver takes a dynamic shift by its name, and refuses it unless it was configured for one."""
    solver = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    assert follows_flow(solver, 4)


def test_a_prediction_with_tokens_that_the_latents_lack_is_not_guessed_at() -> None:
    """Qwen-Image 2.1 predicts the text's tokens as well, and before the picture's."""
    kind = family("qwen-image-2.1")
    pipe = kind.pipe()
    with pytest.raises(UnsupportedModel, match="no combination"), unleak.attach(pipe, Collapse()):
        kind.draw(pipe)


def test_layers_of_an_encoder_in_one_tensor_are_batched_along_their_second_dimension() -> None:
    """[layers, batch, L, D], as a denoiser that reads every layer of a language model is given them."""
    layers = torch.arange(4 * 2 * 3 * 5.0).reshape(4, 2, 3, 5)
    taken = take({"x": torch.zeros(2, 4, 8, 8), "layers": layers}, 2, [0, 1, 1])
    assert torch.equal(taken["layers"], layers[:, [0, 1, 1]])


@pytest.mark.parametrize("verb", ["lint", "late-entropy"])
def test_an_encoder_whose_text_ends_without_a_mark_is_read_to_its_end(verb: str) -> None:
    """Lumina 2 ends a text without EOS, and gives its denoiser fewer pads than its encoder."""
    kind = family("lumina2")
    (outcome,) = (one for one in VERBS if one.name == verb)
    outcome.show(Trial(kind.pipe(), kind.settings()))


def test_texts_of_other_lengths_are_no_regional_prompts_where_nothing_pads_them() -> None:
    kind = family("kandinsky3")
    where = [unleak.RegionPrompt("red mouse", (0, 0, 0.5, 1)), unleak.RegionPrompt("laptop", (0.5, 0, 1, 1))]
    with pytest.raises(UnsupportedModel, match="other numbers of rows"):
        unleak.regions(kind.pipe(), "a red mouse and a laptop", where, seeds=1, call=kind.settings())


def test_a_flag_for_each_text_row_is_a_mask_whatever_its_type() -> None:
    rows, mask = torch.randn(2, 5, 8), torch.tensor([[True] * 3 + [False] * 2] * 2)
    assert [part.dtype for part in _parts_of((rows, mask), 2)[1]] == [torch.bool]


def test_an_autoencoder_without_noise_encodes_a_photo() -> None:
    kind = family("sana")
    photo = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    pipe = kind.pipe()
    z = to_latents(pipe, photo)
    assert z.shape[1] == pipe.vae.config.latent_channels and torch.isfinite(z).all()


def test_a_picture_whose_queries_move_little_is_told_from_the_text() -> None:
    """On Lumina2 other latents move the queries of the first blocks by less than a tenth of their spread."""
    one = family("lumina2")
    pipe, call = one.pipe(), {**one.settings(), "output_type": "latent"}
    with unleak.attach(pipe, unleak.Maps("mouse,laptop")) as run:
        pipe("a red mouse and a laptop", generator=torch.Generator().manual_seed(0), **call)
    (seen,) = run.results["maps"]
    first, second = seen.map("mouse"), seen.map("laptop")
    assert first.any() and second.any() and not torch.allclose(first, second)


def test_pads_that_read_the_picture_and_the_text_are_neither() -> None:
    """Z-Image pads cells and text to multiples of 32, and mixes each with its pads before it joins them."""
    kind = family("z-image")
    seen: dict[str, tuple[Any, ...]] = {}

    @dataclass(frozen=True)
    class Look(Intervention):
        uses_text = True

        def on_attention(self, ctx: Context, site: Any) -> None:
            if site.kind == "joint":
                seen.setdefault("lengths", (site.q.shape[2], site.grid, site.text_length, len(ctx.encoded.cond[0])))

    with unleak.attach(pipe := kind.pipe(), Look()):
        kind.draw(pipe)
    length, grid, text, rows = seen["lengths"]
    assert grid == (4, 6) and text == rows and length == 32 + 32 * -(-text // 32) > 24 + text


@pytest.mark.parametrize("name", ["z-image", "qwen-image", "sana"])
def test_regions_and_maps_know_the_rows_inside_a_template_and_the_cells_beside_pads(name: str) -> None:
    trial = Trial((kind := family(name)).pipe(), kind.settings())
    for verb in VERBS:
        if verb.name in ("Maps", "regions"):
            verb.show(trial)


def test_layers_of_text_are_told_from_the_batch_where_both_are_as_many() -> None:
    """HiDream's layers of Llama, [layers, batch, L, D], beside the rows of T5."""
    layers = torch.arange(3 * 3 * 4 * 5.0).reshape(3, 3, 4, 5)
    inputs = {"hidden_states": torch.zeros(3, 3, 4, 4), "t5": torch.zeros(3, 4, 5), "layers": layers}
    taken = take(inputs, 3, [2])
    assert torch.equal(taken["layers"], layers[:, [2]]) and taken["hidden_states"].shape == (1, 3, 4, 4)


def test_another_text_is_refused_where_the_denoiser_is_given_the_prompt_twice() -> None:
    """HiDream reads rows of T5 and layers of Llama apart: another text would replace one of the two."""
    kind = family("hidream")
    pipe = kind.pipe()
    refused = pytest.raises(UnsupportedModel, match=r"given the prompt twice, as \w+_t5 and as \w+_llama3")
    with refused, unleak.attach(pipe, unleak.Detour()):
        kind.draw(pipe)


@pytest.mark.parametrize(("name", "verb"), [("wan", "lint"), ("hunyuan-dit", "edit")])
def test_masks_given_by_position_and_arguments_of_the_user_reach_every_call(name: str, verb: str) -> None:
    """Wan gives its encoder the mask without a name; HunyuanDiT draws other sizes unless it is told in every call."""
    kind = family(name)
    (outcome,) = (one for one in VERBS if one.name == verb)
    outcome.show(Trial(kind.pipe(), kind.settings()))


def test_positions_along_each_axis_are_no_batch_where_one_axis_is_as_long() -> None:
    """Kandinsky 5 gives its denoiser three tables; that of one frame has one number."""
    axes = [torch.arange(n) for n in (1, 4, 6)]
    taken = take({"hidden_states": torch.zeros(1, 4, 8, 8), "rope": axes, "more": [torch.ones(1, 2)] * 2}, 1, [0, 0])
    assert [len(one) for one in taken["rope"]] == [1, 4, 6] and [len(one) for one in taken["more"]] == [2, 2]


@pytest.mark.parametrize("name", ["sd1", "pixart-sigma", "sana", "wan"])
def test_a_cross_site_makes_of_other_texts_what_it_makes_of_the_prompt(name: str) -> None:
    """PixArt, Sana and Wan project the text before their sites read it."""
    kind = family(name)
    apart: dict[str, float] = {}

    @dataclass(frozen=True)
    class Encode(Intervention):
        uses_text = True

        def on_attention(self, ctx: Context, site: Any) -> None:
            if site.kind == "cross" and ctx.step == 0 and ctx.rows.of("cond"):
                k, v = site.encode(torch.cat([ctx.encoded.cond, ctx.encoded.cond.flip(1)]))
                row = site.k[list(ctx.rows.of("cond"))]
                apart[site.name] = float((k[:1] - row).abs().max() / row.abs().max())
                assert k.shape == v.shape == (2, *row.shape[1:])

    bare = kind.draw(pipe := kind.pipe())
    with unleak.attach(pipe, Encode()):
        assert np.array_equal(kind.draw(pipe), bare)
    assert apart and max(apart.values()) < 1e-5
