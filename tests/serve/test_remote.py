"""Time: slow inference, deadlines, measured delays and lost links."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.served import ANY, Slow, http, policy_service, state
from fixtures.waiting import wait_until

pytest.importorskip("websockets", reason="extra serve not installed")
from understudy.cli import _user_error_message  # noqa: E402
from understudy.core import Feature, UserError, keys, put  # noqa: E402
from understudy.data.window import Window  # noqa: E402
from understudy.execute.actor import ObservationWrapper, PolicyActor  # noqa: E402
from understudy.execute.chunking import RealTimeChunking, RecedingHorizon  # noqa: E402
from understudy.execute.temporal_ensemble import TemporalEnsemble  # noqa: E402
from understudy.heads.denoising.flow import Flow  # noqa: E402
from understudy.policy import PolicyConfig  # noqa: E402
from understudy.robots.acting import act_on_robot  # noqa: E402
from understudy.robots.base import Robot  # noqa: E402
from understudy.serve.client import Client, LinkLost, RemoteRunner, RequestRefused  # noqa: E402
from understudy.serve.describe import policy_metadata, policy_schema  # noqa: E402
from understudy.serve.policy_service import PolicyService, ServedPolicy  # noqa: E402
from understudy.serve.remote import RemoteActor, RemotePlanner, remote_actor  # noqa: E402
from understudy.serve.server import BackgroundServer  # noqa: E402
from understudy.testing import random_batch  # noqa: E402

STATE = "observation.state"


def test_slow_inference_blocks_neither_health_checks_nor_handshakes():
    service = policy_service()
    slow = Slow(service, 0)
    slow.may_plan.clear()
    with BackgroundServer(service) as server, Client(server.url) as client:
        asking = threading.Thread(target=client.infer, args=(state(0),))
        asking.start()
        wait_until(lambda: slow.is_waiting)
        assert http(server.url + "/healthz") == (200, "OK\n") and http(server.url + "/metrics")[0] == 200
        with Client(server.url) as other:
            other.request({"understudy": {"op": "hello", "schema": {"fps": 10}}})
        assert asking.is_alive()
        slow.may_plan.set()
        asking.join()


@pytest.mark.parametrize("kind", ["hold", "last-chunk", "stop"])
def test_what_a_client_gets_after_the_deadline(kind):
    service = policy_service()
    slow = Slow(service, 0)
    with BackgroundServer(service, replace(ANY, fallback=kind)) as server, Client(server.url) as client:
        chunk = client.infer(state(0), episode=7, reset=True)["actions"]
        slow.may_plan.clear()  # so that what comes is no plan
        if kind == "stop":
            with pytest.raises(RequestRefused, match="stop"):
                client.infer(state(1), executed=3, deadline=0.2)
            slow.may_plan.set()
        else:
            reply = client.infer(state(1), executed=3, deadline=0.2)
            slow.may_plan.set()
            want = (np.repeat(chunk[2:3], 8, 0) if kind == "hold"
                    else np.concatenate([chunk[3:], np.repeat(chunk[-1:], 3, 0)]))
            np.testing.assert_array_equal(reply["actions"], want)
            assert reply["fallback"] == kind
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
    slow = Slow(service, 0)
    with (BackgroundServer(service) as server, Client(server.url, timeout=60) as client,
          RemoteRunner(client, patience=60) as runner):
        actions = [runner.act(state(0))]

        def hold_a_plan():
            slow.may_plan.clear()
            wait_until(lambda: runner.act(state(0.01)) is not None and slow.is_waiting)
            actions.extend(runner.act(state(0.02)) for _ in range(5))
            n_plans = len(slow.rows)
            slow.may_plan.set()
            wait_until(lambda: runner.act(state(0.03)) is not None and len(slow.rows) > n_plans)
            return max(runner.delays, default=0) >= 5
        wait_until(hold_a_plan)
        assert {np.shape(action) for action in actions} == {(2,)}
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
    expected_action = {"last-chunk": chunk[-1], "hold": after[-2], "stop": after[-1]}[fallback]
    np.testing.assert_allclose(after[-1], expected_action, atol=2e-6)
    assert len(after) < 22 if fallback == "stop" else len(after) > 4


def test_the_runner_comes_back_after_the_server_was_started_again():
    with BackgroundServer(policy_service()) as server:
        port = server.server.port
        client = Client(server.url, timeout=0.5)
        runner = RemoteRunner(client, deadline=0.1, patience=60)
        [runner.act(state(0)) for _ in range(3)]
    for _ in range(10):
        runner.act(state(0))
        time.sleep(0.02)
    with BackgroundServer(policy_service(), replace(ANY, port=port)):
        wait_until(lambda: runner.act(state(0)) is not None and not runner.late and not runner._asked_at)
        runner.close(), client.close()


def recorded_requests(client):
    """The requests of a client from now on: (number of steps, planned actions)."""
    requests, infer = [], client.infer

    def recording(obs, **options):
        reply = infer(obs, **options)
        requests.append((1 if obs[STATE].ndim == 1 else len(obs[STATE]), reply["actions"]))
        return reply
    client.infer = recording
    return requests


def act_and_wait(runner, obs):
    """Acts. A request that this sends is answered, or has failed, before the next step."""
    runner.act(obs)
    if runner._pending is not None:
        runner._pending.exception()


@pytest.mark.parametrize("window, n_action_steps", [
    (Window(3, 8), 4), (Window(3, 8, obs_pad_mask=True), 4), (Window(4, 8, obs_pad_mask=True), 1), (Window(1, 8), 4)])
def test_a_served_history_is_that_of_the_local_actor(window, n_action_steps):
    service = policy_service(RecedingHorizon(n_action_steps), window)
    local, episode, want = service.served.actor, torch.randn(14, 3, generator=torch.Generator().manual_seed(0)), []
    with BackgroundServer(service) as server, Client(server.url) as client, RemoteRunner(client, prompt="go") as runner:
        requests, sensor = recorded_requests(client), np.zeros(3, np.float32)
        for number in range(2):
            run = local.start({STATE: episode[:1]}, keys(0, [number]))
            runner.reset()
            for t, now in enumerate(episode):
                sensor[:] = now  # the same memory at each step
                act_and_wait(runner, {"robot": {"nothing": 1.0}, STATE: sensor})
                _, run = local.act({STATE: now[None]}, run)
                if t % n_action_steps == 0:
                    want.append(run["run"]["chunk"][0])
            episode = episode.flip(0)
    sent, chunks = zip(*requests, strict=True)
    assert set(sent) == {1, min(n_action_steps, window.n_obs_steps)}  # no step twice
    np.testing.assert_allclose(chunks, torch.stack(want), atol=2e-6)


def test_after_a_lost_link_the_history_of_the_episode_is_sent_again():
    def service():
        return policy_service(RecedingHorizon(1), Window(4, 8, obs_pad_mask=True))
    with BackgroundServer(service()) as server:
        port = server.server.port
        client = Client(server.url, timeout=5)
        runner = RemoteRunner(client, deadline=60, patience=60)
        [act_and_wait(runner, state(9)) for _ in range(3)]
        runner.reset()
        act_and_wait(runner, state(3))
    again = service()
    with BackgroundServer(again, replace(ANY, port=port)):
        requests = recorded_requests(client)
        [act_and_wait(runner, state(t)) for t in (4, 5)]
        runner.close(), client.close()
    obs = {STATE: torch.tensor([3.0, 3, 4, 5])[None, :, None].expand(1, 4, 3),
           f"{STATE}?": torch.tensor([[False, True, True, True]])}
    planner = again.served.planner
    want = planner.plan(obs, planner.noise(keys(0, [0]), torch.tensor([0])))[0].detach()
    (sent, chunk), = requests
    np.testing.assert_allclose(chunk, want, atol=2e-6)
    assert sent == 3


def test_an_episode_after_a_lost_link_begins_once(monkeypatch):
    with BackgroundServer(policy_service(RecedingHorizon(1))) as server:
        port = server.server.port
        client = Client(server.url, timeout=5)
        runner = RemoteRunner(client, deadline=60, patience=60)
        [act_and_wait(runner, state(t)) for t in range(2)]
    [act_and_wait(runner, state(t)) for t in range(3)]
    with BackgroundServer(policy_service(RecedingHorizon(1)), replace(ANY, port=port)):
        starts, infer = [], client.infer
        monkeypatch.setattr(client, "infer", lambda obs, reset, **options: (
            starts.append(reset) or infer(obs, reset=reset, **options)))
        runner.reset()
        [act_and_wait(runner, state(t)) for t in range(3)]
        runner.close(), client.close()
    assert starts == [True, False, False]


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
        with pytest.raises(UserError, match="server: ws://") as error:
            act_on_robot(robot, remote_actor(planner), keys(0, [1]), fps=50, seconds=20)
        assert robot.stopped and len(robot.sent) < 500
        assert error.value.__notes__ == [f"{len(robot.sent)} steps of the episode were done"]
        assert _user_error_message(error.value, []).endswith(error.value.__notes__[0])


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
        obs, action_pairs = {STATE: torch.arange(9.0).reshape(3, 3) / 9}, []
        for actor in actors:
            run = actor.start(obs, keys(0, range(3)))
            first, run = actor.act(obs, run)
            action_pairs.append(torch.stack([first, actor.act({STATE: obs[STATE] + 1}, run)[0]]))
        for actions in action_pairs[1:]:
            np.testing.assert_allclose(actions, action_pairs[0], atol=1e-5)
