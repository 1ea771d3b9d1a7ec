"""The server of the studio: who may ask it, and how it starts and ends."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Collection, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from nicegui import app, ui
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.websockets import WebSocketClose

from ...core import UserError
from ...serve.access import is_token
from ...serve.address import address_host, open_port
from ...serve.pauses import reduce_pauses
from .live import LiveSession
from .page import Studio, StudioPage
from .panels import build_panels
from .robot_panels import ROBOT_PANELS
from .robot_setup import RobotSetup

Scope = MutableMapping[str, Any]
Asgi = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
MAX_FORM = 4096  # bytes of the form with the token


@dataclass(frozen=True)
class StudioAddress:
    """Where a studio listens. With a certificate, it speaks TLS."""

    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None

    def __str__(self) -> str:
        return f"http{'s' if self.certificate else ''}://{address_host(self.host)}:{self.port}/"

    def hosts(self) -> set[str]:
        """The headers Host of browsers on this machine."""
        return {f"{name}:{self.port}" for name in (*LOCAL_NAMES, address_host(self.host))}


class OnlyThisOrigin:
    """Refuses requests for another host name, as of DNS rebinding, and requests that a page of another origin sends.

    Args:
        hosts: The headers Host that are answered. Without any, all are: a cookie with a token belongs to one host name.
    """

    def __init__(self, app: Asgi, hosts: Collection[str] = ()):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan" or self._is_allowed(HTTPConnection(scope)):
            await self.app(scope, receive, send)
        else:
            refusal = PlainTextResponse("requests of another origin are refused\n", 403)
            await _refuse(refusal, scope, receive, send)

    def _is_allowed(self, request: HTTPConnection) -> bool:
        host, origin = request.headers.get("host"), request.headers.get("origin")
        if self.hosts and host not in self.hosts:
            return False
        if origin is None:  # a browser names the origin of all that could change something
            return request.scope["type"] == "http" and request.scope["method"] in ("GET", "HEAD")
        return origin == f"{_scheme(request.scope)}://{host}"


class OnlyWithToken:
    """Lets in who has a token. A page asks for it, and a cookie says in later requests that it was given.

    Args:
        tokens: The tokens. One of them is needed.
        port: Port of the server. A browser sends the cookies of a host to all of its ports, so their names have it.
    """

    def __init__(self, app: Asgi, tokens: Sequence[str], port: int):
        self.app, self.tokens, self.port = app, tokens, port
        self.cookies = [_cookie(token) for token in tokens]

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] == "/":
            response = await self._log_in(Request(scope, receive))
            await response(scope, receive, send)
        elif scope["type"] == "lifespan" or is_token(
                self.cookies, HTTPConnection(scope).cookies.get(self._cookie_name(scope), "")):
            await self.app(scope, receive, send)
        else:
            await _refuse(_login_page(""), scope, receive, send)

    async def _log_in(self, request: Request) -> Response:
        form = b""
        async for part in request.stream():
            form += part
            if len(form) > MAX_FORM:
                break
        token = parse_qs(form.decode("latin-1")).get("token", [""])[0].strip()
        if not is_token(self.tokens, token):
            return _login_page("<p role=alert>This is not one of the tokens.</p>")
        response = RedirectResponse("/", 303)
        response.set_cookie(self._cookie_name(request.scope), _cookie(token), httponly=True, samesite="strict",
                            secure=_scheme(request.scope) == "https")
        return response

    def _cookie_name(self, scope: Scope) -> str:
        # Without TLS, a browser does not replace the cookie that it got with TLS.
        return f"understudy_token_{_scheme(scope)}_{self.port}"


def _cookie(token: str) -> str:
    """What a browser stores in place of the token, which may have characters that no cookie can have."""
    return hmac.new(token.encode(), b"understudy studio", "sha256").hexdigest()


def _scheme(scope: Scope) -> str:
    return scope["scheme"].replace("ws", "http")


def _login_page(problem: str) -> Response:
    html = Path(__file__).with_name("login.html").read_text(encoding="utf-8").replace("PROBLEM", problem)
    # NiceGUI lets browsers keep what its own paths answer: not for a request with another cookie.
    return HTMLResponse(html, 401, {"Cache-Control": "no-store", "Vary": "Cookie"})


async def _refuse(response: Response, scope: Scope, receive, send) -> None:
    await (WebSocketClose(1008) if scope["type"] == "websocket" else response)(scope, receive, send)


def free_port(host: str, port: int | None) -> int:
    """Returns a port on which nothing listens.

    Args:
        port: The port to use. None takes 8765 or, if it is used, any other.

    Raises:
        UserError: The port is used, or the host is not this machine.
    """
    if port is None:
        with suppress(UserError):
            return free_port(host, 8765)
    options = f"--host {host}" if port is None else f"--host {host} --port {port}"
    with open_port(host, port or 0, options) as listening:
        return listening.getsockname()[1]


def serve_studio(session: LiveSession, address: StudioAddress, tokens: Sequence[str], show: bool,
                 setup: RobotSetup | None = None) -> None:
    """Serves the studio until the process is interrupted.

    Args:
        tokens: The tokens, one of which a browser needs. Without any, only browsers on this machine are answered.
        show: Whether to open a browser.
        setup: How the robot of the project is set up, if it is about one.
    """
    studio = Studio(session, setup)

    @ui.page("/", title="understudy studio")
    def page() -> None:
        StudioPage(studio, partial(build_panels, last=() if setup is None else ROBOT_PANELS))

    @app.on_shutdown
    def end() -> None:
        studio.jobs.stop()
        studio.session.stop()
    ui.button.default_props("no-caps")
    if tokens:
        app.add_middleware(OnlyWithToken, tokens=tokens, port=address.port)
    app.add_middleware(OnlyThisOrigin, hosts=() if tokens else address.hosts())  # asked first
    ui.add_css(Path(__file__).with_name("studio.css").read_text(encoding="utf-8"), shared=True)
    reduce_pauses()
    ui.run(host=address.host, port=address.port, show=show, reload=False, title="understudy studio", dark=None,
           show_welcome_message=False, uvicorn_logging_level="warning", ssl_certfile=address.certificate,
           ssl_keyfile=address.key)
