"""The protocol of openpi, and openpi's own client."""

import json
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.served import ANY, policy_service
from folders import REPOSITORY

pytest.importorskip("websockets", reason="extra serve not installed")
from websockets.exceptions import ConnectionClosed  # noqa: E402
from websockets.sync.client import connect  # noqa: E402

from understudy.core import keys  # noqa: E402
from understudy.serve.server import BackgroundServer  # noqa: E402
from understudy.serve.service import Reply, Service  # noqa: E402
from understudy.serve.wire import pack, unpack  # noqa: E402

STATE = "observation.state"


class RecordedService(Service):
    """Answers what openpi's server answered."""

    def __init__(self, folder):
        self.metadata, self.answers = {"action_horizon": 4, "name": "closed form"}, {}
        for asked, reply in (("01_client", "02_server"), ("03_client", "04_server")):
            request, answer = (unpack((folder / f"{name}.msgpack").read_bytes()) for name in (asked, reply))
            self.answers[int(request["episode"]), request["t"]] = answer["actions"]

    def run(self, requests):
        if any(request.columns.get("prompt") == "fail" for request in requests):
            raise ValueError("asked to fail")
        return [Reply({"actions": self.answers[int(r.columns["episode"]), r.columns["t"]]}) for r in requests]


def test_a_recorded_session_of_openpi_is_answered_byte_by_byte(shared):
    folder = shared / "fixtures" / "openpi_wire"
    frames = json.loads((folder / "frames.json").read_text())
    with BackgroundServer(RecordedService(folder)) as server, connect(server.url, compression=None) as connection:
        for frame in frames:
            raw = (folder / frame["file"]).read_bytes()
            if frame["from"] == "client":
                connection.send(raw)
                continue
            received = connection.recv()
            if frame["websocket_opcode"] == "text":
                assert received == "ValueError: asked to fail" and "ValueError: asked to fail" in raw.decode()
                continue
            values, timing = unpack(received), unpack(raw).get("server_timing")
            if timing is not None:  # clock readings
                assert list(values["server_timing"]) == list(timing)
                values["server_timing"] = timing
            assert pack(values) == raw
        with pytest.raises(ConnectionClosed):
            connection.recv()
        assert connection.close_code == 1011


OPENPI = """
import sys, numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from openpi_client.action_chunk_broker import ActionChunkBroker
policy = WebsocketClientPolicy("127.0.0.1", int(sys.argv[1]), api_key="0123456789abcdef")
assert policy.get_server_metadata()["action_horizon"] == 8, policy.get_server_metadata()
broker = ActionChunkBroker(policy, action_horizon=4)
for t in range(6):
    action = broker.infer({"observation/state": np.full(3, t, np.float32), "prompt": "go"})["actions"]
    print(*(f"{x:.6f}" for x in action))
try:
    policy.infer({"observation/wrong": np.zeros(3)})
except RuntimeError as error:
    assert "the policy reads 'observation.state'" in str(error), error
    print("refused")
"""


def test_openpi_client_itself_executes_chunks():
    python = REPOSITORY / ".venv-peers/openpi/bin/python"
    if not python.exists():
        pytest.skip("no .venv-peers")
    service = policy_service()
    with BackgroundServer(service, replace(ANY, tokens=("0123456789abcdef",))) as server:
        process = subprocess.run([python, "-c", OPENPI, str(server.server.port)], capture_output=True, text=True,
                                 timeout=60)
    assert process.returncode == 0, process.stderr
    *rows, last = process.stdout.splitlines()
    planner, key = service.served.planner, keys(0, [0])
    chunks = [planner.plan({STATE: torch.full((1, 1, 3), float(t))}, planner.noise(key, torch.tensor([i])))[0, :4]
              for i, t in enumerate((0, 4))]
    want = torch.cat(chunks)[:6].detach()
    np.testing.assert_allclose([[float(x) for x in row.split()] for row in rows], want, atol=2e-6)
    assert last == "refused"
