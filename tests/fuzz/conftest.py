"""The harness beside these tests, and the tiny pipelines one folder up, can be imported; nothing is served for ever."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]


@pytest.fixture(autouse=True)
def stopped_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that only looks whether it could listen, and is stopped by Ctrl-C then; no browser opens."""
    from unleak.app import serve
    from unleak.cli import serve as command

    def stop() -> None:
        raise KeyboardInterrupt

    def enter(server: Any) -> Any:
        serve.check_port(server.host, server.port)
        return server

    monkeypatch.setattr(serve.Server, "__enter__", enter)
    monkeypatch.setattr(serve.Server, "__exit__", lambda *_: None)
    monkeypatch.setattr(command, "until_stopped", stop)
    monkeypatch.setattr("typer.launch", lambda *_, **__: 0)
