"""Interrupted evaluations continue, and end as those that nothing interrupted."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures import walking
from fixtures.cli import TINY
from fixtures.walking import Walk

from understudy.cli import main
from understudy.commands.parts import kept_episodes
from understudy.commands.parts.kept_episodes import KeptEpisodes
from understudy.data import cache
from understudy.data.episode import Dataset
from understudy.envs.gymnasium_adapter import vectorize, wrap_vector
from understudy.evaluate.recording import UniformRandomActor
from understudy.evaluate.workers import WorkerPool

POLICY = {"by": "policy 1"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_episodes, "WRITE_EVERY", 0.0)


class Stop(Exception):
    pass


def roll_out(episodes=20, seed=0, policy=POLICY, stop=None, rows=3, name="walk", groups=None):
    """The numbers of the episodes that were run, and the data set. An exception after `stop` episodes ends it."""
    env, run = wrap_vector(vectorize(Walk, rows), {"env": name}), []
    actor = UniformRandomActor(env)

    class Counted(WorkerPool):
        def rollout(self, episodes, seed=0, *, first=0, watch):
            def count(number, episode):
                if len(run) == stop:
                    raise Stop
                run.append(number)
                watch(number, episode)
            return super().rollout(episodes, seed, first=first, watch=count)
    try:
        with KeptEpisodes() as kept, Counted(None, 1, local=(actor, env)) as crew:
            if groups is not None:
                return run, [e for numbers in groups for e in kept.rollout(crew, env, episodes, seed, policy,
                                                                           numbers=numbers)]
            return run, kept.rollout(crew, env, episodes, seed, policy)
    except Stop:
        return run, None


def folders() -> list[Path]:
    return list(cache.folder().glob("eval-*"))


@pytest.mark.parametrize("stops", [(1,), (7,), (7, 5, 0, 3), (19,)])
def test_only_the_missing_episodes_are_run_and_the_result_is_the_same(stops, capsys):
    _, expected = roll_out()
    assert not folders()
    run = []
    for stop in stops:
        part, data = roll_out(stop=stop, rows=2 + stop % 3)
        assert data is None and len(folders()) == 1
        run += part
    part, data = roll_out()
    assert sorted(run + part) == list(range(20)) and len(run) == sum(stops)
    assert data.fingerprint() == expected.fingerprint()
    assert [dict(e.metadata) for e in data] == [dict(e.metadata) for e in expected]
    assert [e.schema for e in data] == [e.schema for e in expected]
    assert f"{sum(stops)} of 20 episodes were finished by an interrupted call" in capsys.readouterr().err
    assert not folders()


def test_episodes_that_are_asked_for_in_groups_continue_too(capsys):
    """As a sequential evaluation does, which may end before it needs all of them."""
    _, expected = roll_out()
    groups = [range(first, first + 4) for first in range(0, 20, 4)]
    part, data = roll_out(stop=10, groups=groups)
    assert data is None and len(folders()) == 1 and not capsys.readouterr().err
    run, data = roll_out(groups=groups[:4])
    assert not set(run) & set(part) and sorted({*part, *run}) == list(range(16))
    assert Dataset(data).fingerprint() == expected[:16].fingerprint()
    assert "10 of 20 episodes were finished by an interrupted call" in capsys.readouterr().err and not folders()


def test_what_makes_other_episodes_keeps_nothing(tmp_path, monkeypatch):
    roll_out(stop=7)
    for change in ({"seed": 1}, {"policy": {"by": "policy 2"}}, {"name": "other"}):
        assert len(roll_out(**change)[0]) == 20
    assert len(folders()) == 1
    run, fewer = roll_out(5)  # an episode is decided by its number, not by how many there are
    assert len(run) < 5 and len(fewer) == 5 and not folders()
    roll_out(stop=7)
    copy = tmp_path / "walking_copy.py"
    copy.write_text(Path(walking.__file__).read_text() + "\n")
    monkeypatch.setattr(walking, "__file__", str(copy))  # the code of the environment has changed
    assert len(roll_out()[0]) == 20


def test_a_second_process_at_the_same_time_takes_nothing_away():
    with KeptEpisodes() as kept:
        env = wrap_vector(vectorize(Walk, 2), {"env": "walk"})
        with WorkerPool(None, 1, local=(UniformRandomActor(env), env)) as crew:
            kept.rollout(crew, env, 4, 0, POLICY)
        assert len(folders()) == 1
        run, data = roll_out(4)
        assert len(run) == 4 and len(data) == 4 and len(folders()) == 1


def test_a_disk_without_space_costs_nothing_but_the_episodes(capsys, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(kept_episodes.np, "savez", full)
    run, data = roll_out(4)
    assert len(data) == 4 and "could not be kept" in capsys.readouterr().err


DEADLY = """
import os, signal, numpy as np, gymnasium
from fixtures.walking import Walk

class Deadly(Walk):
    n_steps = 0
    def step(self, action):
        Deadly.n_steps += 1
        if Deadly.n_steps == int(os.environ.get("KILL_AT", 0)):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    (folder / "deadly.py").write_text(DEADLY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        assert main(["record", "deadly:Deadly", "--trust", "deadly", "--actor", "random", "--episodes", "6", "--out",
                     "demos"]) == 0
        for seed in ("0", "1"):
            assert main(["train", "bc", "demos", "--out", f"run{seed}", "--seed", seed, *TINY]) == 0
    return folder


def in_process(folder, kill_at, *args):
    code = ("import sys; from understudy.commands.parts import kept_episodes; kept_episodes.WRITE_EVERY = 0.0; "
            "from understudy.cli import main; sys.exit(main(sys.argv[1:]))")
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", code, *args, "--trust", "deadly", "--json", "--device", "cpu"],
                          cwd=folder, capture_output=True, text=True, check=False,
                          env={**os.environ, "KILL_AT": str(kill_at), "PYTHONPATH": path})
    if kill_at:
        assert done.returncode == -signal.SIGKILL, done.stderr
        return {}
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    document.pop("seconds", None)
    for behavior in filter(None, (document.get("behavior"), (document.get("behavior") or {}).get("against"))):
        behavior.pop("latency")  # times of this machine
    return document, done.stderr


@pytest.mark.parametrize(("args", "kill_at"), [
    (("eval", "run0", "deadly:Deadly", "--episodes", "40"), 250),
    (("eval", "run0", "deadly:Deadly", "--episodes", "40", "--against", "run1"), 450),
    (("compare", "run0", "run1", "--env", "deadly:Deadly", "--episodes", "40"), 450)])
def test_evaluations_that_were_killed_continue(runs, args, kill_at):
    expected, _ = in_process(runs, 0, *args)
    before = sorted(p.relative_to(runs) for p in runs.rglob("*") if "eval" not in p.parts)
    in_process(runs, kill_at, *args)
    assert folders()
    assert sorted(p.relative_to(runs) for p in runs.rglob("*") if "eval" not in p.parts) == before
    again, err = in_process(runs, 0, *args)
    assert again == expected and "of 40 episodes were finished by an interrupted call" in err
    assert not folders()
