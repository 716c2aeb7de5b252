"""`doctor`: tells what a pipeline is, and that the laws hold on it."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from typer.testing import CliRunner

from tiny import NAMES, draw, save_tiny, tiny
from unleak import models
from unleak.cli import app
from unleak.core.hook import hook
from unleak.drawing.doctor import Outcome, examine
from unleak.errors import UnsupportedModel
from unleak.report import verbs
from unleak.report.verbs import Verb, doctor

KEYS = {"schema", "pipeline", "encoders", "denoiser", "layout", "sites", "observable", "identity", "restored"}
LAYOUTS = {
    "sd1": ("cross-attention", {"cross": 16, "self": 16}),
    "sd2": ("cross-attention", {"cross": 16, "self": 16}),
    "sdxl": ("cross-attention", {"cross": 11, "self": 11}),
    "sd3": ("joint, text last", {"joint": 2, "self": 1}),
    "flux": ("joint, text first", {"joint": 4}),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_healthy_pipeline(name):
    pipe = tiny(name)
    bare = draw(pipe)
    report = examine(pipe)
    layout, kinds = LAYOUTS[name]
    assert report.layout == layout
    found = [site["kind"] for site in report.sites]
    assert {kind: found.count(kind) for kind in set(found)} == kinds
    assert report.ok and report.reason is None, report
    assert torch.equal(draw(pipe), bare)


@pytest.mark.parametrize("name", ["sd1", "flux"])
def test_the_json_form(name):
    report = examine(tiny(name))
    data = json.loads(json.dumps(report.to_dict()))
    assert data.keys() >= KEYS and data["schema"] == "unleak/doctor/1"
    assert all({"name", "kind"} <= site.keys() for site in data["sites"])
    assert {encoder["name"] for encoder in data["encoders"]} <= {"text_encoder", "text_encoder_2"}
    assert data["encoders"][0]["length"] == (77 if name == "sd1" else data["encoders"][0]["length"])
    assert str(report).count("\n") == 3


def test_attention_that_cannot_be_seen_is_reported_with_its_fix():
    pipe = tiny("sd1")
    pipe.unet.set_attn_processor(AttnProcessor())
    report = examine(pipe)
    assert not report.observable and not report.ok and report.restored
    assert "AttnProcessor2_0" in report.reason and report.layout == "unknown"
    assert {site["kind"] for site in report.sites} == {None}


def test_a_pipeline_that_is_not_deterministic_fails_identity():
    pipe = tiny("sd1")
    handle = pipe.unet.conv_out.register_forward_hook(lambda m, a, out: out + torch.randn_like(out))
    report = examine(pipe)
    handle.remove()
    assert report.observable and not report.identity and "deterministic" in report.reason


def test_something_else_than_a_pipeline():
    with pytest.raises(UnsupportedModel):
        doctor(object())


def test_every_verb_is_tried_and_its_reason_is_said():
    pipe = tiny("sd1")
    bare = draw(pipe)
    report = doctor(pipe)
    refused = [one for one in report.verbs if one.state != "yes"]
    assert [(one.verb, one.state) for one in refused] == [("DeLeaker", "no")], refused
    assert "works: Maps, Patch" in str(report) and "refused: DeLeaker: DeLeaker edits" in str(report)
    assert report.to_dict()["verbs"][0] == {"verb": "Maps", "room": "words", "state": "yes", "reason": None}
    assert torch.equal(draw(pipe), bare)


def test_a_verb_that_breaks_or_does_nothing_is_a_fault(monkeypatch):
    def broken(trial):
        raise KeyError("rows")

    faults = (Verb("broken", "words", broken), Verb("idle", "words", lambda trial: trial.acts(hook())))
    monkeypatch.setattr(verbs, "VERBS", faults)
    seen = []
    report = doctor(tiny("flux"), progress=seen.append)
    assert report.verbs == (
        Outcome("broken", "words", "fault", "KeyError: 'rows'"),
        Outcome("idle", "words", "fault", f"{type(hook()).__name__} runs and changes nothing"),
    )
    assert "FAULT: broken: KeyError: 'rows'" in str(report) and seen == ["broken", "idle"]


@pytest.mark.parametrize("name", NAMES)
def test_configs_alone_tell_sites_and_layout(name, tmp_path):
    seen = examine(tiny(name))
    folder = save_tiny(name, tmp_path / name)
    for file in folder.glob("*/*.safetensors"):
        file.unlink()
    assert not models.has_weights(folder)
    pipe = models.skeleton(folder)
    assert all(p.is_meta for part in pipe.components.values() if isinstance(part, nn.Module) for p in part.parameters())
    report = doctor(pipe)
    assert not report.weights and not report.ok and "no weights" in str(report)
    told = [(site["name"], site["kind"]) for site in report.sites]
    assert told == [(site["name"], site["kind"]) for site in seen.sites]
    assert report.layout.split()[0].strip(",") == seen.layout.split()[0].strip(",")
    refused = {one.verb: one.reason for one in report.verbs if one.state == "no"}
    joint = name in ("sd3", "flux")
    assert refused == ({} if joint else {"DeLeaker": "works on joint attention, and this is cross-attention"})
    assert {one.state for one in report.verbs} <= {"open", "no"}
    assert vars(pipe.vae).get("forward") is None, "nothing is left on the models"


def test_a_folder_without_weights_on_the_command_line(tmp_path):
    folder = save_tiny("flux", tmp_path / "flux")
    for file in folder.glob("*/*.safetensors"):
        file.unlink()
    done = CliRunner().invoke(app, ["doctor", "-m", str(folder)])
    assert done.exit_code == 0 and "joint" in done.output and "open: Maps" in done.output.replace("\n", " ")
    (folder / "model_index.json").write_text('{"_class_name": "NoSuchPipeline"}')
    done = CliRunner().invoke(app, ["doctor", "-m", str(folder)])
    assert done.exit_code == 4 and "NoSuchPipeline" in done.output
