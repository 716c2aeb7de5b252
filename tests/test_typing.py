"""What a user's editor and type checker see: tests/user_script.py names every public name and is checked strictly."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import unleak

SCRIPT = Path(__file__).with_name("user_script.py")


def test_the_script_names_everything_public() -> None:
    named = set(re.findall(r"\bunleak\.(\w+)", SCRIPT.read_text()))
    rooms = set(re.search(r"from unleak import (.*)", SCRIPT.read_text()).group(1).split(", "))
    assert set(unleak.__all__) - named - rooms == {"__version__"}


SETTINGS = """
[mypy]
strict = True
ignore_missing_imports = True
follow_imports = silent
[mypy-torch.*,diffusers.*,transformers.*,numpy.*,scipy.*,sklearn.*,skimage.*,matplotlib.*,PIL.*,jinja2.*]
follow_imports = skip
"""
"""``mypy --strict``; other packages are left out, which saves a minute."""


def test_a_strict_type_checker_accepts_it_and_sees_its_errors(tmp_path: Path) -> None:
    (tmp_path / "mypy.ini").write_text(SETTINGS)
    env = {**os.environ, "MYPYPATH": str(Path(unleak.__file__).parents[1])}
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", str(SCRIPT)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
