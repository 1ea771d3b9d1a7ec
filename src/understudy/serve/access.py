"""Access to a server: tokens, TLS, and the log of connections."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import ssl
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ..core import ConfigError, UserError
from .address import is_this_machine

if TYPE_CHECKING:
    from websockets.datastructures import Headers

MIN_TOKEN = 16  # characters
SUBPROTOCOL = "understudy"
TOKEN_PREFIX = "token."  # of the subprotocol in which browsers, which cannot set headers, send the token


def read_tokens(path: Path) -> tuple[str, ...]:
    """Reads a file of access tokens, one a line. Lines that start with # are comments."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the file of tokens cannot be read: {error}", where=path, hint=_MAKE_TOKEN) from None
    tokens = tuple(line for line in lines if line and not line.startswith("#"))
    if not tokens:
        raise UserError("the file has no token", where=path, hint=_MAKE_TOKEN)
    if any(len(token) < MIN_TOKEN or not token.isascii() or any(c.isspace() for c in token) for token in tokens):
        raise UserError(f"each line must be a token of at least {MIN_TOKEN} characters without spaces", where=path,
                        hint=_MAKE_TOKEN)
    return tokens


_MAKE_TOKEN = 'make one: python -c "import secrets; print(secrets.token_urlsafe(32))" > tokens.txt'


def is_allowed(tokens: Sequence[str], headers: Headers) -> bool:
    """Returns whether a request has one of the tokens, in a time that does not depend on where tokens differ.

    Args:
        tokens: The tokens. Without any, everybody may connect.
        headers: The headers of the request. Authorization is "Api-Key TOKEN", as openpi's client sends it, or "Bearer
            TOKEN". One of the offered subprotocols may be "token." and the token in URL-safe base64.
    """
    if not tokens:
        return True
    scheme, _, sent_token = headers.get("Authorization", "").partition(" ")
    sent_token = sent_token.strip() if scheme.lower() in ("api-key", "bearer") else ""
    for name in map(str.strip, ",".join(headers.get_all("Sec-WebSocket-Protocol")).split(",")):
        if name.startswith(TOKEN_PREFIX):
            try:
                coded = name.removeprefix(TOKEN_PREFIX)
                sent_token = base64.urlsafe_b64decode(coded + "=" * (-len(coded) % 4)).decode()
            except ValueError:
                return False
    return is_token(tokens, sent_token)


def is_token(tokens: Sequence[str], text: str) -> bool:
    """Returns whether a text is one of the tokens, in a time that does not depend on where they differ."""
    is_valid = False
    for token in tokens:  # all of them, so that the time does not tell which one was close
        is_valid |= hmac.compare_digest(token.encode(), text.encode())
    return is_valid


def refuse_strangers(host: str, tokens: Sequence[str], hint: str) -> None:
    """Refuses to serve without tokens at an address that others can reach."""
    if not (tokens or is_this_machine(host)):
        raise ConfigError("anybody in the network could use this server", where=f"--host {host}", hint=hint)


def readable_tokens_warning(host: str, tokens: Sequence[str], has_tls: bool) -> str | None:
    """Returns a warning if others in the network can read the tokens."""
    if not tokens or has_tls or is_this_machine(host):
        return None
    return "tokens are sent without TLS, so others in the network can read them: give --tls-cert and --tls-key"


def tls_context(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """Returns the TLS context of a server, or None without a certificate.

    Args:
        certificate: PEM file with the certificate, followed by the certificates of the authorities that issued it.
        key: PEM file with the private key.
    """
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise UserError("TLS needs both --tls-cert and --tls-key", where="--tls-cert" if key else "--tls-key",
                        hint="give the files of the certificate and of its private key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Before Python 3.13, a client that reads a session ticket in one thread while another thread writes breaks its
    # connection. The client of websockets does so at its start.
    context.num_tickets = 0
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:  # ssl.SSLError is one
        raise UserError(f"the certificate or its key cannot be used: {error}", where=certificate,
                        hint="both are PEM files, and the key belongs to the certificate") from None
    return context


class JsonLog:
    """Writes one JSON object a line on standard error."""

    def __init__(self):
        self._lock = threading.Lock()

    def __call__(self, event: str, **values: object) -> None:
        """Writes an event with its values as a line of JSON."""
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **values},
                          default=str)
        with self._lock:
            print(line, file=sys.stderr, flush=True)


Log = Callable[..., None]


class SummarizedLog:
    """Logs events that may come in large numbers: one line a second for each kind of event, with their count."""

    def __init__(self, log: Log):
        self.log = log
        self._events: dict[str, tuple[int, dict[str, object]]] = {}  # number, and values of the first one

    def __call__(self, event: str, **values: object) -> None:
        """Notes an event. Call it in the thread of the event loop."""
        if event not in self._events:
            asyncio.get_running_loop().call_later(1.0, self._write, event)
        number, first = self._events.get(event, (0, values))
        self._events[event] = number + 1, first

    def flush(self) -> None:
        """Writes what is not written yet."""
        for event in list(self._events):
            self._write(event)

    def _write(self, event: str) -> None:
        if event in self._events:
            number, values = self._events.pop(event)
            self.log(event, count=number, **values)
