"""docs/extend.md is followed literally: its code runs, its named methods become known everywhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

import unleak

DOCS = (Path(__file__).parents[1] / "docs" / "extend.md").read_text("utf-8")
SOURCE = Path(unleak.__file__).parent


class Block(NamedTuple):
    language: str
    title: str
    text: str


BLOCKS = [
    Block(language, title or "", text)
    for language, title, text in re.findall(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', DOCS, re.M | re.S)
]


@pytest.mark.e2e
def test_the_code_of_a_script_runs_in_order(capsys):
    space: dict[str, object] = {}
    for block in BLOCKS:
        if block.language == "python" and not block.title:
            exec(compile(block.text, "docs/extend.md", "exec"), space)
    said = capsys.readouterr().out
    assert "First" in said and "KeyScale" in said


# -- a named method is a file and a line -------------------------------------------------------------------------


def copy_of_the_package(to: Path) -> None:
    """The package with its code copied and its data linked, so that the method's files can be added."""
    for path in SOURCE.rglob("*"):
        if "__pycache__" in path.parts:
            continue
        target = to / path.relative_to(SOURCE)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif path.suffix == ".py":
            target.write_text(path.read_text("utf-8"), "utf-8")
        else:
            target.symlink_to(path)


def add_line(file: Path, table: str, text: str) -> None:
    """Put the import below the others, and the line first into the table."""
    code = file.read_text("utf-8")
    imports = [line for line in text.splitlines() if line.startswith("from ")]
    entry = "\n".join(line for line in text.splitlines() if not line.startswith("from "))
    begin = re.search(rf'^{table}\b.*?(?:=\s*\{{|"\w+",\s*[\[(])\n', code, re.M | re.S)
    assert begin, f"{file} has no table {table}"
    code = code[: begin.end()] + entry + "\n" + code[begin.end() :]
    for line in imports:
        first = re.search(r"^from unleak", code, re.M)
        assert first
        code = code[: first.start()] + line + "\n" + code[first.start() :]
    file.write_text(code, "utf-8")


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A folder with the package in which every named method of the page stands."""
    folder = tmp_path_factory.mktemp("extended")
    copy_of_the_package(folder / "unleak")
    for block in BLOCKS:
        path, _, table = block.title.partition(" ")
        if not path:
            continue
        file = folder / Path(path).relative_to("src")
        if table:
            add_line(file, table, block.text)
        else:
            file.write_text(block.text, "utf-8")
    return folder


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """The files that the page's commands name: a photo and its mask, prompts."""
    folder = tmp_path_factory.mktemp("workplace")
    Image.fromarray(np.full((64, 64, 3), 200, np.uint8)).save(folder / "photo.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[8:40, 8:40] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    (folder / "prompts.txt").write_text("a cat\na dog and a key\n", "utf-8")
    return folder


COMMANDS = [line for block in BLOCKS if not block.language for line in block.text.splitlines()]


@pytest.mark.e2e
@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_page_runs(line, extended, workplace):
    program, *words = _words(line)
    assert program == "unleak"
    done = run(words, extended, workplace)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.e2e
def test_help_knows_the_named_methods(extended, workplace):
    for command in ("repair", "guard", "edit", "scan"):
        assert "toy" in run([command, "--help"], extended, workplace).stdout, command
    known = run(["methods"], extended, workplace).stdout
    assert known.count("toy") >= 4


def run(words: list[str], package: Path, where: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    arguments = [sys.executable, "-m", "unleak", *words]
    return subprocess.run(arguments, env=env, cwd=where, capture_output=True, text=True, timeout=600, check=False)


def _words(line: str) -> list[str]:
    import shlex

    return shlex.split(line)
