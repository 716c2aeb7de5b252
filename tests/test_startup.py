"""What a command loads before it does its work: no library that this command has no use for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ["sklearn", "pandas", "skimage", "matplotlib", "torchvision", "gradio", "ray", "pyarrow", "spacy"]
RUN = """
import json, sys
from unleak.cli import app
try:
    app(sys.argv[2:])
except SystemExit as stop:
    assert not stop.code, stop.code
open(sys.argv[1], "w").write(json.dumps(sorted(sys.modules)))
"""


def loaded_by(tmp_path: Path, *command: str) -> set[str]:
    """The modules in a fresh process after `unleak COMMAND`."""
    names = tmp_path / "modules.json"
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(names), *command], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(names.read_text()))


@pytest.mark.parametrize(
    ("command", "unused"),
    [
        (["lint", "FILE"], [*HEAVY, "unleak.copies", "unleak.regions", "unleak.bench", "unleak.drawing.generate"]),
        (["scan", "FILE"], [*HEAVY, "unleak.words", "unleak.regions", "unleak.bench"]),
        (["doctor"], [name for name in HEAVY if name != "skimage"] + ["unleak.bench"]),  # it measures PSNR in a trial
        (["methods"], [*HEAVY, "diffusers", "transformers", "unleak.bench"]),
    ],
    ids=lambda value: value[0],
)
def test_a_command_loads_only_what_it_uses(tmp_path: Path, command: list[str], unused: list[str]) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a [mouse] and a [laptop]\n")
    loaded = loaded_by(tmp_path, *(str(prompts) if word == "FILE" else word for word in command))
    assert "unleak.cli" in loaded
    assert not loaded.intersection(unused)
