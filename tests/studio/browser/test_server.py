"""Who may ask the server of the studio: browsers on this machine, or browsers with a token, and no other page."""

import asyncio
import socket
import ssl

import pytest
from fixtures.certificates import certificate
from fixtures.studios import served

from understudy.cli import main
from understudy.commands.studio import CommandPolicies
from understudy.core import UserError

pytest.importorskip("nicegui", reason="extra studio not installed")
import httpx  # noqa: E402
from starlette.applications import Starlette  # noqa: E402
from starlette.responses import PlainTextResponse  # noqa: E402
from starlette.routing import Route, WebSocketRoute  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402
from starlette.websockets import WebSocketDisconnect  # noqa: E402

from understudy.methods import registry  # noqa: E402
from understudy.studio.browser import server as studio_server  # noqa: E402
from understudy.studio.browser.live import ToySession  # noqa: E402
from understudy.studio.browser.page import Studio  # noqa: E402
from understudy.studio.browser.project import Project  # noqa: E402
from understudy.studio.browser.server import OnlyThisOrigin, OnlyWithToken, StudioAddress, free_port  # noqa: E402

TOKENS = ("secret-of-16-chars", 'an;odd="token",as it is')
LOCAL = StudioAddress("127.0.0.1", 8765)


# -- without tokens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers, method, status", [
    ({"host": "127.0.0.1:8765"}, "GET", 200),
    ({"host": "localhost:8765", "origin": "http://localhost:8765"}, "POST", 200),
    ({"host": "attacker.example:8765"}, "GET", 403),  # a name that now leads to this machine
    ({"host": "attacker.example:8765", "origin": "http://attacker.example:8765"}, "GET", 403),
    ({"host": "127.0.0.1:8765", "origin": "http://attacker.example"}, "GET", 403),
    ({"host": "127.0.0.1:8765", "origin": "https://127.0.0.1:8765"}, "GET", 403),
    ({"host": "127.0.0.1:8765", "origin": "null"}, "POST", 403),
    ({"host": "127.0.0.1:8765"}, "POST", 403),
    ({"host": "127.0.0.1:9999"}, "GET", 403),
    ({}, "GET", 403),
])
def test_requests_of_another_origin_are_refused(headers, method, status):
    sent = []

    async def app(scope, receive, send):
        await send({"status": 200})

    async def send(message):
        sent.append(message)
    scope = {"type": "http", "method": method, "scheme": "http",
             "headers": [(k.encode(), v.encode()) for k, v in headers.items()]}
    asyncio.run(OnlyThisOrigin(app, LOCAL.hosts())(scope, None, send))
    assert sent[0]["status"] == status


def test_a_websocket_of_another_origin_is_closed():
    sent = []

    async def send(message):
        sent.append(message)
    scope = {"type": "websocket", "scheme": "ws", "headers": [(b"host", b"127.0.0.1:8765")]}  # no origin: no browser
    asyncio.run(OnlyThisOrigin(None, LOCAL.hosts())(scope, None, send))
    assert [(message["type"], message["code"]) for message in sent] == [("websocket.close", 1008)]


def test_the_address_is_one_for_browsers(tmp_path):
    assert str(LOCAL) == "http://127.0.0.1:8765/"
    assert str(StudioAddress("::1", 80, tmp_path, tmp_path)) == "https://[::1]:80/"
    assert "127.0.0.2:8765" in StudioAddress("127.0.0.2", 8765).hosts()


# -- with tokens ----------------------------------------------------------------------------------------------------


def browser(address="http://lab:8765"):
    """A browser at a page that says hello, behind what asks for a token."""
    async def hello(request):
        return PlainTextResponse("hello")

    async def echo(websocket):
        await websocket.accept()
        await websocket.send_text("hello")
        await websocket.close()
    app = Starlette(routes=[Route("/", hello), WebSocketRoute("/live", echo)])
    return TestClient(OnlyThisOrigin(OnlyWithToken(app, TOKENS, 8765)), address, follow_redirects=False)


def log_in(client, token, origin=None):
    return client.post("/", data={"token": token}, headers={"origin": origin or str(client.base_url).rstrip("/")})


def hears(client, origin):
    try:
        with client.websocket_connect("ws://lab:8765/live", headers={"origin": origin}) as websocket:
            return websocket.receive_text() == "hello"
    except WebSocketDisconnect as closed:
        assert closed.code == 1008
        return False


@pytest.mark.parametrize("token", TOKENS)
def test_a_token_opens_the_page(token):
    client = browser()
    page = client.get("/")
    assert page.status_code == 401 and "hello" not in page.text
    assert "<title>understudy" in page.text and 'label for="token"' in page.text
    assert page.headers["vary"] == "Cookie"  # NiceGUI lets browsers keep what some of its paths answer
    assert client.post("/other", headers={"origin": "http://lab:8765"}).status_code == 401
    assert not hears(client, "http://lab:8765")
    reply = log_in(client, f" {token} ")
    cookie = reply.headers["set-cookie"]
    assert reply.status_code == 303 and reply.headers["location"] == "/"
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Secure" not in cookie and token not in cookie
    assert client.get("/").text == "hello" and hears(client, "http://lab:8765")


def test_a_wrong_token_says_so():
    client = browser()
    for token in ("secret-of-16-char", "", "é" * 20, "x" * 100_000, "secret-of-16-chars" + " " * 5_000 + "x"):
        reply = log_in(client, token)
        assert reply.status_code == 401 and "not one of the tokens" in reply.text and not client.cookies
    client.cookies.set("understudy_token_http_8765", "secret-of-16-chars")
    assert client.get("/").status_code == 401


def test_another_origin_is_refused_with_a_token():
    client = browser()
    assert log_in(client, TOKENS[0], "http://attacker.example").status_code == 403
    log_in(client, TOKENS[0])
    for origin in ("http://attacker.example", "http://lab:9999", "https://lab:8765", "null"):
        assert client.get("/", headers={"origin": origin}).status_code == 403 and not hears(client, origin)
    assert client.get("/", headers={"host": "192.168.0.9:8765"}).status_code == 200  # any name of it


def test_with_tls_the_cookie_is_secure_and_the_origin_has_it():
    client = browser("https://lab:8765")
    assert log_in(client, TOKENS[0], "http://lab:8765").status_code == 403
    assert "Secure" in log_in(client, TOKENS[0]).headers["set-cookie"]
    assert client.get("/").text == "hello"


@pytest.mark.slow
def test_a_studio_with_tokens_and_tls(tmp_path):
    cert, key = certificate(tmp_path)
    (tmp_path / "tokens.txt").write_text("secret-of-16-chars\n")
    with served(tmp_path / "project", "--token-file", str(tmp_path / "tokens.txt"), "--tls-cert", str(cert),
                "--tls-key", str(key)) as address:
        origin, polling = address.rstrip("/"), "_nicegui_ws/socket.io/?EIO=4&transport=polling"
        with httpx.Client(base_url=address, verify=ssl.create_default_context(cafile=cert), trust_env=False) as client:
            assert address.startswith("https://127.0.0.1:")
            assert client.get("").status_code == client.get(polling).status_code == 401
            assert handshake(client, origin) == 403
            assert client.post("", data={"token": "wrong"}, headers={"origin": origin}).status_code == 401
            client.post("", data={"token": "secret-of-16-chars"}, headers={"origin": origin})
            page = client.get("")
            assert page.status_code == 200 and "Start showing" in page.text
            assert client.get(polling).status_code == 200 and handshake(client, origin) == 101
            for other in ("https://attacker.example", origin.replace("https", "http")):
                assert client.get("", headers={"origin": other}).status_code == handshake(client, other) == 403


def handshake(client, origin):
    """The status of the reply to a browser that opens a websocket."""
    headers = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13",
               "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==", "origin": origin}
    with client.stream("GET", "_nicegui_ws/socket.io/?EIO=4&transport=websocket", headers=headers) as reply:
        return reply.status_code


# -- where it listens -----------------------------------------------------------------------------------------------


def test_a_port_that_is_used_is_named():
    assert free_port("127.0.0.1", None) > 0
    with socket.create_server(("127.0.0.1", 0)) as listener:
        used = listener.getsockname()[1]
        with pytest.raises(UserError, match=rf"--port {used}: the server cannot listen there(.|\n)*choose another one"):
            free_port("127.0.0.1", used)


@pytest.mark.parametrize("host", ["192.0.2.1", "nothing.invalid"])  # addresses for documents, and a name that none has
def test_an_address_of_another_machine_is_told_so(host):
    with pytest.raises(UserError, match=rf"--host {host}: (.|\n)*name an address of this machine"):
        free_port(host, None)


@pytest.mark.parametrize("options, says", [
    (["--host", "0.0.0.0"], "anybody in the network could use this server"),
    (["--token-file", "nothing.txt"], "the file of tokens cannot be read"),
    (["--tls-cert", "x.pem"], "both --tls-cert and --tls-key"), (["--port", "65536"], "at most 65535")])
def test_options_that_do_not_fit_are_refused(options, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["studio", "fork", *options]) == 2
    assert says in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("host, warns", [("0.0.0.0", True), ("127.0.0.2", False)])
def test_tokens_beyond_this_machine_need_tls(host, warns, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(studio_server, "serve_studio", lambda *arguments, **options: None)
    (tmp_path / "tokens.txt").write_text("secret-of-16-chars\n")
    main(["studio", "fork", "--out", str(tmp_path / "project"), "--host", host, "--token-file",
          str(tmp_path / "tokens.txt")])
    printed = capsys.readouterr()
    assert ("sent without TLS" in printed.err) is warns
    assert "The page asks for a token of" in printed.out and "secret" not in printed.out


# -- pauses ---------------------------------------------------------------------------------------------------------


def test_the_source_of_methods_is_read_before_a_page_is_open(tmp_path):
    """It takes a quarter of a second, for which a robot would stand still."""
    registry.read_info.cache_clear()
    Studio(ToySession(Project(tmp_path / "project", "fork"), CommandPolicies()))
    assert registry.read_info.cache_info().currsize == len(registry.method_files())
