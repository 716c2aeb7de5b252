"""Every command and every piece of code of the README and of docs/start.md runs as written; the commands of the other
pages can be read."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from unleak import models
from unleak.cli import app, table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
START = (ROOT / "docs" / "start.md").read_text("utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "training" / "README.md"]
COMMANDS = table.commands()
HUB = re.compile(r"^[\w.-]+/[\w.-]+$")
STEPS = 2  #: of a drawing, instead of the model's 20: what is drawn is tested elsewhere


def blocks(text: str, *kinds: str) -> list[str]:
    """Fenced pieces of these languages."""
    return [body for kind, body in re.findall(r"```([\w]*)[^\n]*\n(.*?)```", text, re.DOTALL) if kind in kinds]


def commands(text: str) -> Iterator[list[str]]:
    """What is typed after `unleak`, in the order of the page; lines that go on are joined, loops and pipes split."""
    for block in blocks(text, "", "bash", "sh", "console"):
        for line in block.replace("\\\n", "").splitlines():
            for variable, value in re.findall(r"for (\w+) in (\S+)", line):
                line = line.replace(f"${variable}", value)
            for part in re.split(r"\s*(?:;|&&|\|(?=\s*unleak)|\bdo\b)\s*", line):
                words = shlex.split(part, comments=True) if part.startswith("unleak ") else []
                if words:
                    yield words[1:]


def model_of(words: list[str]) -> str | None:
    flags = [i for i, word in enumerate(words) if word in ("-m", "--model")]
    return words[flags[-1] + 1] if flags else None


def needs_the_hub(words: list[str]) -> bool:
    named = model_of(words)
    return named is not None and bool(HUB.match(named)) and not (ROOT / named).exists()


def parsed(words: list[str]) -> None:
    """The command exists, and so do its options; their values are of their kinds. Raises click's usage errors."""
    name = next(" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in COMMANDS)
    COMMANDS[name].make_context(name, words[len(name.split()) :])


ELSEWHERE = ("bench", "app")  #: commands whose own tests run them: one takes hours, the other never ends
RUN = [
    words
    for page in (README, START)
    for words in commands(page)
    if words[0] not in ELSEWHERE and not needs_the_hub(words)
]


@pytest.fixture
def at_the_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with what a newcomer finds in the repository, and one model that is loaded once."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    load, settings, loaded = models.load, models.settings, dict[Any, Any]()

    def once(model: str = "emoji-sd", *_: Any, text_only: bool = False, **__: Any) -> Any:
        if model not in loaded:
            loaded[model] = load(model)
        return loaded[model]

    monkeypatch.setattr(models, "load", once)
    monkeypatch.setattr(models, "settings", lambda model: {**settings(model), "num_inference_steps": STEPS})
    return tmp_path


def test_every_command_of_the_readme_runs_as_written(at_the_root: Path) -> None:
    assert {words[0] for words in RUN} >= {
        "demo", "generate", "maps", "diagnose", "repair", "tokens", "redundancy", "lint", "regions", "edit",
        "calibrate", "scan", "guard", "audit", "methods", "doctor",
    }  # fmt: skip
    given = {file: file.read_bytes() for file in (at_the_root / "examples").rglob("*") if file.is_file()}
    for words in RUN:
        done = CliRunner().invoke(app, words)
        over_a_limit = 3 if "--fail-over" in words else 0
        assert done.exit_code in (0, over_a_limit), (shlex.join(words), done.output, done.exception)
        for flag in ("--html", "-o"):
            if flag in words:
                assert (at_the_root / words[words.index(flag) + 1]).exists(), shlex.join(words)
    assert {file: file.read_bytes() for file in given} == given


def test_the_code_of_the_readme_runs_as_written(at_the_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import DiffusionPipeline

    pieces = [code for page in (README, START) for code in blocks(page, "python")]
    assert len(pieces) >= 2
    asked: list[str] = []
    real = DiffusionPipeline.from_pretrained

    def from_pretrained(name: Any, **options: Any) -> Any:
        asked.append(name) if HUB.match(str(name)) else None
        return models.load() if HUB.match(str(name)) else real(name, **options)

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", from_pretrained)
    for code in pieces:
        space: dict[str, Any] = {}
        exec(compile(code, "README.md", "exec"), space)
        assert asked and space["image"].size == (64, 64)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_can_be_read(page: Path) -> None:
    for words in commands(page.read_text("utf-8")):
        parsed(words)
        missing = [word for word in words if word.startswith("examples/") and not (ROOT / word).exists()]
        assert not missing, (shlex.join(words), missing)


def test_a_mistyped_option_of_a_page_is_noticed() -> None:
    usage_error = typer.BadParameter.__base__
    assert usage_error is not None and usage_error.__name__ == "UsageError"
    for line in ("scan p.txt --colum x", "diagnose", "edit p.png", "generate x --steps many", "guard x --ggate c"):
        with pytest.raises(usage_error):
            parsed(shlex.split(line))
    with pytest.raises(StopIteration):
        parsed(["scann", "p.txt"])


def test_the_readme_is_one_screen_and_no_table_is_wider_than_a_phone() -> None:
    assert len(README.splitlines()) <= 60 and "|---|" not in README
