"""RIG: latents of an autoencoder, goals that are imagined, and rewards for them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from understudy.core import ConfigError, Feature, UserError
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Goal, Window
from understudy.envs import make
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor
from understudy.heads.likelihood.regression import Regression
from understudy.heads.likelihood.squashed_gaussian import SquashedGaussian
from understudy.improve.collection import GaussianExploration, random_episodes
from understudy.learn.critic import CriticConfig
from understudy.learn.devices import Processes
from understudy.learn.method import Method
from understudy.learn.targets import REWARD, TERMINATED
from understudy.methods.goal_conditioned.rig import LATENT, LATENT_GOAL, LATER, RIG, ImaginedGoals, Latents
from understudy.nets.encoders import ConcatEncoder, TokenEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.nets.vision import SmallConv
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_collection, check_column_change, check_learner, random_dataset

STATE, GOAL = "observation.state", "observation.goal"
CONFIG = PolicyConfig(SquashedGaussian("free"), FeedForward((8,)), ConcatEncoder(),
                      Normalizer(unscaled=(LATENT, LATENT_GOAL)), Window(goals=(Goal(LATENT),)), (LATENT, LATENT_GOAL))
SMALL = RIG(batch_size=8, critic=CriticConfig((8,)))


def seen() -> Policy:
    """An encoder whose latents are the state."""
    config = PolicyConfig(Regression(), FeedForward(()), ConcatEncoder(), Normalizer("identity", "identity"),
                          inputs=(STATE,), target="")
    return Policy(config, {STATE: Feature("float32", (2,))}).eval()


def walks(episodes=3, steps=20) -> Dataset:
    rng = np.random.default_rng(0)
    columns = {STATE: 2, LATENT: 3, LATENT_GOAL: 3, "action": 2}
    return Dataset([Episode({k: rng.normal(size=(steps + (k != "action"), n)).astype(np.float32)
                             for k, n in columns.items()}, {"number": i, "seed": 5}) for i in range(episodes)])


def test_contract():
    check_learner(SMALL, [CONFIG])
    data = random_dataset({STATE: Feature("float32", (2,)), "action": Feature("float32", (2,)),
                           "next.reward": Feature("float32", ())}, 3, steps=5)
    check_column_change(Latents(seen(), STATE), data)


def test_goals_are_drawn_again_and_rewards_are_those_of_the_new_goals():
    def rewarded():
        """The batch that the losses of an update get."""
        batches, learner.n_updates = [], 0
        learner.minimize = lambda name, loss, batch, *args, **options: batches.append(batch)
        learner.update(before)
        return batches[0]
    data = walks()
    learner = SMALL.build(Policy(CONFIG, data.features()).fit_statistics(data), 0, 10, data)
    before = learner.batch_sampler(data).batch(4000, 0)
    after = rewarded()
    goal = after.obs[LATENT_GOAL][:, 0]
    learner.processes = Processes(rank=1, count=2)  # whose rows have other goals
    assert (rewarded().obs[LATENT_GOAL][:, 0] != goal).any(1).float().mean() > 0.7
    practiced, later = ((goal == old[:, 0]).all(1) for old in (before.obs[LATENT_GOAL], before.extra[LATER]))
    assert practiced.float().mean() == pytest.approx(0.1, abs=0.02)
    assert later.float().mean() == pytest.approx(0.4, abs=0.03)
    imagined = goal[~practiced & ~later]
    assert imagined.mean(0).abs().max() < 0.07 and (imagined.std(0) - 1).abs().max() < 0.05
    episode, row = np.divmod(before.extra["index"][later, 0].numpy(), 20)
    steps = before.extra[f"{LATER}.steps"][later, 0].numpy().astype(int)
    assert steps.min() == 0 and (steps[row < 19] > 0).all()
    expected = np.stack([data[e].steps[LATENT][t] for e, t in zip(episode, row + steps, strict=True)])
    assert np.array_equal(goal[later], expected)
    distance = (before.next[LATENT][:, 0] - goal).square().sum(1).sqrt()
    torch.testing.assert_close(after.extra[REWARD], -distance[:, None])
    assert torch.equal(after.next[LATENT_GOAL][:, 0], goal) and not after.extra[TERMINATED].any()


@dataclass(frozen=True)
class ActsAsTold(Actor):
    """Its actions are its goals."""

    def start(self, obs, key):
        return {}

    def act(self, obs, state):
        return obs[LATENT_GOAL], state


def test_practice_has_imagined_goals_which_its_episodes_then_have():
    env = make("four_rooms", 3, limit=4)
    wide = {"action": np.tile(np.float32([[9], [-9]]), (10, 2))}  # the noise stays in the range of the data
    training = SimpleNamespace(data=walks().map(lambda e: e.replace({LATENT_GOAL: e.steps[STATE], **wide})))
    actor = ImaginedGoals(GaussianExploration(0.0)).build(ActsAsTold(), env, training)
    goals = []
    for episode in rollout(actor, env, 5, seed=7).map(Latents(seen(), STATE)):
        acted = np.asarray(episode.steps["action"])
        assert np.array_equal(acted, episode.steps[LATENT_GOAL][:4]) and not np.ptp(acted, 0).any()
        assert np.array_equal(episode.steps[LATENT], episode.steps[STATE])
        goals.append(acted[0])
    assert len(np.unique(goals, axis=0)) == 5


def test_while_acting_the_goal_is_encoded_too():
    change, obs = Latents(seen(), STATE), {STATE: torch.rand(3, 2), GOAL: torch.rand(3, 2)}
    assert torch.equal(change.step(obs, None, {})[0][LATENT_GOAL], obs[GOAL])
    for goal in ({}, {GOAL: torch.rand(3, 5)}):
        with pytest.raises(UserError, match=r"'observation.goal': there is no goal that is shown as 'obs"):
            change.step({STATE: obs[STATE], **goal}, None, {})


def test_settings_that_contradict_the_rewards_are_refused():
    with pytest.raises(ConfigError, match=r"p_imagined=0.5 and p_practiced=0.6 add up to more than 1"):
        RIG(p_practiced=0.6)
    with pytest.raises(ConfigError, match=r"the distance to the goal after a step\n.*n_step"):
        RIG(n_step=3)
    data = walks()
    with pytest.raises(ConfigError, match=r"the policy reads observation.state in (.|\n)*as the method rig does"):
        RIG().build(Policy(replace(CONFIG, codec=Normalizer(), inputs=(STATE,)), data.features()), 0, 1, data)


@pytest.mark.slow
def test_stopped_within_and_between_rounds_it_is_the_same_run():
    data = random_episodes(make("particle@images=16", 2, limit=6), 20, 0)
    method = RIG().method("observation.images.camera", n_rounds=2, n_steps=12, updates_per_step=1.0)
    (stage,) = method.stages
    scene, vae = stage.method.policy, replace(stage.method.learner, steps=2, batch_size=4)
    short = Method(replace(scene, encoder=TokenEncoder(3, vision=SmallConv((8,), 2))), learner=vae)
    check_collection(replace(method, learner=SMALL, stages=(replace(stage, method=short),)), data,
                     lambda rows: make("particle@images=16", rows, limit=6))
