"""Steps of a handover, and those that a person takes back, are stored and never learned: what batches are made of."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from fixtures.collections import fork

from understudy.core import Feature
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import ROUND
from understudy.data.replay_buffer import ReplayBuffer
from understudy.data.window import Window
from understudy.evaluate.rollout import rollout
from understudy.heads.likelihood.squashed_gaussian import SquashedGaussian
from understudy.improve.collection import CollectionRounds, RolloutCollector
from understudy.improve.corrections import UndoneTakeovers, rlif
from understudy.improve.improvement import IMPROVEMENTS, Improvement
from understudy.improve.unlearned_steps import UNLEARNED, LearnedStepWeights, UnflaggedParts
from understudy.learn.critics.td3 import TD3
from understudy.learn.targets import REWARD, TERMINATED, td_terms
from understudy.learn.train import train
from understudy.methods import find_method
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig

STATE, DISCOUNT = "observation.state", 0.9


def _episode(first: int, n: int, handover=(), undone=(), terminates=False, **metadata) -> Episode:
    """The observation and the action of a step are its number, its reward is 1 / (1 + its number)."""
    number = np.arange(first, first + n + 1, dtype=np.float32)
    ends = (np.arange(n) == n - 1) & terminates
    flags = {name: np.isin(np.arange(n), list(at)) for name, at in zip(UNLEARNED, (handover, undone), strict=True)}
    return Episode({STATE: number[:, None], "action": number[:n, None], REWARD: 1 / (1 + number[:n]), TERMINATED: ends,
                    **(flags if ROUND in metadata else {})}, metadata)


DEMONSTRATIONS = [_episode(0, 6, terminates=True)]
COLLECTED = [_episode(100, 12, handover=(3,), undone=(4, 8), terminates=True, **{ROUND: 0}),
             _episode(200, 5, undone=(0, 4), terminates=True, **{ROUND: 0}),
             _episode(300, 3, undone=(0, 1, 2), terminates=True, **{ROUND: 0})]
PARTS = {100: 103, 105: 108, 109: 112, 201: 204}  # first step: the step after the last


def test_runs_of_other_steps_are_episodes_that_are_cut_off():
    data = ReplayBuffer(DEMONSTRATIONS).extend(COLLECTED)
    parts = Dataset(UnflaggedParts(data, UNLEARNED))
    assert {int(e.steps[STATE][0, 0]): int(e.steps["action"][-1, 0]) + 1 for e in parts} == {0: 6, **PARTS}
    assert all(len(e.steps[STATE]) == len(e) + 1 and e.steps[STATE][-1] == e.steps["action"][-1] + 1 for e in parts)
    assert [bool(e.steps[TERMINATED].any()) for e in parts] == [True, False, False, True, False]
    assert [ROUND in e.metadata for e in parts] == [False, True, True, True, True]
    assert parts.lengths.tolist() == [6, 3, 3, 3, 3] and parts.features() == data.features()
    array, starts, rows = parts.column(STATE)
    assert np.shares_memory(array, data.column(STATE)[0]) and rows.tolist() == [7, 4, 4, 4, 4]
    for episode, first, n in zip(parts, starts, rows, strict=True):
        assert np.array_equal(array[first:first + n], episode.steps[STATE])
    listed = Dataset(UnflaggedParts(Dataset([*DEMONSTRATIONS, *COLLECTED]), UNLEARNED))
    assert [e.steps[STATE].tolist() for e in listed] == [e.steps[STATE].tolist() for e in parts]


@pytest.mark.parametrize(("horizon", "n_step"), [(1, 0), (1, 3), (2, 0), (2, 4)])
@pytest.mark.parametrize("weights", [(), (0.5, 0.5)])
def test_no_batch_has_an_unlearned_step_and_no_return_goes_beyond_one(horizon, n_step, weights):
    policy = Policy(PolicyConfig(SquashedGaussian(), MLP(8, 1), window=Window(1, horizon)),
                    {STATE: Feature("float32", (1,)), "action": Feature("float32", (1,))})
    policy.fit_statistics(Dataset(DEMONSTRATIONS))
    config = TD3(n_step=n_step, discount=DISCOUNT, batch_size=64)
    data, first = ReplayBuffer(DEMONSTRATIONS).extend(COLLECTED), ReplayBuffer(DEMONSTRATIONS)
    learner = config.build(policy, 0, 10, data)
    rounds = CollectionRounds(1, RolloutCollector(1), mixture_weights=weights, leave_out=UNLEARNED)
    batch = rounds._sampler(learner, data, first).batch(200, 0, 0)
    assert batch.next is not None
    returns, bootstraps = td_terms(batch, DISCOUNT, n_step)
    begins = batch.obs[STATE][:, -1, 0].long()
    parts = {0: 6, **PARTS}
    assert {int(t) for t in begins} == {t for start, stop in parts.items() for t in range(start, stop)}
    for i, t in enumerate(begins.tolist()):
        stop = next(stop for start, stop in parts.items() if start <= t < stop)
        after = min(t + (n_step or horizon), stop)  # a return ends where the part does
        assert returns[i] == pytest.approx(sum(DISCOUNT**k / (1 + s) for k, s in enumerate(range(t, after))))
        ends = after in (6, 112)  # the only two steps that end an episode and are learned
        assert bootstraps[i] == pytest.approx(0.0 if ends else DISCOUNT**(after - t))
        assert ends or int(batch.next[STATE][i, -1, 0]) == after
        assert batch.action[i, batch.mask[i], 0].tolist() == list(range(t, min(t + horizon, stop)))


def test_a_round_that_is_taken_back_as_a_whole_leaves_the_demonstrations():
    data = ReplayBuffer(DEMONSTRATIONS).extend(COLLECTED[2:])
    learner = SimpleNamespace(config=SimpleNamespace(compares=False), batch_sampler=lambda data, weights: data)
    rounds = CollectionRounds(1, RolloutCollector(1), mixture_weights=(0.5, 0.5), leave_out=UNLEARNED)
    assert [len(e) for e in rounds._sampler(learner, data, data)] == [6]


def test_a_takeover_that_is_taken_back_is_no_penalty():
    """The policy acts at steps 0, 1, 4 and 7, and the second takeover is undone."""
    acts = np.array([0, 0, 1, 1, 0, 1, 1, 0], bool)
    undone = np.array([0, 0, 0, 0, 0, 1, 1, 0], bool)
    steps = {"action": np.zeros((8, 1), np.float32), STATE: np.zeros((9, 1), np.float32), "intervention": acts}
    rounds = CollectionRounds(1, RolloutCollector(1))
    method = rlif(find_method("bc"), rounds, Feature("float32", (1,)))
    for columns, rewards in (({"undone": undone}, [0, -1, 0, 0, 0, 0, 0, 0]), ({}, [0, -1, 0, 0, -1, 0, 0, 0])):
        episode = Episode({**steps, **columns})
        for change in method.transforms:
            episode = change(episode)
        assert episode.steps[REWARD].tolist() == rewards
    assert any(isinstance(change, UndoneTakeovers) for change in method.transforms)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    env, folder = fork(), tmp_path_factory.mktemp("unlearned") / "run"
    demos = rollout(env.expert(), env, 3, seed=1)
    train(find_method("bc"), demos, folder, steps=2, device="cpu", progress=False)
    return folder, demos


@pytest.mark.parametrize("name", ["residual", "rlpd", "rlif"])
def test_what_learns_off_policy_beside_a_person_leaves_them_out(name, trained):
    run, demos = trained
    method, _ = Improvement(run, demos, "person", 1, 1, 2).build(name)
    assert method.collection.leave_out == UNLEARNED
    if name != "rlif":
        assert Improvement(run, demos, None, 1, 1, 2).build(name)[0].collection.leave_out == ()


@pytest.mark.parametrize("name", [n for n, about in IMPROVEMENTS.items() if about.is_supervised and n != "doubt"])
def test_those_of_earlier_rounds_are_not_learned_by_a_later_method(name, trained):
    run, demos = trained
    earlier = demos[0].replace({n: np.zeros(len(demos[0]), bool) for n in ("intervention", *UNLEARNED)})
    method, _ = Improvement(run, Dataset([*demos, earlier]), "expert", 1, 1, 2).build(name)
    weights = getattr(method.learner, "sample_weights", None)
    assert method.collection.leave_out == UNLEARNED if name == "rlif" else isinstance(weights, LearnedStepWeights)
