"""The exact parts of the comparison of feedback, against closed forms and gradients by PyTorch."""

import numpy as np
import pytest
import torch
from claims.exact_feedback import worth_of_feedback as worth

from evidence.families.rewards_from_people.worth_of_feedback import (
    Batch,
    InverseToNumber,
    Person,
    backward,
    coach_step,
    smoothed,
)

RNG = np.random.default_rng(0)


def test_values_of_several_processes_are_those_of_each():
    processes = worth.worlds("graph", 7, 3)
    batch, policy = Batch(processes), RNG.dirichlet(np.ones(4), (10, 3, 20))
    returns, (values, best) = worth.expected_return(batch, policy), backward(batch.transitions, batch.rewards)
    for w, process in enumerate(processes):
        assert returns[w] == pytest.approx(process.expected_return(policy[:, w], 10))
        np.testing.assert_allclose(values[:, w], process.action_values(10), atol=1e-9)
        np.testing.assert_allclose(best[:, w], process.best_policy(10), atol=1e-9)


def test_the_regularized_value_is_the_log_of_a_mean_of_exponentials():
    batch, weight, value = Batch(worth.worlds("graph", 7, 3)), 0.3, 0.0
    reference = RNG.dirichlet(np.ones(4), (10, 3, 20))
    values, policy = backward(batch.transitions, batch.rewards, reference=reference, weight=weight)
    for h in range(10):
        q = batch.rewards + (batch.transitions @ np.broadcast_to(value, (3, 20))[:, None, :, None])[..., 0]
        np.testing.assert_allclose(values[h], q, atol=1e-9)
        value = weight * np.log((reference[h] * np.exp(q / weight)).sum(-1))
    likely = backward(batch.transitions, batch.rewards, reference=reference, weight=1e9)[1]
    np.testing.assert_allclose(likely, reference, atol=1e-6)
    assert (worth.expected_return(batch, policy) > worth.expected_return(batch, reference)).all()


def test_the_clone_minimizes_the_loss_with_a_barrier():
    acted = np.array([[3.0, 0.0, 1.0, 0.0]])
    logits = torch.zeros(4, requires_grad=True)
    loss = -((torch.tensor(acted[0]) + 1) * logits.log_softmax(0)).sum()
    assert smoothed(acted)[0].tolist() == [0.5, 0.125, 0.25, 0.125]
    with torch.no_grad():
        logits += torch.tensor(smoothed(acted)[0]).log().float()
    loss = -((torch.tensor(acted[0]) + 1) * logits.log_softmax(0)).sum()
    np.testing.assert_allclose(torch.autograd.grad(loss, logits)[0].numpy(), 0, atol=1e-6)


def test_advantages_are_exact_and_vanish_on_average():
    process = worth.worlds("grid", 7, 2)[1]
    person, policy = Person(Batch([process]), "advantage", "own"), RNG.dirichlet(np.ones(4), (1, 40))
    reached = np.broadcast_to(process.success.astype(float), process.transitions.shape)
    values = process.action_values(600, worth.DISCOUNT, policy[0], rewards=reached)[-1]
    advantage = values - (policy[0] * values).sum(1, keepdims=True)
    np.testing.assert_allclose(person.advantage(policy)[0], advantage, atol=1e-9)
    np.testing.assert_allclose((policy * person.advantage(policy)).sum(-1), 0, atol=1e-12)
    assert person.chance_of_goal(policy)[0] == pytest.approx(
        process.start @ (policy[0] * process.action_values(worth.LIMIT, 1.0, policy[0], reached)[-1]).sum(1))


@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_coach_follows_the_gradient_of_weighted_log_probabilities(decay):
    """A small rate leaves the policy as it is, and the sum of updates is the gradient of a sum over the stream."""
    stream = [(RNG.integers(5), RNG.integers(3), RNG.normal()) for _ in range(8)]
    logits, trace = RNG.normal(size=(1, 5, 3)), np.zeros((1, 5, 3))
    start, rate = logits.copy(), 1e-7
    for state, action, feedback in stream:
        at = np.array([0]), np.array([state]), np.array([action])
        coach_step(logits, trace, at, np.array([feedback]), rate, decay)
    table = torch.tensor(start[0], requires_grad=True)
    total = sum(table[s].log_softmax(0)[a] * sum(decay**k * f for k, (_, _, f) in enumerate(stream[t:]))
                for t, (s, a, _) in enumerate(stream))
    np.testing.assert_allclose((logits - start)[0] / rate, torch.autograd.grad(total, table)[0].numpy(), atol=1e-5)


def test_late_feedback_changes_the_action_that_it_is_about(monkeypatch):
    judged, changed = [], []
    monkeypatch.setattr(Person, "judge", lambda self, own, state, action: judged.append(action) or action * 1.0)
    monkeypatch.setattr(worth, "coach_step", lambda logits, trace, at, feedback, *_: changed.append((at, feedback)))
    worth.Coached("action", delay=3, steps=20).measure(None, 7, 2)
    assert len(changed) == 17
    for (_, _, action), feedback in changed:
        np.testing.assert_array_equal(action, feedback)
    changed.clear(), judged.clear()
    worth.Coached("action", delay=3, compensated=False, steps=20).measure(None, 7, 2)
    for t, ((_, _, action), feedback) in enumerate(changed):
        np.testing.assert_array_equal(feedback, judged[t])
        np.testing.assert_array_equal(action, judged[t + 3])


def test_right_answers_pull_towards_the_policy_that_is_right_and_nothing_moves_it_from_there():
    first = np.broadcast_to(RNG.dirichlet(np.ones(6)), (8000, 1, 6))
    is_right = np.broadcast_to(np.arange(6) < 2, first.shape)
    right = first * is_right
    best, p_right = right / right.sum(-1, keepdims=True), right.sum(-1, keepdims=True)
    some_right, both = 1 - (1 - p_right) ** 16, 1 - (1 - p_right) ** 16 - p_right**16
    rng = np.random.default_rng(1)
    for policy in (first, best):
        cloning, by_ratio = (worth.Outcome(kind).gradient(policy, first, is_right, rng).mean(0)
                             for kind in ("none", "ratio"))
        np.testing.assert_allclose(cloning, (some_right * (best - policy))[0], atol=0.03)
        pushed = ~is_right * policy / (1 - p_right)  # mean of the ratio times the indicator, over wrong answers
        pushed = pushed - policy * pushed.sum(-1, keepdims=True)
        np.testing.assert_allclose(by_ratio, (some_right * (best - policy) - both * pushed)[0], atol=0.03)


def test_the_exponent_is_that_of_a_power_law():
    def rule(exponent):
        table = {f"{n} demonstrations": {"log episodes": [[5 + exponent * np.log(n) + 0.01 * w for w in range(4)]
                                                          for _ in range(3)]} for n in worth.NUMBERS}
        return InverseToNumber().judge(table)
    steep, flat = rule(-1.2), rule(-0.3)
    assert steep.conditions[0].estimate == pytest.approx(-0.2)
    assert (steep.verdict, flat.verdict) == ("holds", "fails")
