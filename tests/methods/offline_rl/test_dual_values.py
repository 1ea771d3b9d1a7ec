"""XQL, f-DVL and ReCOIL, which are IQL with another value or another critic: exact values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fixtures.d3rlpy import HIDDEN, make_batch, make_policy
from fixtures.learning import call_step

from understudy.core import Feature, UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import EXPERT
from understudy.heads.likelihood.gaussian import Gaussian
from understudy.learn.critic import CriticConfig
from understudy.learn.fit import fit
from understudy.learn.fit_method import fit_method
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods import find_method
from understudy.methods.offline_rl.f_dvl import FDVL
from understudy.methods.offline_rl.recoil import ReCOIL
from understudy.methods.offline_rl.xql import XQL
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner

RNG = torch.Generator().manual_seed(0)
STATE = "observation.state"


@pytest.mark.parametrize("config", [XQL, FDVL, ReCOIL])
def test_they_keep_the_contract_of_learners(config):
    check_learner(config(batch_size=8, critic=CriticConfig((8,))))


def loss_and_slope(config, scores: list[float], value: float) -> tuple[torch.Tensor, float]:
    """The loss of one value for several scores of the same observation, and the slope of its mean."""
    learner = config.build(make_policy(Gaussian()), 0, 1, Dataset([]))
    batch = make_batch().select_rows(slice(len(scores)))
    constant = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    learner.nets.value = lambda obs: constant.expand(len(scores))
    batch = batch.replace(extra={"score": torch.tensor(scores, dtype=torch.float64)})
    loss = call_step(learner, "value_loss", batch, RNG)
    slope, = torch.autograd.grad(loss.mean(), constant)
    return loss.detach(), slope.item()


SCORES = [-1.0, 0.0, 0.5, 2.0]


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_the_value_of_xql_is_a_soft_maximum(temperature):
    config = XQL(temperature=temperature, critic=CriticConfig(HIDDEN))
    soft = temperature * math.log(sum(math.exp(s / temperature) for s in SCORES) / 4)
    assert loss_and_slope(config, SCORES, soft)[1] == pytest.approx(0, abs=1e-9)
    assert loss_and_slope(config, SCORES, soft - 0.1)[1] < -1e-3 < 1e-3 < loss_and_slope(config, SCORES, soft + 0.1)[1]


def test_the_loss_of_xql_is_gumbels_and_scores_far_above_the_value_are_clipped():
    loss, _ = loss_and_slope(XQL(critic=CriticConfig(HIDDEN)), SCORES, 0.0)
    expected = [(math.exp(s) - s - 1) / math.exp(2) for s in SCORES]  # divided by the largest factor
    assert loss.tolist() == pytest.approx(expected)
    clipped, _ = loss_and_slope(XQL(max_exponent=1.0, critic=CriticConfig(HIDDEN)), [0.0, 50.0], 0.0)
    assert clipped.tolist() == pytest.approx([0, (math.e - 2) / math.e])


def test_the_value_of_f_dvl_is_a_quantile():
    config = FDVL(expectile=0.7, critic=CriticConfig(HIDDEN))
    slopes = [loss_and_slope(config, SCORES, value)[1] for value in (-2.0, -0.5, 0.25, 1.0, 3.0)]
    assert slopes == pytest.approx([share - 0.7 for share in (0, 0.25, 0.5, 0.75, 1)])  # of the scores below


def corridor() -> Dataset:
    """Five cells in a row. A demonstration goes from the fourth to the fifth, and others go one cell to either side."""
    features = {STATE: Feature("float32", (5,)), "action": Feature("float32", (1,)),
                "next.terminated": Feature("bool", ())}

    def step(cell: int, move: int, **facts) -> Episode:
        cells = np.eye(5, dtype=np.float32)[[cell, cell + move]]
        return Episode({STATE: cells, "action": np.array([[move]], np.float32), "next.terminated": np.array([False])},
                       facts, schema=features)
    wandering = [step(cell, move, **{EXPERT: False}) for cell in range(4) for move in (-1, 1) if cell + move >= 0]
    return Dataset([step(3, 1), *wandering[:-1]])  # no other goes from the fourth to the fifth


@pytest.mark.slow
def test_recoil_scores_a_step_by_its_distance_to_the_demonstration():
    data, discount = corridor(), 0.8
    torch.manual_seed(0)
    policy = Policy(PolicyConfig(Gaussian(), MLP(16, 0), ConcatEncoder()), data.features())
    policy.fit_statistics(data)
    optimizer = OptimizerConfig(lr=3e-3, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None)
    config = ReCOIL(expectile=0.99, discount=discount, critic=CriticConfig((64,), n_critics=1), optimizer=optimizer,
                    target_decay=0.9)
    learner = config.build(policy, 0, 2500, data)
    windows = learner.batch_sampler(data)
    fit(learner, lambda n: windows.batch(8, n), 2500)
    whole = policy.training_windows(data).gather(np.arange(len(data)))
    with torch.no_grad():
        scores = learner.nets.critic(whole.obs, whole.action)
        plans = policy.plan(whole.obs, torch.zeros(len(whole), *policy.noise_shape))[:, 0, 0]
    distance = np.array([0] + [3 - int(e.steps[STATE][1].argmax()) + 1 for e in list(data)[1:]])
    exact = config.largest * (2 * discount**distance - 1)
    assert np.abs(scores.numpy() - exact).max() < 0.05 * config.largest
    assert (plans > 0.5).all()  # everywhere towards the demonstration


def test_the_steps_of_a_plan_cost_2_each_in_recoil_and_an_end_costs_2_for_ever():
    config = ReCOIL(discount=0.5, critic=CriticConfig(HIDDEN))
    learner = config.build(make_policy(Gaussian()), 0, 1, Dataset([]))
    learner.nets.value = lambda obs: torch.full((4,), 3.0)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)  # of plans, not of single steps
    end = torch.tensor([[0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.bool)
    batch = make_batch().select_rows(slice(4)).replace(mask=mask, extra={
        "next.terminated": end, "recoil.expert": torch.tensor([False, False, False, True])})
    # 2 for ever is 4: -2 - 1 - 1/2 + 3/8, -2 - 1 + 3/4, -2 - 1 - 4/4, and the score of a demonstrated plan
    assert config.target(learner.nets, batch).tolist() == [-3.125, -2.25, -4.0, 4.0]


def test_recoil_needs_other_episodes():
    data = Dataset([e for e in corridor() if EXPERT not in e.metadata])
    with pytest.raises(UserError, match="all 1 episodes are demonstrations"):
        fit_method(find_method("recoil", data.features()), data, seed=0)
