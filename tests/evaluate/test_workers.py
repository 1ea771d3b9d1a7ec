"""Episodes shared out: the same bits by any number of workers, whoever dies; and nobody is left behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.worker_setups import Doomed, diffusion, doomed, mistaken, stillborn
from folders import TESTS
from hypothesis import example, given, settings
from hypothesis import strategies as st

from understudy.cli import main
from understudy.core import UserError
from understudy.data.episode import Episode
from understudy.data.formats import open_dataset
from understudy.evaluate import evaluation
from understudy.evaluate.rollout import rollout
from understudy.evaluate.workers import WorkerPool, _split_episodes, _Worker, evaluate_parallel


def key_of(number, seed=0):
    from understudy.core import keys

    return int(keys(seed, [number])[0])


# -- bits -----------------------------------------------------------------------------------------------------------


def same(a, b):
    assert (
        a.fingerprint() == b.fingerprint()
        and a.metadata == b.metadata
        and [e.metadata for e in a] == [e.metadata for e in b]
    )


@pytest.mark.slow
def test_two_workers_do_what_one_does_to_the_last_bit_even_if_one_is_killed(tmp_path):
    one = evaluate_parallel(partial(diffusion, 7), 11, seed=3)
    finished = []
    with WorkerPool(partial(diffusion, 3, key_of(4, 3), str(tmp_path / "killed")), 2) as crew:
        episodes_of_crew = crew.rollout(11, 3, watch=lambda n, e: finished.append((n, len(e))))
        same(episodes_of_crew, one.episodes)
        assert sorted(finished) == [(n, len(e)) for n, e in enumerate(episodes_of_crew)]
        assert (tmp_path / "killed").exists()
        assert crew.metadata["env"] == "fork"
        same(crew.rollout(3, 3, first=8), one.episodes[8:])  # by the same processes
    assert not active_children()
    serial = evaluation.evaluate(*diffusion(16), 11, seed=3)  # as before there were workers
    assert (serial.success, serial.returns) == (one.success, one.returns)
    same(serial.episodes, one.episodes)


class Threads(Doomed):
    """Its reward is the number of threads that it is stepped with."""

    def step(self, action):
        return replace(super().step(action), reward=torch.full((self.rows,), float(torch.get_num_threads())))


def threads(rows):
    env = Threads(rows)
    return env.expert(), env


def test_every_worker_has_one_thread_also_where_it_is_this_process():
    """With more of them, products of matrices are summed in another order."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        evaluation = evaluate_parallel(partial(threads, 4), 3)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert {r for e in evaluation.episodes for r in e.steps["next.reward"].tolist()} == {1.0}


# -- death ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_worker_that_is_killed_from_outside():
    """At the first episode that anybody ends, one of the two is killed."""
    def watch(number, episode):
        if not killed:
            killed.append(active_children()[0].pid)
            os.kill(killed[0], signal.SIGKILL)
    killed = []
    same(evaluate_parallel(partial(diffusion, 3), 40, workers=2, watch=watch).episodes,
         evaluate_parallel(partial(diffusion, 40), 40).episodes)


@pytest.mark.slow
def test_an_episode_that_kills_twice_is_named():
    with pytest.raises(UserError, match=r"seed 2: .*two workers died in episode 6 \(killed by SIGKILL\)\n  -> "), \
            WorkerPool(partial(doomed, 4, key_of(6, 2)), 2) as crew:
        crew.rollout(9, 2)
    assert not active_children()


@pytest.mark.slow
def test_what_goes_wrong_in_a_worker_is_said_as_it_would_be_here():
    for setup, error, message in ((stillborn, UserError, r"die while they start \(it ended with status 3\)"),
                                  (mistaken, UserError, "the house: expected a door, found a wall\n  -> turn round"),
                                  (partial(int, "x"), RuntimeError, "in a worker:\n.*ValueError: invalid literal")):
        with pytest.raises(error, match="(?s)" + message), WorkerPool(setup, 2) as crew:
            crew.rollout(4)
        assert not active_children()


def test_what_cannot_be_shared_out_is_refused():
    with pytest.raises(UserError, match="not 0"):
        WorkerPool(stillborn, 0)
    with pytest.raises(UserError, match="sent to another process"), WorkerPool(lambda: None, 2):
        pass
    with pytest.raises(UserError, match="workers have not been started"):
        WorkerPool(stillborn, 2).rollout(3)
    with pytest.raises(UserError, match="at least one episode"):
        evaluate_parallel(stillborn, 0)


# -- who does what --------------------------------------------------------------------------------------------------


class Crew:
    """Stands for processes: in an order and with deaths that are drawn. A worker ends episodes of the rows that it
    has in any order, and begins the next as one ends, as rollouts do; the episodes of `deadly` kill."""

    def __init__(self, count, rows, draw, deaths, deadly):
        self.count, self.rows, self.draw, self.deaths, self.deadly, self.workers = count, rows, draw, deaths, deadly, []
        self.ran = []
        self.killed = []  # (why, the episodes that ran then)

    def start_worker(self):
        self.workers.append(_Worker(None))

    def lose(self, member, why):
        self.workers.remove(member)
        self.killed.append((why, set(member.handle["rows"]) if member.rows else set()))
        return member, "died", why

    def assign(self, member, share, seed):
        member.is_busy, member.pending = True, set(share)
        member.handle = {"rows": list(share[:self.rows]), "next": list(share[self.rows:])}

    def receive(self):
        able = [m for m in self.workers if not m.rows or m.is_busy]
        member = able[self.draw(len(able))]
        if self.deaths and self.draw(4) == 0:
            self.deaths -= 1
            yield self.lose(member, "drawn")
        elif not member.rows:
            yield member, "ready", (self.rows, {"env": "none"})
        elif self.deadly & set(member.handle["rows"]):
            yield self.lose(member, "deadly")
        elif member.handle["rows"]:
            number = member.handle["rows"].pop(self.draw(len(member.handle["rows"])))
            member.handle["rows"] += [member.handle["next"].pop(0)] if member.handle["next"] else []
            self.ran.append(number)
            yield member, "episode", (number, Episode({"action": np.zeros((1, 1), np.float32)}, {"number": number}))
        else:
            yield member, "done", {"env": "none"}


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**32), st.integers(0, 1),
       st.sets(st.integers(0, 80), max_size=2))
@example(3, 1, 2, 0, 1, {2})
def test_every_episode_once_whatever_the_order_and_one_death(episodes, count, rows, seed, deaths, deadly):
    rng = np.random.default_rng(seed)
    workers = WorkerPool(stillborn, count)
    workers._backend = crew = Crew(count, rows, lambda n: int(rng.integers(n)), deaths, deadly)
    if deadly & set(range(episodes)):
        with pytest.raises(UserError, match="two workers died in episode") as refused:
            workers.rollout(episodes)
        named = int(re.search(r"in episode (\d+)", str(refused.value))[1])
        why = [why for why, share in crew.killed if named in share]
        # Two died in it: of the episode itself, or it ran beside a deadly one, and again when the drawn death came.
        assert len(why) == 2 and (named in deadly or sorted(why) == ["deadly", "drawn"])
        return
    assert [e.metadata["number"] for e in workers.rollout(episodes)] == list(range(episodes))
    assert sorted(crew.ran) == list(range(episodes)) and len(crew.workers) <= count


@given(st.integers(0, 3000), st.integers(1, 64), st.integers(1, 64))
def test_shares_are_all_of_it_in_whole_rounds(episodes, rows, count):
    shares = _split_episodes(range(episodes), rows, count)
    assert [n for s in shares for n in s] == list(range(episodes))
    if episodes > 4 * rows * count:
        assert len(shares) >= count and all(len(s) % rows == 0 for s in shares[:-1])
    elif episodes:
        assert len(shares) <= count


# -- from the command line ------------------------------------------------------------------------------------------


PROGRAM = """
import sys
from understudy.cli import main
if __name__ == "__main__":
    sys.exit(main())
"""
SLOW = """
import os, time
from multiprocessing import parent_process
from understudy.envs.toys.fork import Fork


class Slow(Fork):
    def step(self, action):
        if parent_process() is None:  # whether the environment repeats is asked before there are workers
            return super().step(action)
        open(f"pid-{os.getpid()}", "w").close()
        time.sleep(60)


def env(rows):
    return Slow(rows)
"""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1] != b"Z" if Path("/proc").exists() else True


@pytest.mark.slow
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_nobody_is_left_behind(number, tmp_path):
    """Ctrl-C, a scheduler's notice, and a kill that no program can answer."""
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "program.py").write_text(PROGRAM)
    process = subprocess.Popen([sys.executable, "program.py", "record", "slow:env", "--trust", "slow", "--out", "d",
                                "--episodes", "8", "--workers", "2"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(pids := [int(p.name[4:]) for p in tmp_path.glob("pid-*")]) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(getattr(signal, number))
    errors = process.communicate(timeout=100)[1]
    assert process.returncode == (-9 if number == "SIGKILL" else 130), errors
    assert "Traceback" not in errors
    while any(map(alive, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_the_commands_give_the_same_with_workers(tmp_path, monkeypatch, capsys):
    def run(*args):
        assert main([str(a) for a in args]) == 0
        return capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    for workers in (1, 2):
        run("record", "fork", "--out", f"d{workers}", "--episodes", 24, "--workers", workers)
    assert open_dataset("d1").fingerprint() == open_dataset("d2").fingerprint()
    run("train", "bc", "d1", "--out", "run", "--steps", 100)
    outputs = [json.loads(run("eval", "run", "fork", "--episodes", 20, "--json", "--workers", n)) for n in (1, 2)]
    for f in outputs:
        del f["seconds"]
        f["behavior"] = None  # how long a plan took
    assert outputs[0] == outputs[1]
    run("eval", "run", "fork", "--episodes", 10, "--save", "seen")
    run("eval", "run", "fork", "--episodes", 20, "--workers", 3, "--save", "seen")  # goes on
    run("eval", "run", "fork", "--episodes", 20, "--save", "alone")
    assert open_dataset("seen").fingerprint() == open_dataset("alone").fingerprint()
    assert main(["eval", "run", "fork", "--sequential", "--threshold", "0.5", "--workers", "2"]) == 2
    assert "must be 1 with --sequential" in capsys.readouterr().err


# -- Ray ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ray_gives_the_same_and_survives_a_death(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="extra cluster not installed")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *sys.path]))
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init("local", num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    try:
        setup = partial(doomed, 3, key_of(5), str(tmp_path / "killed"))
        same(evaluate_parallel(setup, 13, workers="ray").episodes, rollout(Doomed(3).expert(), Doomed(3), 13))
        assert (tmp_path / "killed").exists() and ray.is_initialized()  # what was there before stays
        with pytest.raises(UserError, match="two workers died in episode 5"):
            evaluate_parallel(partial(doomed, 3, key_of(5)), 9, workers="ray")
        with pytest.raises(UserError, match="found a wall\n  -> turn round"):
            evaluate_parallel(mistaken, 9, workers="ray")
    finally:
        ray.shutdown()
