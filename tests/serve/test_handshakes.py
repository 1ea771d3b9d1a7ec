"""Connections that never say anything: a server with few descriptors still answers, and its log stays small."""

import json
import resource
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("websockets", reason="extra serve not installed")

from understudy.serve.client import Client  # noqa: E402

SERVER = """
import asyncio, signal, sys
import numpy as np
from pathlib import Path
from understudy.serve.access import JsonLog, tls_context
from understudy.serve.server import PolicyServer, ServerOptions
from understudy.serve.service import Reply, Service

class Zeros(Service):
    metadata = {}

    def run(self, requests):
        return [Reply({"actions": np.zeros((8, 2), np.float32)}) for _ in requests]

async def main():
    files = [Path(name) for name in sys.argv[1:]] or [None, None]
    server = PolicyServer(Zeros(), ServerOptions(port=0, tls=tls_context(*files)), JsonLog())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.stop)
    await server.run(lambda: print(server.port, flush=True))

asyncio.run(main())
"""


@pytest.fixture(params=["ws", "wss"])
def limited_server(request, tmp_path):
    """A server with 128 descriptors: its process, its port, how clients trust it, and its log."""
    files = []
    if request.param == "wss":
        files = [str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")]
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", files[1], "-out",
                        files[0], "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
                       check=True, capture_output=True)
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, *files], stdout=subprocess.PIPE, stderr=log, text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128)))
    try:
        yield process, int(process.stdout.readline()), files[:1], tmp_path / "log"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def health(port, ca):
    """Seconds until /healthz answers."""
    began = time.monotonic()
    tls = ssl.create_default_context(cafile=ca[0]) if ca else None
    with urllib.request.urlopen(f"http{'s' * len(ca)}://127.0.0.1:{port}/healthz", timeout=5, context=tls) as page:
        assert page.read() == b"OK\n"
    return time.monotonic() - began


def test_half_open_connections_stop_neither_health_checks_nor_clients(limited_server):
    process, port, ca, log = limited_server
    with Client(f"ws{'s' * len(ca)}://127.0.0.1:{port}", ca=ca[0] if ca else None) as early:
        half_open = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
        for connection in half_open[::2]:  # half of them say the beginning of something
            connection.sendall(b"GET / HTTP/1.1\r\nHost: a" if not ca else b"\x16\x03\x01")
        try:
            times = [health(port, ca) for _ in range(10)]
            with Client(early.url, ca=ca[0] if ca else None) as late:
                for client in (early, late):
                    assert client.infer({"observation.state": np.zeros(2)})["actions"].shape == (8, 2)
            time.sleep(1.2)  # the log of a second is written at its end
            process.send_signal(signal.SIGTERM)
            assert process.wait(5) == 0  # it does not wait for them
        finally:
            [connection.close() for connection in half_open]
    assert max(times) < 2, times
    events = [json.loads(line) for line in Path(log).read_text().splitlines()]  # JSON lines alone
    dropped = [e for e in events if e.get("reason") == "handshake"]
    assert 1 <= len(dropped) <= 3 and sum(e["count"] for e in dropped) >= 100
    assert [e["event"] for e in events if e not in dropped] == [
        "warning", "serving", "connected", "connected", "disconnected", "stopping", "disconnected", "stopped"]
    assert "allows" in events[0]["message"] and "clients at a time, not 256" in events[0]["message"]


@pytest.mark.parametrize("limited_server", ["ws"], indirect=True)
def test_more_clients_than_descriptors_are_refused(limited_server):
    process, port, ca, log = limited_server
    n = int(json.loads(log.read_text().splitlines()[0])["message"].split(" allows ")[1].split()[0])
    url, ca_file = f"ws{'s' * len(ca)}://127.0.0.1:{port}", ca[0] if ca else None
    clients = [Client(url, ca=ca_file) for _ in range(n)]
    with pytest.raises(RuntimeError, match=f"there are {n} clients"):
        Client(url, ca=ca_file)
    assert health(port, ca) < 2
    clients[0].close()
    time.sleep(0.3)
    Client(url, ca=ca_file).close()
    [client.close() for client in clients]
    assert "Traceback" not in log.read_text()
