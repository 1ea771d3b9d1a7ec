"""FILTER: where its episodes begin, and what its discriminator sees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from understudy import make
from understudy.core import UserError
from understudy.data.episode import Dataset
from understudy.envs.episode_wrappers import DEMONSTRATED_START, FixedHorizonEnv
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.improve.updates import PerNewStep
from understudy.learn.fit_method import fit_method
from understudy.learn.train import train
from understudy.methods import find_method
from understudy.methods.reward_matching.filter import OWN_START
from understudy.policy import Policy

STATE, LIMIT = "observation.state", 8


def fork(rows: int = 4):
    return make("fork", rows, limit=LIMIT)


@pytest.fixture(scope="module")
def demos() -> Dataset:
    return rollout(fork().expert(), fork(), 4, recording_seed(0))


def test_a_fraction_of_the_episodes_begins_at_demonstrated_states(demos, monkeypatch):
    method = find_method("filter", n_rounds=3, n_episodes=16)
    method = replace(method, collection=replace(method.collection, updates=PerNewStep(0.02)))
    collector, episodes = type(method.collection.collector), []
    collect = collector.collect

    def keep(self, actor, number, training):
        episodes.extend(collected := collect(self, actor, number, training))
        return collected
    monkeypatch.setattr(collector, "collect", keep)
    expert = demos.map(lambda e: replace(e, metadata={**e.metadata, "expert": e.metadata["number"] < 2}))
    fit_method(method, expert, 0, env=fork())
    states = {row.tobytes() for e in demos[:2] for row in e.steps[STATE][:len(e)]}
    begins = [e.steps[STATE][0].tobytes() in states for e in episodes]
    assert begins == [e.metadata[DEMONSTRATED_START] for e in episodes], "at those of the expert alone"
    assert len(episodes) == 48 and 14 <= sum(begins) <= 34


def test_the_score_of_a_round_is_that_of_episodes_that_begin_where_the_environment_does(demos):
    """Those that begin at demonstrated states are easier. RUN/best has the highest score."""
    rounds = find_method("filter", n_rounds=1, n_episodes=4).collection
    episodes = [replace(e, metadata={**e.metadata, "success": i < 3, DEMONSTRATED_START: i < 2})
                for i, e in enumerate(demos)]
    assert rounds._policy_score(Dataset(episodes))["score"] == 0.5
    assert rounds._policy_score(Dataset(episodes[:2])) == {}


def test_the_discriminator_sees_no_episode_that_begins_at_a_demonstrated_state(demos):
    """Its loss is that of `dac` on the other rows, and does not change with these."""
    config = replace(find_method("filter").learner, batch_size=8)
    policy = Policy(find_method("filter").policy, demos.features()).fit_statistics(demos)
    learner, plain = (replace(config, reward=reward).build(policy, 0, 10, demos) for reward in (
        config.reward, find_method("dac").learner.reward))
    plain.reward.load_state_dict(learner.reward.state_dict())
    collected = Dataset([replace(e, metadata={**e.metadata, "round": 0, DEMONSTRATED_START: i < 2})
                         for i, e in enumerate(demos)], demos.metadata)
    marked = learner.annotate(collected, 0)
    assert [bool(np.all(e.steps[OWN_START])) for e in marked] == [False, False, True, True]
    assert bool(np.all(learner.annotate(demos, None)[0].steps[OWN_START])), "as demonstrations do"
    batch = learner.batch_sampler(marked).batch(8, 0, 0)
    expert = learner.batch_sampler(learner.annotate(demos, None)).batch(8, 0, 1)
    own = batch.extra[OWN_START][:, 0, 0].bool()
    assert own.any() and not own.all()

    def loss(of, rows):
        return of.reward.loss(rows, expert, torch.Generator().manual_seed(0))
    changed = batch.replace(action=torch.where(own[:, None, None], batch.action, 9.0))
    torch.testing.assert_close(loss(learner, changed), loss(learner, batch), rtol=0, atol=0)
    index = own.nonzero().flatten()[torch.arange(8) % int(own.sum())]
    torch.testing.assert_close(loss(plain, batch.map(lambda column: column[index])), loss(learner, batch))
    assert not torch.allclose(loss(plain, changed), loss(plain, batch))
    nothing = batch.replace(extra={**batch.extra, OWN_START: torch.zeros_like(batch.extra[OWN_START])})
    assert not loss(learner, nothing).any()


def test_an_environment_without_recorded_states_is_refused_before_anything_is_trained(demos, tmp_path):
    with pytest.raises(UserError, match=r"cannot be put into a demonstrated state(.|\n)*use dac"):
        train(find_method("filter"), demos, tmp_path / "run", env=FixedHorizonEnv(fork()), progress=False)
    with pytest.raises(UserError, match="fraction"):
        find_method("filter", fraction=1.0)
