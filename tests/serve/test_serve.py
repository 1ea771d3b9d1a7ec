"""The policy server and its Python client: openpi's protocol, state of each client, batches, access, lost links."""

import gc
import json
import re
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import warnings
import weakref
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from folders import REPOSITORY

pytest.importorskip("websockets", reason="extra serve not installed")

from websockets.exceptions import ConnectionClosed, InvalidStatus  # noqa: E402
from websockets.sync.client import connect  # noqa: E402

from understudy.cli import _user_error_message  # noqa: E402
from understudy.commands.serve import ServeOptions, _newest  # noqa: E402
from understudy.commands.served import changed_checkpoint, served_client  # noqa: E402
from understudy.core import Feature, UserError, keys, put  # noqa: E402
from understudy.data.text_columns import TaskText  # noqa: E402
from understudy.data.window import Window  # noqa: E402
from understudy.execute.actor import ObservationWrapper, PolicyActor  # noqa: E402
from understudy.execute.chunking import RealTimeChunking, RecedingHorizon  # noqa: E402
from understudy.execute.temporal_ensemble import TemporalEnsemble  # noqa: E402
from understudy.heads.flow import Flow  # noqa: E402
from understudy.policy import Inpaint, PolicyConfig  # noqa: E402
from understudy.robots.acting import act_on_robot  # noqa: E402
from understudy.robots.base import Robot  # noqa: E402
from understudy.serve.access import is_allowed, read_tokens, tls_context  # noqa: E402
from understudy.serve.client import Client, LinkLost, RemoteRunner, RequestRefused  # noqa: E402
from understudy.serve.describe import policy_metadata, policy_schema  # noqa: E402
from understudy.serve.policy_service import PolicyService, ServedPolicy  # noqa: E402
from understudy.serve.remote import RemoteActor, RemotePlanner, remote_actor  # noqa: E402
from understudy.serve.server import BackgroundServer, ServerOptions, reduce_pauses  # noqa: E402
from understudy.serve.service import FunctionService  # noqa: E402
from understudy.serve.wire import pack, unpack  # noqa: E402
from understudy.testing import random_batch  # noqa: E402

ANY = ServerOptions(port=0)
STATE = "observation.state"


def policy_service(executor=RecedingHorizon(4), window=Window(1, 8), **options):  # noqa: B008
    policy, _ = random_batch(PolicyConfig(Flow(n_steps=3), inputs=(STATE,), window=window))
    served = ServedPolicy(PolicyActor(policy, executor), policy, "abc", **options)
    schema = policy_schema(served, fps=10, action_convention="absolute")
    return PolicyService(served, policy_metadata(served, schema, name="toy"), schema)


def state(x):
    return {STATE: np.full(3, x, np.float32)}


def http(url, **headers):
    request = urllib.request.Request(url.replace("ws", "http", 1), headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


# -- openpi -----------------------------------------------------------------------------------------------------------


def recorded_service(folder):
    """Answers what openpi's server answered."""
    answers = {}
    for asked, said in (("01_client", "02_server"), ("03_client", "04_server")):
        request = unpack((folder / f"{asked}.msgpack").read_bytes())
        answers[int(request["episode"]), request["t"]] = unpack((folder / f"{said}.msgpack").read_bytes())["actions"]

    def infer(obs):
        if obs.get("prompt") == "fail":
            raise ValueError("asked to fail")
        return {"actions": answers[int(obs["episode"]), obs["t"]]}
    return FunctionService(infer, {"action_horizon": 4, "name": "closed form"})


def test_a_recorded_session_of_openpi_is_answered_byte_by_byte(shared):
    folder = shared / "fixtures" / "openpi_wire"
    frames = json.loads((folder / "frames.json").read_text())
    with BackgroundServer(recorded_service(folder)) as server, connect(server.url, compression=None) as connection:
        for frame in frames:
            raw = (folder / frame["file"]).read_bytes()
            if frame["from"] == "client":
                connection.send(raw)
                continue
            found = connection.recv()
            if frame["websocket_opcode"] == "text":
                assert found == "ValueError: asked to fail" and "ValueError: asked to fail" in raw.decode()
                continue
            values, timing = unpack(found), unpack(raw).get("server_timing")
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
        ran = subprocess.run([python, "-c", OPENPI, str(server.server.port)], capture_output=True, text=True,
                             timeout=60)
    assert ran.returncode == 0, ran.stderr
    *rows, last = ran.stdout.splitlines()
    planner, key = service.served.planner, keys(0, [0])
    chunks = [planner.plan({STATE: torch.full((1, 1, 3), float(t))}, planner.noise(key, torch.tensor([i])))[0, :4]
              for i, t in enumerate((0, 4))]
    want = torch.cat(chunks)[:6].detach()
    np.testing.assert_allclose([[float(x) for x in row.split()] for row in rows], want, atol=2e-6)
    assert last == "refused"


# -- replies of a policy ----------------------------------------------------------------------------------------------


def test_chunks_are_those_of_the_policy_and_each_client_has_its_own_history():
    service = policy_service(window=Window(2, 8))
    planner = service.served.planner
    with BackgroundServer(service) as server, Client(server.url) as a, Client(server.url) as b:
        got = {}
        for t in range(3):
            for client, sign in ((a, 1), (b, -1)):
                got[sign, t] = client.infer(state(sign * (t + 1)), episode=5 + sign, reset=t == 0)["actions"]
    for sign in (1, -1):
        key, before = keys(0, [5 + sign]), sign
        for t in range(3):
            now = sign * (t + 1)
            windows = {STATE: torch.tensor([before, now]).float()[None, :, None].expand(1, 2, 3)}
            want = planner.plan(windows, planner.noise(key, torch.tensor([t])))[0].detach()
            np.testing.assert_allclose(got[sign, t], want, atol=2e-6)
            before = now


def test_a_client_may_send_its_whole_window():
    service = policy_service(window=Window(2, 8))
    with BackgroundServer(service) as server, Client(server.url) as client:
        client.infer(state(1), reset=True, episode=3)
        step_by_step = client.infer(state(2), reset=False)["actions"]
        planner = service.served.planner
        whole = {STATE: np.stack([np.full(3, 1, np.float32), np.full(3, 2, np.float32)])}
        client.infer(state(0), reset=True, episode=3)
        np.testing.assert_allclose(client.infer(whole)["actions"], step_by_step, atol=2e-6)
        with pytest.raises(RequestRefused, match="have 3 steps, but the policy reads 2"):
            client.infer({STATE: np.zeros((3, 3), np.float32)})
    assert planner.window.n_obs_steps == 2


def test_words_other_names_nested_columns_and_constants_reach_the_policy():
    task, goal, text = "observation.task", "observation.goal", TaskText(8, "observation.task")
    policy, _ = random_batch(PolicyConfig(Flow(n_steps=2), inputs=(STATE, task, goal), window=Window(1, 4)), inputs={
        STATE: Feature("float32", (3,)), task: Feature("uint8", (8,), "text"), goal: Feature("float32", (1,))})
    served = ServedPolicy(PolicyActor(policy, RecedingHorizon(2)), policy, "abc", {task: text.encode},
                          {"robot.joints": STATE}, {goal: torch.tensor([0.5])})
    schema = policy_schema(served)
    assert list(schema["observations"]) == [STATE]
    service = PolicyService(served, policy_metadata(served, schema, name="toy"), schema)
    chunks = {}
    with BackgroundServer(service) as server, Client(server.url) as client:
        for words in ("push", "pull"):
            ask = [{"robot": {"joints": [1.0, 2.0, 3.0]}, "prompt": words},
                   {"observation/state": [1, 2, 3], "task": words},
                   {STATE: np.array([1, 2, 3.0]), task: text.encode(words), goal: np.float32([0.5]), "other": "x"}]
            chunks[words] = [client.infer(obs, reset=True, episode=4)["actions"] for obs in ask]
            obs = {STATE: torch.tensor([[[1.0, 2, 3]]]), task: torch.tensor(text.encode(words).copy())[None, None],
                   goal: torch.full((1, 1, 1), 0.5)}
            want = policy.plan(obs, policy.noise(keys(0, [4]), torch.tensor([0])))[0].detach()
            for chunk in chunks[words]:
                np.testing.assert_allclose(chunk, want, atol=2e-6)
        with pytest.raises(RequestRefused, match="the policy reads 'observation.task'"):
            client.infer({STATE: np.zeros(3)})
    assert not np.allclose(chunks["push"][0], chunks["pull"][0], atol=1e-3)


def test_a_whole_window_begins_an_episode_that_the_server_executes():
    service = policy_service(RecedingHorizon(4), Window(3, 8))
    windows = np.stack([np.full(3, x, np.float32) for x in (1, 2, 3)])
    with BackgroundServer(service) as server, Client(server.url) as client:
        action = client.infer({STATE: windows}, mode="action", reset=True, episode=3)["actions"][0]
    planner = service.served.planner
    want = planner.plan({STATE: torch.from_numpy(windows)[None]}, planner.noise(keys(0, [3]), torch.tensor([0])))
    np.testing.assert_allclose(action, want[0, 0].detach(), atol=2e-6)


@pytest.mark.parametrize("executor", [RecedingHorizon(3), TemporalEnsemble()], ids=["chunks", "ensemble"])
def test_executed_on_the_server_actions_are_those_of_the_actor(executor):
    service = policy_service(executor, Window(2, 8))
    actor = service.served.actor
    with BackgroundServer(service) as server, Client(server.url) as a, Client(server.url) as b:
        for client, episode in ((a, 1), (b, 2)):
            got = [client.infer(state(0.1 * t), mode="action", reset=t == 0, episode=episode)["actions"][0]
                   for t in range(7)]
            first = {STATE: torch.zeros(1, 3)}
            run, want = actor.start(first, keys(0, [episode])), []
            for t in range(7):
                action, run = actor.act({STATE: torch.full((1, 3), 0.1 * t)}, run)
                want.append(action[0])
            np.testing.assert_allclose(got, torch.stack(want), atol=2e-6)


def test_an_executor_without_chunks_is_executed_on_the_server():
    with BackgroundServer(policy_service(TemporalEnsemble())) as server, Client(server.url) as client:
        assert client.infer(state(0))["actions"].shape == (1, 2)
        with pytest.raises(RequestRefused, match="executed in chunks"):
            client.infer(state(0), mode="chunk")
        for options, says in (({"mode": "other"}, "no mode 'other'"), ({"op": "other"}, "no operation 'other'"),
                              ({"executed": -1}, "'executed' is -1"), ({"deadline": "x"}, "'deadline' is 'x'"),
                              ({"other": 1}, "no option 'other'"), ({"op": "act", "rows": [7]}, "no state of row 7"),
                              ({"op": "plan", "key": [1]}, "a window is")):
            with pytest.raises(RequestRefused, match=says):
                client.infer({STATE: np.zeros((1, 3))} if "op" in options else state(0), **options)


def test_real_time_chunking_plans_for_the_delay_that_the_client_measured():
    """The first actions of the new chunk are those that the client executes meanwhile, and the plan agrees."""
    service = policy_service(RealTimeChunking(4, delay=1))
    with BackgroundServer(service) as server, Client(server.url) as client:
        old = client.infer(state(0), reset=True)["actions"]
        new = client.infer(state(1), executed=3, delay=2)["actions"]
        np.testing.assert_array_equal(new[:2], old[3:5])
        client.infer(state(0), reset=True, episode=0)
        other = client.infer(state(1), executed=4, delay=0)["actions"]
        assert not np.allclose(other[:2], old[3:5])
    executor, planner = RealTimeChunking(4, delay=2), service.served.planner
    run = executor.start(planner, {STATE: torch.zeros(1, 1, 3)}, keys(0, [0]))
    _, run = executor.act(planner, {STATE: torch.zeros(1, 1, 3)}, run)
    run = {**run, "cursor": torch.tensor([3])}
    request = executor.request_plan(planner, {STATE: torch.ones(1, 1, 3)}, {**run, "cursor": torch.tensor([4])})
    guides = executor.guides(executor.last_chunk(run, torch.tensor([0])))
    want = replace(request, guides=guides).plan(planner)[0].detach()
    np.testing.assert_allclose(new[2:], want[2:], atol=2e-6)


@dataclass(frozen=True)
class Reaches(RecedingHorizon):
    """Asks that the last step of each chunk is 5, in its requests and not in `guides`."""

    n_action_steps: int = 4

    def request_plan(self, planner, obs, state, rows=None):
        request = super().request_plan(planner, obs, state, rows)
        if request is None:
            return None
        action = torch.full((len(request.rows), planner.window.horizon, planner.action_dim), 5.0)
        weight = torch.zeros(action.shape[:2])
        weight[:, -1] = 1
        return replace(request, guides=(Inpaint(action, weight), *request.guides))


def test_a_chunk_is_requested_as_the_executor_requests_it():
    service, executor = policy_service(Reaches()), Reaches()
    planner, obs = service.served.planner, {STATE: torch.full((1, 1, 3), 0.1)}
    run = executor.start(planner, obs, keys(0, [0]))
    _, run = executor.act(planner, obs, run)
    assert (run["chunk"][0, -1] - 5).abs().max() < 0.5  # else this test would show nothing
    with BackgroundServer(service) as server, Client(server.url) as client:
        for executed in (0, 2, 4):  # a client may ask before its chunk has been executed
            chunk = client.infer(state(0.1), reset=True, episode=0, executed=executed)["actions"]
            np.testing.assert_allclose(chunk, run["chunk"][0].detach(), atol=2e-6)


class Slow:
    """A planner that waits before each plan, and counts the rows of its plans."""

    def __init__(self, service, seconds):
        self.planner, self.seconds, self.rows = service.served.planner, seconds, []
        plan = self.planner.plan

        def slow(obs, noise, guides=()):
            time.sleep(self.seconds)
            self.rows.append(len(obs[STATE]))
            return plan(obs, noise, guides)
        self.planner.plan = slow


@pytest.mark.parametrize("mode", ["chunk", "action"])
def test_clients_that_wait_are_planned_in_one_call_without_mixing(mode):
    service = policy_service(RealTimeChunking(1, delay=0), Window(2, 8))
    slow = Slow(service, 0.05)
    n, got = 6, {}
    with BackgroundServer(service) as server:
        def work(i):
            with Client(server.url) as client:
                for t in range(4):
                    got[i, t] = client.infer(state(i + 0.1 * t), reset=t == 0, episode=i, mode=mode, delay=0,
                                             executed=1)["actions"]
        threads = [threading.Thread(target=work, args=(i,)) for i in range(n)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        together = max(slow.rows)
        slow.seconds = 0
        with Client(server.url) as client:
            for i in range(n):
                for t in range(4):
                    alone = client.infer(state(i + 0.1 * t), reset=t == 0, episode=i, mode=mode, delay=0,
                                         executed=1)["actions"]
                    np.testing.assert_allclose(got[i, t], alone, atol=1e-5)
    assert together >= 3


def test_one_client_cannot_break_the_batch_of_others():
    service = policy_service()
    Slow(service, 0.05)
    outcomes = {}
    with BackgroundServer(service) as server:
        def work(i):
            with Client(server.url) as client:
                try:
                    for t in range(3):
                        client.infer({STATE: np.full(3, np.nan if i == 0 and t == 1 else t, np.float32)})
                    outcomes[i] = "answered"
                except RequestRefused as error:
                    outcomes[i] = str(error)
        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    assert [outcomes[i] for i in (1, 2, 3)] == ["answered"] * 3 and "is not finite" in outcomes[0]


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
    assert is_allowed(tokens, None, ["understudy", "token.c2VjcmV0LW9mLTE2LWNoYXJz"])
    assert not is_allowed(tokens, None, ["token.****"]) and not is_allowed(tokens, "Basic x")
    for content, says in (("", "no token"), ("short\n", "at least 16"), ("with a space in the middle\n", "spaces")):
        file.write_text(content)
        with pytest.raises(UserError, match=says):
            read_tokens(file)


def certificate(folder):
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                    "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "key.pem", "-out",
                    "cert.pem", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"],
                   cwd=folder, check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


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


def test_a_token_that_others_could_read_is_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="sent without TLS"), pytest.raises(LinkLost):
        Client("ws://gpu.invalid:8000", token="secret-of-16-chars", timeout=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for url in ("wss://gpu.invalid:8000", "ws://[::1]:1", "ws://localhost:1"):
            with pytest.raises(LinkLost):
                Client(url, token="secret-of-16-chars", timeout=2)
        with pytest.raises(LinkLost):
            Client("ws://gpu.invalid:8000", timeout=2)  # nothing secret is sent
        cert, key = certificate(tmp_path)
        options = replace(ANY, tokens=("secret-of-16-chars",), tls=tls_context(cert, key))
        with BackgroundServer(policy_service(), options) as server:
            Client(server.url, token="secret-of-16-chars", ca=cert).close()


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


# -- time -------------------------------------------------------------------------------------------------------------


def test_slow_inference_blocks_neither_health_checks_nor_handshakes():
    service = policy_service()
    Slow(service, 1.0)
    with BackgroundServer(service) as server, Client(server.url) as client:
        asking = threading.Thread(target=client.infer, args=(state(0),))
        asking.start()
        time.sleep(0.1)
        began = time.monotonic()
        assert http(server.url + "/healthz") == (200, "OK\n") and http(server.url + "/metrics")[0] == 200
        with Client(server.url) as other:
            other.request({"understudy": {"op": "hello", "schema": {"fps": 10}}})
        assert time.monotonic() - began < 0.5 and asking.is_alive()
        asking.join()


@pytest.mark.parametrize("kind", ["hold", "last-chunk", "stop"])
def test_what_a_client_gets_after_the_deadline(kind):
    service = policy_service()
    slow = Slow(service, 0)
    with BackgroundServer(service, replace(ANY, fallback=kind)) as server, Client(server.url) as client:
        chunk = client.infer(state(0), episode=7, reset=True)["actions"]
        slow.seconds = 1.0
        began = time.monotonic()
        if kind == "stop":
            with pytest.raises(RequestRefused, match="stop"):
                client.infer(state(1), executed=3, deadline=0.2)
        else:
            reply = client.infer(state(1), executed=3, deadline=0.2)
            assert time.monotonic() - began < 0.9
            want = (np.repeat(chunk[2:3], 8, 0) if kind == "hold"
                    else np.concatenate([chunk[3:], np.repeat(chunk[-1:], 3, 0)]))
            np.testing.assert_array_equal(reply["actions"], want)
            assert reply["fallback"] == kind
            slow.seconds = 0
            late = client.infer(state(2), executed=1)  # not the reply to the request before
            assert "fallback" not in late
            planner, noise = service.served.planner, keys(0, [7])
            want = planner.plan({STATE: torch.full((1, 1, 3), 2.0)}, planner.noise(noise, torch.tensor([1])))[0]
            np.testing.assert_allclose(late["actions"], want.detach(), atol=2e-6)
        text = http(server.url + "/metrics")[1]
        assert f'understudy_fallbacks_total{{kind="{kind}"}} 1' in text


def test_the_first_plan_has_no_fallback_and_a_client_may_ask_for_an_earlier_deadline():
    service = policy_service()
    Slow(service, 0.3)
    with BackgroundServer(service, replace(ANY, deadline=10, fallback="hold")) as server, Client(server.url) as client:
        with pytest.raises(RequestRefused, match="stop"):
            client.infer(state(0), deadline=0.05)
        assert client.infer(state(0))["actions"].shape == (8, 2)


def test_the_runner_measures_delays_and_never_waits():
    service = policy_service(RealTimeChunking(4))
    slow = Slow(service, 0.2)
    with BackgroundServer(service) as server, Client(server.url) as client, RemoteRunner(client) as runner:
        took, actions = [], []
        for t in range(40):
            began = time.monotonic()
            actions.append(runner.act(state(0.01 * t)))
            took.append(time.monotonic() - began)
            time.sleep(0.02)
        assert len(slow.rows) >= 3 and max(runner.delays) >= 4
        assert max(took[1:]) < 0.15 and np.shape(actions) == (40, 2)
        assert "understudy_client_delay_steps_count" in http(server.url + "/metrics")[1]


@pytest.mark.parametrize("fallback", ["hold", "last-chunk", "stop"])
def test_a_lost_link_holds_and_then_ends(fallback):
    service = policy_service()
    with BackgroundServer(service) as server:
        client = Client(server.url, timeout=0.5)
        runner = RemoteRunner(client, deadline=0.4, fallback=fallback, patience=1.2)
        first = [runner.act(state(0)) for _ in range(4)]
    time.sleep(0.01)  # the server is gone
    after = []
    with pytest.raises(LinkLost, match="no reply for"):
        for _ in range(100):
            after.append(runner.act(state(0)))
            time.sleep(0.02)
    runner.close()
    chunk = service.served.planner.plan({STATE: torch.zeros(1, 1, 3)},
                                        service.served.planner.noise(keys(0, [0]), torch.tensor([0])))[0].detach()
    np.testing.assert_allclose(first + after[:2], chunk[:6], atol=2e-6)
    held = {"last-chunk": chunk[-1], "hold": after[-2], "stop": after[-1]}[fallback]
    np.testing.assert_allclose(after[-1], held, atol=2e-6)
    assert len(after) < 22 if fallback == "stop" else len(after) > 4


def test_the_runner_comes_back_after_the_server_was_started_again():
    with BackgroundServer(policy_service()) as server:
        port = server.server.port
        client = Client(server.url, timeout=0.5)
        runner = RemoteRunner(client, deadline=0.1, patience=5)
        [runner.act(state(0)) for _ in range(3)]
    for _ in range(10):
        runner.act(state(0))
        time.sleep(0.02)
    with BackgroundServer(policy_service(), replace(ANY, port=port)):
        until = time.monotonic() + 4
        while runner.act(state(0)) is not None and (runner.late or runner._asked_at) and time.monotonic() < until:
            time.sleep(0.02)
        assert not runner.late
        runner.close(), client.close()


class Still(Robot):
    """A robot that does not move."""

    name = "still"
    schema = {STATE: Feature("float32", (3,)), "action": Feature("float32", (2,))}

    def __init__(self, after=lambda: None):
        self.sent, self.stopped, self.after = [], False, after

    def connect(self):
        pass

    def observe(self):
        return {STATE: np.zeros(3, np.float32)}

    def send(self, action):
        self.sent.append(action)
        if len(self.sent) == 5:
            self.after()
        return action

    def stop(self):
        self.stopped = True
        return np.zeros(2, np.float32)

    def disconnect(self):
        pass


def test_a_robot_acts_with_a_served_policy_and_stops_when_the_link_is_lost():
    service = policy_service(RealTimeChunking(4))
    with BackgroundServer(service) as server:
        robot, planner = Still(), RemotePlanner(Client(server.url, timeout=2))
        done = act_on_robot(robot, remote_actor(planner), keys(0, [1]), fps=50, seconds=0.6)
        assert done.counts.steps > 5 and robot.stopped
        local = service.served.planner
        first = local.plan({STATE: torch.zeros(1, 1, 3)}, local.noise(keys(0, [1]), torch.tensor([0])))[0].detach()
        np.testing.assert_allclose(robot.sent[:4], first[:4], atol=2e-6)
        robot = Still(after=server.stop)
        with pytest.raises(UserError, match="server: ws://") as lost:
            act_on_robot(robot, remote_actor(planner), keys(0, [1]), fps=50, seconds=20)
        assert robot.stopped and len(robot.sent) < 500
        assert lost.value.__notes__ == [f"{len(robot.sent)} steps of the episode were done"]
        assert _user_error_message(lost.value, []).endswith(lost.value.__notes__[0])


@pytest.mark.parametrize("executor", [RecedingHorizon(4), RealTimeChunking(3), TemporalEnsemble()],
                         ids=["receding", "real-time", "ensemble"])
def test_a_remote_planner_plans_what_the_policy_plans(executor):
    """Executors run here, with the guides of their plans sent along, or on the server."""
    service = policy_service(executor, Window(2, 8))
    local = service.served.actor
    with BackgroundServer(service) as server:
        planner = RemotePlanner(Client(server.url))
        actors = [PolicyActor(planner, executor), RemoteActor(planner.client)]
        runs = [actor.start({STATE: torch.zeros(3, 3)}, keys(0, range(3))) for actor in (local, *actors)]
        for t in range(7):
            obs = {STATE: torch.arange(3).float()[:, None].expand(3, 3) + 0.1 * t}
            if t == 4:  # a rollout restarts a row
                fresh = [a.start({STATE: obs[STATE][:1]}, keys(0, [9])) for a in (local, *actors)]
                runs = [put(run, [1], new) for run, new in zip(runs, fresh, strict=True)]
            out = [actor.act(obs, run) for actor, run in zip((local, *actors), runs, strict=True)]
            runs = [run for _, run in out]
            for action, _ in out[1:]:
                np.testing.assert_allclose(action, out[0][0], atol=1e-5)


@pytest.mark.parametrize("obs_pad_mask", [False, True])
def test_what_the_server_gives_is_not_asked_of_a_remote_planner(obs_pad_mask):
    window, features = Window(2, 8, obs_pad_mask=obs_pad_mask), {STATE: Feature("float32", (3,)),
                                                                 "observation.goal": Feature("float32", (2,))}
    policy, _ = random_batch(PolicyConfig(Flow(n_steps=3), window=window), inputs=features)
    executor, goal = RecedingHorizon(4), {"observation.goal": torch.tensor([0.2, -0.5])}
    served = ServedPolicy(PolicyActor(policy, executor), policy, "abc", defaults=goal)
    schema = policy_schema(served)
    local = ObservationWrapper(served.actor, goal)
    with BackgroundServer(PolicyService(served, policy_metadata(served, schema, name="toy"), schema)) as server:
        planner = RemotePlanner(Client(server.url))
        assert planner.inputs == (STATE,) and set(schema["observations"]) == {STATE}
        actors = [local, PolicyActor(planner, executor), RemoteActor(planner.client)]
        obs, found = {STATE: torch.arange(9.0).reshape(3, 3) / 9}, []
        for actor in actors:
            run = actor.start(obs, keys(0, range(3)))
            first, run = actor.act(obs, run)
            found.append(torch.stack([first, actor.act({STATE: obs[STATE] + 1}, run)[0]]))
        for actions in found[1:]:
            np.testing.assert_allclose(actions, found[0], atol=1e-5)


# -- the end of a server ----------------------------------------------------------------------------------------------


def test_replies_that_are_being_computed_are_sent_before_the_server_ends():
    service = policy_service()
    Slow(service, 0.4)
    with BackgroundServer(service) as server:
        clients, replies = [Client(server.url) for _ in range(3)], []
        idle = Client(server.url)
        threads = [threading.Thread(target=lambda c=c: replies.append(c.infer(state(1)))) for c in clients]
        [thread.start() for thread in threads]
        time.sleep(0.15)
        server.stop()
        [thread.join() for thread in threads]
    assert len(replies) == 3 and all(r["actions"].shape == (8, 2) for r in replies)
    with pytest.raises(LinkLost, match="1001|lost"):
        idle.infer(state(0))
    with pytest.raises(LinkLost, match="no connection"):
        Client(server.url, timeout=1)


def test_a_client_notices_another_checkpoint():
    service, new = policy_service(), policy_service()
    with BackgroundServer(service) as server, Client(server.url) as client:
        client.infer(state(0))
        assert changed_checkpoint(server.url) is None and changed_checkpoint("runs/a") is None
        new.served = replace(new.served, checkpoint="def")
        service.replace_policy(new)
        client.infer(state(0)), client.infer(state(0))
        assert client.checkpoints == ["abc", "def"]
        served_client(server.url).infer(state(0))
        assert changed_checkpoint(server.url) == f"{server.url} changed its checkpoint meanwhile: abc, then def"
        served_client(server.url).close()
    served_client.cache_clear()


def test_weights_are_read_again_only_if_they_have_changed(tmp_path, monkeypatch):
    """--watch asks every second."""
    read = []
    monkeypatch.setattr("understudy.commands.policies.weights_digest", lambda path: read.append(path) or str(len(read)))
    (tmp_path / "policy.json").write_text("{}")
    (tmp_path / "weights.safetensors").write_bytes(b"first")
    o = ServeOptions(run=tmp_path)
    assert _newest(o) == _newest(o) == "1"
    (tmp_path / "weights.safetensors").write_bytes(b"second")
    assert _newest(o) == _newest(o) == "2" and read == [tmp_path, tmp_path]


def test_a_reply_names_the_checkpoint_that_planned_it():
    """Also if it was replaced while the plan was computed. A fallback names none."""
    service, new = policy_service(), policy_service()
    new.served = replace(new.served, checkpoint="def")
    Slow(service, 0.3)
    with BackgroundServer(service, replace(ANY, fallback="hold")) as server, Client(server.url) as client:
        threading.Timer(0.15, service.replace_policy, [new]).start()
        assert client.infer(state(0))["understudy"]["checkpoint"] == "abc"
        assert client.infer(state(0))["understudy"]["checkpoint"] == "def"
        Slow(service, 0.3)
        reply = client.infer(state(0), deadline=0.05)
        assert reply["fallback"] == "hold" and "checkpoint" not in reply["understudy"]


def test_a_port_that_is_taken_is_an_error():
    with BackgroundServer(policy_service()) as server, pytest.raises(OSError):
        BackgroundServer(policy_service(), replace(ANY, port=server.server.port)).__enter__()



def test_a_process_that_serves_is_not_searched_by_the_garbage_collector():
    """What exists is left alone, and what is made later is still collected."""
    interval, threshold, existing = sys.getswitchinterval(), gc.get_threshold(), [[]]
    try:
        reduce_pauses()
        before = gc.get_stats()[2]["collections"]
        for _ in range(3 * threshold[0] * threshold[1]):
            cycle = [[]]
            cycle.append(cycle)
        assert gc.get_stats()[2]["collections"] > before, "cycles that were made later are collected by themselves"
        assert not any(x is existing for x in gc.get_objects()) and sys.getswitchinterval() < interval
        later = [[]]
        later.append(later)
        there = weakref.ref(made := type("Made", (), {})())
        made.itself = made
        del made
        assert any(x is later for x in gc.get_objects())
        gc.collect()
        assert there() is None
    finally:
        gc.unfreeze()
        gc.set_threshold(*threshold)
        sys.setswitchinterval(interval)
