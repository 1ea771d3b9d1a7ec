"""Answers requests of browsers with text, or with pages that contain their style and script."""

from __future__ import annotations

import base64
import hashlib
import http
import socket
from html import escape
from pathlib import Path

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Response
from websockets.typing import Origin

from ..evaluate import plots
from .address import address_host, open_port


def open_page_port(host: str, port: int, where: str) -> tuple[socket.socket, str, list[Origin]]:
    """Listens for browsers.

    Args:
        port: Port. 0 for any that is free.
        where: The options that say it, for the error.

    Returns:
        The socket, the address of the page, and the origins that its scripts can have.
    """
    listening = open_port(host, port, where)
    name, port = address_host(host), listening.getsockname()[1]
    origins = [Origin(f"http://{n}:{port}") for n in ("localhost", "127.0.0.1", "[::1]", name)]
    return listening, f"http://{name}:{port}", origins


def text_response(connection: ServerConnection, text: str, kind: str) -> Response:
    """Builds the HTTP response with a text of a content type."""
    response = connection.respond(http.HTTPStatus.OK, text)
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = kind
    return response


def page_response(connection: ServerConnection, name: str, title: str) -> Response:
    """Builds the HTTP response with a page.

    Args:
        name: Name of its files: NAME.html, NAME.css and NAME.js.
        title: Title of the page. It replaces TITLE in the HTML.
    """
    html, css, script = (Path(__file__).with_name(f"{name}.{kind}").read_text(encoding="utf-8")
                         for kind in ("html", "css", "js"))
    shared = Path(__file__).with_name("page.css").read_text(encoding="utf-8").replace("FONT", plots.FONT)
    text = ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<title>{escape(title)}</title><style>{plots.STYLE}\n{shared}{css}</style></head>\n<body>\n"
            f"{html.replace('TITLE', escape(title))}<script>{script}</script></body></html>\n")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    response = text_response(connection, text, "text/html; charset=utf-8")
    response.headers["Content-Security-Policy"] = ("default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
                                                   f"connect-src 'self'; script-src 'sha256-{digest}'")
    return response
