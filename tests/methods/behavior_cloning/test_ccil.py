"""Corrective labels by a model, and a penalty on its slope."""

import numpy as np
import pytest
import torch

from understudy.checkpoint import FromStage
from understudy.core import Batch, DataError, DataWarning, UserError
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.methods.behavior_cloning.ccil import CorrectiveLabels, LipschitzLoss
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_method

STATE, GAIN = "observation.state", np.array([[0.2, 0.0], [0.1, 0.3]], np.float32)
DRIFT = np.array([[0.9, 0.1], [0.0, 0.8]], np.float32)


def walk(seed, T=30):
    """Linear dynamics ``DRIFT s + GAIN a`` under random actions."""
    rng = np.random.default_rng(seed)
    state, action = [rng.normal(size=2).astype(np.float32)], rng.normal(size=(T, 2)).astype(np.float32)
    for a in action:
        state.append(DRIFT @ state[-1] + GAIN @ a)
    return Episode({STATE: np.array(state), "action": action, "other": np.arange(T)})


def linear_model(auxiliary=(), steps=0):
    config = PolicyConfig(Regression(), FeedForward(()), ConcatEncoder(), Normalizer(target="zscore", relative=STATE),
                          Window(action_offset=1), (STATE, "action"), STATE)
    method = Method(config, learner=BehaviorCloning(steps, auxiliary_losses=auxiliary))
    return fit_method(method, Dataset([walk(i) for i in range(20)]), 0).policy


class ExactDynamics(CorrectiveLabels):
    def change(self, state, action, rows):
        return state @ torch.from_numpy(DRIFT.T) + action @ torch.from_numpy(GAIN.T) - state


@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_labels_of_linear_dynamics_are_exact(noise):
    data, model = Dataset([walk(i) for i in range(3)]), linear_model()
    made = ExactDynamics(model, noise, 2, max_error=1e6).apply(data)
    assert len(made) == 3 + 2 * 90 and all(len(e) == 1 for e in made[3:])
    change = DRIFT - np.eye(2)
    for i, e in enumerate(made[3:]):
        source = data[i // 60]
        t = i // 2 % 30
        action = e.steps["action"][0]
        goal = source.steps[STATE][t + 1] if noise else source.steps[STATE][t]
        np.testing.assert_allclose(e.steps[STATE][0], goal - change @ goal - GAIN @ action, atol=1e-5)
        assert e.steps["other"].tolist() == [t] and (noise > 0) == bool((action != source.steps["action"][t]).any())
    # The model adds nothing where it is exact: what remains of the bound is the slope times the distance.
    state = np.concatenate([e.steps[STATE][:-1] for e in data])
    label = np.concatenate([e.steps[STATE] for e in ExactDynamics(model, max_error=1e6).apply(data)[3:]])
    bound = 2.0 * np.linalg.norm((label - state) / state.std(0, ddof=1), axis=1)
    assert len(ExactDynamics(model, max_error=1.0).apply(data)) == 3 + (bound <= 1.0).sum()
    assert 20 < (bound <= 1.0).sum() < 80


def test_labels_that_teach_nothing_or_do_not_fit_other_observations_are_told():
    data, model = Dataset([walk(i) for i in range(3)]), linear_model()
    with pytest.warns(DataWarning, match="no step is made.*may be above 1e-12, the smallest"):
        assert len(CorrectiveLabels(model, max_error=1e-12).apply(data)) == 3
    with pytest.raises(DataError, match="1 steps are followed by an observation"):
        CorrectiveLabels(model).apply(Dataset([walk(0, 1)]))
    goal, clock = np.ones((31, 1), np.float32), np.arange(31, dtype=np.float32)[:, None]
    other = data.map(lambda e: e.replace({"observation.goal": goal, "observation.clock": clock}))
    with pytest.warns(DataWarning, match="another observation.state, and observation.clock as recorded"):
        ExactDynamics(model, max_error=1e6).apply(other)


def test_the_penalty_of_a_linear_network_is_its_slope():
    model = linear_model()
    (layer,) = [m for m in model.net.modules() if isinstance(m, torch.nn.Linear)]
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 0] = 5.0  # one direction of four: of a random step d, it sees d[0] alone
    batch = Batch({STATE: torch.randn(4000, 1, 2), "action": torch.randn(4000, 1, 2)}, torch.zeros(4000, 1, 2),
                  torch.ones(4000, 1).bool())
    for bound in (0.0, 2.0):
        penalty = LipschitzLoss(bound, weight=0.5, n_samples=3).build(model)(
            model, batch, torch.Generator().manual_seed(0), {})
        d = torch.randn(200_000, 4, generator=torch.Generator().manual_seed(1))
        expected = 0.5 * (5 * d[:, 0].abs() / d.norm(dim=1) - bound).clamp(min=0).mean()
        assert penalty.shape == (4000,) and penalty.mean() == pytest.approx(expected.item(), rel=0.02)


def test_a_penalized_model_is_flatter_and_an_unconstrained_one_learns_the_dynamics():
    def slope(policy: Policy) -> float:
        (layer,) = [m for m in policy.net.modules() if isinstance(m, torch.nn.Linear)]
        return torch.linalg.matrix_norm(layer.weight, 2).item()
    free, flat = linear_model(steps=400), linear_model((LipschitzLoss(0.2, weight=10.0),), 400)
    assert slope(flat) < 0.5 * slope(free)


def test_the_method_keeps_its_contract_and_needs_its_stage():
    check_method("ccil")
    with pytest.raises(UserError, match="is not a trained policy"):
        CorrectiveLabels(FromStage("dynamics")).apply(Dataset([walk(0)]))
