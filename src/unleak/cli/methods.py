"""`unleak methods`: every named method of every room."""

from __future__ import annotations

from typing import Annotated

import typer

from unleak.cli.command import Command, command


@command("json")
def methods(
    cmd: Command,
    name: Annotated[
        str | None, typer.Argument(help="One of them, with all parameters; or repair, editor, mitigation, detector.")
    ] = None,
) -> None:
    """Every repair, editor, mitigation and detector by name: what it does, where it comes from, what it takes."""
    from unleak.report.catalogue import methods as catalogue

    listing = catalogue(name)
    parts = [listing] if name is not None else [catalogue(kind) for kind in listing.presets]
    cmd.put(listing.to_dict(), [str(part) for part in parts])
