"""Policies of LeRobot in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.lerobot_policies import NAMES, unpacked
from fixtures.lerobot_stand_in import DIE, FAIL, HANG, states, write_checkpoint, write_python
from folders import REPOSITORY

pytest.importorskip("websockets", reason="extra serve not installed")

from understudy.commands.parts.served import LEROBOT_PYTHON, served_client  # noqa: E402
from understudy.core import Unsupported, UserError, keys  # noqa: E402
from understudy.execute.temporal_ensemble import TemporalEnsemble  # noqa: E402
from understudy.serve import lerobot_process  # noqa: E402
from understudy.serve.lerobot_process import LeRobotProcess, plan_seeds  # noqa: E402
from understudy.serve.remote import RemotePlanner, remote_actor  # noqa: E402

STATE = "observation.state"
NEWEST = REPOSITORY / ".venv-peers" / "lerobot" / "bin" / "python"
PLANS = Path(__file__).parents[1] / "upstream_lerobot_plans.py"


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """A Python with the stand-in for LeRobot."""
    return write_python(tmp_path_factory.mktemp("python") / "stand_in", "fixtures.lerobot_stand_in.install")


@pytest.fixture(scope="module")
def opened(python, tmp_path_factory):
    """Starts policies of the stand-in, one of a kind, and ends them."""
    processes, folder = {}, tmp_path_factory.mktemp("policies")

    def start(kind, n_obs_steps=1):
        if kind not in processes or processes[kind]._process.poll() is not None:
            place = folder / f"{kind}-{len(processes)}-{n_obs_steps}"
            if not place.exists():
                write_checkpoint(place, kind, n_obs_steps)
            processes[kind] = LeRobotProcess(str(place), python)
        return processes[kind]
    yield start
    for process in processes.values():
        process.close()


def plan(planner, obs, seed=0, **columns):
    key = keys(seed, range(len(obs)))
    return planner.plan({STATE: obs, **columns}, planner.noise(key, torch.zeros_like(key)))


# -- plans of LeRobot -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["lerobot 0.4.4", "newest lerobot"])
def lerobot(request, tmp_path_factory, shared):
    """The Python of an environment with LeRobot, and the checkpoints that it can load."""
    source = shared / "fixtures" / "lerobot_policies"
    if not source.is_dir():
        pytest.skip("no fixtures of LeRobot policies")
    if request.param == "newest lerobot":
        if not NEWEST.exists():
            pytest.skip("no .venv-peers")
        return NEWEST, {name: unpacked(source / name, tmp_path_factory.mktemp(name)) for name in NAMES}
    python = write_python(tmp_path_factory.mktemp("python") / "lerobot", "upstream_lerobot.stand_in")
    return python, {name: source / name / "pretrained_model" for name in NAMES if name.endswith("state")}


@torch.no_grad()
def test_actions_are_those_of_lerobot(lerobot, tmp_path):
    python, checkpoints = lerobot
    key, n, acted, words = keys(3, [5]), 10, {}, []
    for name, folder in checkpoints.items():
        process = LeRobotProcess(str(folder), python)
        planner = RemotePlanner(process)
        actor, state, actions, columns = remote_actor(planner), None, [], _observations(planner, n)
        for t in range(n):
            obs = {k: torch.from_numpy(v[t]) for k, v in columns.items()}
            state = actor.start(obs, key) if state is None else state
            action, state = actor.act(obs, state)
            actions.append(action)
        process.close()
        acted[name] = torch.cat(actions).numpy()
        images = {k: np.moveaxis(v, -1, -3).astype(np.float32) / 255 for k, v in columns.items() if v.dtype == np.uint8}
        np.savez(tmp_path / name, **{**columns, **images}, seeds=plan_seeds(np.repeat(key.numpy(), 3), np.arange(3)))
        words += [folder, tmp_path / f"{name}.npz", tmp_path / f"{name}-out.npz"]
        assert planner.is_deterministic == name.startswith("act")
    subprocess.run([python, PLANS, *words], check=True, capture_output=True, timeout=300)
    for name in checkpoints:
        expected = np.load(tmp_path / f"{name}-out.npz")["actions"]
        difference = np.abs(acted[name] - expected).max()
        print(f"{python.parent.name} {name}: the actions differ by {difference:.1e} of {np.abs(expected).max():.0f}")
        np.testing.assert_allclose(acted[name], expected, rtol=1e-5, atol=1e-5)


def _observations(planner, n: int) -> dict[str, np.ndarray]:
    """An episode of one row, (n, 1, ...) a column."""
    rng, columns = np.random.default_rng(0), {}
    for name in planner.inputs:
        feature = planner.features[name]
        columns[name] = rng.integers(0, 256, (n, 1, *feature.shape), np.uint8) if feature.kind == "image" else \
            rng.normal(size=(n, 1, *feature.shape)).astype(np.float32)
    return columns


# -- ways to a chunk --------------------------------------------------------------------------------------------------


def test_a_row_is_planned_from_its_own_seed(opened):
    planner = RemotePlanner(opened("chunks", n_obs_steps=2))
    assert (planner.window.n_obs_steps, planner.window.horizon, planner.executor.n_action_steps) == (2, 6, 4)
    both = plan(planner, states(1, 2, n_obs_steps=2))
    assert not planner.is_deterministic
    assert torch.equal(both[:1], plan(planner, states(1, n_obs_steps=2)))
    assert not torch.equal(both, plan(planner, states(1, 2, n_obs_steps=2), seed=1))


def test_the_window_reaches_the_policy(opened):
    planner = RemotePlanner(opened("chunks", n_obs_steps=2))
    window = torch.stack([states(100.0)[:, 0], states(200.0)[:, 0]], 1)
    assert plan(planner, window).mean(1)[0].round(decimals=-1).tolist() == [200, 100]


@pytest.mark.parametrize(("kind", "horizon"), [("direct", 6), ("single", 1)])
def test_policies_without_their_own_chunks_act(kind, horizon, opened):
    planner = RemotePlanner(opened(kind))
    chunk = plan(planner, states(1, 2))
    assert planner.is_deterministic and chunk.shape == (2, horizon, 2) and chunk[1, 0].tolist() == [2, 2]


def test_a_task_reaches_the_policy_as_words(opened):
    process = opened("words")
    planner = RemotePlanner(process)
    text = torch.zeros(1, 1, *planner.features["observation.task"].shape, dtype=torch.uint8)
    text[0, 0, :4] = torch.tensor(list(b"push"))
    assert process.policy["texts"] == ["observation.task"]
    assert (plan(planner, states(0), **{"observation.task": text}) == 4).all()


# -- commands ---------------------------------------------------------------------------------------------------------


def test_200_requests_of_many_clients_are_answered(python, tmp_path, monkeypatch):
    from understudy.commands.serve import ServeOptions, load_service
    from understudy.serve.client import Client
    from understudy.serve.server import BackgroundServer, ServerOptions

    address = f"lerobot:{write_checkpoint(tmp_path / 'policy', 'direct')}"
    monkeypatch.setenv(LEROBOT_PYTHON, str(python))
    service = load_service(ServeOptions(run=Path(address), rename=("state=observation.state",)))
    with BackgroundServer(service, ServerOptions(port=0)) as server:
        def ask(number: int) -> list[float]:
            with Client(server.url) as client:
                replies = [client.infer({"state": np.array([number, i, 0], np.float32)}, reset=True) for i in range(10)]
            return [float(reply["actions"][0, 0]) for reply in replies]
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(ask, range(10, 30)))
    assert answers == [[number] * 10 for number in range(10, 30)]
    served_client(address).close()


def test_without_a_python_the_option_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv(LEROBOT_PYTHON, raising=False)
    with pytest.raises(UserError, match="none is named") as error:
        served_client(f"lerobot:{tmp_path}")
    assert "--lerobot-python" in error.value.hint


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_an_error_of_lerobot_is_told_and_the_process_goes_on(opened):
    planner = RemotePlanner(opened("direct"))
    with pytest.raises(UserError, match="LeRobot cannot plan: ValueError: the state is 8") as error:
        plan(planner, states(FAIL))
    assert "lerobot-eval" in error.value.hint
    assert plan(planner, states(1)).isfinite().all()


def test_a_process_that_ends_says_its_last_lines(opened):
    planner = RemotePlanner(opened("direct"))
    with pytest.raises(UserError, match=r"(?s)it ended with status 3. Its last lines:\n.*the device is gone"):
        plan(planner, states(DIE))
    with pytest.raises(UserError, match="has ended: it ended with status 3"):
        plan(planner, states(1))


def test_a_killed_process_is_told(opened):
    process = opened("direct")
    os.kill(process._process.pid, signal.SIGKILL)
    with pytest.raises(UserError, match="killed by SIGKILL"):
        plan(RemotePlanner(process), states(1))


def test_a_process_that_hangs_is_ended(opened, monkeypatch):
    process = opened("direct")
    monkeypatch.setattr(lerobot_process, "PLAN_SECONDS", 0.5)
    with pytest.raises(UserError, match="nothing came from the process of LeRobot within 1 s, so it was ended"):
        plan(RemotePlanner(process), states(HANG))
    assert process._process.poll() is not None


def test_a_missing_package_is_named_with_the_command_that_installs_it(opened, python):
    with pytest.raises(UserError, match="No module named 'a_package_that_is_missing'") as error:
        opened("package")
    assert error.value.hint == f"install it there: {python} -m pip install a_package_that_is_missing"


@pytest.mark.parametrize(("name", "problem"), [
    ("no/such/folder", "there is no such folder"), ("nothing", "there is no such folder"),
    (".", "there is no policy of LeRobot in this folder")])
def test_a_wrong_name_is_told_before_a_process_starts(name, problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=problem):
        LeRobotProcess(name, "python")


def test_a_python_that_cannot_be_started_is_told(tmp_path):
    folder = write_checkpoint(tmp_path / "policy", "direct")
    with pytest.raises(UserError, match="this Python cannot be started: No such file"):
        LeRobotProcess(str(folder), tmp_path / "python")


def test_plans_cannot_be_guided(opened):
    planner = RemotePlanner(opened("direct"))
    with pytest.raises(Unsupported, match="not actions without chunks"):
        remote_actor(planner).planner.client.request({"understudy": {"op": "start"}})
    remote_actor(planner, TemporalEnsemble()).start({STATE: states(1)[:, 0]}, keys(0, [0]))
