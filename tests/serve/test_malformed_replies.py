"""A server that sends anything: commands end with an error that says so, and the robot is stopped."""

import socket
import threading
import time

import numpy as np
import pytest
import torch
from fixtures.replies import RIGHT, description, reply, server

pytest.importorskip("websockets", reason="extra serve not installed")
from understudy.cli import main  # noqa: E402
from understudy.core import UserError, keys  # noqa: E402
from understudy.robots.acting import act_on_robot  # noqa: E402
from understudy.robots.limits import SafetyLimits  # noqa: E402
from understudy.robots.safety import SafeRobot  # noqa: E402
from understudy.robots.simulated import SimulatedArm  # noqa: E402
from understudy.serve.client import Client, MalformedReply, RemoteRunner  # noqa: E402
from understudy.serve.remote import RemoteActor, RemotePlanner, remote_actor  # noqa: E402

STATE = "observation.state"
GARBAGE = {
    "no actions": (lambda id: reply(id), "'actions' is not an array of numbers but an array of object"),
    "text": (lambda id: reply(id, actions="forward"), "'actions' is not an array of numbers"),
    "unequal lists": (lambda id: reply(id, actions=[[1.0], [1.0, 2.0]]), "'actions' is not an array"),
    "a map": (lambda id: reply(id, actions={"shoulder": 1.0}), "'actions' is not an array"),
    "one step": (lambda id: reply(id, actions=RIGHT[:, :1]), "'actions' has shape"),
    "another robot": (lambda id: reply(id, actions=np.zeros((1, 8, 6), np.float32)), "'actions' has shape"),
    "one row more": (lambda id: reply(id, actions=np.zeros((2, 8, 2), np.float32)), "'actions' has shape"),
    "NaN": (lambda id: reply(id, actions=RIGHT * np.nan), "not finite"),
    "no msgpack": (lambda id: b"\xc1\xff\x00garbage", "cannot be read"),
    "cut off": (lambda id: reply(id, actions=RIGHT)[:-20], "cannot be read"),
    "a list": (lambda id: b"\x93\x01\x02\x03", "a message is a map"),
    "another id": (lambda id: reply(id + 1, actions=RIGHT), "belongs to another request"),
    "a text frame": (lambda id: "Traceback (most recent call last)", "Traceback"),
    "empty": (lambda id: b"", "cannot be read"),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_a_malformed_reply_stops_the_robot(kind):
    def answer(number, id):
        return reply(id, actions=RIGHT + 20) if number == 0 else GARBAGE[kind][0](id)
    arm = SimulatedArm(clock=time.monotonic)
    calls = []
    arm.send = lambda goal, send=arm.send: calls.append(goal) or send(goal)
    arm.stop = lambda stop=arm.stop: calls.append("stop") or stop()
    with (server(description(), answer) as url, Client(url, timeout=2) as client,
          SafeRobot(arm, SafetyLimits((-90,) * 2, (90,) * 2, (300,) * 2, slow_start=0, timeout=5)) as robot):
        planner = RemotePlanner(client)
        with pytest.raises(UserError, match=GARBAGE[kind][1]) as error:
            act_on_robot(robot, remote_actor(planner), keys(0, [0]), fps=50, seconds=5)
        assert len(calls) > 2 and (calls[-2] > 0).all() and calls[-1] == "stop", error.value
    assert error.value.hint and "steps of the episode were done" in error.value.__notes__[0]


@pytest.mark.parametrize("kind", GARBAGE)
def test_a_malformed_reply_of_a_server_that_executes_chunks(kind):
    def answer(number, id):
        return reply(id, rows=np.zeros(1, np.int64)) if number == 0 else GARBAGE[kind][0](id)
    with server(description(), answer) as url, Client(url, timeout=2) as client:
        actor = RemoteActor(client)
        state = actor.start({STATE: torch.zeros(1, 2)}, keys(0, [0]))
        with pytest.raises(UserError, match=f"{GARBAGE[kind][1]}|has shape"):  # one action has another shape
            actor.act({STATE: torch.zeros(1, 2)}, state)
    with (server(description(), lambda number, id: GARBAGE[kind][0](id)) as url, Client(url, timeout=2) as client,
          pytest.raises(UserError, match="reply|read|map|Traceback")):
        RemoteActor(client).start({STATE: torch.zeros(1, 2)}, keys(0, [0]))


def test_a_program_of_the_user_gets_one_kind_of_error():
    with (server(description(), lambda number, id: reply(id, actions="forward")) as url, Client(url) as client,
          RemoteRunner(client) as runner, pytest.raises(MalformedReply, match="'actions' is not an array of numbers")):
        runner.act({STATE: np.zeros(2, np.float32)})


NO_DESCRIPTIONS = {"garbage": b"\xc1garbage", "a text": "no policy today", "nothing": {},
                   "only a protocol": {"understudy": {"protocol": 1}}}
WRONG_ENTRIES = {
    "inputs": 3, "inputs not described": ["observation.pose"], "features": {STATE: {"dtype": "float33"}},
    "features in a list": [1], "window": {"$": "understudy.data.window:Window", "n_obs_steps": -1},
    "window in a list": [], "executor": {"$": "os:system"},
    "executor of no kind": {"$": "understudy.data.window:Window"}, "executor as a number": 7,
    "action_dim": "six", "action_scale": "wide", "schema": None,
    "schema with a rate": {"observations": {}, "fps": "fast"}, "texts": ["observation.task"], "checkpoint": None,
    "chunks": "yes"}


@pytest.mark.parametrize("kind", [*NO_DESCRIPTIONS, *WRONG_ENTRIES])
def test_a_server_that_describes_no_policy_is_refused(kind, capsys):
    metadata = NO_DESCRIPTIONS[kind] if kind in NO_DESCRIPTIONS else description(
        **{kind.split()[0]: WRONG_ENTRIES[kind]})
    with server(metadata, lambda number, id: reply(id, actions=RIGHT)) as url:
        assert main(["act", url, "--robot", "simulated_arm", "--episode-time-s", "0.2"]) == 2
    error = capsys.readouterr().err
    assert "\n  -> " in error and "Traceback" not in error and "defect of understudy" not in error, error


@pytest.mark.parametrize("sent", [b"", b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
                                  b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b"\x00" * 3000], ids=repr)
def test_a_port_of_another_program_is_refused(sent, capsys):
    def talk(listening):
        for _ in range(2):
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(sent)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=talk, args=(listening,), daemon=True).start()
        url = f"ws://127.0.0.1:{listening.getsockname()[1]}"
        assert main(["act", url, "--robot", "simulated_arm"]) == 2
    error = capsys.readouterr().err
    assert url in error and "\n  -> " in error and "Traceback" not in error


@pytest.mark.parametrize("address", ["ws://a..b:80", "ws://localhost:notaport", "ws://localhost:99999", "ws://[::1"])
def test_an_address_that_cannot_be_is_refused(address, capsys):
    assert main(["act", address, "--robot", "simulated_arm"]) == 2
    assert "this is not an address of a server" in capsys.readouterr().err
