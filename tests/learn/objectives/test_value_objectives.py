"""Values of goals from data without actions."""

import numpy as np
import pytest
import torch
from fixtures.learning import call_step

from understudy.core import UserError
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Goal, Window
from understudy.heads.likelihood.regression import Regression
from understudy.learn.fit import fit
from understudy.learn.objectives.representation import RepresentationLearning
from understudy.learn.objectives.value_objectives import INTENT, OUTCOME, IntentionValue
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.ema import ConstantDecay
from understudy.nets.encoders import TokenEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner

RAW = Normalizer("identity", "identity")
STATE, N_STATES, DISCOUNT = "observation.state", 6, 0.8
WINDOW = Window(goals=(Goal(STATE, OUTCOME, p_curgoal=0.2, p_randomgoal=0.3),
                       Goal(STATE, INTENT, p_curgoal=0.2, p_randomgoal=0.3)))


def forward_walks():
    """One walk along a chain, from its first state to its last."""
    return Dataset([Episode({STATE: np.eye(N_STATES, dtype=np.float32)[np.arange(N_STATES)]}, rows=N_STATES - 1)])


def learned(objective, updates, data=None, window=WINDOW):
    torch.manual_seed(0)
    config = PolicyConfig(Regression(), FeedForward(), TokenEncoder(32), RAW, window, (STATE,),
                          target="")
    data = data or forward_walks()
    policy = Policy(config, data.features())
    learner = RepresentationLearning((objective,), batch_size=64, ema=ConstantDecay(0.0), optimizer=OptimizerConfig(
        lr=3e-3)).build(policy, 0, updates, data)
    sampler = learner.batch_sampler(data)
    fit(learner, lambda n: sampler.batch(64, n), updates)
    return learner


@pytest.mark.slow
@pytest.mark.parametrize("same", [1.0, 0.5])
def test_the_value_of_a_chain_is_the_discounted_number_of_steps(same):
    objective = IntentionValue(0.9, DISCOUNT, same, hidden=(64,), target_decay=0.98)
    learner = learned(objective, 2500)
    states = torch.eye(N_STATES)[:, None]
    with learner.evaluation():
        phi = learner.policy.context({STATE: states}).flat()
        values = torch.stack([learner.nets.objectives[0].networks(phi, *2 * [{STATE: g.expand_as(states)}]).mean(0)
                              for g in states], 1)
    steps = np.arange(N_STATES - 1)[None] - np.arange(N_STATES - 1)[:, None]
    exact = -(1 - DISCOUNT ** np.maximum(steps, 0)) / (1 - DISCOUNT)
    ahead = steps >= 0
    assert np.abs(values[:-1, :-1].numpy() - exact)[ahead].max() < 0.4, values


def exact_fork_values(expectile):
    """The fixed point of values (state, outcome, intent), where two ways lead from state 0 and back to it."""
    values = np.zeros((5, 5, 5))
    for _ in range(300):
        total, weights = np.zeros_like(values), np.zeros_like(values)
        for at, to in ((0, 1), (1, 2), (2, 0), (0, 3), (3, 4), (4, 0)):
            backup = np.where(np.arange(5)[:, None] == at, 0, DISCOUNT * values[to] - 1)
            weight = np.where(np.diag(backup) < np.diag(values[at]), 1 - expectile, expectile)
            total[at], weights[at] = total[at] + weight * backup, weights[at] + weight
        values = total / weights
    return values


@pytest.mark.slow
@pytest.mark.parametrize("intents", [True, False])
def test_at_a_fork_the_value_of_an_outcome_depends_on_the_intent(intents):
    data = Dataset([Episode({STATE: np.eye(5, dtype=np.float32)[way]}, rows=3) for way in ([0, 1, 2, 0], [0, 3, 4, 0])])
    window = Window(goals=tuple(Goal(STATE, into, p_curgoal=0.2, p_randomgoal=0.8) for into in (OUTCOME, INTENT)))
    objective = IntentionValue(0.9, DISCOUNT, intents=intents, hidden=(64,), target_decay=0.98)
    learner = learned(objective, 2500, data, window)
    at, outcome, intent = (x.flatten() for x in torch.meshgrid(*3 * [torch.arange(5)], indexing="ij"))
    states = torch.eye(5)[:, None]
    with learner.evaluation():
        phi = learner.policy.context({STATE: states}).flat()
        values = learner.nets.objectives[0].networks(phi[at], {STATE: states[outcome]}, {STATE: states[intent]}).mean(0)
    # Without intents all transitions have the same weight. State 0 is two rows, and therefore no goal.
    exact = exact_fork_values(0.9 if intents else 0.5)[:, 1:, 1:]
    assert np.abs(values.reshape(5, 5, 5).numpy()[:, 1:, 1:] - exact).max() < 0.3
    assert (np.ptp(exact[0, 0]) > 1) == intents


def test_the_loss_by_hand():
    objective = IntentionValue(0.9, DISCOUNT, same=0.0, hidden=(8,))
    learner = learned(objective, 0)
    data, loss = forward_walks(), learner.nets.objectives[0]
    batch = learner.batch_sampler(data).gather(np.arange(5), np.random.default_rng(3))
    value = call_step(learner, "losses", batch, torch.Generator().manual_seed(0))[1]
    outcome, intent = ({STATE: batch.extra[name]} for name in (OUTCOME, INTENT))
    phi, next_phi = (learner.policy.context(o).flat() for o in (batch.obs, batch.next))

    def v(features, goal):
        return loss.networks(features, goal, intent)
    hit, done = (batch.extra[f"{name}.reached"][:, 0] for name in (OUTCOME, INTENT))
    assert torch.equal(hit, (batch.extra[OUTCOME] == batch.obs[STATE]).all(-1)[:, 0])  # states of the walk differ
    target = torch.where(hit, 0.0, -1 + DISCOUNT * v(next_phi, outcome))
    advantage = torch.where(done, 0.0, -1 + DISCOUNT * v(next_phi, intent).amin(0)) - v(phi, intent).mean(0)
    weight = torch.where(advantage < 0, 0.1, 0.9)
    assert torch.allclose(value, (weight * (target - v(phi, outcome)).square()).sum(0), atol=1e-5)


def test_the_goals_that_are_missing_are_named():
    policy = Policy(PolicyConfig(Regression(), target=""), forward_walks().features())
    with pytest.raises(UserError, match="(?s)no goal 'observation.outcome'.*Window\\(goals="):
        IntentionValue().build(policy)


def test_the_contract():
    policy = PolicyConfig(Regression(), FeedForward(), TokenEncoder(8), window=WINDOW, inputs=(STATE,))
    check_learner(RepresentationLearning((IntentionValue(hidden=(8,)),), batch_size=8), (policy,))
