"""The arms of the claim component-tokens, their sensors and the negative control."""

import numpy as np
import torch
from evidence.families.token_policies.component_tokens import (
    LINKS,
    SENSORS,
    STATE,
    ArmDemonstrations,
    ArmSensors,
    FrontArm,
    pretrained_method,
    with_permuted_embeddings,
)

from understudy.core import keys
from understudy.evaluate.rollout import rollout
from understudy.learn.method import training_data
from understudy.policy import Policy
from understudy.testing import check_env


def test_the_arms_are_environments_whose_expert_succeeds():
    check_env(lambda rows: FrontArm(rows, arm="two"))
    for arm in ("two", "four", "human"):
        env = FrontArm(50, arm=arm)
        assert all(e.metadata["success"] for e in rollout(env.expert(), env, 100, seed=0))


def test_one_sensor_fails_for_a_whole_episode_and_each_at_even_odds():
    which, key = torch.arange(1000), keys(3, range(1000))
    env, whole = (ArmSensors(FrontArm(1000, arm="human"), dead) for dead in (True, False))
    obs, intact = env.reset(which, key), whole.reset(which, key)
    own = torch.tensor([1, 1, 1, 0, 1, 1])  # three joints of four, and the tip
    assert torch.equal(intact[SENSORS], own.expand(1000, 6).float())
    failed = own - obs[SENSORS]
    assert torch.equal(failed.sum(1), torch.ones(1000))
    assert ((failed.mean(0)[own > 0] - 0.2).abs() < 0.04).all()
    assert torch.equal(obs[STATE], intact[STATE] * obs[SENSORS])
    later = env.step(torch.full((1000, LINKS), 0.1)).obs
    assert torch.equal(later[SENSORS], obs[SENSORS])


def test_demonstrations_have_the_columns_of_the_environment():
    data = ArmDemonstrations(2, 3).load(0)
    parts = [e.metadata["dataset"] for e in data]
    assert parts == ["prior"] * 6 + ["task"] * 3
    flags = np.array([e.steps[SENSORS][0] for e in data])
    assert flags[:, 2].tolist() == [0] * 2 + [1] * 7 and flags[:, 3].tolist() == [0] * 4 + [1] * 2 + [0] * 3
    assert all(not np.asarray(e.steps["action"])[:, 2:].any() for e in data[:2])  # the arm with two links
    env = ArmSensors(FrontArm(2, arm="human"), False)
    assert {k: data[8].steps[k].shape[1:] for k in (STATE, SENSORS, "action")} == {
        k: env.features[k].shape for k in (STATE, SENSORS, "action")}


def test_components_exchange_their_embeddings():
    data = training_data(ArmDemonstrations(2, 3).load(0), pretrained_method())
    torch.manual_seed(0)
    policy = Policy(pretrained_method().policy, data.features())
    net, other = policy.encoder, with_permuted_embeddings(policy, 0).encoder
    assert not torch.equal(net.value_embedding, other.value_embedding)
    for name in ("value_embedding", "presence_embedding", "component_embedding"):
        one, two = getattr(net, name), getattr(other, name)
        assert torch.equal(one.sort(0).values, two.sort(0).values) and net.n_components == 12
