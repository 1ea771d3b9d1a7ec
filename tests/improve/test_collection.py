"""Data collection in rounds: what is collected, what stays, and that a training that was stopped resumes exactly."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from folders import PATHS
from safetensors.torch import load_file

from understudy import config, make
from understudy.checkpoint import FromStage
from understudy.commands.train import _collection_env
from understudy.core import Unsupported, UserError
from understudy.data.column_changes import LastAction
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset
from understudy.data.mixture import mix
from understudy.data.replay_buffer import ReplayBuffer
from understudy.data.window import Window
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.recording import expert_actor
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor
from understudy.heads.flow import Flow
from understudy.heads.neighbors import Neighbors
from understudy.heads.regression import Regression
from understudy.improve.collection import (
    FIRST_EPISODE,
    CollectionRounds,
    GaussianExploration,
    RolloutCollector,
    SupervisorLabels,
    TaskSequenceCollector,
)
from understudy.improve.gates import GatedActor, HumanGate, RandomGate
from understudy.improve.retention import ROUND, AllEpisodes, LastRounds, TopReturns
from understudy.learn.behavior_cloning import BehaviorCloning, BehaviorCloningLearner
from understudy.learn.fit_method import fit_method
from understudy.learn.method import InitializeFrom, Method, Stage, load_actor
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.run import Run
from understudy.learn.sample_weights import ColumnWeights
from understudy.learn.train import train
from understudy.learn.validation import Validation
from understudy.methods import find_method
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import ContractViolation, check_collection

STATE = "observation.state"
LIMIT = 12  # steps of an episode


def fork(rows: int = 3):
    return make("fork", rows, limit=LIMIT)


@pytest.fixture(scope="module")
def demos() -> Dataset:
    env = fork(6)
    return rollout(env.expert(), env, 6, recording_seed(0))


def method(collection, head=None, steps: int = 30, **fields) -> Method:
    return Method(PolicyConfig(head or Flow(n_steps=2), MLP(8, 1), window=Window(2, 2), inputs=(STATE,)),
                  learner=BehaviorCloning(steps, 8), collection=collection, **fields)


def rounds(n_rounds: int = 3, **fields) -> CollectionRounds:
    collector = RolloutCollector(2, GaussianExploration(0.2), "expert", RandomGate(0.5, 0.5))
    return CollectionRounds(**{"n_rounds": n_rounds, "collector": collector, "relabel": (SupervisorLabels(),),
                               "updates_per_step": 0.25, "initial_updates": 3, **fields})


def run(out, made: Method, data: Dataset, env=None, **options) -> Policy:
    options = {"device": "cpu", "val_fraction": 0.2, "validation": Validation(4, 2), "progress": False, **options}
    return train(made, data, out, env=env or fork(), **options)


def contents(out: Path) -> dict:
    """All that a run holds, but for times."""
    found = {}
    for file in sorted(p for p in out.rglob("*") if p.is_file()):
        name = str(file.relative_to(out))
        if file.suffix == ".safetensors":
            found[name] = {k: v.numpy().tobytes() for k, v in load_file(file).items()}
        elif file.name == "state.json":
            found[name] = {k: v for k, v in json.loads(file.read_text()).items() if k != "seconds"}
        elif file.name == "metrics.jsonl":
            lines = Run(file.parent).read_metrics()
            found[name] = [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
        elif file.name == "episodes.npz":
            found[name] = open_dataset(file).fingerprint()
        elif file.name != ".lock" and file.suffix != ".npz":
            found[name] = file.read_bytes()
    return found


# -- the replay buffer ----------------------------------------------------------------------------------------------


def numbered(first: int, count: int, width: int = 2, **columns) -> list[Episode]:
    """Episodes whose rows tell where they are from."""
    def episode(n):
        rows = 3 + n % 4
        state = np.arange(rows + 1, dtype=np.float32)[:, None] + 100 * n + np.zeros(width, np.float32)
        return Episode({STATE: state, "action": -state[:-1], **{k: f(rows) for k, f in columns.items()}}, {"number": n})
    return [episode(n) for n in range(first, first + count)]


def test_a_replay_buffer_holds_what_a_dataset_holds():
    parts = [numbered(0, 3), numbered(3, 500), numbered(503, 2)]
    buffer = ReplayBuffer()
    for part in parts:
        buffer = buffer.extend(part)
    assert buffer.fingerprint() == Dataset(sum(parts, [])).fingerprint()
    assert buffer.features() == Dataset(parts[0]).features()
    chosen = [7, 504, 0, -1]
    assert buffer.select(chosen).fingerprint() == Dataset([sum(parts, [])[i] for i in chosen]).fingerprint()
    window = Window(2, 3)
    plain, packed = (window.windows(d, (STATE,), "action", next_obs=True)
                     for d in (Dataset(sum(parts, [])), buffer))
    for n in range(5):
        one, other = plain.batch(64, n), packed.batch(64, n)
        assert torch.equal(one.obs[STATE], other.obs[STATE]) and torch.equal(one.action, other.action)
        assert torch.equal(one.mask, other.mask) and torch.equal(one.next[STATE], other.next[STATE])


def test_windows_over_a_replay_buffer_copy_nothing_and_do_not_change_when_it_grows():
    buffer = ReplayBuffer(numbered(0, 4))
    windows = Window(1, 2).windows(buffer, (STATE,), "action")
    assert np.shares_memory(windows.packed.columns[STATE].array, buffer.column(STATE)[0])
    some = Window(1, 2).windows(buffer[1:3], (STATE,), "action")
    assert np.shares_memory(some.packed.columns[STATE].array, buffer.column(STATE)[0]) and len(some) == 4 + 5
    before = windows.batch(16, 0)
    grown = buffer.extend(numbered(4, 1000))
    assert len(buffer) == 4 and len(grown) == 1004 and len(windows) == 3 + 4 + 5 + 6
    assert torch.equal(windows.batch(16, 0).obs[STATE], before.obs[STATE])
    with pytest.raises(ValueError, match="read-only"):
        grown[0].steps[STATE][0] = 1


def test_growing_copies_each_row_a_constant_number_of_times(monkeypatch):
    made, empty = [], np.empty
    monkeypatch.setattr(np, "empty", lambda shape, *rest: made.append(shape[0]) or empty(shape, *rest))
    buffer = ReplayBuffer()
    for n in range(1000):
        buffer = buffer.extend(numbered(n, 1, width=1))
    rows = int(buffer.column(STATE)[2].sum())
    assert sum(made) < 2 * 4 * rows  # two columns


def test_columns_of_a_replay_buffer():
    flag = {"flag": lambda rows: np.ones(rows, bool)}
    buffer = ReplayBuffer(numbered(0, 2)).extend(numbered(2, 2, **flag))
    assert buffer.column("flag") is None and "flag" not in buffer[0].steps and buffer[2].steps["flag"].all()
    assert len(buffer.select([2, 3]).column("flag")[1]) == 2
    with pytest.raises(UserError, match=r"episode 4, column 'observation.state': it is float32 of shape \(3,\)"):
        buffer.extend(numbered(4, 1, width=3))
    with pytest.raises(UserError, match="episode 4, column 'flag': it is <U1"):
        buffer.extend(numbered(4, 1, flag=lambda rows: np.full(rows, "x")))
    assert len(buffer.extend(numbered(4, 1))) == 5  # what was refused left nothing
    wide = buffer.extend(numbered(4, 1, flag=lambda rows: np.zeros(rows, bool), text=lambda rows: np.full(rows, "a")))
    wide = wide.extend(numbered(5, 1, text=lambda rows: np.full(rows, "abc")))
    assert wide[4].steps["text"][0] == "a" and wide[5].steps["text"][0] == "abc"


# -- retention ------------------------------------------------------------------------------------------------------


def rewarded(rewards, number=None) -> Episode:
    rewards = np.array(rewards, np.float32)
    steps = {STATE: np.zeros((len(rewards) + 1, 1), np.float32), "action": np.zeros((len(rewards), 1), np.float32),
             "next.reward": rewards}
    return Episode(steps, {} if number is None else {ROUND: number})


def test_retention_rules():
    data = ReplayBuffer([rewarded([1, 1]), rewarded([0, 0, 5], 0), rewarded([2], 1), rewarded([-1], 2)])

    def kept(rule):
        return [float(e.steps["next.reward"].sum()) for e in rule.keep(data)]
    assert kept(AllEpisodes()) == [2, 5, 2, -1]
    assert kept(LastRounds()) == [-1] and kept(LastRounds(2)) == [2, -1]
    assert kept(LastRounds(1, keep_initial=True)) == [2, -1] and kept(LastRounds(9)) == [5, 2, -1]
    assert kept(TopReturns(2)) == [5, 2] and kept(TopReturns(9)) == [2, 5, 2, -1]
    assert TopReturns(2).keep(data)[1].metadata == {ROUND: 1}  # of equal returns the newer
    for rule in (LastRounds(), TopReturns(1)):  # nothing is copied
        assert np.shares_memory(rule.keep(data).column(STATE)[0], data.column(STATE)[0])
    with pytest.raises(UserError, match="at least one must stay"):
        TopReturns(0)
    with pytest.raises(UserError, match="no column 'reward'"):
        TopReturns(1, "reward").keep(data)


# -- gates and supervisors ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Constant(Actor):
    value: float

    def start(self, obs, key):
        return {}

    def act(self, obs, state):
        return torch.full((len(obs[STATE]), 2), self.value), state


def test_a_gate_decides_who_acts_and_the_supervisor_always_advises():
    env = fork(4)
    for gate, fraction in ((None, 0.0), (RandomGate(0.0), 0.0), (RandomGate(1.0), 1.0), (RandomGate(0.8, 0.5), 0.2)):
        actor = GatedActor(Constant(0.01), Constant(-0.01), gate, number=2)
        data = rollout(actor, env, 40)
        acted = np.concatenate([e.steps["intervention"] for e in data])
        action = np.concatenate([e.steps["action"] for e in data])
        assert np.array_equal(action[:, 0] < 0, acted)
        assert all((e.steps["supervisor_action"] == np.float32(-0.01)).all() for e in data)
        assert len(acted) == 40 * LIMIT and abs(acted.mean() - fraction) < (0.08 if 0 < fraction < 1 else 1e-9)
    alone = rollout(GatedActor(Constant(0.01), Constant(-0.01), RandomGate()), fork(1), 3)
    beside = rollout(GatedActor(Constant(0.01), Constant(-0.01), RandomGate()), fork(3), 3)
    assert alone.fingerprint() == beside.fingerprint()


@dataclass(frozen=True)
class ScriptedPerson(Actor):
    """Acts like `actor`, and is in control from step `first` to before step `last`."""

    actor: Actor
    first: int = 3
    last: int = 7
    says: str = "intervention"

    def start(self, obs, key):
        return {"inner": self.actor.start(obs, key), "step": torch.zeros_like(key)}

    def act(self, obs, state):
        action, inner = self.actor.act(obs, state["inner"])
        control = (state["step"] >= self.first) & (state["step"] < self.last)
        return action, {"inner": inner, "step": state["step"] + 1, "record": {self.says: control}}


def test_a_person_takes_over_and_gives_back():
    data = rollout(GatedActor(Constant(0.01), ScriptedPerson(Constant(-0.01)), HumanGate()), fork(3), 4)
    for episode in data:
        controlled = [3 <= t < 7 for t in range(LIMIT)]
        assert episode.steps["intervention"].tolist() == controlled
        assert (episode.steps["action"][:, 0] < 0).tolist() == controlled
        assert set(episode.steps) & {"step", "record"} == set()
    for person, words in ((Constant(0.0), "does not say at which steps.*'record'"),
                          (ScriptedPerson(Constant(0.0), says="control"), "does not say at which steps")):
        with pytest.raises(UserError, match=f"(?s)HumanGate.*{words}"):
            rollout(GatedActor(Constant(0.01), person, HumanGate()), fork(3), 1)


def test_a_policy_learns_what_the_person_did_while_in_control(demos, tmp_path):
    """HG-DAgger: only steps count at which the person acted, and did 0.8. The demonstrations did other things."""
    unmarked = demos.map(lambda e: e.replace({"intervention": np.zeros(len(e), bool)}))
    collector = RolloutCollector(4, supervisor="person", gate=HumanGate())
    made = method(CollectionRounds(2, collector, updates_per_step=4.0), Regression(), 10)
    made = replace(made, learner=replace(made.learner, sample_weights=ColumnWeights("intervention", 1.0, 0.0),
                                         batch_size=64, optimizer=OptimizerConfig(lr=0.01, lr_schedule="constant")))
    policy = run(tmp_path / "run", made, unmarked, person=ScriptedPerson(Constant(0.8)), val_fraction=0.0)
    episodes = collected(tmp_path / "run")[-1]
    assert all(e.steps["intervention"].sum() == 4 for e in episodes)
    planned = policy.plan({STATE: torch.tensor(episodes[0].steps[STATE][None, 3:5])}, torch.zeros(1, 2, 0))
    assert (planned[0, 0] - 0.8).abs().max() < 0.1


def test_labels_are_what_the_supervisor_advised():
    env = fork(4)
    data = rollout(GatedActor(Constant(0.5), env.expert()), env, 3)
    labeled = data.map(SupervisorLabels())
    assert np.array_equal(labeled[0].steps["action"], data[0].steps["supervisor_action"])
    assert "supervisor_action" not in labeled[0].steps
    assert labeled.features()["action"] == env.features["action"]  # its names and unit too
    with pytest.raises(UserError, match="no column 'supervisor_action'"):
        labeled.map(SupervisorLabels())[0]


# -- what is collected ----------------------------------------------------------------------------------------------


def collected(out: Path) -> list[Dataset]:
    return [open_dataset(p / "episodes.npz") for p in sorted((out / "collection").glob("[0-9]*"))]


def test_rounds_are_numbered_episodes_of_the_policy_at_that_time(demos, tmp_path):
    collector = RolloutCollector(2)
    made = method(rounds(2, collector=collector, relabel=(), updates_per_step=0.5))
    seen = []

    def note(step, learner, metrics):
        if "round" in metrics:
            seen.append((step, metrics["round"], load_actor(tmp_path / "run", rows=16)))
    run(tmp_path / "run", made, demos, callbacks=[note])
    parts = collected(tmp_path / "run")
    assert [[e.metadata["number"] for e in part] for part in parts] == [
        [FIRST_EPISODE, FIRST_EPISODE + 1], [FIRST_EPISODE + 2, FIRST_EPISODE + 3]]
    assert {e.metadata["seed"] for part in parts for e in part} == {recording_seed(0)}
    assert [(step, number) for step, number, _ in seen] == [(3, 0), (3 + parts[0].steps // 2, 1)]
    for number, (part, (_, _, actor)) in enumerate(zip(parts, seen, strict=True)):
        again = rollout(actor, fork(5), 2, recording_seed(0), first=FIRST_EPISODE + 2 * number)
        assert all(np.array_equal(a.steps["action"], b.steps["action"]) for a, b in zip(part, again, strict=True))
    lines = [line for line in Run(tmp_path / "run").read_metrics() if "round" in line]
    assert [line["round/steps"] for line in lines] == [part.steps for part in parts]
    assert lines[0]["round/return"] == pytest.approx(np.mean([e.steps["next.reward"].sum() for e in parts[0]]))
    assert max(Run(tmp_path / "run").saved_steps()) == 3 + sum(part.steps // 2 for part in parts)


def test_the_number_of_environments_side_by_side_changes_nothing(demos, tmp_path):
    for rows in (1, 5):
        run(tmp_path / str(rows), method(rounds()), demos, fork(rows))
    assert contents(tmp_path / "1") == contents(tmp_path / "5")


def test_in_memory_it_is_the_same_training(demos, tmp_path):
    made = method(rounds())
    stored = run(tmp_path / "run", made, demos, val_fraction=0)
    result = fit_method(made, demos, 0, env=fork())
    assert all(torch.equal(a, b) for a, b in zip(stored.state_dict().values(), result.policy.state_dict().values(),
                                                 strict=True))


@dataclass(frozen=True)
class Annotated(BehaviorCloning):
    """Counts how often each episode was annotated, and with which number of updates."""

    def build(self, policy, seed, steps, data):
        return AnnotatedLearner(self, policy, seed, steps, data)


class AnnotatedLearner(BehaviorCloningLearner):
    def annotate(self, episodes):
        return episodes.map(lambda e: e.replace({"updates": np.full(len(e), self.n_updates + 1000 * len(
            e.steps.get("updates", ())), np.float32)}))


def test_transforms_relabelings_and_annotations_are_stored_with_the_episodes(demos, tmp_path):
    made = replace(method(rounds(), transforms=(LastAction(),)), learner=Annotated(30, 8))
    run(tmp_path / "run", made, demos)
    end = 3
    for number, part in enumerate(collected(tmp_path / "run")):
        for e in part:
            assert e.metadata[ROUND] == number and (e.steps["updates"] == end).all()  # once, with the weights of then
            assert "observation.last_action" in e.steps and "supervisor_action" not in e.steps
            acted = e.steps["intervention"][:-1] & (np.abs(e.steps["observation.last_action"][1:-1]) < 9).all(1)
            assert np.array_equal(e.steps["action"][:-1][acted], e.steps["observation.last_action"][1:-1][acted])
        end += int(0.25 * part.steps)


def test_batches_mix_first_and_collected_episodes(demos):
    made = method(rounds(2, mixture_weights=(0.25, 0.75)))
    seen = []

    class Sees(BehaviorCloningLearner):
        def update(self, batch):
            seen.append(batch.extra.get("dataset_index"))
            return super().update(batch)

    @dataclass(frozen=True)
    class Seeing(BehaviorCloning):
        def build(self, policy, seed, steps, data):
            return Sees(self, policy, seed, steps, data)
    fit_method(replace(made, learner=Seeing(30, 8)), demos, 0, env=fork())
    assert all(index is None for index in seen[:3])
    assert len(seen) > 3 and all(index.sum() == 6 for index in seen[3:])


def test_resetting_the_learner_is_training_from_scratch(demos, tmp_path):
    made = method(rounds(1, reset_learner=True))
    result = fit_method(made, demos, 0, env=fork())
    seen = []
    fit_method(made, demos, 0, env=fork(), callbacks=[lambda n, learner, m: seen.append((n, learner.n_updates, m))])
    assert [n for n, _, m in seen if "loss" in m] == list(range(1, seen[-1][0] + 1))
    assert [own for n, own, m in seen if "loss" in m and n > 3] == list(range(1, seen[-1][0] - 2))
    kept = fit_method(method(rounds(1)), demos, 0, env=fork())
    assert not torch.equal(result.policy.codec.encode_obs({STATE: torch.ones(1, 1, 2)})[STATE],
                           kept.policy.codec.encode_obs({STATE: torch.ones(1, 1, 2)})[STATE])  # statistics of all


def metrics_of_rounds(out: Path) -> list[dict]:
    return [line for line in Run(out).read_metrics() if "round" in line]


@pytest.mark.parametrize("keep", [AllEpisodes(), LastRounds(1)], ids=["all", "last"])
def test_a_new_learner_makes_updates_for_all_stored_steps(demos, tmp_path, keep):
    """One that continues has learned from the stored steps already, and makes updates for the collected ones."""
    for reset in (True, False):
        out = tmp_path / f"{reset}"
        run(out, method(rounds(3, reset_learner=reset, retention=keep, updates_per_step=0.5)), demos, val_fraction=0.0)
        lines, stored, start = metrics_of_rounds(out), demos.steps, 3
        for line in lines:
            assert line["step"] == start
            collected = line["round/steps"]
            stored = stored + collected if isinstance(keep, AllEpisodes) else collected
            start += int(0.5 * (stored if reset else collected))
        assert Run(out).saved_steps()[-1] == start


def test_the_best_checkpoint_is_that_of_the_policy_which_did_best_alone(demos, tmp_path):
    """Episodes in which the supervisor acted are no success of the policy. Of equals the latest is best."""
    out = tmp_path / "run"
    alone = RolloutCollector(4, None, "expert", RandomGate(0.9, 0.0))  # the expert acts in the first round only
    made = method(rounds(4, collector=alone, updates_per_step=4.0), Regression())
    made = replace(made, learner=replace(made.learner, batch_size=64, optimizer=OptimizerConfig(lr=3e-3)))
    run(out, made, demos, make("fork", 4, limit=60))
    lines, episodes = metrics_of_rounds(out), collected(out)
    scores = [float(np.mean([e.metadata["success"] and not e.steps["intervention"].any() for e in data]))
              for data in episodes]
    assert [line["score"] for line in lines] == scores
    assert lines[0]["round/success"] > 0 and scores[0] == 0
    best = max(range(4), key=lambda n: (scores[n], n))
    assert Run(out).named_checkpoints()["best"] == f"checkpoints/{lines[best]['step']:06d}"
    assert best > 0 and "The score chose the best checkpoint" in (out / "CARD.md").read_text()
    judged = tmp_path / "judged"
    run(judged, method(rounds(2)), demos, score=lambda actor: 0.25)
    assert not any("score" in line for line in metrics_of_rounds(judged))


def test_a_policy_of_a_stage_can_supervise(demos, tmp_path):
    base = Method(PolicyConfig(Regression(), MLP(8, 1), window=Window(1, 1)), learner=BehaviorCloning(4, 8))
    made = method(rounds(1, collector=RolloutCollector(2, supervisor=FromStage("teacher"))),
                  stages=(Stage("teacher", base),))
    assert config.load(json.loads(json.dumps(config.dump(made)))) == made
    run(tmp_path / "run", made, demos)
    teacher = Policy.load(tmp_path / "run" / "stages" / "teacher")
    for e in collected(tmp_path / "run")[0]:
        obs = torch.from_numpy(np.array(e.steps[STATE][:len(e)]))[:, None]
        said = teacher.plan({STATE: obs}, torch.zeros(len(e), 1, 0))[:, 0]
        np.testing.assert_allclose(e.steps["action"], said.detach().numpy(), rtol=1e-4, atol=1e-5)


# -- continual learning ---------------------------------------------------------------------------------------------


def test_tasks_come_one_after_the_other(tmp_path):
    def task(name, value):
        states = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
        return Dataset([Episode({STATE: states, "action": np.full((8, 1), value, np.float32)}, {"task": name})
                        for _ in range(3)])
    data = task("b", 1.0) + task("a", 2.0) + task("c", 3.0)
    made = method(CollectionRounds(2, TaskSequenceCollector(), retention=LastRounds(1), initial_updates=2), steps=10)
    seen = []

    class Sees(BehaviorCloningLearner):
        def update(self, batch):
            seen.append(sorted(set(batch.action[batch.mask].unique().tolist())))
            return super().update(batch)

    @dataclass(frozen=True)
    class Seeing(BehaviorCloning):
        def build(self, policy, seed, steps, data):
            return Sees(self, policy, seed, steps, data)
    fit_method(replace(made, learner=Seeing(10, 8)), data, 0)
    assert seen == [[1.0]] * 2 + [[2.0]] * 24 + [[3.0]] * 24
    seen.clear()
    both, _ = mix(x=(task("b", 1.0), 1), y=(task("b", 2.0), 1))
    made = replace(made, collection=CollectionRounds(1, TaskSequenceCollector("dataset"), initial_updates=2),
                   learner=Seeing(10, 32))
    fit_method(made, both, 0)
    assert seen == [[1.0]] * 2 + [[1.0, 2.0]] * 24
    with pytest.raises(UserError, match="2 rounds need 3 tasks, and the data have 2: x, y"):
        fit_method(replace(made, collection=CollectionRounds(2, TaskSequenceCollector("dataset"))), both, 0)
    with pytest.raises(UserError, match="episode 0: the episode has no 'robot'"):
        fit_method(replace(made, collection=CollectionRounds(1, TaskSequenceCollector("robot"))), both, 0)


# -- resuming -------------------------------------------------------------------------------------------------------


def everything(**fields) -> Method:
    return method(rounds(mixture_weights=(0.5, 0.5), retention=LastRounds(2, keep_initial=True), **fields),
                  transforms=(LastAction(),))


@pytest.fixture(scope="module", params=[False, True], ids=["kept", "reset"])
def whole(request, demos, tmp_path_factory) -> Path:
    """A run that nothing stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(out, everything(reset_learner=request.param), demos)
    return out


class Stop:
    """Presses Ctrl-C during one update."""

    def __init__(self, at):
        self.at = at

    def __call__(self, step, learner, metrics):
        if step == self.at and "loss" in metrics:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
def test_stopped_at_any_update_it_is_the_same_run_bit_by_bit(whole, demos, tmp_path):
    made = Method.load(whole)
    for at in range(1, max(Run(whole).saved_steps()) + 1):
        out = tmp_path / str(at)
        with pytest.raises(KeyboardInterrupt):
            run(out, made, demos, callbacks=[Stop(at)])
        assert Run(out).saved_steps()[-1] == at
        run(out, made, demos)
        assert contents(out) == contents(whole), at


def test_stopped_while_it_collects_or_annotates_it_is_the_same_run(whole, demos, tmp_path, monkeypatch):
    before = BehaviorCloningLearner.annotate
    calls = []

    def annotate(self, episodes):
        calls.append(1)
        if len(calls) in (2, 4):
            raise KeyboardInterrupt
        return before(self, episodes)
    monkeypatch.setattr(BehaviorCloningLearner, "annotate", annotate)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", Method.load(whole), demos)
        assert not list((tmp_path / "run" / "collection").glob(".*"))
    run(tmp_path / "run", Method.load(whole), demos)
    assert len(calls) == 5 and contents(tmp_path / "run") == contents(whole)


def test_rounds_after_the_checkpoint_are_collected_again(whole, demos, tmp_path):
    """As after the loss of the newest checkpoint: what was collected with its weights does not stay."""
    out, early = tmp_path / "run", tmp_path / "early"

    def keep(step, learner, metrics):
        if metrics.get("round") == 1:
            shutil.copytree(out / "checkpoints", early)
            shutil.copy(out / "run.json", tmp_path / "run.json")
    run(out, Method.load(whole), demos, callbacks=[keep])
    shutil.rmtree(out / "checkpoints")
    shutil.copytree(early, out / "checkpoints")
    shutil.copy(tmp_path / "run.json", out / "run.json")
    third = out / "collection" / "000002" / "episodes.npz"
    first = third.parents[1] / "000000" / "episodes.npz"
    collected_at = {p: p.stat().st_mtime_ns for p in (first, third)}
    run(out, Method.load(whole), demos)
    assert first.stat().st_mtime_ns == collected_at[first] and third.stat().st_mtime_ns > collected_at[third]
    assert contents(out) == contents(whole)


def test_rounds_with_a_person_are_never_dropped(demos, tmp_path):
    collector = RolloutCollector(2, supervisor="person", gate=RandomGate())
    made, out = method(rounds(collector=collector)), tmp_path / "run"
    with pytest.raises(UserError, match="with a person, and there is nobody"):
        run(out, made, demos)
    kept = []

    def note(step, learner, metrics):
        if "round" in metrics:
            kept.append((step, Run(out).saved_steps()))
            shutil.copytree(out, tmp_path / f"{metrics['round']}")
    run(out, made, demos, person=Constant(0.3), callbacks=[note])
    assert all(step in saved for step, saved in kept)  # a checkpoint of these very weights
    resumed = tmp_path / "2"
    people = {p.name: open_dataset(p / "episodes.npz").fingerprint() for p in (resumed / "collection").iterdir()}
    run(resumed, made, demos, person=Constant(-0.3))  # who would act otherwise now
    assert people == {p.name: open_dataset(p / "episodes.npz").fingerprint()
                      for p in (resumed / "collection").iterdir()}
    assert contents(resumed) == contents(out)
    lost = tmp_path / "1"
    shutil.copytree(out / "collection" / "000002", lost / "collection" / "000002")
    with pytest.raises(UserError, match="round 2 was collected with a person after"):
        run(lost, made, demos, person=Constant(0.3))
    assert (lost / "collection" / "000002" / "episodes.npz").exists()


def test_a_run_goes_on_only_as_it_began(demos, tmp_path):
    run(tmp_path / "run", method(rounds(1)), demos)
    with pytest.raises(UserError, match="collection.n_rounds was 1, is 2"):
        run(tmp_path / "run", method(rounds(2)), demos)
    other = fork()
    other.metadata = {**other.metadata, "env": "another"}
    with pytest.raises(UserError, match="environment was fork, is another"):
        run(tmp_path / "run", method(rounds(1)), demos, other)


def test_a_stage_may_collect(demos, tmp_path):
    made = method(None, steps=2, stages=(Stage("base", method(rounds(2))),),
                  initialize_from=(InitializeFrom(FromStage("base")),))
    run(tmp_path / "whole", made, demos)
    for at in (4, 2):
        with pytest.raises(KeyboardInterrupt):
            Interrupt = Stop(at)
            with pytest.MonkeyPatch.context() as patch:
                update = BehaviorCloningLearner.update

                def stopping(self, batch, update=update, Interrupt=Interrupt):
                    found = update(self, batch)
                    Interrupt(self.n_updates, self, found)
                    return found
                patch.setattr(BehaviorCloningLearner, "update", stopping)
                run(tmp_path / "run", made, demos)
    run(tmp_path / "run", made, demos)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


KILLED = """
    import sys
    from pathlib import Path
    sys.path[:0] = {paths!r}
    from tests.improve.test_collection import demos, everything, fork, recording_seed, rollout, run
    env = fork(6)
    print("ready", flush=True)
    run(Path({out!r}), everything(reset_learner={reset}), rollout(env.expert(), env, 6, recording_seed(0)))
    """


@pytest.mark.slow
def test_killed_at_any_time_it_is_the_same_run(whole, demos, tmp_path):
    """kill -9, again and again, at times that fall into rollouts, into storing and into updates."""
    out, code = tmp_path / "run", textwrap.dedent(KILLED)
    code = code.format(paths=PATHS, out=str(out),
                       reset=Method.load(whole).collection.reset_learner)
    rng, kills = np.random.default_rng(0), 0
    while True:
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
                              env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
            assert process.stdout.readline() == "ready\n"
            try:
                if process.wait(rng.uniform(0.05, 0.05 + 0.08 * 1.3**kills)) == 0:
                    break
                raise AssertionError("it failed")
            except subprocess.TimeoutExpired:
                process.kill()
                kills += 1
                process.wait()
    assert kills >= 3 and contents(out) == contents(whole)


# -- what is refused ------------------------------------------------------------------------------------------------


def test_what_cannot_be_collected_is_refused_before_anything_is_trained(demos, tmp_path):
    for made, words in (
            (lambda: rounds(0), "CollectionRounds.n_rounds: n_rounds is 0, but must be at least 1"),
            (lambda: rounds(updates_per_step=0), "updates_per_step is 0, but must be above 0"),
            (lambda: rounds(mixture_weights=(1.0,)), "there must be two weights"),
            (lambda: RolloutCollector(0), "n_episodes is 0, but must be at least 1"),
            (lambda: RolloutCollector(1, supervisor="me"), "'me' is no supervisor"),
            (lambda: RolloutCollector(1, gate=RandomGate()), "there is no supervisor"),
            (lambda: RandomGate(1.5), "probability is 1.5, but must be at least 0 and at most 1")):
        with pytest.raises(UserError, match=words):
            made()
    with pytest.raises(UserError, match="no environment to collect them in"):
        train(method(rounds()), demos, tmp_path / "run", device="cpu")
    with pytest.raises(UserError, match="no environment to collect them in"):
        fit_method(Method(method(None).policy, stages=(Stage("base", method(rounds())),)), demos, 0)
    no_expert = make("CartPole-v1")
    with pytest.raises(UserError, match=r"CartPole-v1 has none\n.*without a supervisor .understudy methods."):
        RolloutCollector(1, supervisor="expert").check(no_expert, None)
    with pytest.raises(UserError, match=r"CartPole-v1 has no expert\n.*recorder.Recorder"):
        expert_actor(no_expert)
    with pytest.raises(Unsupported, match="keeps its training data"):
        run(tmp_path / "run", method(rounds(), Neighbors()), demos)
    both, weights = mix((demos, 1.0), (demos, 1.0))
    with pytest.raises(UserError, match="cannot join a mixture with sampling weights"):
        run(tmp_path / "run", method(rounds()), both, sampling_weights=weights)
    assert not (tmp_path / "run").exists()


def test_the_command_takes_the_environment_of_the_data(demos):
    def env_of(made, env=None, data=demos):
        return _collection_env(made, data, SimpleNamespace(env=env, trust=()))
    assert env_of(find_method("dagger")).metadata["env"] == "fork"
    assert env_of(find_method("td3-bc"), "push").metadata["env"] == "push"
    assert env_of(method(None, stages=(Stage("base", method(rounds())),))).metadata["env"] == "fork"
    assert env_of(find_method("dagger"), data=Dataset(numbered(0, 1))) is None  # and train says what is missing
    assert env_of(find_method("bc")) is None
    with pytest.raises(UserError, match="--env: the method collects no episodes"):
        env_of(find_method("bc"), "fork")


# -- the contract ---------------------------------------------------------------------------------------------------


def small(collection) -> Method:
    return method(collection, steps=10)


@pytest.mark.parametrize("name", ["supervised", "tasks", *(pytest.param(n, marks=pytest.mark.slow) for n in (
    "reset", "person", "in control"))])
def test_collections_keep_their_contract(name, demos):
    made = {"supervised": rounds(2), "reset": rounds(2, reset_learner=True),
            "tasks": CollectionRounds(2, TaskSequenceCollector("mode"), updates_per_step=0.1),
            "person": rounds(2, collector=RolloutCollector(1, supervisor="person", gate=RandomGate())),
            "in control": rounds(2, collector=RolloutCollector(1, supervisor="person", gate=HumanGate()))}[name]
    data = demos
    if name == "tasks":
        data = Dataset([replace(e, metadata={**e.metadata, "mode": str(i % 3)}) for i, e in enumerate(demos)])
    person = {"person": Constant(0.3), "in control": ScriptedPerson(Constant(0.3))}.get(name)
    check_collection(small(made), data, None if name == "tasks" else fork, person)


@dataclass(frozen=True)
class Shuffling(RolloutCollector):
    """Draws from the global generator, so that no round can be collected again."""

    def collect(self, actor, number, training):
        first = FIRST_EPISODE + int(torch.randint(1000, ()))
        return rollout(actor, training.env, self.n_episodes, first=first)


@dataclass(frozen=True)
class Keeping(CollectionRounds):
    """Does not drop the rounds that are later than the checkpoint."""

    def run(self, training):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("understudy.improve.collection._StoredRounds.drop_after", lambda *args: None)
            super().run(training)


@dataclass(frozen=True)
class Restarting(CollectionRounds):
    """Forgets the state of the learner when it resumes."""

    def run(self, training):
        training.restore = lambda: None
        super().run(training)


@pytest.mark.parametrize("broken, words", [
    (rounds(2, collector=Shuffling(2), relabel=()), "must not depend on how many environments"),
    (Keeping(**vars(rounds(2))), "must be collected again"),
    (Restarting(**vars(rounds(2))), "must resume bit for bit")], ids=["random", "kept", "restarted"])
def test_broken_collections_are_found(broken, words, demos):
    with pytest.raises(ContractViolation, match=words):
        check_collection(small(broken), demos, fork)
