"""Serve the page until somebody stops it: on this machine alone, without telemetry, and with files of its own only."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unleak.errors import BadInput, UnsupportedModel

LARGEST = "20mb"  #: of an upload
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_SHARE": "False"}
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' "
    "'unsafe-inline'; frame-ancestors 'self'; object-src 'none'; form-action 'self'; base-uri 'self'"
)
"""The browser asks nobody but this server."""


class Headers:
    """An ASGI middleware that adds the policy to every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Callable[[Any], Any]) -> None:
        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": [*message["headers"], *headers]}
            await send(message)

        await self.app(scope, receive, sent)


class Server:
    """The page on a port, for the length of a ``with`` block.

    Args:
        model: the one that is chosen first. host, port: where it listens; port 0 takes a free one.
        load: device, dtype and offload, see `unleak.models.load`.

    Attributes:
        url: where a browser finds it.

    Raises:
        UnsupportedModel: gradio is not installed. BadInput: the port is taken, or there is no such host.
    """

    def __init__(self, model: str = "emoji-sd", host: str = "127.0.0.1", port: int = 7860, **load: Any) -> None:
        self.model, self.host, self.port, self.load = model, host, port, load
        self.url = ""

    def __enter__(self) -> Server:
        os.environ.update(QUIET)
        self.uploads = tempfile.TemporaryDirectory(prefix="unleak-uploads-")
        os.environ["GRADIO_TEMP_DIR"] = self.uploads.name
        need_gradio()
        from starlette.middleware import Middleware

        from unleak.app.desk import Desk
        from unleak.app.page import build
        from unleak.app.theme import STYLE, theme

        port = check_port(self.host, self.port)
        self.desk = Desk(**self.load)
        self.page = build(self.desk, self.model)
        try:
            _, self.url, _ = self.page.launch(
                server_name=self.host, server_port=port, share=False, prevent_thread_lock=True, quiet=True,
                inbrowser=False, show_error=False, max_file_size=LARGEST, allowed_paths=[],
                blocked_paths=[str(Path.cwd())], enable_monitoring=False, ssr_mode=False, footer_links=[],
                theme=theme(), css=STYLE, app_kwargs={"middleware": [Middleware(Headers)]},
            )  # fmt: skip
        except OSError as e:
            self.desk.close()
            raise BadInput(f"port {port} of {self.host} cannot be used ({e}): give another --port") from None
        return self

    def __exit__(self, *_: object) -> None:
        self.desk.close()
        self.page.close(verbose=False)
        self.uploads.cleanup()


def need_gradio() -> None:
    """Raises UnsupportedModel where gradio is not installed."""
    try:
        import gradio  # noqa: F401
    except ImportError as e:
        raise UnsupportedModel(f"the app needs gradio ({e}): pip install 'unleak[app]'") from None


def check_port(host: str, port: int) -> int:
    """The port, or a free one for 0. Raises BadInput: nothing can listen there."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((host, port))
            return int(one.getsockname()[1])
    except (OSError, OverflowError, ValueError, TypeError) as e:  # the last two: the host is no name
        raise BadInput(f"cannot listen on {host!r} port {port} ({e}): give another --host or --port") from None
