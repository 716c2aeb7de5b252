"""The audit: rows that reproduce an image are found, with mitigations attached, and nothing is left behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tiny import draw, tiny
from unleak.bench.copies import audit as bench
from unleak.bench.run import Run
from unleak.copies.audit import attack, audit, draw_rows, latents_of
from unleak.copies.methods.attenuate import Attenuate
from unleak.copies.methods.guard import Guard
from unleak.copies.methods.optimise import OptimiseRows
from unleak.core.intervention import Intervention
from unleak.core.rows import Branch
from unleak.engine.session import attach
from unleak.errors import BadInput, UnsupportedModel
from unleak.judges.copies import PixelJudge

CALL = {"num_inference_steps": 3, "height": 64, "width": 64}
IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


def training_loss(pipe, rows: torch.Tensor, noise: torch.Generator) -> list[float]:
    """What the denoiser was trained on, at three timesteps, for the rows [L, D] of a prompt."""
    z0, found = latents_of(pipe, IMAGE), []
    pipe.scheduler.set_timesteps(3)
    for t in pipe.scheduler.timesteps:
        e = torch.randn(z0.shape, generator=noise)
        with torch.no_grad():
            predicted = pipe.unet(pipe.scheduler.add_noise(z0, e, t[None]), t, encoder_hidden_states=rows[None]).sample
        found.append(float((predicted - e).pow(2).mean()))
    return found


@pytest.mark.parametrize("start", [None, "a red mouse"])
def test_rows_are_found_that_denoise_the_image_better(sd1, start):
    before = draw(sd1, steps=1)
    settings = {"start": start, "batch": 2, "call": CALL}
    begun, found = (attack(sd1, IMAGE, rounds=r, lr=lr, **settings) for r, lr in ((1, 1e-9), (6, 0.3)))
    losses = [sum(training_loss(sd1, x.rows, torch.Generator().manual_seed(9))) for x in (begun, found)]
    assert losses[1] < losses[0] and len(found.losses) == 18
    again = attack(sd1, IMAGE, rounds=1, lr=0.3, **settings)
    assert again.losses == found.losses[:3]  # the seed decides
    assert torch.equal(draw(sd1, steps=1), before) and all(p.grad is None for p in sd1.unet.parameters())


def test_the_loss_is_that_of_training(sd1):
    found = attack(sd1, IMAGE, start="a red mouse", rounds=1, batch=1, lr=1e-9, seed=3, call=CALL)
    random = torch.Generator().manual_seed(3)
    torch.randint(2**31, (), generator=random)  # the seed of the pipeline's run
    rows = sd1.encode_prompt("a red mouse", "cpu", 1, False)[0][0]
    assert found.losses == pytest.approx(training_loss(sd1, rows, random), rel=1e-4)


class Spy(Intervention):
    def on_prediction(self, ctx, preds):
        shared = ctx.predict([Branch("other")], as_source=True)["other"]
        own = ctx.predict([Branch("another")])["another"]
        ctx.results["seen"] = shared, own, preds["cond"]


def test_posing_rows_are_mitigated_like_the_prompts_and_others_are_not(sd1):
    with attach(sd1, Attenuate(alpha=0.0), Spy()) as run:
        draw(sd1, steps=1)
    shared, own, prompt = run.results["seen"]
    assert torch.allclose(shared, prompt, atol=1e-5) and not torch.allclose(own, prompt, atol=1e-4)


def test_an_audit_draws_under_every_mitigation(sd1):
    judge = PixelJudge(IMAGE[None])
    found = audit(sd1, IMAGE, {"bare": None, "guard": Guard()}, judge, seeds=[0, 1], rounds=1, batch=1, call=CALL)
    assert [(o.method, o.adaptive) for o in found] == [("bare", False), ("guard", False), ("guard", True)]
    assert all(o.images.shape == (2, 64, 64, 3) and o.similarity.shape == (2,) for o in found)
    assert found[0].losses == found[1].losses
    assert not np.array_equal(found[0].images, found[1].images)
    rows = sd1.encode_prompt("a zebra", "cpu", 1, False)[0][0]
    assert np.array_equal(draw_rows(sd1, rows, [0], **CALL), draw_rows(sd1, rows[None], [0], **CALL))


def test_what_cannot_be_attacked_is_refused(sd1):
    with pytest.raises(UnsupportedModel, match="pooled"):
        attack(tiny("sdxl"), IMAGE, call=CALL)
    with pytest.raises(BadInput, match="rounds"):
        attack(sd1, IMAGE, rounds=0, call=CALL)
    with pytest.raises(BadInput, match="RGB"):
        attack(sd1, IMAGE[..., 0], call=CALL)
    with pytest.raises(BadInput, match="latents"):
        attack(sd1, IMAGE[:32], call=CALL)
    with pytest.raises(BadInput, match="rows of its own"):
        attack(sd1, IMAGE, OptimiseRows(target=0.0, iterations=1), call=CALL, batch=1, rounds=1)


def test_pixels_tell_the_nearest_reference():
    judge = PixelJudge(np.stack([IMAGE, 255 - IMAGE]))
    near = np.clip(IMAGE.astype(int) + 4, 0, 255).astype(np.uint8)
    found = judge.similarity(np.stack([IMAGE, near, 255 - IMAGE]))
    assert found[0] == found[2] == 100 and judge.threshold < found[1] < 100
    with pytest.raises(BadInput, match="references"):
        judge.similarity(IMAGE[None, :32])


def test_the_bench_tells_adaptive_from_transferred_attacks_and_resumes(tmp_path, sd1, monkeypatch):
    names = ["audit-bare", "audit-guard"]
    methods = {"audit-bare": Guard(rho=0.0), "audit-guard": Guard(rho=1.0)}
    monkeypatch.setattr(bench, "_method", lambda pipe, name, *_: [methods[name]])
    attacked = lambda pipe, image, under, call: {"rows": [[under[0].rho]], "loss": under[0].rho}  # noqa: E731
    monkeypatch.setattr(bench, "_attacked", attacked)
    monkeypatch.setattr(bench, "_similarity", lambda pipe, rows, under, *_: [30.0 * rows[0][0]] * 2)
    run = Run(sd1, tmp_path, "tiny", "dev", [0, 1], 2, {})
    found = {(r.method, r.subset, r.metric): (r.value, r.n) for r in bench.rows(run, names)}
    assert len(found) == 2 * (2 + 3)
    assert found["audit-guard", "form", "audit_returned"] == (1.0, 4)
    assert found["audit-guard", "form", "audit_transferred"] == (0.0, 4)
    assert found["audit-bare", "verbatim", "audit_loss"] == (0.0, 2)
    monkeypatch.setattr(bench, "_attacked", lambda *_: pytest.fail("attacked again"))
    assert {r.method for r in bench.rows(run, names[1:])} == {"audit-guard"}


def test_an_attack_that_does_not_meet_a_method_is_given_once(tmp_path, sd1, monkeypatch):
    monkeypatch.setattr(bench, "ROUNDS", 1)
    monkeypatch.setattr(bench, "BATCH", 1)
    run = Run(sd1, tmp_path, "tiny", "dev", [0], 1, {**CALL, "num_inference_steps": 2})
    found = bench.rows(run, ["audit-bare", "audit-attenuate", "audit-guard"])
    metrics = {name: {r.metric for r in found if r.method == name} for name in dict.fromkeys(r.method for r in found)}
    assert metrics["audit-bare"] == {"audit_returned", "audit_loss"}
    assert metrics["audit-attenuate"] == {"audit_returned", "audit_transferred", "audit_loss"}
    assert metrics["audit-guard"] == {"audit_transferred"}
    assert [note.partition(":")[0] for note in run.notes] == ["audit-guard"]
