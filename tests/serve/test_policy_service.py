"""Replies of a policy: chunks, histories of clients, batches, and words."""

import threading
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from fixtures.served import Slow, policy_service, state

pytest.importorskip("websockets", reason="extra serve not installed")
from understudy.core import Feature, keys  # noqa: E402
from understudy.data.text_columns import TaskText  # noqa: E402
from understudy.data.window import Window  # noqa: E402
from understudy.execute.actor import PolicyActor  # noqa: E402
from understudy.execute.chunking import RealTimeChunking, RecedingHorizon  # noqa: E402
from understudy.execute.temporal_ensemble import TemporalEnsemble  # noqa: E402
from understudy.heads.denoising.flow import Flow  # noqa: E402
from understudy.policy import Inpaint, PolicyConfig  # noqa: E402
from understudy.serve.client import Client, RequestRefused  # noqa: E402
from understudy.serve.describe import policy_metadata, policy_schema  # noqa: E402
from understudy.serve.policy_service import PolicyService, ServedPolicy  # noqa: E402
from understudy.serve.server import BackgroundServer  # noqa: E402
from understudy.testing import random_batch  # noqa: E402

STATE = "observation.state"


def test_chunks_are_those_of_the_policy_and_each_client_has_its_own_history():
    service = policy_service(window=Window(2, 8))
    planner = service.served.planner
    with BackgroundServer(service) as server, Client(server.url) as a, Client(server.url) as b:
        got = {}
        for t in range(3):
            for client, sign in ((a, 1), (b, -1)):
                got[sign, t] = client.infer(state(sign * (t + 1)), episode=5 + sign, reset=t == 0,
                                            executed=1)["actions"]
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
        step_by_step = client.infer(state(2), executed=1)["actions"]
        planner = service.served.planner
        whole = {STATE: np.stack([np.full(3, 1, np.float32), np.full(3, 2, np.float32)])}
        client.infer(state(0), reset=True, episode=3)
        np.testing.assert_allclose(client.infer(whole)["actions"], step_by_step, atol=2e-6)
        with pytest.raises(RequestRefused, match="have 3 steps, but the policy reads 2"):
            client.infer({STATE: np.zeros((3, 3), np.float32)})
    assert planner.window.n_obs_steps == 2


@pytest.mark.parametrize("obs_pad_mask", [False, True])
def test_a_plan_reads_the_last_observations_also_if_they_came_in_parts(obs_pad_mask):
    """A client sends those since its request before. What it sends again is not read twice, and a whole window is read
    as it is."""
    service = policy_service(window=Window(4, 8, obs_pad_mask=obs_pad_mask))
    planner, windows = service.served.planner, []
    plan = planner.plan
    planner.plan = lambda obs, *args: windows.append(obs) or plan(obs, *args)
    with BackgroundServer(service) as server, Client(server.url) as client:
        for steps, executed in (([0], 0), ([0, 1], 1), ([0, 1, 3], 1), ([4, 5], 2), ([6, 7, 8, 9], 1)):
            client.infer({STATE: np.float32(steps)[:, None].repeat(3, 1)}, reset=steps == [0], executed=executed)
        client.infer({STATE: np.float32([1, 2])[:, None].repeat(3, 1)}, reset=True)
    rows = [obs[STATE][0, :, 0].tolist() for obs in windows]
    assert rows == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 3], [1, 3, 4, 5], [6, 7, 8, 9], [1, 1, 1, 2]]
    if obs_pad_mask:
        assert [int(obs[f"{STATE}?"].sum()) for obs in windows] == [1, 2, 3, 4, 4, 2]


def test_a_request_that_leaves_out_steps_that_the_policy_reads_is_refused():
    service = policy_service(window=Window(3, 8))
    planner = service.served.planner
    for steps in ([4], [3, 4]):
        with BackgroundServer(service) as server, Client(server.url) as client:
            client.infer(state(0), reset=True)
            with pytest.raises(RequestRefused, match=f"the last 3 steps, .* 4 actions .* has {len(steps)} of them.*"
                               "(3, ...).*reply action"):
                client.infer({STATE: np.float32(steps)[:, None].repeat(3, 1)})
    with BackgroundServer(service) as server, Client(server.url) as client:
        client.infer(state(0), reset=True, episode=3)
        window = np.float32([2, 3, 4])[:, None].repeat(3, 1)
        want = planner.plan({STATE: torch.from_numpy(window)[None]}, planner.noise(keys(0, [3]), torch.tensor([1])))[0]
        np.testing.assert_allclose(client.infer({STATE: window})["actions"], want.detach(), atol=2e-6)


def test_one_observation_of_a_column_is_not_taken_for_several_steps():
    other = "observation.other"
    policy, _ = random_batch(PolicyConfig(Flow(n_steps=2), window=Window(2, 4)), inputs={
        STATE: Feature("float32", (3,)), other: Feature("float32", (2,))})
    served = ServedPolicy(PolicyActor(policy, RecedingHorizon(2)), policy, "abc")
    service = PolicyService(served, policy_metadata(served, policy_schema(served), name="toy"))
    with BackgroundServer(service) as server, Client(server.url) as client:
        with pytest.raises(RequestRefused, match="unequal numbers of steps: 'observation.other' has one"):
            client.infer({STATE: np.zeros((2, 3)), other: np.zeros(2)})
        assert client.infer({STATE: np.zeros((2, 3)), other: np.zeros((2, 2))})["actions"].shape == (4, 2)


def test_a_window_of_pixels_as_fractions_is_refused_and_not_read_as_black():
    camera = "observation.images.front"
    policy, _ = random_batch(PolicyConfig(Flow(n_steps=2), inputs=(camera,), window=Window(1, 4)), inputs={
        camera: Feature("uint8", (16, 16, 3), "image")})
    served = ServedPolicy(PolicyActor(policy, RecedingHorizon(2)), policy, "abc")
    service = PolicyService(served, policy_metadata(served, policy_schema(served), name="toy"))
    counts = {"key": np.array([1]), "count": np.array([0])}
    with BackgroundServer(service) as server, Client(server.url) as client:
        frame = np.full((1, 1, 16, 16, 3), 200, np.uint8)
        assert client.infer({camera: frame}, op="plan", **counts)["actions"].shape == (1, 4, 2)
        with pytest.raises(RequestRefused, match="is float32, but the policy reads uint8 pixels"):
            client.infer({camera: np.float32(frame / 255)}, op="plan", **counts)


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
    served = replace(served, defaults={**served.defaults, task: torch.from_numpy(text.encode("push").copy())})
    service = PolicyService(served, policy_metadata(served, schema, name="toy"), schema)
    with BackgroundServer(service) as server, Client(server.url) as client:  # who says nothing gets the default task
        for words, obs in (("push", {}), ("push", {"prompt": None}), ("pull", {"prompt": None, "task": "pull"})):
            chunk = client.infer({STATE: [1, 2, 3], **obs}, reset=True, episode=4)["actions"]
            np.testing.assert_allclose(chunk, chunks[words][0], atol=2e-6)
        with pytest.raises(RequestRefused, match="'prompt' must be the task in words, as one text, but is a list"):
            client.infer({STATE: [1, 2, 3], "prompt": ["pull"]}, reset=True)


@pytest.mark.parametrize("obs_pad_mask", [False, True])
def test_a_whole_window_begins_an_episode_that_the_server_executes(obs_pad_mask):
    service = policy_service(RecedingHorizon(4), Window(3, 8, obs_pad_mask=obs_pad_mask))
    windows = np.stack([np.full(3, x, np.float32) for x in (1, 2, 3)])
    with BackgroundServer(service) as server, Client(server.url) as client:
        action = client.infer({STATE: windows}, mode="action", reset=True, episode=3)["actions"][0]
    planner = service.served.planner
    obs = {STATE: torch.from_numpy(windows)[None], **({f"{STATE}?": torch.ones(1, 3).bool()} if obs_pad_mask else {})}
    want = planner.plan(obs, planner.noise(keys(0, [3]), torch.tensor([0])))
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
