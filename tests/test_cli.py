"""The command line as a person would run it: results, exit statuses, and that bad input changes nothing."""

from __future__ import annotations

import html
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tiny import save_tiny
from unleak import models
from unleak.bench import world as bench_world
from unleak.bench.words import repairs
from unleak.cli.command import Command
from unleak.cli.demo import ROWS
from unleak.drawing.generate import rehearse
from unleak.errors import BadInput, UnsupportedModel
from unleak.files.atomic import write_atomic
from unleak.regions.presets import EDITORS
from unleak.words.presets import REPAIRS

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
MOUSE = "a mouse and a laptop"
SMALL = ("--height", "64", "--width", "64", "--steps", "1", "--seeds", "0")
LONG = "a mouse and a laptop" + " and a striped squirrel" * 30


def process(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "unleak", *args]
    return subprocess.run(command, cwd=cwd, env=ENV, capture_output=True, text=True, timeout=300)


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_importing_unleak_does_not_import_torch() -> None:
    code = "import sys, unleak; assert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=ENV)


def test_every_public_verb_loads() -> None:
    import unleak as package

    assert all(getattr(package, name) is not None for name in package.__all__)
    with pytest.raises(AttributeError, match="no attribute"):
        package.nothing  # noqa: B018


def test_help_and_version_need_no_model(tmp_path: Path) -> None:
    done = process("--version", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("unleak ")
    assert "repair" in process("--help", cwd=tmp_path).stdout


@pytest.mark.parametrize("command", ["doctor", "generate", "repair", "guard", "bench world", "bench words"])
def test_every_command_explains_each_option(unleak: Any, command: str) -> None:
    done = unleak(*command.split(), "--help")
    assert done.code == 0 and not done.err and "--model" in done.out and "Usage: " in done.out


@pytest.mark.parametrize(("args", "says"), [
    (("repair", MOUSE, "--items", "cat"), "Write the item as it stands in the prompt"),
    (("repair", "a mouse and a mouse", "--items", "mouse"), "mouse#1"),
    (("repair", "a mouse and a mouse", "--items", "mouse#3"), "no #3"),
    (("repair", "a hot dog and a cat", "--items", "hot dog,dog"), "overlap"),
    (("repair", MOUSE, "--items", "mouse", "--with", "magic"), "Choose from"),
    (("repair", MOUSE, "--items", ""), "empty"),
    (("repair", MOUSE, "--items", "mouse,,laptop"), "empty"),
    (("repair", MOUSE, "--items", "mouse, "), "empty"),
    (("repair", MOUSE, "--items", "mouse="), "sense"),
    (("repair", MOUSE, "--items", "x" * 100_000), "..."),
    (("repair", MOUSE, "--items", "mouse\udcff"), "Close to it"),
    (("repair", MOUSE, "--items", "mouse", "--only", "laptop"), "must be one of the items 'mouse'"),
    (("repair", "", "--items", "mouse"), "empty"),
    (("repair", MOUSE, "--items", "mouse,laptop", "--eos-pads", "no-such"), "Choose from"),
    (("repair", MOUSE, "--items", "mouse,laptop", "--isolation", "no-such"), "Choose from"),
    (("repair", MOUSE, "--items", "mouse", "--isolation", "substituted"), "other items"),
    (("repair", MOUSE, "--items", "mouse", "--seeds", "x"), "seeds"),
    (("repair", MOUSE, "--items", "mouse", "--html", "no/page.html"), "make it first"),
    (("repair", MOUSE, "--items", "mouse", "--html", "x", "--json", "x"), "two files"),
    (("repair", MOUSE, "--items", "mouse", "--html", "x.html", "--json", "./x.html"), "two files"),
    (("repair", MOUSE, "--items", "mouse", "--html", "page"), "ends in .html"),
    (("repair", MOUSE, "--items", "mouse,laptop", "--set", "isolation"), "name=value"),
    (("repair", MOUSE, "--items", "mouse,laptop", "--set", "isolation=no-such"), "Choose from"),
    (("generate", "  "), "empty"),
    (("generate", "a \udcff cat"), "UTF-8"),
    (("generate", "a cat " * 3000), "characters"),
    (("generate", "a mouse", "--seeds", "4:1"), "seeds"),
    (("generate", "a mouse", "--seeds", "0:99999999999999"), "10000"),
    (("generate", "a mouse", "--seeds", "1,1"), "twice"),
    (("generate", "a mouse", "--seeds=-1"), "seeds"),
    (("generate", "a mouse", "--steps", "0"), "greater than or equal to 1"),
    (("generate", "a mouse", "--guidance", "nan"), "finite"),
    (("generate", "a mouse", "--guidance", "inf"), "finite"),
    (("generate", "a mouse", "--height", "64"), "give both"),
    (("generate", "a mouse", "--size", "64by64"), "512x768"),
    (("generate", "a mouse", "--size", "64", "--width", "64"), "leave --height and --width out"),
    (("generate", "a mouse", "--height", "99999", "--width", "99999"), "less than or equal to"),
    (("generate", "a mouse", "--json", "no/such.json"), "make it first"),
    (("generate", "a mouse", "--json", "/proc/x.json"), "/proc"),
    (("generate", "a mouse", "--json", "."), "no file name"),
    (("generate", "a mouse", "--json", "out"), "no file name"),
    (("generate", "a mouse", "-o", "/proc/x"), "choose another"),
    (("generate", "a mouse", "-o", "x" * 300), "choose another"),
    (("generate", "a mouse", "-o", "\udcff"), "UTF-8"),
    (("doctor", "--json", "no/such.json"), "make it first"),
    (("bench", "world", "--methods", "nothing"), "nothing"),
    (("bench", "world", "--split", "nothing", "--limit", "1"), "split"),
    (("bench", "words", "--guidance", "nan"), "finite"),
])  # fmt: skip
def test_bad_use_exits_2_says_what_to_do_and_leaves_nothing(
    unleak: Any, no_model: None, args: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    done = unleak(*args)
    assert done.code == 2, done.err
    assert says in done.err and not done.out and len(done.err) < 2000
    assert not files(tmp_path)


def test_a_real_process_says_the_same(tmp_path: Path) -> None:
    done = process("repair", "a mouse and a \udcff", "--items", "cat", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr == "BadInput: the prompt is not valid UTF-8 text\n"
    (tmp_path / "taken").write_text("a file")
    done = process("generate", "a mouse", "-o", "taken", cwd=tmp_path)
    assert done.returncode == 2 and "choose another" in done.stderr and done.stderr.count("\n") == 1


# Models that cannot be used.


def _broken(folder: Path, what: str) -> None:
    index, weights = folder / "model_index.json", folder / "unet" / "diffusion_pytorch_model.safetensors"
    if what in ("no weights", "pickled"):
        weights.unlink()
    if what == "pickled":
        weights.with_suffix(".bin").write_bytes(b"\x80\x04.")
    if what == "corrupt":
        weights.write_bytes(weights.read_bytes()[:1000])
    if what == "half an index":
        index.write_text(index.read_text()[:40])
    if what == "no index":
        index.unlink()
    if what == "index of nothing":
        index.write_text("[1]")
    if what == "bad settings":
        (folder / "unleak.json").write_text('{"call": 3}')
    if what == "bad guidance":
        (folder / "unleak.json").write_text('{"call": {}, "guidance": 3}')
    if what == "own code":
        index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": ["evil", "Evil"]}))
        (folder / "evil.py").write_text("raise SystemExit('the code of the model ran')")


@pytest.mark.parametrize(("what", "code", "says"), [
    ("no weights", 2, "no weights"), ("pickled", 2, "pickled"), ("corrupt", 4, "could not load"),
    ("half an index", 2, "cannot be read as JSON"), ("index of nothing", 2, "no JSON object"),
    ("no index", 2, "has no model_index.json"), ("bad settings", 2, "must look like"), ("own code", 4, "never runs"),
    ("bad guidance", 2, "must name an argument"),
])  # fmt: skip
def test_a_broken_model_folder_is_refused(unleak: Any, tmp_path: Path, what: str, code: int, says: str) -> None:
    _broken(save_tiny("sd1", tmp_path / "model"), what)
    before = files(tmp_path)
    done = unleak("generate", "a mouse", "-m", "model")
    assert (done.code, done.out) == (code, "") and says in done.err, done.err
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ["", "no/such/folder", "nothing", "bad id/x y", "\udcff"])
def test_a_name_that_is_no_model_is_bad_use(unleak: Any, tmp_path: Path, name: str) -> None:
    done = unleak("generate", "a mouse", "-m", name)
    assert (done.code == 2 and "UTF-8" in done.err) or "hub id like owner/name" in done.err
    assert not files(tmp_path)


def test_a_hub_id_without_network_fails_at_once_in_one_line(unleak: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def model_info(self: Any, name: str, **_: Any) -> None:
        asked.append(name)
        raise OSError("Name or service not known\nand a long story")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    done = unleak("doctor", "-m", "owner/name-that-is-not-there")
    assert done.code == 4 and "give a folder" in done.err and "story" not in done.err
    assert asked == ["owner/name-that-is-not-there"]


# What only the model can tell is found before anything is drawn.


@pytest.mark.parametrize(("args", "says"), [
    (("repair", LONG, "--items", "mouse,laptop"), "reads 77 tokens"),
    (("generate", LONG), "--truncate"),
    (("generate", MOUSE, "--height", "68", "--width", "68"), "multiples of 8"),
])  # fmt: skip
def test_nothing_is_drawn_in_vain(
    unleak: Any, sd1_folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, args: tuple[str, ...], says: str
) -> None:
    def draw(*_: Any, **__: Any) -> None:
        raise AssertionError("an image was drawn")

    monkeypatch.setattr("unleak.drawing.generate.draw", draw)
    done = unleak(*args, "-m", sd1_folder)
    assert (done.code, done.out) == (2, "") and says in done.err, done.err
    assert not files(tmp_path)


@pytest.mark.parametrize(("args", "says"), [
    (("--device", "gpu"), "no device 'gpu'"), (("--device", "cuda:99"), "no device 'cuda:99' here"),
    (("--dtype", "half"), "no dtype is called 'half'"), (("--offload", "all"), "no offload is called 'all'"),
    (("--offload", "model", "--device", "cpu"), "leave it out"),
])  # fmt: skip
def test_a_way_to_load_that_cannot_be_is_bad_use(unleak: Any, args: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = unleak("generate", "a mouse", *args)
    assert (done.code, done.out) == (2, "") and says in done.err, done.err
    assert not files(tmp_path)


def test_device_and_dtype_reach_the_model_and_the_default_is_float32_on_a_cpu(sd1_folder: str) -> None:
    assert models.load(sd1_folder, device="cpu").unet.dtype == torch.float32
    assert models.load(sd1_folder, device="cpu", dtype="bf16").unet.dtype == torch.bfloat16


@pytest.mark.parametrize(("name", "dtype"), [("sd1", torch.float16), ("sd3", torch.bfloat16), ("flux", torch.bfloat16)])
def test_flow_models_are_bfloat16_on_an_accelerator(
    name: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told by the scheduler; nothing here has an accelerator, so only where the parts would go is looked at."""
    moved: list[tuple[str, Any]] = []
    monkeypatch.setattr(models, "find_device", lambda _: "cuda")
    monkeypatch.setattr("diffusers.DiffusionPipeline.to", lambda pipe, to: moved.append(("to", to)))
    for way in ("model", "sequential"):
        monkeypatch.setattr(
            f"diffusers.DiffusionPipeline.enable_{way}_cpu_offload",
            lambda pipe, device, way=way: moved.append((way, device)),
        )
    folder = save_tiny(name, tmp_path / "model")
    pipe = models.load(folder)
    assert getattr(pipe, "unet", None) or pipe.transformer
    assert (getattr(pipe, "unet", None) or pipe.transformer).dtype == dtype
    for offload in ("model", "sequential"):
        models.load(folder, offload=offload)
    assert moved == [("to", "cuda"), ("model", "cuda"), ("sequential", "cuda")]


def test_earlier_spellings_work_and_say_what_they_are_called_now(unleak: Any, sd1_folder: str) -> None:
    draw = ("repair", MOUSE, "--items", "mouse,laptop", "-m", sd1_folder, "--json", "-", *SMALL)
    old = unleak(*draw, "--isolation", "bare", "--eos-pads=keep")
    new = unleak(*draw, "--set", "isolation=bare", "--set", "eos_pads=keep")
    assert old.code == new.code == 0 and json.loads(old.out) == json.loads(new.out), old.err
    assert "--isolation is --set isolation=... now" in old.err and "--eos-pads is --set eos_pads=... now" in old.err
    assert "now" not in new.err


@pytest.mark.parametrize(("name", "model"), [("cutoff", "sd1"), ("structure", "sd1"), ("deleaker", "flux")])
def test_every_repair_of_the_table_can_be_named(unleak: Any, tmp_path: Path, name: str, model: str) -> None:
    save_tiny(model, tmp_path / "model")
    done = unleak("repair", MOUSE, "--items", "mouse,laptop", "--with", name, "-m", "model", "--json", "-", *SMALL)
    assert done.code == 0 and json.loads(done.out)["method"] == name, done.err


def test_a_parameter_is_set_and_named_where_it_is_unknown(unleak: Any, sd1_folder: str) -> None:
    number = next(p.name for p in REPAIRS["boost"].parameters if p.type == "float")
    draw = ("repair", MOUSE, "--items", "mouse,laptop", "--preset", "boost", "-m", sd1_folder, "--json", "-", *SMALL)
    done = unleak(*draw, "--set", f"{number}=1.5", "--steps", "2")
    assert done.code == 0 and json.loads(done.out)["settings"][number] == 1.5, done.err
    done = unleak(*draw, "--set", f"{number}x=3")
    assert done.code == 2 and f"did you mean {number!r}" in done.err


@pytest.mark.parametrize(("command", "table"), [("repair", REPAIRS), ("edit", EDITORS)])
def test_the_help_of_a_command_lists_its_table(unleak: Any, command: str, table: Any) -> None:
    shown = " ".join(unleak(command, "--help").out.split())
    assert all(f"{name}: {preset.summary}" in shown for name, preset in table.items())


def test_size_is_height_and_width(unleak: Any, sd1_folder: str, tmp_path: Path) -> None:
    done = unleak("generate", MOUSE, "-m", sd1_folder, "--size", "32x64", "--seeds", "0", "--json", "-")
    assert json.loads(done.out)["settings"]["height"] == 32 and json.loads(done.out)["settings"]["width"] == 64


@pytest.mark.parametrize("call", [{"num_inference_steps": 2000}, {"nothing": 1}, {"guidance_scale": float("nan")}])
def test_what_a_pipeline_refuses_is_bad_use(sd1: Any, call: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=r"refuses this call|takes no nothing|finite"):
        rehearse(sd1, MOUSE, **call)


def test_a_pipeline_that_draws_no_prompts_is_unsupported() -> None:
    class Unconditional:
        def __call__(self, batch_size: int) -> None: ...

    with pytest.raises(UnsupportedModel, match="does not draw prompts"):
        rehearse(Unconditional(), MOUSE)


def test_a_long_prompt_is_cut_only_on_request_and_said(unleak: Any, sd1_folder: str, tmp_path: Path) -> None:
    done = unleak("generate", LONG, "-m", sd1_folder, "--seeds", "0", "--truncate")
    assert done.code == 0 and "it would lose" in done.err and (tmp_path / "out" / "0.png").is_file()


def test_one_of_two_equal_items_is_repaired(unleak: Any, sd1_folder: str) -> None:
    done = unleak("repair", "a mouse and a mouse", "--items", " mouse#2 ", "-m", sd1_folder, "--json", "-", *SMALL)
    assert done.code == 0 and json.loads(done.out)["items"][0]["span"] == [14, 19]


def test_guidance_is_the_argument_that_the_model_names(unleak: Any, tmp_path: Path) -> None:
    """In FLUX's pipeline that is `true_cfg_scale`; its negative prompt is the folder's, one for each image."""
    folder = save_tiny("flux", tmp_path / "flux")
    call = {"height": 64, "width": 64, "num_inference_steps": 2, "max_sequence_length": 32, "negative_prompt": ""}
    (folder / "unleak.json").write_text(json.dumps({"call": call, "guidance": "true_cfg_scale"}))
    draw = ("generate", "a mouse", "-m", "flux", "--seeds", "0,1", "--json", "-")
    plain, strong = unleak(*draw, "-o", "plain"), unleak(*draw, "--guidance", "4", "-o", "strong")
    assert plain.code == strong.code == 0, plain.err + strong.err
    assert json.loads(plain.out)["settings"] == call
    assert json.loads(strong.out)["settings"] == call | {"true_cfg_scale": 4.0}
    assert (tmp_path / "plain" / "1.png").read_bytes() != (tmp_path / "strong" / "1.png").read_bytes()


def test_only_chooses_among_the_items(unleak: Any, sd1_folder: str, tmp_path: Path) -> None:
    done = unleak("repair", MOUSE, "--items", "mouse,laptop", "--only", "mouse", "-m", sd1_folder, "--html", "p.html")
    said = [line.split() for line in done.out.splitlines()]
    assert (
        done.code == 0
        and ["mouse", "repaired", "not", "judged"] in said
        and ["laptop", "left", "not", "judged"] in said
    )
    assert "laptop</b> left as it was; no judge" in (tmp_path / "p.html").read_text()


def test_the_command_of_a_repair_says_where_it_runs_and_who_judges(unleak: Any, sd1_folder: str) -> None:
    where = ("--device", "cpu", "--dtype", "float32")
    asked = (
        "--items",
        "mouse,laptop",
        "--only",
        "mouse",
        "--with",
        "patch",
        "-m",
        sd1_folder,
        "--steps",
        "2",
        "--json",
        "-",
    )
    done = unleak("repair", MOUSE, *asked, *where)
    program, verb, *words = shlex.split(json.loads(done.out)["command"])
    assert (program, verb, tuple(words[:4])) == ("unleak", "repair", where)
    again = unleak(verb, *words, "--json", "-")
    assert again.code == 0 and json.loads(again.out)["repair"] == json.loads(done.out)["repair"], again.err
    judged = Command(model="m", offload="model", judge="a judge")
    assert judged.where == ["--offload", "model", "--judge", "a judge"] and Command().where == []


@pytest.mark.e2e
def test_the_demo_is_one_page_with_evidence(unleak: Any, tmp_path: Path) -> None:
    done = unleak("demo", "--seeds", "0", "--steps", "2")
    page = html.unescape((tmp_path / "demo" / "index.html").read_text())
    assert done.code == 0 and "a key and a guitar" in done.out and not done.err, done.err
    assert (
        all(f"Where the leak sits: {rows}" in page for rows in ROWS)
        and "a key and a banana" in page
        and "<script" not in page
    )


# Interrupted.


def test_an_interrupt_ends_with_130_and_no_file(tmp_path: Path, sd1_folder: str) -> None:
    command = [sys.executable, "-m", "unleak", "generate", MOUSE, "-m", sd1_folder, "--seeds", "0:9000"]
    heard = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731  a background job ignores it
    running = subprocess.Popen(
        command, cwd=tmp_path, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heard
    )
    time.sleep(10)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130 and not out and b"Traceback" not in err and b"interrupted" in err
    assert not files(tmp_path)


def test_an_interrupted_write_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    (tmp_path / "x.json").write_text("old")
    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "x.json", "new")
    assert files(tmp_path) == ["x.json"] and (tmp_path / "x.json").read_text() == "old"


def test_an_interrupted_benchmark_resumes(
    unleak: Any, sd1_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[str]] = []
    limit, draw, accuracy = 2, bench_world.generate, bench_world.judge_accuracy

    def generate(pipe: Any, texts: list[str], *args: Any, **kwargs: Any) -> Any:
        if len(drawn) == limit:
            raise KeyboardInterrupt
        drawn.append(texts)
        return draw(pipe, texts, *args, **kwargs)

    monkeypatch.setattr(bench_world, "generate", generate)
    monkeypatch.setattr(bench_world, "judge_accuracy", lambda *args: accuracy(*args, n=8))
    command = ("bench", "world", "-m", sd1_folder, "--limit", "1", "--seeds", "0", "-o", "r")
    done = unleak(*command)
    assert done.code == 130 and not done.out
    assert files(tmp_path) == ["r", "r/parts", "r/parts/pair.json", "r/parts/single.json"]
    limit = 99
    done = unleak(*command)
    assert done.code == 0 and "single_present" in done.out and (tmp_path / "r" / "results.json").is_file()
    assert len({str(texts) for texts in drawn}) == len(drawn) > 5  # nothing was drawn again


def test_a_limit_may_leave_a_subset_of_the_words_benchmark_empty() -> None:
    cases: Any = [SimpleNamespace(first=True, polyseme="mouse", things=())]
    outcomes = np.ones((1, 2, len(repairs.OUTCOMES)), bool)
    assert [r.metric for r in repairs.rows_of("none", cases, outcomes, outcomes, "before")] == [
        "leak_rate",
        "right_strict",
    ]
    assert repairs.rows_of("none", cases, outcomes, outcomes, "after") == []


def test_a_benchmark_refuses_a_model_of_another_world(unleak: Any, tmp_path: Path) -> None:
    save_tiny("sd1", tmp_path / "model")
    before = files(tmp_path)
    done = unleak("bench", "world", "-m", "model")
    assert done.code == 4 and "64x64" in done.err and files(tmp_path) == before
