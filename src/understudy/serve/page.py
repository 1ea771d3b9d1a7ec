"""Pages that a server shows: HTML, style and script in one, with a content security policy."""

from __future__ import annotations

import base64
import hashlib
import http
from html import escape
from pathlib import Path

from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Response

from ..evaluate import plots


def page_response(connection: ServerConnection, name: str, title: str) -> Response:
    """A page as the answer to a request.

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
    response = connection.respond(http.HTTPStatus.OK, text)
    headers = Headers(response.headers)
    del headers["Content-Type"]
    headers["Content-Type"] = "text/html; charset=utf-8"
    headers["Content-Security-Policy"] = ("default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
                                          f"connect-src 'self'; script-src 'sha256-{digest}'")
    return Response(response.status_code, response.reason_phrase, headers, response.body)
