"""Scans: of lists and of files, through interruptions, beside other scans, on the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tracemalloc
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

from tiny import save_tiny, tiny
from unleak.copies.presets import DETECTORS
from unleak.copies.scan import scan as scanning
from unleak.copies.scan import scan_file as files
from unleak.copies.scan import scanner as module
from unleak.copies.scan.calibrate import Calibration, fingerprint_of
from unleak.copies.scan.scan import plan, scan
from unleak.copies.scan.scan_file import rejects_of, scan_file
from unleak.engine.session import attach
from unleak.errors import BadInput, BrokenFile, Conflict, NotFinite, PromptTruncated
from unleak.report.scan import file_page

CALL = {"height": 64, "width": 64, "num_inference_steps": 2}
WORDS = ["cat", "dog", "bat", "ball", "hat", "bus", "car", "horse", "zebra", "apple"]
PROMPTS = [f"a red {word}" for word in WORDS]
LONG = "a mouse and a laptop" + " and a striped squirrel" * 30


# -- of a list -------------------------------------------------------------------------------------------------


def test_scores_do_not_depend_on_the_batch_and_repeated_prompts_are_measured_once(sd1):
    told: list[int] = []
    many = scan(sd1, [*PROMPTS[:3], PROMPTS[1]], 2, batch=2, call=CALL, progress=told.append)
    one = scan(sd1, PROMPTS[1], 2, call=CALL)
    assert told == [2, 1] and many.images["agreement"].shape == (4, 2)
    for name in ("agreement", "magnitude"):
        assert np.allclose(many.images[name][1], one.images[name][0], rtol=1e-3)
        assert np.array_equal(many.images[name][1], many.images[name][3])
    assert np.allclose(many.scores, many.images["agreement"].mean(1))


def test_without_a_calibration_nothing_is_called_memorized(sd1):
    found = scan(sd1, PROMPTS[:2], 2, call=CALL)
    for verdict in ("threshold", "flagged"):
        with pytest.raises(BadInput, match="uncalibrated"):
            getattr(found, verdict)


def test_every_layout_can_be_scanned(any_pipe):
    """Where there is no guidance, with the detectors that need none; each image is that of its own call."""
    short = {"max_sequence_length": 32} if hasattr(any_pipe, "transformer") else {}
    names = ["magnitude"] if hasattr(any_pipe, "unet") else ["entropy"]
    found = scan(any_pipe, PROMPTS[:2], [3, 8], detectors=names, call=CALL | short)
    with attach(any_pipe, DETECTORS[names[0]].make()) as run:
        generator = torch.Generator().manual_seed(8)
        any_pipe(PROMPTS[1], generator=generator, output_type="latent", **CALL | short)
    assert np.allclose(found.images[names[0]][1, 1], run.results[names[0]][0].item(), rtol=1e-3)


def test_one_negative_prompt_is_that_of_every_prompt(any_pipe):
    call = (
        CALL | {"negative_prompt": "a dog"} | ({"max_sequence_length": 32} if hasattr(any_pipe, "transformer") else {})
    )
    guided = next(n for n in ("true_cfg_scale", "guidance_scale") if n in signature(any_pipe.__call__).parameters)
    together, alone = (
        [scan(any_pipe, part, [3], detectors=["magnitude"], call=call | {guided: 3.0}).scores for part in parts]
        for parts in ([PROMPTS[:2]], [PROMPTS[:1], PROMPTS[1:2]])
    )
    assert np.allclose(together[0], np.concatenate(alone), rtol=1e-3)


def test_a_calibrated_scan_flags(sd1):
    bare = scan(sd1, PROMPTS[:3], 2, detectors=["magnitude"], call=CALL)
    threshold = float(np.sort(bare.scores)[-2:].mean())
    made = calibration(sd1, threshold, detector="magnitude")
    found = scan(sd1, PROMPTS[:3], 2, calibration=made, call=CALL)
    assert found.threshold == threshold and found.flagged.sum() == 1 and found.plan.names == ("magnitude",)


@pytest.mark.parametrize(("arguments", "error", "says"), [
    ({"prompts": []}, BadInput, "nothing to scan"),
    ({"prompts": [" "]}, BadInput, "empty"),
    ({"prompts": [LONG]}, PromptTruncated, "77 tokens"),
    ({"seeds": 1}, BadInput, "agreement compares"),
    ({"seeds": 0}, BadInput, "give 1 to"),
    ({"first_steps": 0}, BadInput, "one step"),
    ({"detectors": ["late-entropy"]}, BadInput, "whole trajectory"),
    ({"detectors": ["magic"]}, BadInput, "Choose from"),
    ({"call": {"strength": 3}}, BadInput, "takes no strength"),
    ({"call": {"generator": None}}, BadInput, "by the scan itself"),
])  # fmt: skip
def test_bad_use_is_found_before_anything_is_measured(sd1, monkeypatch, arguments, error, says):
    monkeypatch.setattr("unleak.copies.scan.scan.measure", lambda *_: pytest.fail("it measured"))
    with pytest.raises(error, match=says):
        scan(sd1, **{"prompts": PROMPTS[:1], "seeds": 2, "call": CALL, **arguments})


def test_detectors_of_the_whole_trajectory(sd1):
    found = scan(sd1, PROMPTS[:1], 2, None, ["late-entropy", "bright-ending"], call=CALL)
    assert found.images["bright-ending"].shape == (1, 2) and np.isfinite(found.scores).all()


# -- of a file -------------------------------------------------------------------------------------------------


def calibration(pipe: Any, threshold: float, detector: str = "agreement") -> Calibration:
    intervals = {"auroc": (0.9, 1.0), "tpr_at_1fpr": (0.9, 1.0)}
    return Calibration("tiny", fingerprint_of(pipe), detector, threshold, 0.01, 1, 2, CALL, 0.99, 0.99, intervals, 9, 9)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """Ten prompts, with an empty line, a repeated one and one that is too long between them."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    lines = [*PROMPTS[:2], "", *PROMPTS[2:7], PROMPTS[0], LONG, *PROMPTS[7:]]
    path.write_text("\n".join(lines) + "\n")
    return path


def run(pipe: Any, path: Path, out: Path, **more: Any) -> files.ScanSummary:
    settings = {"batch": 3, "call": CALL, **{k: more.pop(k) for k in ("calibration", "batch") if k in more}}
    return scan_file(pipe, path, out, plan(pipe, 2, **settings), model="tiny", **more)


@pytest.fixture(scope="module")
def whole(sd1, file, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "scan.jsonl"
    run(sd1, file, out)
    return out


def test_every_line_is_in_the_results_or_among_the_rejects(whole, file):
    head, *records = map(json.loads, whole.read_text().splitlines())
    assert head["schema"] == "unleak/scan/1" and head["calibrated"] is False and head["threshold"] is None
    assert [r["prompt"] for r in records] == PROMPTS
    assert all(r["memorized"] is None and len(r["images"]["agreement"]) == 2 for r in records)
    rejects = {r["line"]: r["reason"] for r in map(json.loads, rejects_of(whole).read_text().splitlines())}
    assert set(rejects) | {r["line"] for r in records} == set(range(1, 14)) and len(rejects) == 3
    assert "empty" in rejects[3] and rejects[9] == "the same prompt as line 1" and "77 tokens" in rejects[10]
    assert sorted(p.name for p in whole.parent.iterdir()) == ["scan.jsonl", "scan.rejects.jsonl"]


def test_a_scan_of_a_file_is_that_of_the_list(sd1, whole):
    records = [json.loads(line) for line in whole.read_text().splitlines()[1:]]
    listed = scan(sd1, PROMPTS, 2, batch=3, call=CALL)
    assert np.allclose([r["score"] for r in records], listed.scores, rtol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.3, 0.5, 0.8, 0.97, 1.0])
def test_a_scan_that_was_cut_anywhere_goes_on_to_the_same_bytes(sd1, file, whole, tmp_path: Path, share: float):
    out, data = tmp_path / "scan.jsonl", whole.read_bytes()
    cut = data[: round(share * len(data))]
    out.write_bytes(cut)
    summary = run(sd1, file, out)
    assert out.read_bytes() == data
    assert rejects_of(out).read_bytes() == rejects_of(whole).read_bytes()
    done = max(0, cut.count(b"\n") - 1)
    assert (summary.prompts, summary.rejected) == (10, 3)
    assert summary.measured <= 10 - done + 2, "more than the last, unfinished batch was measured again"
    assert summary.measured == 0 or share < 1


KILLED = """
import os, signal, sys
from pathlib import Path
from tiny import tiny
from unleak.copies.scan import scanner as module
from test_scan import run
measure, batches = module.measure, []
def dying(*args):
    batches.append(1)
    if len(batches) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return measure(*args)
module.measure = dying
run(tiny("sd1"), Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_kill_9_loses_at_most_a_batch(sd1, file, whole, tmp_path: Path):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    out = tmp_path / "scan.jsonl"
    died = subprocess.run([sys.executable, "-c", KILLED, str(file), str(out)], env=env, timeout=300)
    assert died.returncode == -signal.SIGKILL
    assert out.read_bytes() and whole.read_bytes().startswith(out.read_bytes())
    assert len(out.read_text().splitlines()) == 1 + 6
    assert run(sd1, file, out).measured == 4
    assert out.read_bytes() == whole.read_bytes()


def test_ctrl_c_leaves_whole_batches_and_no_lock(sd1, file, whole, tmp_path: Path, monkeypatch):
    out, measure, batches = tmp_path / "scan.jsonl", module.measure, []

    def interrupted(*args):
        batches.append(1)
        if len(batches) == 2:
            raise KeyboardInterrupt
        return measure(*args)

    monkeypatch.setattr(module, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(sd1, file, out)
    assert len(out.read_text().splitlines()) == 1 + 3
    monkeypatch.undo()
    run(sd1, file, out)
    assert out.read_bytes() == whole.read_bytes()


def test_two_scans_on_one_output(sd1, file, tmp_path: Path):
    out = tmp_path / "scan.jsonl"
    with FileLock(tmp_path / ".scan.jsonl.lock"), pytest.raises(Conflict, match="another scan writes"):
        run(sd1, file, out)
    assert not out.exists()


def test_what_is_there_is_never_overwritten(sd1, file, whole, tmp_path: Path):
    out = tmp_path / "scan.jsonl"
    for content, says in (("a diary\n", "no scan"), ('{"schema": "unleak/bench/1"}\n', "no scan")):
        out.write_text(content)
        with pytest.raises(BadInput, match=says):
            run(sd1, file, out)
        assert out.read_text() == content
    out.write_bytes(whole.read_bytes())
    with pytest.raises(BadInput, match="another batch"):
        run(sd1, file, out, batch=2)
    with pytest.raises(BadInput, match="another fingerprint"):
        run(tiny("sd1", seed=1), file, out)
    for name, lines, says in (
        ("prompts.txt", ["a hat", *PROMPTS], "has changed"),
        ("prompts.txt", PROMPTS[:2], "is shorter"),
        ("other.txt", PROMPTS, "another input"),
    ):
        (tmp_path / name).write_text("\n".join(lines))
        with pytest.raises(BadInput, match=says):
            run(sd1, tmp_path / name, out)
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.txt", "prompts.txt", "scan.jsonl"]
    with pytest.raises(BadInput, match="file of prompts itself"):
        run(sd1, out, out)
    with pytest.raises(BadInput, match="cannot write"):
        run(sd1, file, tmp_path / "none" / "scan.jsonl")


def test_a_calibrated_scan_counts_what_is_over(sd1, file, whole, tmp_path: Path):
    scores = sorted(json.loads(line)["score"] for line in whole.read_text().splitlines()[1:])
    out = tmp_path / "scan.jsonl"
    summary = run(sd1, file, out, calibration=calibration(sd1, scores[-3]))
    assert summary.over == 3 and [s for s, *_ in summary.highest] == scores[::-1]
    head, *records = map(json.loads, out.read_text().splitlines())
    assert head["calibrated"] and sum(r["memorized"] for r in records) == 3
    assert "3 of 10" in file_page(out) and "uncalibrated" in file_page(whole)


def test_latents_that_are_no_numbers_stop_the_scan(file, tmp_path: Path):
    pipe = tiny("sd1")
    pipe.unet.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(NotFinite):
        run(pipe, file, tmp_path / "scan.jsonl")


def test_memory_does_not_grow_with_the_file(sd1, tmp_path: Path, monkeypatch):
    """Only the reading, checking and writing: measuring has its own fixed batch."""
    monkeypatch.setattr(module, "fits", lambda *_: lambda prompt: None)
    monkeypatch.setattr(
        module, "measure", lambda _, prompts, plan: {name: np.zeros((len(prompts), 2)) for name in plan.names}
    )
    monkeypatch.setattr("os.fsync", lambda _: None)

    def peak(lines: int) -> int:
        path, out = tmp_path / f"{lines}.txt", tmp_path / f"{lines}.jsonl"
        path.write_text("".join(f"a number {i}\n\n" for i in range(lines)))
        tracemalloc.start()
        assert run(sd1, path, out, batch=16).prompts == run(sd1, path, out, batch=16).prompts == lines
        file_page(out)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    few, many = peak(100), peak(1000)
    assert many < 1.5 * few + 100_000


def test_a_page_escapes_what_prompts_hold(sd1, tmp_path: Path):
    (tmp_path / "p.txt").write_text("<script>alert(1)</script> a cat\n")
    run(sd1, tmp_path / "p.txt", tmp_path / "scan.jsonl")
    html = file_page(tmp_path / "scan.jsonl", limit=5.0)
    assert "<script>" not in html and "&lt;script&gt;" in html and "0 of 1" in html


DAMAGED = [
    ("", "empty"), ("[" * 100_000, "too deeply"), ("{", "JSON"),
    ('{"line": 2, "line": 3}', "twice"), ('{"line": 2, "prompt": "a cat"}', "is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "says"), DAMAGED, ids=[says for _, says in DAMAGED])
def test_a_page_of_a_damaged_scan_says_which_line(whole, tmp_path: Path, line, says):
    out = tmp_path / "scan.jsonl"
    out.write_text(whole.read_text() + line if line else "")
    with pytest.raises(BrokenFile, match=says) as error:
        file_page(out)
    assert not line or f"line {len(whole.read_text().splitlines()) + 1}" in str(error.value)


def test_a_file_without_a_prompt_gives_an_empty_scan(sd1, tmp_path: Path):
    (tmp_path / "p.txt").write_text("")
    assert run(sd1, tmp_path / "p.txt", tmp_path / "scan.jsonl").prompts == 0
    assert "0</b> prompts" in file_page(tmp_path / "scan.jsonl")


# -- on the command line ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = save_tiny("sd1", tmp_path_factory.mktemp("model") / "sd1")
    (made / "unleak.json").write_text(json.dumps({"call": CALL}))
    return str(made)


def test_calibrate_then_scan_with_a_gate(unleak, folder, tmp_path: Path):
    Path("wild.txt").write_text("\n".join([*PROMPTS[:3], LONG]))
    Path("tame.csv").write_text("prompt\n" + "\n".join([*PROMPTS[3:7], ""]))
    done = unleak("calibrate", "--memorized", "wild.txt", "--ordinary", "tame.csv", "-m", folder, "--seeds", "0:2",
                  "--detector", "magnitude", "--detector", "agreement")  # fmt: skip
    assert done.code == 0, done.err
    assert [row.split("\t")[0] for row in done.out.splitlines()] == ["detector", "magnitude", "agreement"]
    made = Calibration.load("calibration.json")
    assert "1 prompts are left out" in done.err and (made.memorized, made.ordinary) == (3, 4)
    Path("all.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in [*PROMPTS, ""]))
    arguments = ("scan", "all.jsonl", "-m", folder, "--seeds", "0:2", "--calibration", "calibration.json")
    done = unleak(*arguments, "--html", "scan.html", "--fail-over", "threshold")
    records = [json.loads(line) for line in Path("scan.jsonl").read_text().splitlines()[1:]]
    assert done.code == (3 if any(r["memorized"] for r in records) else 0)
    assert {r["memorized"] for r in records} <= {True, False} and set(records[0]["scores"]) == {made.detector}
    assert "1 lines cannot be used" in done.err and "uncalibrated" not in done.err
    assert len(done.out.splitlines()) == 11 and Path("scan.html").read_text().startswith("<!doctype html>")
    assert unleak(*arguments, "--fail-over", "-1e9").code == 3
    assert unleak(*arguments, "--fail-over", "1e9").code == 0


def test_an_uncalibrated_scan_says_so(unleak, folder):
    Path("p.txt").write_text("a red cat\n")
    done = unleak("scan", "p.txt", "-m", folder, "--seeds", "0:2", "-o", "x.jsonl", "--fail-over", "1e9")
    assert done.code == 0 and "uncalibrated" in done.err and done.out.startswith("score\tline\tprompt\n")


def test_a_gate_that_looked_at_nothing_does_not_pass(unleak, folder):
    Path("p.txt").write_text("\n")
    done = unleak("scan", "p.txt", "-m", folder, "--fail-over", "0.1")
    assert done.code == 2 and "nothing was looked at" in done.err


@pytest.mark.parametrize(("args", "says"), [
    (("scan", "none.txt"), "cannot read"),
    (("scan", "p.txt", "--first-steps", "0"), "all"),
    (("scan", "p.txt", "--first-steps", "x"), "all"),
    (("scan", "p.txt", "--seeds", "0"), "--seeds"),
    (("scan", "p.txt", "--fail-over", "nan"), "finite"),
    (("scan", "p.txt", "--detector", "collapse", "--fail-over", "threshold"), "--calibration"),
    (("scan", "p.txt", "-o", "no/such.jsonl"), "make it first"),
    (("scan", "p.txt", "-o", ""), "no file name"),
    (("scan", "p.txt", "-o", "/"), "no file name"),
    (("scan", "p.txt", "-o", ".."), "no file name"),
    (("scan", "p.txt", "--html", "scan.jsonl"), "two files"),
    (("scan", "p.txt", "--calibration", "none.json"), "cannot read the calibration"),
    (("scan", "p.txt", "-o", "p.txt"), "choose another file"),
    (("scan", "p.txt", "-o", "../" + "{here}/p.txt"), "choose another file"),
    (("calibrate", "--memorized", "p.txt", "--ordinary", "p.txt", "-o", "p.txt"), "choose another file"),
    (("calibrate", "--memorized", "p.txt", "--ordinary", "none.txt"), "cannot read"),
    (("calibrate", "--memorized", "p.txt", "--ordinary", "p.txt", "--fpr", "2"), "--fpr"),
    (("calibrate", "--memorized", "empty.txt", "--ordinary", "p.txt"), "holds no prompt"),
])  # fmt: skip
def test_bad_use_exits_2_before_the_model_is_loaded(unleak, monkeypatch, tmp_path: Path, args, says):
    monkeypatch.setattr("unleak.models.load", lambda *_, **__: pytest.fail("the model was loaded"))
    Path("p.txt").write_text("a red cat\n")
    Path("empty.txt").write_text("\n")
    done = unleak(*(arg.format(here=tmp_path.name) for arg in args))
    assert done.code == 2 and says in done.err and not done.out, done.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty.txt", "p.txt"]


def test_earlier_spellings_of_a_scan_work_and_say_what_they_are_now(unleak, folder):
    Path("p.txt").write_text("a red cat\n")
    old = unleak(
        "scan", "p.txt", "-m", folder, "--seeds", "2", "--steps", "all", "--inference-steps=2", "-o", "old.jsonl"
    )
    new = unleak(
        "scan", "p.txt", "-m", folder, "--seeds", "0:2", "--first-steps", "all", "--steps", "2", "-o", "new.jsonl"
    )
    assert old.code == new.code == 0 and old.out == new.out, old.err
    for said in (
        "--seeds 2 is --seeds 0:2 now",
        "--steps is --first-steps all now",
        "--inference-steps is --steps ... now",
    ):
        assert said in old.err
    assert "now" in new.err and "--steps are those of the whole trajectory" in new.err


@pytest.mark.parametrize("command", ["scan", "calibrate"])
def test_the_commands_explain_each_option(unleak, command):
    done = unleak(command, "--help")
    assert done.code == 0 and not done.err and "--model" in done.out


def rows_and_scores(pipe, prompts, monkeypatch, merges, **options):
    """Rows of the denoiser in each of its calls that a scan makes, and the scores by detector."""
    monkeypatch.setattr(scanning._OncePerSeed, "merges", merges)
    rows, denoiser = [], getattr(pipe, "unet", None) or pipe.transformer

    def count(_, args, kwargs):
        rows.append(len(next(iter(args), kwargs.get("hidden_states", kwargs.get("sample")))))

    # what the pipeline asks the denoiser for is not what runs in it: count at its first layer
    inside = getattr(denoiser, "conv_in", None) or getattr(denoiser, "x_embedder", None) or denoiser.pos_embed
    handle = inside.register_forward_pre_hook(count, with_kwargs=True)
    images = scan(pipe, prompts, 2, **options).images
    handle.remove()
    return rows, images


def test_the_rows_without_a_prompt_are_computed_once_for_a_seed(any_pipe, monkeypatch):
    guided = next(n for n in ("true_cfg_scale", "guidance_scale") if n in signature(any_pipe.__call__).parameters)
    short = {"max_sequence_length": 32} if hasattr(any_pipe, "transformer") else {}
    call = CALL | short | {guided: 3.0, "negative_prompt": "a dog"}
    options = {"call": call, "batch": 3, "detectors": ["agreement", "magnitude", "entropy"]}
    before, scores = rows_and_scores(any_pipe, PROMPTS[:3], monkeypatch, (), **options)
    after, merged = rows_and_scores(any_pipe, PROMPTS[:3], monkeypatch, ("uncond",), **options)
    in_one_call = max(before) == 12  # 3 prompts x 2 seeds, with and without the prompt
    assert after[-1] == (8 if in_one_call else 2)
    for name, value in scores.items():
        np.testing.assert_allclose(merged[name], value, rtol=1e-4, atol=1e-5)


def test_later_steps_have_rows_of_their_own(sd1, monkeypatch):
    options = {"first_steps": 2, "batch": 2, "call": CALL}
    before, scores = rows_and_scores(sd1, PROMPTS[:2], monkeypatch, (), **options)
    after, merged = rows_and_scores(sd1, PROMPTS[:2], monkeypatch, ("uncond",), **options)
    assert before[-2:] == [8, 8] and after[-2:] == [6, 8]
    for name, value in scores.items():
        np.testing.assert_allclose(merged[name], value, rtol=1e-4, atol=1e-5)
