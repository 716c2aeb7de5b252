"""The detectors' benchmark on any model: files as they are found, published figures beside, resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tiny import save_tiny
from unleak.bench.copies import real_copies
from unleak.cli import app

SIZE = ["--steps", "2", "--seeds", "0,1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny("sd1", tmp_path_factory.mktemp("model"))


def never_again(*_: object, **__: object) -> None:
    pytest.fail("measured again")


never_again.__module__ = real_copies.scan.__module__  # parts are kept for the code of that module


def test_tables_of_captions_are_read_as_they_are(folder, tmp_path: Path, monkeypatch):
    memorized, ordinary, out = tmp_path / "m.csv", tmp_path / "o.txt", tmp_path / "out"
    memorized.write_text(';Caption;URL\n0;a red mouse;u\n1;"a dog, and ""a cat""";u\n')
    ordinary.write_text("a zebra\na palm tree\na red mouse on a table\n")
    args = ["bench", "copies", "-m", str(folder), "-o", str(out), "--memorized", str(memorized), "--ordinary",
            str(ordinary), "--methods", "magnitude,entropy", *SIZE]  # fmt: skip
    first = CliRunner().invoke(app, args)
    assert first.exit_code == 0, first.output
    assert "Published for magnitude" in first.output and "0.982" in first.output
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [(r["method"], r["metric"], r["n"]) for r in rows] == [
        (name, metric, 5) for name in ("magnitude", "entropy") for metric in ("auroc", "tpr_at_1fpr")
    ]
    monkeypatch.setattr(real_copies, "scan", never_again)
    assert CliRunner().invoke(app, args).exit_code == 0
    ordinary.write_text("a zebra\na red mouse\n")
    again = CliRunner().invoke(app, args)
    assert again.exit_code == 2 and "both files" in again.output


@pytest.mark.parametrize(("args", "says"), [
    (["--memorized", "m.txt"], "both --memorized"), (["--memorized", "no.txt", "--ordinary", "no.txt"], "cannot read"),
])  # fmt: skip
def test_bad_use(args, says, tmp_path: Path):
    found = CliRunner().invoke(app, ["bench", "copies", "-o", str(tmp_path / "out"), *args])
    assert found.exit_code == 2 and says in found.output
