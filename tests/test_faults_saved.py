"""Saved things: whatever a file holds, its fields are read by their types, or the error names file and field.

Calibrations of both kinds, classifiers, `unleak.json`, outputs that are gone on with, results and parts of benchmarks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save
from typer.testing import CliRunner

from tiny import save_tiny, tiny
from unleak import models
from unleak.bench.regions import ale_bench
from unleak.bench.results import Results
from unleak.bench.rows import Row
from unleak.cli import app
from unleak.copies.methods.detour import Detour
from unleak.copies.protect import guard
from unleak.copies.scan.calibrate import Calibration, fingerprint_of
from unleak.copies.scan.scan import plan
from unleak.copies.scan.scan_file import scan_file
from unleak.core.intervention import Intervention
from unleak.engine.session import attach
from unleak.errors import BadInput, BrokenFile
from unleak.files.parts import Parts
from unleak.judges.load import load_judge
from unleak.words.lint.calibration import RiskCalibration
from unleak.words.lint.lint_file import lint
from unleak.words.tokens.classifier import Classifier

CALL = {"height": 64, "width": 64, "num_inference_steps": 2}
NAN, INFINITY, MISSING = float("nan"), float("inf"), object()
WRONG = (NAN, INFINITY, -INFINITY, 10**400, -1, "1", "", True, None, [], [1], {}, {"a": 1}, MISSING)
"""What may stand in place of any value."""


@pytest.fixture(scope="module")
def calibration(sd1: Any) -> Calibration:
    figure = [0.99, 0.9, 1.0]
    return Calibration(
        "tiny", fingerprint_of(sd1), "magnitude", 0.5, 0.01, 1, 2, CALL, 0.99, 0.9, {"auroc": (0.9, 1.0)}, 9, 9,
        {"magnitude": 1.0}, 0.0, {"magnitude": {"auroc": figure, "tpr_at_1fpr": figure, "threshold": 0.5}},
    )  # fmt: skip


def risk_calibration() -> RiskCalibration:
    return RiskCalibration(2.0, -1.0, {"text_encoder": "x"}, 40, 20, "a test")


def classifier(kind: str = "linear") -> Classifier:
    linear = {"weight": np.ones(5, np.float32), "bias": np.zeros(1, np.float32)}
    rows = {"rows": np.ones((4, 5), np.float32), "labels": np.array([0, 1, 0, 1], np.uint8)}
    return Classifier(kind, 1.0, 0.5, "text_encoder", {"text_encoder": "x"}, linear if kind == "linear" else rows)


def results() -> dict[str, Any]:
    row = Row("none", "all", "leak_rate", 0.5, 0.4, 0.6, 10)
    return Results("words", "emoji-sd", [0, 1], "dev", {"name": "glyphs"}, [row], command="unleak bench").to_dict()


def mutations(data: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    """(place, what stands there instead, all of it): every value of JSON data, in turn, by each of `WRONG`."""
    for key in data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        for wrong in WRONG:
            changed = json.loads(json.dumps(data))
            if wrong is MISSING:
                del changed[key]
            else:
                changed[key] = wrong
            yield (*where, key), wrong, changed
        for place, wrong, inner in mutations(data[key], (*where, key)):
            changed = json.loads(json.dumps(data))
            changed[key] = inner
            yield place, wrong, changed


def some_of(every: Iterator[Any], most: int = 40) -> list[Any]:
    """About so many, evenly; the stride is prime to the number of `WRONG`, so that every value comes."""
    cases = list(every)
    stride = next(n for n in range(max(1, len(cases) // most), len(cases)) if n % 2 and n % 7)
    return cases[::stride]


def equal_kind(one: Any, two: Any) -> bool:
    """The same value in type, so that nothing was lost."""
    return json.dumps(one, sort_keys=True) == json.dumps(two, sort_keys=True)


def loads_or_says(load: Any, file: Path, field: str | None = None) -> Any:
    """What `load` gives; None if it refuses the file by its name (and the field), as it should."""
    try:
        return load(file)
    except BrokenFile as e:
        assert file.name in str(e), e
        assert field is None or field in str(e), e
        return None


# -- one validator ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["calibration", "lint's calibration"])
def test_every_field_of_a_calibration_is_typed_finite_and_in_range(
    kind: str, calibration: Calibration, tmp_path: Path
) -> None:
    """What loads has the types of its fields, so that nothing that follows can trip over them."""
    made: Any = calibration if kind == "calibration" else risk_calibration()
    file, whole = tmp_path / "c.json", json.loads(made.to_json())
    accepted = []
    for place, wrong, changed in mutations(whole):
        file.write_text(json.dumps(changed))
        read = loads_or_says(type(made).load, file, None if place[0] == "versions" else str(place[0]))
        if read is not None and place[0] != "versions":
            accepted.append((place, wrong))
            assert (repr(wrong) not in ("nan", "inf", "-inf") and wrong != 10**400) or wrong is MISSING, (place, wrong)
            again = json.loads(read.to_json())
            assert set(again) == set(whole)
    numbers = {"threshold", "fpr", "auroc", "slope", "intercept", "seeds", "memorized", "ordinary", "items", "leaks"}
    kept = {place[0] for place, wrong in accepted if isinstance(wrong, str | bool) or wrong is None}
    assert not kept & numbers
    assert {place for place, wrong in accepted if wrong is MISSING and len(place) == 1} <= {
        ("weights",), ("bias",), ("compared",)
    }  # fmt: skip


@pytest.mark.parametrize("broken", ["empty", "half", "folder", "binary", "nested", "twice", "other", "newer", "gone"])
@pytest.mark.parametrize("kind", ["calibration", "lint's calibration", "classifier", "settings"])
def test_a_file_that_is_not_whole_is_refused_by_name(
    kind: str, broken: str, calibration: Calibration, tmp_path: Path
) -> None:
    loads = {"calibration": Calibration.load, "lint's calibration": RiskCalibration.load, "classifier": Classifier.load,
             "settings": lambda file: models.settings(file.parent)}  # fmt: skip
    text = {"calibration": calibration.to_json(), "lint's calibration": risk_calibration().to_json(),
            "settings": json.dumps({"call": CALL})}.get(kind, "")  # fmt: skip
    file = tmp_path / "unleak.json"
    whole = classifier().to_bytes() if kind == "classifier" else text.encode()
    bad = {
        "empty": b"", "half": whole[: len(whole) // 2], "binary": bytes(range(256)), "nested": b"[" * 100_000,
        "twice": whole.replace(b"{", b'{"a": 1, "a": 2, ', 1), "other": b'{"schema": "unleak/other/1"}',
        "newer": re.sub(rb"(unleak/[\w-]+)/\d+", rb"\1/9", whole),
    }  # fmt: skip
    if broken == "folder":
        file.mkdir()
    elif broken != "gone":
        file.write_bytes(bad[broken])
    if kind == "settings" and broken in ("gone", "newer"):
        assert loads[kind](file) == (CALL if broken == "newer" else {})
        return
    with pytest.raises(BrokenFile, match=r"unleak\.json"):
        loads[kind](file)


def test_a_device_is_no_saved_thing() -> None:
    for load in (Calibration.load, RiskCalibration.load, Classifier.load):
        with pytest.raises(BrokenFile, match="no regular file"):
            load(Path("/dev/zero"))


@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_every_field_and_array_of_a_classifier_is_checked(kind: str, tmp_path: Path) -> None:
    file, made = tmp_path / "model", classifier(kind)
    file.write_bytes(made.to_bytes())
    assert equal_kind(Classifier.load(file).encoders, made.encoders)
    with safe_open(str(file), "numpy") as opened:
        meta = opened.metadata()
    head = json.loads(meta["classifier"])
    for _place, wrong, changed in mutations(head):
        file.write_bytes(save(made.arrays, {**meta, "classifier": json.dumps(changed)}))
        read = loads_or_says(Classifier.load, file)
        if read is not None:
            assert not isinstance(wrong, float)
            read.scores(np.ones((2, 5)))
    for name, array in made.arrays.items():
        for bad in (array[:0], array.astype(np.float32) * NAN, np.stack([array, array])):
            file.write_bytes(save({**made.arrays, name: np.ascontiguousarray(bad)}, meta))
            with pytest.raises(BrokenFile, match=name):
                Classifier.load(file)
        file.write_bytes(save({n: a for n, a in made.arrays.items() if n != name}, meta))
        with pytest.raises(BrokenFile, match=f"{name} is missing"):
            Classifier.load(file)


def test_settings_of_a_model_are_typed(tmp_path: Path) -> None:
    whole = {"call": {**CALL, "guidance_scale": 3.0}, "guidance": "guidance_scale", "edit": {"steps": 8}}
    for _place, wrong, changed in mutations(whole):
        (tmp_path / "unleak.json").write_text(json.dumps(changed))
        try:
            read = models.recommended(tmp_path)
        except BrokenFile as e:
            assert "unleak.json" in str(e)
            continue
        assert not (isinstance(wrong, float) and not np.isfinite(wrong))
        assert isinstance(read.call, dict) and isinstance(read.edit, dict) and read.guidance.isidentifier()
        assert all(read.call.get(n) is None or type(read.call[n]) is int for n in CALL)


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody", "a\0b", "x/y\0", "\udcff/a", "a/" * 3000])
def test_a_name_that_can_be_no_model_is_a_typed_error(name: str) -> None:
    assert models.settings(name) == {}
    with pytest.raises(BadInput):
        models.load(name)
    with pytest.raises(BadInput):
        load_judge(name)


# -- in commands -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = save_tiny("sd1", tmp_path_factory.mktemp("model") / "sd1")
    (made / "unleak.json").write_text(json.dumps({"call": CALL}))
    return str(made)


@pytest.fixture
def unleak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> Any:
    """The command line, in a folder with a file of prompts; the model is loaded once."""
    pipe = models.load(folder)
    monkeypatch.setattr(models, "load", lambda *_, **__: pipe)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a red cat\na dog\n")

    def run(*args: str) -> SimpleNamespace:
        done = CliRunner().invoke(app, list(args))
        assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
        return SimpleNamespace(code=done.exit_code, out=done.stdout, err=" ".join(done.stderr.split()))

    return run


def written(file: Path, data: Any) -> str:
    file.write_text(json.dumps(data))
    return str(file)


def test_a_threshold_that_is_no_number_never_opens_a_gate(
    unleak: Any, folder: str, calibration: Calibration, tmp_path: Path
) -> None:
    for wrong in (NAN, INFINITY, "0.5", True, None, [0.5]):
        file = written(tmp_path / "cal.json", {**calibration.to_dict(), "threshold": wrong})
        for args in (("scan", "p.txt", "--calibration", file, "--fail-over", "threshold"),
                     ("guard", "a red cat", "--gate", file)):  # fmt: skip
            done = unleak(*args, "-m", folder)
            assert done.code == 2 and "cal.json" in done.err and "threshold" in done.err, done.err
            assert sorted(p.name for p in tmp_path.iterdir()) == ["cal.json", "p.txt"]


OTHER_SETTINGS = [
    ("--height 32 --width 32", "height 64, not 32"),
    ("--size 32", "width 64, not 32"),
    ("--steps 3", "num_inference_steps 2, not 3"),
    ("--guidance 2", "guidance_scale 7.5, not 2"),
    ("--seeds 0:3", "seeds 2, not 3"),
]


@pytest.mark.parametrize(("options", "says"), OTHER_SETTINGS)
def test_a_calibration_of_other_settings_is_refused_wherever_it_is_used(
    options: str, says: str, unleak: Any, folder: str, calibration: Calibration, tmp_path: Path
) -> None:
    (tmp_path / "cal.json").write_text(replace(calibration, fingerprint=fingerprint_of(models.load(folder))).to_json())
    for command in (("scan", "p.txt", "--calibration", "cal.json", "-o", "o.jsonl"),
                    ("guard", "a red cat", "--gate", "cal.json", "-o", "drawn")):  # fmt: skip
        given = () if "--seeds" in options else ("--seeds", "0:2")
        done = unleak(*command, "-m", folder, *given, *options.split())
        assert done.code == 2 and says in done.err, done.err
        assert not (tmp_path / "o.jsonl").exists() and not (tmp_path / "drawn").exists()
        assert unleak(*command, "-m", folder, "--seeds", "0:2").code == 0
        for left in ("o.jsonl", "drawn"):
            if (path := tmp_path / left).is_dir():
                for file in path.iterdir():
                    file.unlink()
                path.rmdir()
            else:
                path.unlink(missing_ok=True)


@pytest.mark.parametrize(("changes", "says"), [
    ({"height": 32, "width": 32}, "height 64, not 32"), ({"num_inference_steps": 4}, "num_inference_steps 2, not 4"),
    ({"guidance_scale": 2.0}, "guidance_scale 7.5, not 2.0"), ({"num_images_per_prompt": 3}, "seeds 2, not 3"),
])  # fmt: skip
def test_a_gate_is_refused_in_a_generation_of_other_settings(
    changes: dict[str, Any], says: str, sd1: Any, calibration: Calibration
) -> None:
    gated = Detour(gate=calibration)
    assert Intervention.from_dict(json.loads(json.dumps(gated.to_dict()))) == gated
    with attach(sd1, gated) as run:
        sd1("a red cat", num_images_per_prompt=2, output_type="latent", **CALL)
        assert len(run.results["gate"]) == 2
        with pytest.raises(BadInput, match=says):
            sd1("a red cat", output_type="latent", **{"num_images_per_prompt": 2, **CALL, **changes})
    with pytest.raises(BadInput, match=says):
        seeds = changes.get("num_images_per_prompt", 2)
        call = {k: v for k, v in {**CALL, **changes}.items() if k != "num_images_per_prompt"}
        guard(sd1, "a red cat", gate=calibration, seeds=seeds, call=call)


def test_a_scheduler_that_was_exchanged_makes_a_calibration_another_s(calibration: Calibration) -> None:
    from diffusers import EulerDiscreteScheduler

    pipe = tiny("sd1")
    with attach(pipe, Detour(gate=calibration)):
        pipe("a red cat", num_images_per_prompt=2, output_type="latent", **CALL)
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        with pytest.raises(BadInput, match="another scheduler"):
            pipe("a red cat", num_images_per_prompt=2, output_type="latent", **CALL)
    with pytest.raises(BadInput, match="another scheduler"):
        plan(pipe, 2, calibration=calibration, call=CALL)


def test_a_default_that_is_spelled_out_is_no_other_setting(sd1: Any, calibration: Calibration) -> None:
    short = replace(calibration, call={"num_inference_steps": 2, "height": 64, "width": 64, "guidance_scale": 7.5})
    assert plan(sd1, 2, calibration=short, call=CALL).calibration is short
    assert plan(sd1, 2, calibration=replace(calibration, call={**CALL, "eta": 0.0}), call=CALL)
    with pytest.raises(BadInput, match="eta"):
        plan(sd1, 2, calibration=replace(calibration, call={**CALL, "eta": 0.5}), call=CALL)


def test_a_calibration_of_the_other_kind_is_a_typed_error(
    unleak: Any, folder: str, calibration: Calibration, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="RiskCalibration"):
        lint(tiny("sd1"), "a [cat] and a [dog]", calibration=calibration)  # type: ignore[arg-type]
    (tmp_path / "copies.json").write_text(calibration.to_json())
    (tmp_path / "lint.json").write_text(risk_calibration().to_json())
    (tmp_path / "l.txt").write_text("a [cat] and a [dog]\n")
    for args in (("lint", "l.txt", "--calibration", "copies.json"), ("scan", "p.txt", "--calibration", "lint.json"),
                 ("guard", "a cat", "--gate", "lint.json")):  # fmt: skip
        done = unleak(*args, "-m", folder)
        assert done.code == 2 and "the field schema is" in done.err, done.err


# -- outputs that are gone on with -----------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["scan", "lint"])
def test_a_record_of_a_resumed_output_is_typed(command: str, unleak: Any, folder: str, tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("a [cat] and a [dog]\na [bat] on a [hat]\n")
    given = ("scan", "p.txt", "--seeds", "0:2") if command == "scan" else ("lint", "l.txt")
    assert unleak(*given, "-m", folder, "-o", "o.jsonl").code == 0
    whole = (tmp_path / "o.jsonl").read_bytes()
    header, first, *rest = whole.decode().splitlines()
    record = json.loads(first)
    for place, wrong, changed in some_of(mutations(record)):
        (tmp_path / "o.jsonl").write_text("\n".join([header, json.dumps(changed), *rest]) + "\n")
        for done in (unleak(*given, "-m", folder, "-o", "o.jsonl"), unleak("report", "o.jsonl")):
            assert done.code in (0, 2), (place, wrong, done.err)
            assert done.code == 0 or "o.jsonl" in done.err, (place, wrong, done.err)
            assert done.code == 2 or repr(wrong) not in ("nan", "inf", "-inf"), (place, wrong)
    head = json.loads(header)
    for place, wrong, changed in some_of(mutations(head)):
        (tmp_path / "o.jsonl").write_text("\n".join([json.dumps(changed), first, *rest]) + "\n")
        done = unleak(*given, "-m", folder, "-o", "o.jsonl")
        assert equal_kind(changed, head) or (done.code == 2 and "o.jsonl" in done.err), (place, wrong, done.err)
        done = unleak("report", "o.jsonl")
        assert done.code in (0, 2), (place, wrong, done.err)


def test_answers_to_other_questions_are_not_kept(unleak: Any, folder: str, tmp_path: Path) -> None:
    """The prompt is the same; what is asked about it is not."""
    line = {"prompt": "a mouse and a laptop", "items": ["mouse", "laptop"]}
    asked = [{**line, "items": ["mouse"]}, {**line, "sense": {"mouse": "furry mouse"}},
             {**line, "sense": {"mouse": "furry mouse|computer mouse"}},
             {**line, "items": ["laptop", "mouse"]}]  # fmt: skip
    written(tmp_path / "l.jsonl", line)
    assert unleak("lint", "l.jsonl", "-m", folder, "-o", "o.jsonl").code == 0
    whole = (tmp_path / "o.jsonl").read_bytes()
    assert unleak("lint", "l.jsonl", "-m", folder, "-o", "o.jsonl").code == 0
    for other in asked:
        written(tmp_path / "l.jsonl", other)
        done = unleak("lint", "l.jsonl", "-m", folder, "-o", "o.jsonl")
        assert done.code == 2 and "line 1 of the prompts has changed" in done.err, done.err
        assert (tmp_path / "o.jsonl").read_bytes() == whole


def test_a_scan_does_not_go_on_with_another_combination(sd1: Any, calibration: Calibration, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a red cat\n")
    both = replace(calibration, weights={"magnitude": 1.0, "agreement": 2.0})
    scan_file(sd1, tmp_path / "p.txt", tmp_path / "o.jsonl", plan(sd1, 2, calibration=both, call=CALL))
    for changes, says in (({"bias": 1.0}, "bias"), ({"weights": {"magnitude": 1.0, "agreement": 3.0}}, "weights")):
        other = plan(sd1, 2, calibration=replace(both, **changes), call=CALL)  # type: ignore[arg-type]
        with pytest.raises(BadInput, match=f"another {says}"):
            scan_file(sd1, tmp_path / "p.txt", tmp_path / "o.jsonl", other)


# -- benchmarks ------------------------------------------------------------------------------------------------


def damaged(text: str) -> dict[str, Any]:
    """Contents of a part that are not what was written; None: a folder stands there."""
    part = json.loads(text)
    return {
        "cut": text[:50], "empty": "", "no end": text[:-1], "binary": "\x00\x01", "a list": "[1]", "a number": "3",
        "text": '"x"', "null": "null", "nested": "[" * 100_000, "another value": json.dumps({**part, "value": {}}),
        "no value": json.dumps({k: v for k, v in part.items() if k != "value"}),
        "no digest": json.dumps({k: v for k, v in part.items() if k != "digest"}),
        "no inputs": json.dumps({k: v for k, v in part.items() if k != "inputs"}),
        "NaN": text.replace("1.5", "NaN"), "text for a number": text.replace("1.5", '"1.5"'),
        "inputs of another type": json.dumps({**part, "inputs": 3}), "unknown": json.dumps({**part, "more": 1}),
        "UTF-8": b"\xff\xfe\x00", "folder": None,
    }  # fmt: skip


def test_a_damaged_part_is_computed_again_with_a_note(tmp_path: Path) -> None:
    value, notes = {"x": [1.5, 2], "name": "é"}, []
    parts, file = Parts(tmp_path, notes.append), tmp_path / "parts" / "x.json"
    assert parts.get("x", [1], lambda: value) == value
    text = file.read_text()
    for name, content in damaged(text).items():
        if content is None:
            file.unlink()
            file.mkdir()
        else:
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        notes.clear()
        assert parts.get("x", [1], lambda: value) == value, name
        assert notes and "x.json" in notes[0] and "computed again" in notes[0], name
        if content is None:
            assert file.is_dir() and "remove" in notes[1]
        else:
            assert file.read_text() == text
            assert parts.get("x", [1], lambda: pytest.fail("it is whole")) == value


def test_a_part_of_other_inputs_is_no_damaged_one(tmp_path: Path) -> None:
    notes: list[str] = []
    parts = Parts(tmp_path, notes.append)
    parts.get("x", [1], lambda: NAN)
    assert np.isnan(parts.get("x", [1], lambda: pytest.fail("it is there")))
    assert parts.get("x", [2], lambda: 5) == 5 and not notes


def test_results_of_a_benchmark_are_typed(unleak: Any, tmp_path: Path) -> None:
    whole = results()
    for place, wrong, changed in mutations(whole):
        try:
            shown = Results.from_dict(changed, path="r.json").table()
        except BrokenFile as e:
            assert "r.json" in str(e)
            continue
        assert "nan" not in shown and "inf" not in shown, (place, wrong)
        optional = isinstance(wrong, int | str) or place[-1] == "units"
        assert place[0] != "rows" or len(place) < 3 or optional, (place, wrong)
    for _, _, changed in some_of(mutations(whole)):
        done = unleak("report", written(tmp_path / "r.json", changed))
        assert done.code in (0, 2) and (done.code == 0 or "r.json" in done.err), done.err
    assert unleak("report", written(tmp_path / "r.json", whole)).code == 0
    (tmp_path / "folder.json").mkdir()
    assert "folder" in unleak("report", "folder.json").err


def test_a_damaged_picture_or_its_list_is_drawn_again_with_a_note(tmp_path: Path) -> None:
    run: Any = SimpleNamespace(notes=[])
    about, made_with = tmp_path / "prompt.json", {"model": "m", "options": {"steps": 3}}
    text = json.dumps({"made_with": made_with, "prompts": {"1": {"edits": [["mouse", "cat"]]}}})
    about.write_text(text)
    assert ale_bench._written(run, about, made_with) and not run.notes
    assert ale_bench._written(run, about, {**made_with, "model": "n"}) == {} and not run.notes
    for bad in (text[:30], "", "[]", "{}", text.replace("{", "[", 1), '{"made_with": {}, "prompts": NaN}'):
        run.notes.clear()
        about.write_text(bad)
        assert ale_bench._written(run, about, made_with) == {} and "prompt.json" in run.notes[0]
    picture = tmp_path / "edit_1.png"
    Image.new("RGB", (8, 8)).save(picture)
    whole = picture.read_bytes()
    assert ale_bench._picture(run, picture) is not None and ale_bench._picture(run, tmp_path / "none.png") is None
    for bytes_ in (b"", whole[:40], b"no picture"):
        run.notes.clear()
        picture.write_bytes(bytes_)
        assert ale_bench._picture(run, picture) is None and "edit_1.png" in run.notes[0]


def test_what_is_no_calibration_is_a_typed_error_in_python(sd1: Any) -> None:
    for wrong in ("cal.json", {"threshold": 1.0}, risk_calibration(), 0.5):
        with pytest.raises(BadInput, match="calibration"):
            plan(sd1, 2, calibration=wrong, call=CALL)  # type: ignore[arg-type]
    for wrong in ("cal.json", {"slope": 1.0}, 0.5):
        with pytest.raises(BadInput, match="takes a RiskCalibration"):
            lint(sd1, "a [cat] and a [dog]", calibration=wrong)  # type: ignore[arg-type]
    for wrong in ("cal.json", risk_calibration(), NAN):
        with pytest.raises(BadInput, match="a calibration or a threshold"):
            Detour(gate=wrong)  # type: ignore[arg-type]
