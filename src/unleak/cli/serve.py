"""`unleak app`: the rooms as a page in the browser."""

from __future__ import annotations

import threading
from typing import Annotated

import typer

from unleak.cli.command import Command, command
from unleak.cli.console import err, quiet_libraries, say, show
from unleak.cli.options import MODEL


@command(*MODEL, name="app")
def serve(
    cmd: Command,
    host: Annotated[str, typer.Option(help="Where the server listens; whoever reaches it can draw.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7860,
    browser: Annotated[bool, typer.Option("--browser", help="Open it in the browser, too.")] = False,
) -> None:
    """The same rooms as a page in the browser: words, regions, copies, lint. Ctrl-C stops it.

    It needs `pip install "unleak\\[app]"`. Without --host only this machine reaches it. Uploads and results are kept
    for an hour at most, and nothing is sent elsewhere.
    """
    quiet_libraries()
    from unleak.app.serve import Server

    with err.status("starting"):
        server = Server(cmd.model, host, port, device=cmd.device, dtype=cmd.dtype, offload=cmd.offload)
        server.__enter__()
    try:
        show(server.url)
        if host not in ("127.0.0.1", "localhost", "::1"):
            say("note", f"{host} is open to others: whoever reaches it can draw here, and open models of this machine")
        if browser:
            typer.launch(server.url)
        until_stopped()
    finally:
        server.__exit__()


def until_stopped() -> None:
    """Waits for Ctrl-C or a signal."""
    threading.Event().wait()
