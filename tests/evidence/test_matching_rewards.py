"""The world, the measure and the arms about rewards of optimal transport are as they say."""

import numpy as np
import pytest
import torch
from fixtures.learning import call_step

from evidence.families.matching_rewards import matching_rewards as table
from understudy.evaluate.rollout import rollout
from understudy.learn.method import resolve_references
from understudy.policy import Policy


def test_the_return_of_the_expert_and_the_demonstrations():
    env = table.WindyFork(50)
    returns = [float(e.steps["next.reward"].sum()) for e in rollout(table.ForkExpert(), env, 2000, seed=3)]
    assert np.mean(returns) == pytest.approx(table.EXPERT, abs=3 * np.std(returns) / 2000**0.5)
    data = table.Successes().load(760)
    assert [len(e) for e in data] == [40] * 3 and all(e.metadata["success"] for e in data)


def test_steps_to_a_level_are_censored():
    assert table.steps_to(0.9, [0.1, 0.95, 0.2, 0.99], 160) == 320
    assert table.steps_to(0.9, [0.1, 0.2, 0.89], 160) == 480


def test_without_cloning_the_policy_learns_from_the_reward_alone():
    """Its gradient does not depend on the demonstrations beside the batch; with a weight of cloning it does."""
    data = table.Successes().load(760)
    gradients = []
    for weight in (0.0, 0.5):
        for shift in (0.0, 1.0):
            torch.manual_seed(0)
            method = table.practice(table.replace(table.UNWEIGHTED, fixed_weight=weight), is_cloned=False).method
            policy = Policy(method.policy, data.features()).fit_statistics(data)
            learner = resolve_references(method, {}).learner.build(policy, 0, 10, data)
            batch = policy.windows(data).batch(8, 0)
            batch = batch.replace(others={"expert": batch.replace(action=batch.action + shift)})
            rng = torch.Generator().manual_seed(0)
            loss = call_step(learner, "policy_loss", call_step(learner, "filtered", batch, rng), rng).mean()
            gradients.append(torch.autograd.grad(loss, next(policy.parameters()))[0])
    assert torch.equal(gradients[0], gradients[1]) and not torch.allclose(gradients[2], gradients[3])
