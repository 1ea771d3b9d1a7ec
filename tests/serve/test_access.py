"""The handshake, tokens, TLS and limits."""

import re
import socket
import ssl
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
from fixtures.certificates import certificate
from fixtures.served import ANY, http, policy_service, state

pytest.importorskip("websockets", reason="extra serve not installed")
from websockets.datastructures import Headers  # noqa: E402
from websockets.exceptions import InvalidStatus  # noqa: E402
from websockets.sync.client import connect  # noqa: E402

from understudy.core import UserError  # noqa: E402
from understudy.serve.access import is_allowed, read_tokens, tls_context  # noqa: E402
from understudy.serve.client import Client, LinkLost, RequestRefused  # noqa: E402
from understudy.serve.server import BackgroundServer  # noqa: E402

STATE = "observation.state"


# -- the handshake --------------------------------------------------------------------------------------------------


def test_the_handshake_accepts_the_policys_own_schema_and_shows_both_sides_of_a_difference():
    with BackgroundServer(policy_service()) as server:
        with Client(server.url) as client:
            schema = client.policy["schema"]
        with Client(server.url, schema=schema) as client:
            assert client.infer(state(0))["actions"].shape == (8, 2)
        with pytest.raises(RequestRefused) as refused:
            Client(server.url, schema={**schema, "fps": 30, "action": {**schema["action"], "shape": [7]}})
        assert "fps: the policy has 10, the client 30" in str(refused.value)
        assert "action, shape: the policy has (2,), the client (7,)" in str(refused.value)


# -- access ----------------------------------------------------------------------------------------------------------


def test_tokens(tmp_path):
    file = tmp_path / "tokens.txt"
    file.write_text("# robots\nsecret-of-16-chars\n\nanother-of-16-chars\n")
    tokens = read_tokens(file)
    assert tokens == ("secret-of-16-chars", "another-of-16-chars")
    with BackgroundServer(policy_service(), replace(ANY, tokens=tokens)) as server:
        for token in tokens:
            with Client(server.url, token=token) as client:
                client.infer(state(0))
        for token in (None, "secret-of-16-char", "secret-of-16-charsx"):
            with pytest.raises(RequestRefused, match="a valid token is needed"):
                Client(server.url, token=token)
        assert http(server.url + "/metrics")[0] == 401 and http(server.url + "/healthz") == (200, "OK\n")
        status, text = http(server.url + "/metrics", Authorization=f"Api-Key {tokens[1]}")
        assert status == 200 and 'understudy_refused_total{reason="token"} 4' in text
    assert is_allowed(tokens, Headers({"Sec-WebSocket-Protocol": "understudy, token.c2VjcmV0LW9mLTE2LWNoYXJz"}))
    assert not is_allowed(tokens, Headers({"Sec-WebSocket-Protocol": "token.****"}))
    assert not is_allowed(tokens, Headers(Authorization="Basic x"))
    for content, says in (("", "no token"), ("short\n", "at least 16"), ("with a space in the middle\n", "spaces")):
        file.write_text(content)
        with pytest.raises(UserError, match=says):
            read_tokens(file)


def test_tls(tmp_path):
    cert, key = certificate(tmp_path)
    with BackgroundServer(policy_service(), replace(ANY, tls=tls_context(cert, key))) as server:
        assert server.url.startswith("wss://")
        with Client(server.url, ca=cert) as client:
            assert client.infer(state(0))["actions"].shape == (8, 2)
        with pytest.raises(LinkLost, match="no connection"):
            Client(server.url)  # nobody vouches for this certificate
        with pytest.raises(LinkLost):
            Client(server.url.replace("wss", "ws"), timeout=2)
    with pytest.raises(UserError, match="cannot be used"):
        tls_context(key, cert)
    with pytest.raises(UserError, match="both"):
        tls_context(cert, None)
    assert isinstance(tls_context(cert, key), ssl.SSLContext)


def test_no_session_ticket_comes_while_a_client_writes(tmp_path):
    """A ticket broke about one in 500 connections of `Client`, which reads and writes in two threads."""
    cert, key = certificate(tmp_path)
    trusted = ssl.create_default_context(cafile=cert)
    with BackgroundServer(policy_service(), replace(ANY, tls=tls_context(cert, key))) as server, \
            socket.create_connection((ANY.host, server.server.port)) as plain, \
            trusted.wrap_socket(plain, server_hostname=ANY.host) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert connection.version() == "TLSv1.3" and not connection.session.has_ticket


def test_a_token_that_others_could_read_is_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="sent without TLS"), pytest.raises(LinkLost):
        Client("ws://gpu.invalid:8000", token="secret-of-16-chars", timeout=0.2)
    with warnings.catch_warnings(record=True) as caught:  # raised in the thread of the server, one would end it
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", ResourceWarning)  # of objects that are deleted, where errors are ignored too
        for url in ("wss://gpu.invalid:8000", "ws://[::1]:1", "ws://localhost:1"):
            with pytest.raises(LinkLost):
                Client(url, token="secret-of-16-chars", timeout=0.2)
        with pytest.raises(LinkLost):
            Client("ws://gpu.invalid:8000", timeout=0.2)  # nothing secret is sent
        cert, key = certificate(tmp_path)
        options = replace(ANY, tokens=("secret-of-16-chars",), tls=tls_context(cert, key))
        with BackgroundServer(policy_service(), options) as server:
            Client(server.url, token="secret-of-16-chars", ca=cert).close()
    assert not caught, [str(warning.message) for warning in caught]


def test_limits_of_size_rate_and_clients():
    options = replace(ANY, max_message=10_000, max_rate=20, max_clients=2)
    with BackgroundServer(policy_service(), options) as server:
        with Client(server.url) as client:
            with pytest.raises(LinkLost, match="1009"):
                client.infer({STATE: np.zeros(5000, np.float32)})
            began = time.monotonic()
            for _ in range(5):
                client.infer(state(0))
            assert time.monotonic() - began > 0.19
            with Client(server.url), pytest.raises(RequestRefused, match="2 clients, as many as"):
                Client(server.url)
        slowed = re.search(r"understudy_slowed_total (\d+)", http(server.url + "/metrics")[1])
        assert 1 <= int(slowed[1]) <= 4


def test_pages_of_strangers_and_other_paths_are_refused():
    with BackgroundServer(policy_service(), replace(ANY, origins=("https://lab.example",))) as server:
        with connect(server.url, origin="https://lab.example") as connection:
            connection.recv()
        assert "export class Client" in http(server.url + "/client.js")[1]
        for options in ({"origin": "https://evil.example"}, {"uri": server.url + "/other"}):
            with pytest.raises(InvalidStatus):
                connect(**{"uri": server.url, **options})
