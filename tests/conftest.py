"""Options and fixtures of all tests."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from tiny import NAMES, save_tiny, tiny
from unleak import models
from unleak.cli import app


def pytest_addoption(parser: pytest.Parser) -> None:
    with contextlib.suppress(ValueError):  # a plugin may have added it, which frees `--oracle DIR` from its "="
        parser.addoption("--oracle", type=Path, default=None, help="folder with cases/<method>/<case>/case.json")


def pytest_configure(config: pytest.Config) -> None:
    """The markers again: an `--oracle` outside the repository hides pyproject.toml from pytest."""
    config.addinivalue_line("markers", "parity: compares with golden tensors (needs --oracle DIR)")
    config.addinivalue_line("markers", "e2e: runs the embedded model")
    config.addinivalue_line("markers", "conformance: every verb on every family")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One parity test for every case of the oracle folder; none without the folder."""
    if "oracle_case" in metafunc.fixturenames:
        folder = metafunc.config.getoption("--oracle")
        found = sorted(folder.glob("cases/*/*/case.json")) if folder else []
        if folder and not found:
            raise pytest.UsageError(f"--oracle {folder} holds no cases/<method>/<case>/case.json")
        names = [f"{path.parent.parent.name}/{path.parent.name}" for path in found]
        metafunc.parametrize("oracle_case", [path.parent for path in found], ids=names)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without `--oracle` the parity tests are deselected, in silence."""
    if config.getoption("--oracle") is None:
        parity = [item for item in items if item.get_closest_marker("parity")]
        items[:] = [item for item in items if item not in parity]
        if parity:
            config.hook.pytest_deselected(items=parity)


@pytest.fixture(scope="session", params=NAMES)
def any_pipe(request):
    """Each supported layout in turn. Shared: a test that leaves a trace on it fails the tests after it."""
    return tiny(request.param)


@pytest.fixture(scope="session")
def sd1():
    return tiny("sd1")


@pytest.fixture(scope="session")
def flux():
    return tiny("flux")


@pytest.fixture
def map_edits(monkeypatch):
    """Interventions may return a `MapEdit` of the reference."""
    import reference
    from unleak.engine import denoising

    monkeypatch.setattr(denoising, "execute", reference.execute_map_edits)


@pytest.fixture
def unleak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> SimpleNamespace:
        done = CliRunner().invoke(app, list(args))
        assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
        return SimpleNamespace(code=done.exit_code, out=done.stdout, err=" ".join(done.stderr.split()))

    return run


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong must be found before a model is loaded."""

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(models, "load", load)


@pytest.fixture(scope="session")
def sd1_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = save_tiny("sd1", tmp_path_factory.mktemp("model") / "sd1")
    (folder / "unleak.json").write_text('{"call": {"height": 64, "width": 64, "num_inference_steps": 1}}')
    return str(folder)
