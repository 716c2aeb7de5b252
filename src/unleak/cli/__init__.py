"""The command line: parse, call the library, render. Data goes to stdout, progress to stderr.

Exit status: 0 done, 1 failed, 2 bad use, 3 findings over a limit, 4 unsupported model, 130 interrupted,
143 and 129 after SIGTERM and SIGHUP.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import Annotated

import typer

from unleak.cli.console import show, tolerant
from unleak.cli.options import app


def version(asked: bool) -> None:
    if asked:
        show(f"unleak {metadata.version('unleak')}")
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[bool, typer.Option("--version", callback=version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Find and stop leaks in text-to-image diffusion: between words, between regions, from the training set."""
    tolerant()


ROOMS = "demo serve basics words lint regions copies audit bench methods report"  # in the order of `unleak --help`
for room in ROOMS.split():
    import_module(f"unleak.cli.{room}")

__all__ = ["app"]
