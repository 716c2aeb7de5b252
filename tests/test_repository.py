"""What the repository promises to those who clone it: small files, one version, metadata that can be read."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

import unleak

ROOT = Path(__file__).parents[1]
MOST = 2**20  #: bytes of a file that is no weights


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if done.returncode:
        pytest.skip("this is no git checkout")
    return [ROOT / name for name in done.stdout.decode().split("\0") if name]


def test_no_file_but_weights_is_large() -> None:
    large = [f for f in tracked() if f.is_file() and f.stat().st_size > MOST and f.suffix != ".safetensors"]
    assert not large


def test_there_is_one_version() -> None:
    (stated,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert stated == citation["version"] == unleak.__version__
    worlds = (ROOT / "packages" / "worlds" / "pyproject.toml").read_text()
    assert f'version = "{stated}"' in worlds and f'"unleak-worlds=={stated}"' in (ROOT / "pyproject.toml").read_text()
    assert f"## {unleak.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_citation_names_the_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    named = {one["value"] for paper in citation["references"] for one in paper["identifiers"]}
    assert named == {"arXiv:2504.01137", "arXiv:2412.04715", "arXiv:2603.00133"}
    assert all(paper["title"] and paper["authors"] and paper["year"] for paper in citation["references"])
