"""Data collection in rounds: what is collected, what is refused, and its contract."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fixtures.collections import (
    Comparing,
    ComparingLearner,
    Constant,
    ScriptedPerson,
    collected,
    contents,
    fork,
    method,
    numbered,
    rounds,
    run,
)

from understudy import config, make
from understudy.checkpoint import FromStage
from understudy.commands.train import _collection_env
from understudy.core import Unsupported, UserError
from understudy.data.column_changes import LastAction
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import mix
from understudy.data.window import ColumnSamplingWeights, Window
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.recording import expert_actor
from understudy.evaluate.rollout import rollout
from understudy.heads.likelihood.regression import Regression
from understudy.heads.memory.neighbors import Neighbors
from understudy.improve.batch_composition import PowerLawRehearsal
from understudy.improve.collection import (
    FIRST_EPISODE,
    CollectionRounds,
    RolloutCollector,
    StoredRounds,
    TaskSequenceCollector,
)
from understudy.improve.gates import HumanGate, RandomGate
from understudy.improve.retention import ROUND, AllEpisodes, LastRounds
from understudy.improve.updates import PerNewStep, PerRound, PerStoredStep
from understudy.learn.algorithm import Engine
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method, Stage, load_actor
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.run import Run
from understudy.learn.train import train
from understudy.methods import find_method
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import ContractViolation, check_collection

STATE = "observation.state"


@pytest.fixture(scope="module")
def demos() -> Dataset:
    env = fork(6)
    return rollout(env.expert(), env, 6, recording_seed(0))


# -- what is collected ----------------------------------------------------------------------------------------------


def test_rounds_are_numbered_episodes_of_the_policy_at_that_time(demos, tmp_path):
    collector = RolloutCollector(2)
    rounds_method = method(rounds(2, collector=collector, relabel=(), updates=PerNewStep(0.5)))
    checkpoints = []

    def note(step, learner, metrics):
        if "round" in metrics:
            checkpoints.append((step, metrics["round"], load_actor(tmp_path / "run", rows=16)))
    run(tmp_path / "run", rounds_method, demos, callbacks=[note])
    parts = collected(tmp_path / "run")
    assert [[e.metadata["number"] for e in part] for part in parts] == [
        [FIRST_EPISODE, FIRST_EPISODE + 1], [FIRST_EPISODE + 2, FIRST_EPISODE + 3]]
    assert {e.metadata["seed"] for part in parts for e in part} == {recording_seed(0)}
    assert [(step, number) for step, number, _ in checkpoints] == [(3, 0), (3 + parts[0].steps // 2, 1)]
    for number, (part, (_, _, actor)) in enumerate(zip(parts, checkpoints, strict=True)):
        again = rollout(actor, fork(5), 2, recording_seed(0), first=FIRST_EPISODE + 2 * number)
        assert all(np.array_equal(a.steps["action"], b.steps["action"]) for a, b in zip(part, again, strict=True))
    lines = [line for line in Run(tmp_path / "run").read_metrics() if "round" in line]
    assert [line["round/steps"] for line in lines] == [part.steps for part in parts]
    assert lines[0]["round/return"] == pytest.approx(np.mean([e.steps["next.reward"].sum() for e in parts[0]]))
    assert max(Run(tmp_path / "run").saved_steps()) == 3 + sum(part.steps // 2 for part in parts)


def test_episodes_of_an_earlier_collection_are_no_starts_again(demos, tmp_path):
    run(tmp_path / "one", method(rounds(2, relabel=())), demos)
    earlier = Dataset([*demos, *(e for part in collected(tmp_path / "one") for e in part)])
    columns = [name for name in earlier[-1].steps if name not in demos[0].steps]
    earlier = earlier.map(lambda e: e.replace(dict.fromkeys(columns)))
    for seed, first in ((0, FIRST_EPISODE + 4), (1, FIRST_EPISODE)):
        run(tmp_path / str(seed), method(rounds(1)), earlier, seed=seed, val_fraction=[0])
        assert [e.metadata["number"] for part in collected(tmp_path / str(seed)) for e in part] == [first, first + 1]


def test_the_number_of_environments_side_by_side_changes_nothing(demos, tmp_path):
    for rows in (1, 5):
        run(tmp_path / str(rows), method(rounds()), demos, fork(rows))
    assert contents(tmp_path / "1") == contents(tmp_path / "5")


def test_in_memory_it_is_the_same_training(demos, tmp_path):
    rounds_method = method(rounds())
    stored = run(tmp_path / "run", rounds_method, demos, val_fraction=0)
    result = fit_method(rounds_method, demos, 0, env=fork())
    assert all(torch.equal(a, b) for a, b in zip(stored.state_dict().values(), result.policy.state_dict().values(),
                                                 strict=True))


@dataclass(frozen=True)
class Annotated(BehaviorCloning):
    """Counts how often each episode was annotated, and with which number of updates."""

    def build(self, policy, seed, steps, data):
        return AnnotatedLearner(self, policy, seed, steps, data)


class AnnotatedLearner(Engine):
    def annotate(self, episodes, round):
        return episodes.map(lambda e: e.replace({"updates": np.full(len(e), self.n_updates + 1000 * len(
            e.steps.get("updates", ())), np.float32)}))


def test_transforms_relabelings_and_annotations_are_stored_with_the_episodes(demos, tmp_path):
    rounds_method = replace(method(rounds(), transforms=(LastAction(),)), learner=Annotated(30, 8))
    run(tmp_path / "run", rounds_method, demos)
    end = 3
    for number, part in enumerate(collected(tmp_path / "run")):
        for e in part:
            assert e.metadata[ROUND] == number and (e.steps["updates"] == end).all()  # once, with the weights of then
            assert "observation.last_action" in e.steps and "supervisor_action" not in e.steps
            acted = e.steps["intervention"][:-1] & (np.abs(e.steps["observation.last_action"][1:-1]) < 9).all(1)
            assert np.array_equal(e.steps["action"][:-1][acted], e.steps["observation.last_action"][1:-1][acted])
        end += int(0.25 * part.steps)


def test_batches_mix_first_and_collected_episodes(demos):
    rounds_method = method(rounds(2, mixture_weights=(0.25, 0.75)))
    dataset_indices = []

    class Sees(Engine):
        def update(self, batch):
            dataset_indices.append(batch.extra.get("dataset_index"))
            return super().update(batch)

    @dataclass(frozen=True)
    class Seeing(BehaviorCloning):
        def build(self, policy, seed, steps, data):
            return Sees(self, policy, seed, steps, data)
    fit_method(replace(rounds_method, learner=Seeing(30, 8)), demos, 0, env=fork())
    assert all(index is None for index in dataset_indices[:3])
    assert len(dataset_indices) > 3 and all(index.sum() == 6 for index in dataset_indices[3:])


@pytest.mark.parametrize("retention", [AllEpisodes(), LastRounds(1)])
def test_demonstrations_are_beside_each_batch_from_the_first_update_on(retention, demos):
    batches = ComparingLearner.batches
    batches.clear()
    comparing = replace(method(rounds(3, retention=retention)), learner=Comparing(30, 16))
    result = fit_method(comparing, demos, 0, env=fork())
    assert result.policy is not None and len(batches) > 6
    demonstrated = {tuple(row) for e in demos for row in e.steps[STATE].tolist()}
    for number, (own, expert) in enumerate(batches):
        assert {tuple(row) for row in expert} <= demonstrated
        assert (number < 3) == any(tuple(row) in demonstrated for row in own)  # 3 updates before the first round


@pytest.mark.parametrize(("name", "value"), [
    ("mixture_weights", (0.5, 0.5)), ("half_where", "intervention"), ("leave_out", ("handover",))])
def test_what_batches_consist_of_and_demonstrations_beside_each_exclude_each_other(name, value, demos):
    comparing = replace(method(rounds(**{name: value})), learner=Comparing(30, 8))
    with pytest.raises(UserError, match=f"{name}.*as many demonstrations beside each batch"):
        fit_method(comparing, demos, 0, env=fork())


@pytest.mark.parametrize(("name", "value"), [
    ("mixture_weights", (0.5, 0.5)), ("sampling_weights", ColumnSamplingWeights("weight")),
    ("leave_out", ("handover",))])
def test_two_rules_for_what_a_batch_consists_of_exclude_each_other(name, value):
    with pytest.raises(UserError, match=f"(?s)half_where: both say what a batch consists of.*{name}"):
        rounds(half_where="intervention", **{name: value})


def test_episodes_that_an_earlier_training_collected_are_no_demonstrations(demos):
    batches = ComparingLearner.batches
    batches.clear()
    earlier = [replace(e, metadata={**e.metadata, ROUND: 4}) for e in demos[3:]]
    fit_method(replace(method(rounds(1)), learner=Comparing(30, 16)), Dataset([*demos[:3], *earlier]), 0, env=fork())
    demonstrated, collected = ({tuple(row) for e in part for row in e.steps[STATE].tolist()}
                               for part in (demos[:3], earlier))
    assert all({tuple(row) for row in expert} <= demonstrated for _, expert in batches)
    assert all({tuple(row) for row in own} <= collected for own, _ in batches[:3])  # before the first round


@pytest.mark.parametrize("change", [{"mixture_weights": ()}, {"retention": LastRounds(1)}])
def test_a_reward_of_demonstrations_needs_batches_that_tell_them_from_own_steps(change, demos):
    """Otherwise each step of the policy had the reward of a demonstration."""
    sqil = find_method("sqil", n_rounds=1, n_episodes=2)
    sqil = replace(sqil, collection=replace(sqil.collection, updates=PerNewStep(0.1), **change))
    with pytest.raises(UserError, match="mixture_weights: a step of a demonstration has another reward"):
        fit_method(sqil, demos, 0, env=fork())


def test_data_without_a_demonstration_are_refused(demos):
    others = demos.map(lambda e: replace(e, metadata={**e.metadata, "expert": False}))
    comparing = replace(method(None), learner=Comparing(4, 8))
    with pytest.raises(UserError, match=r"none of the 6 episodes is a demonstration(.|\n)*--prior"):
        fit_method(comparing, others, 0)


def test_parts_of_a_mixture_tell_demonstrations_from_others(demos):
    batches = ComparingLearner.batches
    batches.clear()
    data, weights = mix(task=(demos[:2], 0.5), prior=(demos[2:], 0.5))
    fit_method(replace(method(None), learner=Comparing(4, 16)), data, 0, sampling_weights=weights)
    parts = [{tuple(row) for e in part for row in e.steps[STATE].tolist()} for part in (demos[2:], demos[:2])]
    assert len(batches) == 4
    for batch in batches:
        assert all({tuple(row) for row in rows} <= part for rows, part in zip(batch, parts, strict=True))


def test_resetting_the_learner_is_training_from_scratch(demos, tmp_path):
    rounds_method = method(rounds(1, reset_learner=True))
    result = fit_method(rounds_method, demos, 0, env=fork())
    updates = []
    fit_method(rounds_method, demos, 0, env=fork(),
               callbacks=[lambda n, learner, m: updates.append((n, learner.n_updates, m))])
    assert [n for n, _, m in updates if "loss" in m] == list(range(1, updates[-1][0] + 1))
    assert [own for n, own, m in updates if "loss" in m and n > 3] == list(range(1, updates[-1][0] - 2))
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
        rule = PerStoredStep(0.5) if reset else PerNewStep(0.5)
        run(out, method(rounds(3, reset_learner=reset, retention=keep, updates=rule)), demos, val_fraction=0.0)
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
    rounds_method = method(rounds(4, collector=alone, updates=PerNewStep(4.0)), Regression())
    rounds_method = replace(rounds_method,
                            learner=replace(rounds_method.learner, batch_size=64, optimizer=OptimizerConfig(lr=3e-3)))
    run(out, rounds_method, demos, make("fork", 4, limit=60))
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
    rounds_method = method(rounds(1, collector=RolloutCollector(2, supervisor=FromStage("teacher"))),
                           stages=(Stage("teacher", base),))
    assert config.load(json.loads(json.dumps(config.dump(rounds_method)))) == rounds_method
    run(tmp_path / "run", rounds_method, demos)
    teacher = Policy.load(tmp_path / "run" / "stages" / "teacher")
    for e in collected(tmp_path / "run")[0]:
        obs = torch.from_numpy(np.array(e.steps[STATE][:len(e)]))[:, None]
        advice = teacher.plan({STATE: obs}, torch.zeros(len(e), 1, 0))[:, 0]
        np.testing.assert_allclose(e.steps["action"], advice.detach().numpy(), rtol=1e-4, atol=1e-5)


# -- continual learning ---------------------------------------------------------------------------------------------


def test_tasks_come_one_after_the_other(tmp_path):
    def task(name, value):
        states = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
        return Dataset([Episode({STATE: states, "action": np.full((8, 1), value, np.float32)}, {"task": name})
                        for _ in range(3)])
    data = task("b", 1.0) + task("a", 2.0) + task("c", 3.0)
    sequence_method = method(CollectionRounds(2, TaskSequenceCollector(), retention=LastRounds(1), initial_updates=2),
                             steps=10)
    values_drawn = []

    class Sees(Engine):
        def update(self, batch):
            values_drawn.append(sorted(set(batch.action[batch.mask].unique().tolist())))
            return super().update(batch)

    @dataclass(frozen=True)
    class Seeing(BehaviorCloning):
        def build(self, policy, seed, steps, data):
            return Sees(self, policy, seed, steps, data)
    fit_method(replace(sequence_method, learner=Seeing(10, 8)), data, 0)
    assert values_drawn == [[1.0]] * 2 + [[2.0]] * 24 + [[3.0]] * 24
    values_drawn.clear()
    both, _ = mix(x=(task("b", 1.0), 1), y=(task("b", 2.0), 1))
    sequence_method = replace(sequence_method,
                              collection=CollectionRounds(1, TaskSequenceCollector("dataset"), initial_updates=2),
                              learner=Seeing(10, 32))
    fit_method(sequence_method, both, 0)
    assert values_drawn == [[1.0]] * 2 + [[1.0, 2.0]] * 24
    with pytest.raises(UserError, match="2 rounds need 3 tasks, and the data have 2: x, y"):
        fit_method(replace(sequence_method, collection=CollectionRounds(2, TaskSequenceCollector("dataset"))), both, 0)
    with pytest.raises(UserError, match="episode 0: the episode has no 'robot'"):
        fit_method(replace(sequence_method, collection=CollectionRounds(1, TaskSequenceCollector("robot"))), both, 0)


# -- what is refused ------------------------------------------------------------------------------------------------


def test_what_cannot_be_collected_is_refused_before_anything_is_trained(demos, tmp_path):
    for build, words in (
            (lambda: rounds(0), "CollectionRounds.n_rounds: n_rounds is 0, but must be at least 1"),
            (lambda: PerNewStep(0), "PerNewStep.count: count is 0, but must be above 0"),
            (lambda: PerRound(0), "PerRound.count: count is 0, but must be at least 1"),
            (lambda: rounds(mixture_weights=(1.0,)), "there must be two weights"),
            (lambda: RolloutCollector(0), "n_episodes is 0, but must be at least 1"),
            (lambda: RolloutCollector(1, supervisor="me"), "'me' is not a supervisor"),
            (lambda: RolloutCollector(1, gate=RandomGate()), "there is no supervisor"),
            (lambda: RandomGate(1.5), "probability is 1.5, but must be at least 0 and at most 1")):
        with pytest.raises(UserError, match=words):
            build()
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
    with pytest.raises(UserError, match=r"such as that of --prior\n.*understudy merge DATA PRIOR"):
        run(tmp_path / "run", method(rounds()), both, sampling_weights=weights)
    assert not (tmp_path / "run").exists()


def test_the_command_takes_the_environment_of_the_data(demos):
    def env_of(made, env=None, data=demos):
        return _collection_env(made, data, SimpleNamespace(env=env, trust=()))
    assert env_of(find_method("dagger")).metadata["env"] == "fork"
    assert env_of(find_method("td3-bc"), "four_rooms").metadata["env"] == "four_rooms"
    with pytest.raises(UserError, match=r"push, column 'observation.state': .*\(2,\), but this is .*\(8,\)"):
        env_of(find_method("td3-bc"), "push")
    assert env_of(method(None, stages=(Stage("base", method(rounds())),))).metadata["env"] == "fork"
    assert env_of(find_method("dagger"), data=Dataset(numbered(0, 1))) is None  # and train says what is missing
    assert env_of(find_method("bc")) is None
    with pytest.raises(UserError, match="--env: the method collects no episodes"):
        env_of(find_method("bc"), "fork")


def test_a_round_can_be_dropped_again_after_a_kill_while_it_was_removed(tmp_path, demos):
    stored = StoredRounds(tmp_path)
    stored.store(0, demos)
    (tmp_path / ".000000.part").mkdir()
    (tmp_path / ".000000.part" / "round.json").write_text("{}")
    stored.drop_after(0, rounds(2, initial_updates=5), demos, 4)
    assert stored.numbers() == [] and not list(tmp_path.iterdir())


# -- the contract ---------------------------------------------------------------------------------------------------


def small(collection) -> Method:
    return method(collection, steps=10)


@pytest.mark.parametrize("name", ["supervised", "tasks", "rehearsal", *(
    pytest.param(n, marks=pytest.mark.slow) for n in ("reset", "person", "in control"))])
def test_collections_keep_their_contract(name, demos):
    methods = {"supervised": rounds(2), "reset": rounds(2, reset_learner=True),
               "tasks": CollectionRounds(2, TaskSequenceCollector("mode"), updates=PerNewStep(0.1)),
               "rehearsal": CollectionRounds(2, TaskSequenceCollector("mode"), updates=PerNewStep(0.1),
                                             rehearsal=PowerLawRehearsal()),
               "person": rounds(2, collector=RolloutCollector(1, supervisor="person", gate=RandomGate())),
               "in control": rounds(2, collector=RolloutCollector(1, supervisor="person", gate=HumanGate()))}[name]
    data = demos
    if name in ("tasks", "rehearsal"):
        data = Dataset([replace(e, metadata={**e.metadata, "mode": str(i % 3)}) for i, e in enumerate(demos)])
    person = {"person": Constant(0.3), "in control": ScriptedPerson(Constant(0.3))}.get(name)
    check_collection(small(methods), data, None if name in ("tasks", "rehearsal") else fork, person)


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
            patch.setattr("understudy.improve.collection.StoredRounds.drop_after", lambda *args: None)
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
