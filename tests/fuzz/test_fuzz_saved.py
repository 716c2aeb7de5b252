"""Every saved thing, damaged in any way: it loads as what its types say, or the error is typed and names the file."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import MODEL, damaged, examples, fuzz_folder, inputs, mutated, plain, run, tiny_models
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save

from unleak import models
from unleak.bench.results import FILE as RESULTS
from unleak.copies.scan.calibrate import Calibration
from unleak.errors import BrokenFile
from unleak.files.parts import Parts
from unleak.words.lint.calibration import RiskCalibration
from unleak.words.tokens.classifier import Classifier

SETTINGS = json.dumps({"call": {"num_inference_steps": 2, "height": 64, "width": 64}, "edit": {"steps": 3}}).encode()
KINDS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "calibration": ("cal.json", Calibration.load),
    "calibration of lint": ("risk.json", RiskCalibration.load),
    "results": ("results.json", RESULTS.load),
    "settings": ("unleak.json", lambda file: models.recommended(file.parent)),
    "classifier": ("classifier", Classifier.load),
}  # fmt: skip


def whole(name: str) -> bytes:
    return SETTINGS if name == "unleak.json" else inputs()[name]


@st.composite
def changed(draw: Callable[..., Any], name: str) -> bytes:
    """The file with a wrong byte, or with a wrong value in its JSON."""
    data = whole(name)
    if draw(st.booleans()):
        return draw(damaged(data))
    if name != "classifier":
        return json.dumps(draw(mutated(json.loads(data)))).encode()
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        with safe_open(file.name, "numpy") as opened:
            arrays, meta = {n: opened.get_tensor(n) for n in opened.keys()}, opened.metadata()  # noqa: SIM118
    return save(arrays, {**meta, "classifier": json.dumps(draw(mutated(json.loads(meta["classifier"]))))})


@pytest.mark.parametrize("kind", KINDS)
def test_what_loads_is_typed_and_what_does_not_is_named(kind: str) -> None:
    name, load = KINDS[kind]

    @examples(25, 0.2 / len(KINDS))
    @given(changed(name))
    def check(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as made:
            file = Path(made) / name
            file.write_bytes(data)
            try:
                read = load(file)
            except BrokenFile as e:
                assert name in str(e)
            else:
                arrays = getattr(read, "arrays", {})
                plain(dataclasses.replace(read, arrays={}) if arrays else read)
            assert file.read_bytes() == data and len(list(Path(made).iterdir())) == 1

    check()


USES: dict[str, tuple[str, ...]] = {
    "cal.json": ("scan", "p.txt", "--calibration", "cal.json", "--seeds", "0:2", "--fail-over", "threshold"),
    "risk.json": ("lint", "p.txt", "--calibration", "risk.json"),
    "classifier": ("repair", "a mouse and a laptop", "--items", "mouse", "--redundancy", "classifier"),
    "results.json": ("report", "results.json"),
    "model/unleak.json": ("lint", "p.txt"),
}


@pytest.mark.parametrize("name", USES)
def test_a_command_with_a_damaged_file_ends_as_documented(name: str) -> None:
    @examples(4, 0.05 / len(USES))
    @given(changed(Path(name).name))
    def check(data: bytes) -> None:
        with fuzz_folder() as folder, tiny_models(draws=name != "classifier"):
            (folder / name).write_bytes(data)
            run(*USES[name], *(() if "report" in USES[name] else ("-m", MODEL)))
            assert (folder / name).read_bytes() == data

    check()


@examples(25, 0.03)
@given(st.data())
def test_a_damaged_part_is_computed_again(data: st.DataObject) -> None:
    value = {"x": [1.5, 2], "y": None, "z": "é"}
    with tempfile.TemporaryDirectory() as made:
        notes: list[str] = []
        parts = Parts(Path(made), notes.append)
        parts.get("x", [1], lambda: value)
        file = Path(made) / "parts" / "x.json"
        text = file.read_bytes()
        broken = data.draw(damaged(text) | mutated(json.loads(text)).map(lambda part: json.dumps(part).encode()))
        file.write_bytes(broken)
        assert parts.get("x", [1], lambda: value) == value
        assert file.read_bytes() == text or json.loads(broken) == json.loads(text)
