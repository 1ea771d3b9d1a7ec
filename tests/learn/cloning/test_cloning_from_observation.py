"""Behavior cloning from observation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.learning import call_step

from understudy.core import DataError, Feature, Unsupported, UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import mix
from understudy.data.window import Window
from understudy.heads.likelihood.categorical import Categorical
from understudy.heads.likelihood.regression import Regression
from understudy.learn.cloning.cloning_from_observation import (
    BehaviorCloningFromObservation,
    ClassBalance,
    transitions,
)
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.train import train
from understudy.nets.feed_forward import FeedForward
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner

STATE = "observation.state"
MOVES = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
SCHEMA = {"observation.state": Feature("float32", (2,)), "action": Feature("int64", (1,), "discrete", num_classes=(4,))}


def grid_walk(seed, steps=40, to_corner=False, size=5):
    """A walk on a grid without slips. A walk to the corner goes right where it can, and then up."""
    rng, cell, cells, actions = np.random.default_rng(seed), np.array([0, 0]), [], []
    cell = rng.integers(0, size, 2)
    for _ in range(steps):
        action = (0 if cell[0] < size - 1 else 1) if to_corner else int(rng.integers(4))
        following = np.clip(cell + MOVES[action], 0, size - 1)
        if (following == cell).all():
            continue  # no observation tells a move into a wall
        cells, actions, cell = [*cells, cell], [*actions, action], following
    steps = {"observation.state": np.array([*cells, cell], np.float32), "action": np.array(actions, np.int64)[:, None]}
    return Episode(steps, schema=SCHEMA)


def parts(shown, practice):
    return mix(task=(Dataset(shown), 0.5), prior=(Dataset(practice), 0.5))[0]


def cloning(steps=400, **options):
    learner = BehaviorCloningFromObservation(steps, 64, OptimizerConfig(lr=3e-3), **options)
    return Method(PolicyConfig(Categorical(), FeedForward((32,))), learner=learner)


def shown_walks(seeds):
    return [walk for i in seeds if len(walk := grid_walk(i, to_corner=True))]


def test_all_labels_of_a_grid_without_slips_are_right_and_the_policy_imitates():
    shown = shown_walks(range(30))
    hidden = [e.replace({"action": 0 * e.steps["action"]}) for e in shown]
    result = fit_method(cloning(balance_classes=True), parts(hidden, [grid_walk(i) for i in range(100, 120)]), 0)
    inverse, policy = result.modules["inverse"], result.policy
    batch = next(inverse.windows(Dataset(shown)).scan())
    assert (inverse.plan(batch.obs, torch.zeros(len(batch), *inverse.noise_shape)) == batch.action).all()
    batch = next(policy.windows(Dataset(shown)).scan())
    assert (policy.plan(batch.obs, torch.zeros(len(batch), *policy.noise_shape)) == batch.action).all()


def test_actions_of_demonstrations_are_never_read():
    shown, practice = shown_walks(range(9)), [grid_walk(i) for i in range(100, 104)]
    other = [e.replace({"action": 3 - e.steps["action"]}) for e in shown]
    weights = [fit_method(cloning(6), parts(d, practice), 0).policy.state_dict() for d in (shown, other)]
    assert all(torch.equal(a, weights[1][name]) for name, a in weights[0].items())


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_the_contract(noise):
    check_learner(BehaviorCloningFromObservation(batch_size=8, label_noise=noise),
                  [PolicyConfig(Regression(), MLP(16, 1, dropout=0.2), window=Window(2), inputs=(STATE,))])


def test_the_noise_of_labels_has_the_error_of_the_inverse_model_and_ends():
    data = parts([grid_walk(i) for i in range(8)], [grid_walk(i) for i in range(100, 104)])
    data = data.map(lambda e: replace(e.replace({"action": e.steps["action"].astype(np.float32)}),
                                      schema={"observation.state": SCHEMA["observation.state"]}))
    method = cloning(20, label_noise=3.0)
    method = replace(method, policy=PolicyConfig(Regression(), FeedForward((8,))))
    learners = []
    fit_method(method, data, 0, callbacks=[lambda n, learner, metrics: learners.append(learner)])
    learner = learners[0]
    batch = learner.batch_sampler(data).batch(4000, 0)
    is_noisy = next(step.when for step in learner.config.steps_of_update() if step.name == "noisy")
    assert [is_noisy(learner.config, n, 20) for n in (5, 17, 18, 20)] == [True, True, False, False]
    with learner.evaluation():
        clean, again = (call_step(learner, "labeled", batch, learner.generator()) for _ in range(2))
        noisy = call_step(learner, "noisy", clean, learner.generator())
    clean, again, noisy = (labeled.others["expert"].action for labeled in (clean, again, noisy))
    assert torch.equal(clean, again)
    obs = transitions(batch.others["expert"])
    coded = [learner.nets.inverse.encode(x, obs) for x in (noisy, clean)]
    expected = 3.0 * learner.nets.error.mean
    assert torch.allclose((coded[0] - coded[1]).std((0, 1)), expected, rtol=0.05)


def test_a_run_with_noise_of_labels_is_not_continued_to_more_updates(tmp_path):
    """Its last updates had none."""
    data = parts([grid_walk(i) for i in range(3)], [grid_walk(i) for i in range(100, 103)])
    constant = OptimizerConfig(lr_schedule="constant")

    def trained(folder, steps, noise):
        method = cloning(20, label_noise=noise)
        method = replace(method, learner=replace(method.learner, optimizer=constant, batch_size=8))
        return train(method, data, tmp_path / folder, steps=steps, val_fraction=0).state_dict()
    trained("noisy", 20, 1.0)
    with pytest.raises(UserError, match="label_noise is 0 in the last tenth of them, so it cannot be continued to 40"):
        trained("noisy", 40, 1.0)
    trained("clean", 20, 0.0)
    continued, whole = trained("clean", 40, 0.0), trained("whole", 40, 0.0)
    assert all(torch.equal(continued[name], tensor) for name, tensor in whole.items())


def test_all_classes_are_drawn_equally_often():
    walk = grid_walk(0, to_corner=True)
    data = Dataset([walk, grid_walk(1)])
    weights = np.concatenate([ClassBalance.of(data)(e) for e in data])
    actions = np.concatenate([e.steps["action"][:, 0] for e in data])
    totals = [weights[actions == a].sum() for a in np.unique(actions)]
    assert np.allclose(totals, 1)


def test_what_is_missing_is_named():
    practice = [grid_walk(i) for i in range(3)]
    with pytest.raises(DataError, match="(?s)3 of 3 episodes are demonstrations, and 0 are practice.*--prior PRACTICE"):
        fit_method(cloning(1), Dataset(practice), 0)
    with pytest.raises(Unsupported, match="horizon 1"):
        method = cloning(1)
        fit_method(replace(method, policy=replace(method.policy, window=Window(1, 2))), parts(practice, practice), 0)


def test_numbers_are_no_classes_that_could_be_balanced():
    """Rounded towards 0, they would be."""
    policy = Policy(PolicyConfig(Regression()), {**SCHEMA, "action": Feature("float32", (2,))})
    with pytest.raises(Unsupported, match="balance_classes: the actions are numbers"):
        BehaviorCloningFromObservation(balance_classes=True).build(policy, 0, 1, Dataset([]))
