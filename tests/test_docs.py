"""The site of docs/: it builds without a warning, and its reference is the public face."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import unleak

ROOT = Path(__file__).parents[1]


def test_the_reference_names_every_public_name_once() -> None:
    named = re.findall(r"^::: ([\w.]+)\.(\w+)$", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE)
    public = [name for name in unleak.__all__ if name in unleak._MODULES]
    assert sorted(name for _, name in named) == sorted(public)
    assert all(unleak._MODULES[name] == module for module, name in named)


def test_the_site_builds_strictly_and_asks_nothing_of_other_hosts(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="the site is built with mkdocs-material: pip install 'unleak[docs]'")
    pytest.importorskip("mkdocstrings", reason="pip install 'unleak[docs]'")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=ROOT, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    start = (tmp_path / "site" / "start.html").read_text("utf-8")
    loaded = re.findall(
        r'<(?:script|img|iframe)[^>]+src="(https?://[^"]+)"|<link[^>]+stylesheet[^>]+href="(https?://[^"]+)"', start
    )
    assert not loaded and "unleak.attach" in start
