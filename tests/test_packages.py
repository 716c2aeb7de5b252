"""Wheels: the code alone, and the weights of the embedded worlds, which the code finds in either place."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from unleak import __version__

pytest.importorskip("build", reason="packages are built with build and hatchling: pip install build hatchling")
pytest.importorskip("hatchling")

ROOT = Path(__file__).parents[1]


def built(folder: Path, out: Path) -> Path:
    made = [sys.executable, "-m", "build", "-q", "--wheel", "--no-isolation", "-o", str(out), str(folder)]
    done = subprocess.run(made, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(ROOT, tmp_path_factory.mktemp("code"))


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(ROOT / "packages" / "worlds", tmp_path_factory.mktemp("worlds"))


def unleak(site: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """The command line as unpacked wheels have it, in their own folder."""
    run, env = [sys.executable, "-m", "unleak", *args], {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(run, cwd=site, env=env, capture_output=True, text=True, timeout=300)


def test_the_wheel_of_the_code_is_small_and_has_no_weights(code: Path) -> None:
    names = zipfile.ZipFile(code).namelist()
    assert code.stat().st_size < 2_000_000 and f"-{__version__}-" in code.name
    assert not [name for name in names if name.endswith((".safetensors", ".bin")) or "models/emoji-" in name]
    assert {"unleak/py.typed", "unleak/app/style.css", "unleak/report/templates/scan.html"} <= set(names)


def test_every_weight_of_the_checkout_is_in_the_wheel_of_the_worlds(worlds: Path) -> None:
    here = ROOT / "src" / "unleak"
    weights = {f"unleak_worlds/{path.relative_to(here).as_posix()}" for path in here.rglob("*.safetensors")}
    names = set(zipfile.ZipFile(worlds).namelist())
    assert weights and weights <= names and f"-{__version__}-" in worlds.name
    assert not [name for name in names if name.endswith(".py") and name != "unleak_worlds/__init__.py"]


def test_the_code_alone_names_the_remedy_and_with_the_worlds_it_draws(code: Path, worlds: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(code).extractall(tmp_path)
    drawn = ("generate", "a mouse", "--seeds", "0", "--steps", "2", "-o", "out")
    alone = unleak(tmp_path, *drawn)
    assert alone.returncode == 2 and "pip install 'unleak[demo]'" in " ".join(alone.stderr.split()), alone.stderr
    zipfile.ZipFile(worlds).extractall(tmp_path)
    both = unleak(tmp_path, *drawn)
    assert both.returncode == 0 and (tmp_path / "out").is_dir(), both.stderr
