"""The pytest option `--oracle DIR`, known to pytest before it decides which arguments are paths.

Registered as a pytest plugin because `pytest -m parity --oracle DIR` would otherwise take DIR for a folder of tests
and never read this project's configuration. It does nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def pytest_addoption(parser: Any) -> None:
    """Golden tensors to compare with: a folder with `cases/<method>/<case>/case.json`."""
    group = parser.getgroup("unleak")
    group.addoption("--oracle", type=Path, default=None, help="folder with cases/<method>/<case>/case.json")
