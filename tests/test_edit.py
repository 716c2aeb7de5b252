"""`unleak.edit` and its command line: any picture, any mask, any of the supported pipelines; nothing is left behind."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, LCMScheduler, PNDMScheduler, UNet2DConditionModel
from PIL import Image
from typer.testing import CliRunner

import unleak
from tiny import draw, tiny
from unleak.cli import app
from unleak.core.anatomy import Anatomy
from unleak.core.intervention import Intervention
from unleak.core.presets import Preset
from unleak.drawing import photo
from unleak.drawing.doctor import _marks
from unleak.errors import AmbiguousItem, BadInput, EmptyMask, ItemNotFound, PromptTruncated
from unleak.files import pictures
from unleak.judges.glyphs import glyph_judge
from unleak.regions.check import judged
from unleak.regions.edit import edit
from unleak.regions.masks.masks import foreground
from unleak.regions.masks.own_masks import FROM, as_masks
from unleak.regions.method import Method
from unleak.regions.methods.blend import Blend
from unleak.regions.methods.ddcm import DDCM
from unleak.regions.methods.schedule import followed, follows
from unleak.regions.plan import Edit
from unleak.regions.presets import EDITORS
from unleak.report import edit as report
from unleak.world import Placement, Scene
from unleak.world import load as load_world
from unleak.world.render import Renderer

SIZE = (64, 96)


@pytest.fixture(scope="module")
def pipe():
    return tiny("sd1")


def picture(height=64, width=96, mode="RGB"):
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def box(y=(8, 40), x=(8, 40), size=SIZE):
    mask = np.zeros(size, bool)
    mask[slice(*y), slice(*x)] = True
    return mask


CUP, DOG = Edit("blue cup", "red cup", box()), Edit("cat", "dog", box((24, 56), (56, 88)))


def quick(pipe, image=None, edits=(CUP,), **options):
    image = picture() if image is None else image
    return edit(pipe, image, list(edits), **{"steps": 2, "size": SIZE, "dilation": 0.0, **options})


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_an_edit_keeps_the_background_and_leaves_the_pipeline_as_it_was(name):
    pipe = tiny(name)
    draw(pipe, steps=1)  # transformers installs hooks of its own at the first run
    scheduler, before = pipe.scheduler, _marks(Anatomy.of(pipe))
    r = quick(pipe, edits=(CUP, DOG))
    kept = foreground(r.masks, tuple(r.latents.shape[-2:])) == 0
    assert torch.equal(r.latents[..., kept].float(), r.clean[..., kept])
    assert not torch.equal(r.latents, r.clean) and r.image.shape == (*SIZE, 3) and r.image.dtype == np.uint8
    assert r.log[-1]["denoiser_rows"] == 2 * 4 and r.given == (True, True)
    assert pipe.scheduler is scheduler and _marks(Anatomy.of(pipe)) == before
    again = quick(pipe, edits=(CUP, DOG))
    assert np.array_equal(r.image, again.image) and np.array_equal(r.image, unleak.edit(
        pipe, picture(), [CUP, DOG], steps=2, size=SIZE, dilation=0.0).image)  # fmt: skip


def test_a_list_of_images_is_edited_as_each_alone(pipe):
    one, two = picture(), picture().transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    shared = quick(pipe, [one, two], batch=1)
    assert len(shared) == 2 and np.array_equal(shared[0].image, quick(pipe, one).image)
    apart = edit(pipe, [one, two], [[CUP], [DOG]], steps=2, size=SIZE, dilation=0.0, batch=1)
    assert np.array_equal(apart[1].image, quick(pipe, two, [DOG]).image)
    with pytest.raises(BadInput, match="2 images and 1 captions"):
        quick(pipe, [one, two], source_prompt=["a blue cup"])
    with pytest.raises(BadInput, match="batch=0"):
        quick(pipe, [one, two], batch=0)
    with pytest.raises(BadInput, match="2 images and 1"):
        edit(pipe, [one, two], [[CUP]])
    with pytest.raises(BadInput, match="no image"):
        edit(pipe, [], [CUP])


def test_a_new_editor_is_a_method_and_a_line_in_the_table(pipe, monkeypatch):
    @dataclass(frozen=True)
    class OnlyBlend(Method):
        feather: float = 0.0

        def parts(self, source, target, masks, clean, trajectory=None, negative=None):
            return [DDCM(clean, source[0], noise=trajectory, negative=negative), Blend(masks, feather=self.feather)]

    toy = Preset("toy", OnlyBlend, "Blends.", "here", {"steps": 2})
    monkeypatch.setitem(EDITORS._by_name, "toy", toy)
    r = edit(pipe, picture(), [CUP], preset="toy", size=SIZE, **toy.parse(["dilation=0", "feather=0.1"]))
    kept = foreground(r.masks, tuple(r.latents.shape[-2:])) == 0
    assert torch.equal(r.latents[..., kept].float(), r.clean[..., kept]) and not torch.equal(r.latents, r.clean)
    assert r.settings["feather"] == 0.1 and r.preset == "toy"


def test_the_seed_decides_and_no_global_generator_is_touched(pipe):
    state = torch.random.get_rng_state()
    first, second = quick(pipe, seed=0), quick(pipe, seed=1)
    assert not np.array_equal(first.image, second.image)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_interrupt_leaves_nothing_behind(pipe):
    scheduler, before = pipe.scheduler, _marks(Anatomy.of(pipe))

    class Stop(Intervention):
        def on_latents(self, ctx, latents):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick(pipe, interventions=[Stop()])
    assert pipe.scheduler is scheduler and _marks(Anatomy.of(pipe)) == before


def test_repairs_of_the_targets_prompt_compose(pipe):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        repaired = quick(pipe, edits=(CUP, DOG), interventions=[unleak.Patch("red cup", "dog")])
    assert not np.array_equal(repaired.image, quick(pipe, edits=(CUP, DOG)).image)


# -- schedulers and models -------------------------------------------------------------------------------------------


def test_only_a_scheduler_that_an_edit_can_follow_is_kept(pipe):
    config = pipe.scheduler.config
    assert follows(DDIMScheduler.from_config(config), 5) and follows(LCMScheduler.from_config(config), 5)
    own = pipe.scheduler
    for kind in (EulerDiscreteScheduler, PNDMScheduler):
        assert not follows(kind.from_config(config), 5)
        pipe.scheduler = other = kind.from_config(config)
        with followed(pipe, 5):
            assert isinstance(pipe.scheduler, DDIMScheduler)
            assert torch.equal(pipe.scheduler.alphas_cumprod, own.alphas_cumprod)
        assert pipe.scheduler is other
    pipe.scheduler = own


def test_a_unet_with_a_guidance_embedding_is_guided_by_rows():
    pipe = tiny("sd1")
    config = {k: v for k, v in pipe.unet.config.items() if not k.startswith("_")}
    pipe.unet = UNet2DConditionModel.from_config({**config, "time_cond_proj_dim": 8})
    assert quick(pipe).log[-1]["denoiser_rows"] == 2 * 4
    assert pipe.unet.config.time_cond_proj_dim == 8


@pytest.mark.parametrize("rescale", [False, True])
def test_v_prediction_and_a_terminal_alpha_of_zero(rescale):
    pipe = tiny("sd2")
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, prediction_type="v_prediction", rescale_betas_zero_snr=rescale,
        timestep_spacing="trailing", clip_sample=False,
    )  # fmt: skip
    r = quick(pipe)
    assert (float(pipe.scheduler.alphas_cumprod[-1]) == 0) == rescale and torch.isfinite(r.latents).all()
    same = quick(pipe, edits=[Edit("red cup", "red cup", np.ones(SIZE))], target_guidance=1.0)
    assert (same.latents - same.clean).abs().max() < 1e-3


# -- masks, prompts, bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", FROM)
def test_without_a_mask_the_model_itself_gives_one(pipe, who):
    r = quick(pipe, edits=(Edit("blue cup", "red cup"), DOG), masks_from=who)
    assert r.masker == who
    assert r.given == (False, True) and r.masks[0].any() and not r.masks[0].all()
    assert torch.equal(r.masks[1], torch.from_numpy(DOG.mask))


def test_levels_become_disjoint_masks_and_never_nothing():
    seen = torch.zeros(2, 4, 6)
    seen[0, :, :2], seen[1, :, 4:], seen[:, 0, 3] = 1.0, 3.0, 0.4
    masks = as_masks(seen, ["a", "b"], (8, 12), 0.5)
    assert masks[0, :, :4].all() and masks[1, :, 8:].all() and not (masks[0] & masks[1]).any()
    assert masks.sum() == 2 * 32
    with pytest.raises(EmptyMask, match="alike"):
        as_masks(torch.ones(1, 4, 6), ["a"], (8, 12), 0.5)
    with pytest.raises(EmptyMask, match="'b'"):
        as_masks(torch.stack([seen[0], seen[0]]), ["a", "b"], (8, 12), 0.5)


def test_no_edit_at_all_gives_the_picture_back(pipe):
    with pytest.warns(UserWarning, match="no edit"):
        r = quick(pipe, edits=())
    assert np.array_equal(r.image, np.asarray(picture())) and r.log is None


@pytest.mark.parametrize(
    ("edits", "what"),
    [
        ([Edit("blue cup", "red cup", np.ones(SIZE))], "covers the whole image"),
        ([CUP, Edit("cat", "dog", box((8, 40), (24, 60)))], "overlap: 50%"),
        ([CUP, Edit("cat", "dog", box((16, 32), (16, 32)))], "inside one another"),
        ([Edit("cup", "cup", box())], "become itself"),
    ],
)
def test_what_is_remarkable_is_told_and_kept_in_the_result(pipe, edits, what):
    with pytest.warns(UserWarning, match=what):
        r = quick(pipe, edits=edits)
    assert any(what in note for note in r.notes)


@pytest.mark.parametrize(
    ("edits", "options", "error"),
    [
        ([Edit("a", "b", np.zeros(SIZE))], {}, EmptyMask),
        ([Edit("a", "b", np.ones((64, 64)))], {}, BadInput),
        ([Edit("a", "b", box((9, 10), (9, 10)))], {}, EmptyMask),
        ([CUP], {"source_prompt": "a dog"}, ItemNotFound),
        ([CUP], {"source_prompt": "a blue cup and a blue cup"}, AmbiguousItem),
        ([Edit("a", "cup " * 90, box())], {}, PromptTruncated),
        ([CUP], {"source_prompt": "blue cup " + "and dog " * 90}, PromptTruncated),
        ([CUP], {"size": (60, 90)}, BadInput),
        ([CUP], {"steps": 0}, BadInput),
        ([CUP], {"preset": "alp"}, BadInput),
        ([CUP], {"dilatation": 0.1}, BadInput),
        ([CUP], {"dilation": 3.0}, BadInput),
        ([("a", "b")], {}, BadInput),
    ],
)
def test_bad_input_is_a_typed_error(pipe, edits, options, error):
    with pytest.raises(error):
        quick(pipe, edits=edits, **options)


# -- pictures --------------------------------------------------------------------------------------------------------


def test_any_kind_of_picture_is_read_alike(tmp_path):
    grey = picture(mode="L")
    wanted = np.asarray(grey.convert("RGB"))
    deep = np.asarray(grey).astype(np.uint16) * 257
    clear = picture().convert("RGBA")
    clear.putalpha(0)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    for given in (
        grey,
        np.asarray(grey),
        deep,
        np.asarray(grey)[..., None],
        np.asarray(grey) / 255,
        tmp_path / "deep.png",
    ):
        assert np.abs(np.asarray(pictures.photo(given)).astype(int) - wanted).max() <= 1
    assert (np.asarray(pictures.photo(clear)) == 255).all()
    turned = picture(8, 16)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert pictures.photo(tmp_path / "turned.jpg").size == (8, 16)


def test_pictures_that_cannot_be_meant_are_refused(tmp_path, monkeypatch):
    picture().save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:4000])
    (tmp_path / "text.png").write_text("no picture")
    for wrong in (tmp_path / "half.png", tmp_path / "text.png", tmp_path / "none.png", tmp_path, np.zeros((4, 4, 2)),
                  np.full((4, 4), np.nan), np.full((4, 4, 3), 7.0), np.zeros((4, 4), np.int64)):  # fmt: skip
        with pytest.raises(BadInput):
            pictures.photo(wrong)
    monkeypatch.setattr(pictures, "MOST_PIXELS", 1000)
    for huge in (picture(), tmp_path / "whole.png"):
        with pytest.raises(BadInput, match="smaller"):
            pictures.photo(huge)


@pytest.mark.parametrize(
    ("given", "wanted"), [((128, 128), (128, 128)), ((50, 200), (64, 256)), ((333, 501), (104, 160))]
)
def test_the_working_size_has_the_pictures_proportions_at_the_models_area(pipe, given, wanted):
    assert photo.working_size(pipe, picture(*given)) == wanted


def test_a_sliver_is_refused(pipe):
    with pytest.raises(BadInput, match="narrow"):
        photo.working_size(pipe, picture(2, 400))


def test_latents_survive_the_way_through_the_autoencoder(pipe):
    z = photo.to_latents(pipe, picture())
    assert z.shape == (1, 4, 8, 12) and torch.equal(z, photo.to_latents(pipe, picture()))
    drawn = photo.to_latents(pipe, picture(), torch.Generator().manual_seed(0))
    assert not torch.equal(z, drawn)
    assert photo.to_pixels(pipe, z).shape == (1, *SIZE, 3)


def test_an_odd_picture_is_edited_at_the_nearest_size(pipe):
    r = edit(pipe, picture(57, 91), [Edit("cup", "dog", box(size=(57, 91)))], steps=1)
    assert r.image.shape == (104, 160, 3) and r.masks.shape == (1, 104, 160)
    assert r.masks.float().mean() == pytest.approx(box(size=(57, 91)).mean(), abs=0.08)
    again = edit(pipe, picture(57, 91), [Edit("cup", "dog", r.masks[0])], steps=1, dilation=0.0)
    assert np.array_equal(again.image, r.image)


# -- report and command line -----------------------------------------------------------------------------------------


def test_the_report_says_what_was_kept_and_escapes_what_it_is_given(pipe, tmp_path):
    r = quick(pipe, edits=(CUP, Edit("<b>", "<script>", DOG.mask)), source_prompt="a blue cup and <b>")
    names = r.file_names()
    r.save(tmp_path)
    data = r.to_dict()
    assert data["schema"] == "unleak/edit/1" and json.loads(json.dumps(data)) == data
    assert all((tmp_path / name).is_file() for name in (names["before"], names["after"], *names["masks"]))
    assert 0 < data["background_psnr"]["rebuilt"] < 100 and data["size"] == list(SIZE)
    html = report.page(r)
    assert "&lt;script&gt;" in html and "<script>" not in html and "http" not in html
    assert r.leak[r.masks.any(0).numpy()].max() == 0 and r.leak.max() > 0
    assert r.background_psnr(r.image) == float("inf")


def test_the_command_line_refuses_bad_use(tmp_path):
    picture().save(tmp_path / "in.png")
    run = lambda *args: CliRunner().invoke(app, ["edit", str(tmp_path / "in.png"), *args])  # noqa: E731
    assert run().exit_code == 2
    for wrong in (["--edit", "cup"], ["--edit", "a=b", "--prompt", "dog"], ["--edit", "a=b", "--preset", "x"],
                  ["--edit", "a=b", "--set", "rest"], ["--edit", "a=b", "--set", "tau=1"],
                  ["--edit", "a=b", "--height", "64"], ["--edit", "a=b", "--json", "x", "--html", "x"]):  # fmt: skip
        assert run(*wrong, "-o", str(tmp_path)).exit_code == 2, wrong
    missing = CliRunner().invoke(app, ["edit", str(tmp_path / "none.png"), "--edit", "a=b"])
    assert missing.exit_code == 2


# -- the embedded model ----------------------------------------------------------------------------------------------


@pytest.mark.e2e
def test_one_object_becomes_another_and_the_rest_of_the_scene_stays(tmp_path: Path):
    world, judge = load_world(), glyph_judge()
    scene = Scene("green", (Placement(world.nouns["banana"], 0, 2), Placement(world.nouns["hammer"], 4, 2)))
    image = Renderer(world).pictures([scene])[0]
    Image.fromarray(image).save(tmp_path / "scene.png")
    Image.fromarray(box((16, 48), (0, 32), (64, 64))).save(tmp_path / "banana.png")
    out = CliRunner().invoke(app, [
        "edit", str(tmp_path / "scene.png"), "--edit", f"a banana=a cat@{tmp_path / 'banana.png'}", "--dilation", "0",
        "--prompt", "a banana and a hammer", "-o", str(tmp_path), "--json", "-", "--html", str(tmp_path / "page.html"),
    ])  # fmt: skip
    assert out.exit_code == 0, out.output
    data = json.loads(out.stdout)
    assert data["edits"][0]["check"] == {"source_before": True, "source_after": False, "target_after": True}
    assert data["background_psnr"]["rebuilt"] > 25 and (tmp_path / "page.html").is_file()
    (reading,) = judge.read([Image.open(tmp_path / "after.png")])
    cat, hammer = (next(f for f in reading.found if f.glyph == world.nouns[name]) for name in ("cat", "hammer"))
    assert (hammer.x, hammer.y) == (4, 2) and cat.x == 0 and abs(cat.y - 2) <= 1
    assert len(reading.found) == 2 and reading.background == "green"


@pytest.mark.e2e
def test_a_phrase_that_the_judge_cannot_read_is_an_error():
    world = load_world()
    image = np.zeros((64, 64, 3), np.uint8)
    from unleak.models import load

    r = edit(load("emoji-sd"), image, [Edit("a cat", "a zzz", box(size=(64, 64)))], steps=1)
    with pytest.raises(BadInput, match="has no 'zzz'"):
        judged(r, glyph_judge())
    assert world.nouns


@pytest.mark.e2e
@pytest.mark.parametrize("who", ["own", "attention"])
def test_the_command_line_lets_the_model_find_its_own_masks(tmp_path: Path, who: str):
    world = load_world()
    scene = Scene("green", (Placement(world.nouns["banana"], 0, 2), Placement(world.nouns["hammer"], 4, 2)))
    Image.fromarray(Renderer(world).pictures([scene])[0]).save(tmp_path / "scene.png")
    out = CliRunner().invoke(app, [
        "edit", str(tmp_path / "scene.png"), "--edit", "banana=cat", "--prompt", "a banana and a hammer", "--json", "-",
        "--masks-from", who, "-o", str(tmp_path),
    ])  # fmt: skip
    assert out.exit_code == 0, out.output
    assert json.loads(out.stdout)["edits"][0]["mask"] == who
    mask = np.asarray(Image.open(tmp_path / "mask-1.png").convert("L")) > 127
    assert mask[16:48, :32].mean() > 0.5 > mask[:, 32:].mean()
