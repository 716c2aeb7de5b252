"""Editing methods that begin from inverted latents, and InfEdit's third branch: what they promise, on every layout."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tiny import draw, latents, tiny
from unleak.core.anatomy import Anatomy
from unleak.core.intervention import Intervention, Window
from unleak.core.rows import Rows
from unleak.drawing.doctor import _marks
from unleak.engine.session import attach
from unleak.errors import BadInput, EmptyWindow, NoSite, UnsupportedModel
from unleak.regions.edit import edit
from unleak.regions.masks.masks import foreground
from unleak.regions.methods.ddcm import DDCM
from unleak.regions.methods.infedit import LayoutBlend, UnifiedAttention
from unleak.regions.methods.inversion import ReplayInversion, invert
from unleak.regions.methods.null_text import null_text
from unleak.regions.methods.pnp import PlugAndPlay
from unleak.regions.methods.schedule import followed
from unleak.regions.plan import Edit
from unleak.regions.presets import EDITORS

SIZE, STEPS = (64, 96), 3
SOURCE, TARGET = ("a red cup and a cat", ("cat",)), ("a red cup and a dog", ("dog",))


@pytest.fixture(scope="module")
def one():
    return tiny("sd1")


def masks():
    made = torch.zeros(1, *SIZE, dtype=torch.bool)
    made[:, :32, :40] = True
    return made


def run_on(pipe, trajectory, method, target=TARGET, extra=()):
    parts = method.parts(SOURCE, target, masks(), latents(), trajectory)
    start = (trajectory if isinstance(trajectory, torch.Tensor) else trajectory.latents)[-1]
    with followed(pipe, method.steps, reversible=True), attach(pipe, *parts, *extra) as run:
        final = pipe(
            target[0], num_inference_steps=method.steps, height=SIZE[0], width=SIZE[1], guidance_scale=2.0,
            latents=start, output_type="latent",
        ).images  # fmt: skip
    return final, run


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_every_layout_is_edited_and_left_as_it_was(name):
    pipe = tiny(name)
    draw(pipe, steps=1)  # transformers installs hooks of its own at the first run
    picture = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    scheduler, before = pipe.scheduler, _marks(Anatomy.of(pipe))
    for method, options in (
        ("infedit", {}),
        ("ddim", {}),
        ("pnp", {}),
        ("direct", {}),
        ("null-text", {"iterations": 1}),
    ):
        r = edit(pipe, picture, [Edit("blue cup", "red dog", masks()[0])], preset=method, steps=2, size=SIZE,
                 dilation=0.0, blend=True, **options)  # fmt: skip
        kept = foreground(r.masks, tuple(r.latents.shape[-2:])) == 0
        assert torch.equal(r.latents[..., kept].float(), r.clean[..., kept]), method
        assert not torch.equal(r.latents.float(), r.clean)
        assert method == "ddim" or r.log[-1]["edits"], method
    assert pipe.scheduler is scheduler and _marks(Anatomy.of(pipe)) == before


@pytest.fixture(scope="module")
def path(one):
    with followed(one, STEPS, reversible=True):
        return invert(one, latents(), SOURCE[0], SIZE, STEPS)


def test_a_method_without_control_is_plain_guidance(one, path):
    plain, _ = run_on(one, path, EDITORS["ddim"].make(steps=STEPS))
    pnp, run = run_on(one, path, EDITORS["pnp"].make(steps=STEPS, features=0.0, attention=0.0))
    assert (plain - pnp).abs().max() < 1e-3 and not run.log[0]["edits"]
    found = null_text(one, path, SOURCE[0], SIZE, 7.5, iterations=0)
    off = EDITORS["null-text"].make(steps=STEPS, cross_steps=0.0, self_steps=0.0)
    assert (run_on(one, found, off)[0] - plain).abs().max() < 1e-3


def test_optimised_rows_lead_nearer_to_the_path(one, path):
    before, after = (null_text(one, path, SOURCE[0], SIZE, 7.5, n) for n in (0, 4))
    assert after.losses[0] < before.losses[0]
    assert torch.equal(before.empty[0], before.empty[-1]) and not torch.equal(after.empty[0], before.empty[0])
    assert torch.equal(after.latents[0], path[0]) and torch.equal(after.latents[-1], path[-1])
    assert all(parameter.grad is None for parameter in one.unet.parameters())
    for wrong in ({"iterations": -1}, {"guidance": 1.0}):
        with pytest.raises(BadInput):
            null_text(one, path, SOURCE[0], SIZE, **wrong)


@dataclass(frozen=True)
class Source(Intervention):
    def on_prediction(self, ctx, preds):
        ctx.results.setdefault("source", []).append(preds["source_cond"].clone())


def test_features_and_attention_come_from_the_source_where_published(one, path):
    final, run = run_on(one, path, EDITORS["pnp"].make(steps=STEPS), extra=(Source(),))
    edits = run.log[0]["edits"]["1.PlugAndPlay"]
    assert edits["on_module"] == {"up_blocks.1.resnets.1": int(0.8 * STEPS)}
    decoder = [s.name for s in Anatomy.of(one).sites if s.name.startswith("up_blocks") and "attn1" in s.name]
    assert len(decoder) == 9 and set(edits["RowSwap"]) == set(decoder) - {decoder[0]}
    assert set(edits["RowSwap"].values()) == {2 * int(0.5 * STEPS)}
    free, bare = run_on(one, path, EDITORS["pnp"].make(steps=STEPS, features=0.0, attention=0.0), extra=(Source(),))
    for ours, theirs in zip(run.results["source"], bare.results["source"], strict=True):
        assert (ours - theirs).abs().max() < 1e-4
    assert (final - free).abs().max() > 1e-3


def test_both_rows_take_the_output_that_the_block_computed_for_the_source():
    rows = Rows(("uncond", "cond", "source_cond"), (0, 0, 0), frozenset({"uncond", "cond", "source_cond"}))
    ctx, output = SimpleNamespace(rows=rows, state={}, step=0, steps=5), torch.randn(3, 2, 4, 4)
    assert torch.equal(PlugAndPlay().on_module(ctx, "block", output), output[[2, 2, 2]])
    with pytest.raises(UnsupportedModel):
        PlugAndPlay().on_module(ctx, "block", output[:2])


def test_what_cannot_act_says_so(one, path):
    with pytest.raises(NoSite, match="residual blocks"):
        attach(tiny("flux"), PlugAndPlay())
    with pytest.raises(NoSite, match="no module"):
        attach(one, PlugAndPlay(block="up_blocks.9"))
    with pytest.raises(NoSite, match="behind the block"), attach(one, ReplayInversion(path, 7.5, SOURCE[0]),
                                                                 PlugAndPlay(block="conv_out")):  # fmt: skip
        draw(one, TARGET[0], size=SIZE, steps=STEPS)
    replay = ReplayInversion(path[:2], 7.5, SOURCE[0])
    with pytest.raises(EmptyWindow, match="of 1 steps"), attach(one, replay, PlugAndPlay()):
        draw(one, TARGET[0], size=SIZE, steps=1)
    with pytest.raises(BadInput, match="trajectory of 3 steps"), attach(one, ReplayInversion(path)):
        draw(one, TARGET[0], size=SIZE, steps=2)
    with pytest.raises(BadInput, match="no layout"), attach(one, DDCM(latents(), SOURCE[0]), LayoutBlend(*SOURCE)):
        draw(one, TARGET[0], size=SIZE, steps=2)
    for wrong in (lambda: PlugAndPlay(2.0), lambda: UnifiedAttention(("a", "b"), cross_steps=2.0),
                  lambda: LayoutBlend("a cat", ("cat",), threshold=-1.0)):  # fmt: skip
        with pytest.raises(BadInput, match="shares"):
            wrong()


def test_the_layout_keeps_what_the_words_do_not_name(one):
    layout = DDCM(latents(), SOURCE[0], followers=("layout",))
    control = UnifiedAttention((SOURCE[0], TARGET[0]))
    finals, results = [], []
    for blend in ((), (LayoutBlend(*SOURCE, threshold=0.9),), (LayoutBlend(*SOURCE, kept=("red cup",)),)):
        with attach(one, layout, control, *blend) as run:
            finals.append(draw(one, TARGET[0], size=SIZE, steps=4))
        results.append(run.results["layout"])
    kept = (finals[1] == results[1]).all(1)
    assert kept.any() and not kept.all()
    assert not torch.equal(finals[0], finals[1]) and not torch.equal(finals[1], finals[2])


def test_a_window_names_its_steps():
    assert Window(0.08, 1.0).among(50)[0] == 4 and Window(0.08, 1.0).among(4) == [1, 2, 3]
    assert Window(0.625, 1.0).among(16)[0] == 10 and Window().among(1) == [0]
    with pytest.raises(EmptyWindow, match="more steps"):
        Window(0.08, 1.0).need(1, "MasaCtrl")


def test_a_preset_with_a_window_needs_enough_steps(one):
    picture = np.zeros((*SIZE, 3), np.uint8)
    with warnings.catch_warnings(), pytest.raises(EmptyWindow, match="MasaCtrl"):
        warnings.simplefilter("ignore")
        edit(one, picture, [Edit("cup", "dog", masks()[0])], preset="masactrl", steps=1, size=SIZE)
