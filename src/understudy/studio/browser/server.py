"""The server of the studio: who may ask it, and how it starts and ends."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from nicegui import app, ui

from ...core import UserError
from .page import Studio, StudioPage
from .panels import build_panels
from .project import Project

Scope = MutableMapping[str, Any]
Asgi = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


class OnlyThisOrigin:
    """Refuses requests for another host name, as of DNS rebinding, and requests that a page of another origin sends.

    Args:
        port: Port of the server.
    """

    def __init__(self, app: Asgi, port: int):
        self.app, self.hosts = app, {f"{name}:{port}" for name in LOCAL_NAMES}

    async def __call__(self, scope, receive, send):
        if scope["type"] in ("http", "websocket") and not self._is_allowed(scope):
            if scope["type"] == "websocket":
                await receive()
                await send({"type": "websocket.close", "code": 1008})
            else:
                await send({"type": "http.response.start", "status": 403,
                            "headers": [(b"content-type", b"text/plain; charset=utf-8")]})
                await send({"type": "http.response.body", "body": b"requests of another origin are refused\n"})
            return
        await self.app(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        origin = headers.get(b"origin")
        if headers.get(b"host") not in self.hosts:
            return False
        if origin is None:  # a browser names the origin of all that could change something
            return scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
        return origin.removeprefix("http://") in self.hosts


def free_port(port: int | None) -> int:
    """Returns a port on which nothing listens.

    Args:
        port: The port to use. None takes 8765 or, if it is used, any other.

    Raises:
        UserError: The port is used.
    """
    for candidate in ((8765, 0) if port is None else (port,)):
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", candidate))
            except OSError as error:
                problem = error.strerror
            else:
                return listener.getsockname()[1]
    raise UserError(f"the port cannot be used: {problem}", where=f"--port {port}",
                    hint="name another one, or leave it out")


def serve_studio(project: Project, port: int, show: bool) -> None:
    """Serves the studio of a project on this machine until the process is interrupted.

    Args:
        show: Whether to open a browser.
    """
    studio = Studio(project)

    @ui.page("/", title="understudy studio")
    def page() -> None:
        StudioPage(studio, build_panels)

    @app.on_shutdown
    def end() -> None:
        studio.jobs.stop()
        studio.session.stop()
    ui.button.default_props("no-caps")
    app.add_middleware(OnlyThisOrigin, port=port)
    ui.add_css(Path(__file__).with_name("studio.css").read_text(encoding="utf-8"), shared=True)
    ui.run(host="127.0.0.1", port=port, show=show, reload=False, title="understudy studio", dark=None,
           show_welcome_message=False, uvicorn_logging_level="warning")
