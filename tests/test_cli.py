"""The command line as a person would run it: results, exit statuses, and that bad input changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ENV = {**os.environ, "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


def unleak(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "unleak", *args], cwd=cwd, env=ENV, capture_output=True, text=True, timeout=300
    )


def test_importing_unleak_does_not_import_torch() -> None:
    code = "import sys, unleak; assert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=ENV)


def test_every_public_verb_loads() -> None:
    import unleak as package

    assert all(getattr(package, name) is not None for name in package.__all__)
    with pytest.raises(AttributeError, match="no attribute"):
        package.nothing  # noqa: B018


def test_help_and_version_need_no_model(tmp_path: Path) -> None:
    done = unleak("--version", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("unleak ")
    assert "repair" in unleak("--help", cwd=tmp_path).stdout


@pytest.mark.parametrize(("args", "says"), [
    (("repair", "a mouse and a laptop", "--items", "cat"), "cat"),
    (("repair", "a mouse and a mouse", "--items", "mouse"), "mouse#"),
    (("repair", "a mouse and a laptop", "--items", "mouse", "--with", "magic"), "choose from"),
    (("repair", "a mouse and a laptop", "--items", ""), "tem"),
    (("repair", "", "--items", "mouse"), "empty"),
    (("repair", "a mouse and a laptop", "--items", "mouse,laptop", "--eos-pads", "no-such"), "choose one"),
    (("repair", "a mouse and a laptop", "--items", "mouse", "--seeds", "x"), "seeds"),
    (("generate", "  "), "empty"),
    (("generate", "a cat " * 3000), "characters"),
    (("generate", "a mouse", "--seeds", "4:1"), "seeds"),
    (("generate", "a mouse", "-m", "no/such/folder"), "no model"),
    (("bench", "world", "--methods", "nothing"), "nothing"),
    (("bench", "world", "--split", "nothing", "--limit", "1"), "split"),
])  # fmt: skip
def test_bad_use_exits_2_says_what_to_do_and_leaves_nothing(args: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = unleak(*args, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert says in " ".join(done.stderr.split()) and "Traceback" not in done.stderr
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_an_unwritable_folder_is_found_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    done = unleak("generate", "a mouse", "-o", "taken", cwd=tmp_path)
    assert done.returncode == 2 and "choose another" in " ".join(done.stderr.split())


def test_a_folder_with_pickled_or_no_weights_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "unet").mkdir(parents=True)
    (model / "model_index.json").write_text(json.dumps({"_class_name": "X", "unet": ["diffusers", "Y"]}))
    (model / "unet" / "config.json").write_text("{}")
    done = unleak("generate", "a mouse", "-m", str(model), cwd=tmp_path)
    assert done.returncode == 2 and "no weights" in " ".join(done.stderr.split())
    (model / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    done = unleak("generate", "a mouse", "-m", str(model), cwd=tmp_path)
    assert done.returncode == 2 and "pickled" in " ".join(done.stderr.split())
