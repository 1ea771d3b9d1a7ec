"""The measure of the claim about encoders of intentions, on cases with known answers, and what its arms draw."""

import numpy as np
import torch
from claims.features_of_states import intentions as claim

from understudy.envs.toys.four_rooms import STEPS
from understudy.learn.objectives.value_objectives import INTENT, OUTCOME
from understudy.policy import Policy


def test_the_exact_values_solve_the_bellman_equation():
    values = claim.exact_values(np.random.default_rng(0))
    neighbors = STEPS.reshape(64, 64) == 1
    best = np.stack([values[near].max(0) for near in neighbors])
    ends = values == 1
    assert (ends.sum(0) == 2).all()
    np.testing.assert_allclose(values[~ends], (claim.DISCOUNT**claim.STEPS_PER_CELL * best)[~ends], rtol=1e-6)


def test_ridge_regression_finds_linear_values_and_chooses_its_strength_without_the_other_cells(monkeypatch):
    rng = np.random.default_rng(0)
    features, labeled = rng.normal(size=(64, 8)), np.arange(20)
    linear = features @ rng.normal(size=(8, 50)) + 3
    assert claim.ridge_error(features, linear, labeled) < 1e-6
    noisy = linear + 3 * rng.normal(size=linear.shape)
    errors = []
    for strength in claim.STRENGTHS:  # leave one label out at a time, by hand
        error = 0.0
        for i in labeled:
            kept = np.delete(labeled, i)
            x = features[kept] - features[kept].mean(0)
            weights = np.linalg.solve(x.T @ x + strength * np.eye(8), x.T @ noisy[kept])
            prediction = noisy[kept].mean(0) + (features[i] - features[kept].mean(0)) @ weights
            error += np.square(prediction - noisy[i]).mean()
        errors.append(error)
    chosen = claim.ridge_error(features, noisy, labeled)
    monkeypatch.setattr(claim, "STRENGTHS", claim.STRENGTHS[[np.argmin(errors)]])
    assert claim.ridge_error(features, noisy, labeled) == chosen and 0 < np.argmin(errors) < 8


def test_the_arms_differ_in_the_intents_that_are_drawn():
    data = claim.JoinedWalks(4, 1, 1).load(5)
    assert data[0].steps[claim.STATE].shape[1] == 64 + 16
    arms = {arm.name: arm.options[0] for arm in claim.TABLE.experiment.arms}
    arms["other rows"] = dict(claim.TABLE.ablations)["intents of other rows"].option
    steps = {}
    for name in ("intention", "other rows"):
        config = arms[name].stages[0].method.policy
        policy = Policy(config, data.features()).fit_statistics(data)
        batch = policy.windows(data).gather(np.arange(500), np.random.default_rng(0))
        steps[name] = {k: batch.extra[f"{k}.steps"][:, 0] for k in (OUTCOME, INTENT)}
    later = [((s[k] > 0) & s[k].isfinite()).float().mean() for s in steps.values() for k in (OUTCOME, INTENT)]
    assert torch.stack(later[:3]).min() > 0.4 > 0.2 > later[3]
    assert not (steps["other rows"][INTENT] == 0).any() and (steps["intention"][INTENT] == 0).any()
