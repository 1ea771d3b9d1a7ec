"""Trial and error: attempts end when they should, and the closed form is what many attempts cost."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.core import UserError, uniform
from understudy.data.episode import Episode
from understudy.data.window import Window
from understudy.envs.toys.fork import Fork, ForkExpert
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor
from understudy.heads.likelihood.regression import Regression
from understudy.improve.restart import (
    Attempts,
    FailureProbability,
    RestartForecast,
    RestartingActor,
    choose_threshold,
    elapsed_steps,
    label_attempt,
)
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_env


@dataclass(frozen=True)
class Sometimes(Actor):
    """On fork: the expert's way, or, with probability `fails`, stands still, and moves up a little so that it shows."""

    fails: float
    expert: ForkExpert = ForkExpert(noise=0.0)

    def start(self, obs, key):
        idle = uniform(key, torch.zeros_like(key), (1,), stream=5)[:, 0] < self.fails
        return {"idle": idle, "expert": self.expert.start(obs, key)}

    def act(self, obs, state):
        action, expert = self.expert.act(obs, state["expert"])
        still = torch.tensor([-0.1, 0.0]).expand_as(action)
        return torch.where(state["idle"].unsqueeze(1), still, action), {**state, "expert": expert}


def backwards(obs):
    """Fails for certain: it has gone the other way."""
    return (obs["observation.state"][:, 0] < -0.2).float()


def tried(rows, judge, above, fails=0.5, episodes=200, pause=5.0, limit=10_000):
    env = Attempts(Fork(rows, limit=30), Sometimes(fails), pause, limit)
    return rollout(RestartingActor(judge, above), env, episodes, seed=3)


def spans(ran):
    return np.array([-float(e.steps["next.reward"].sum()) for e in ran])


def test_it_keeps_the_contract():
    check_env(lambda rows: Attempts(Fork(rows, limit=8), Sometimes(0.5), restart_cost=2.0, limit=40))


@pytest.mark.slow
def test_an_attempt_ends_by_itself_or_is_given_up():
    """A standing attempt takes 30 steps and 5 of pause; given up after 4, it takes 4 and 5."""
    whole, cut = (
        tried(16, elapsed_steps, math.inf),
        tried(16, lambda obs: -obs["observation.state"][:, 0] + 0 * elapsed_steps(obs), math.inf),
    )
    assert np.array_equal(spans(whole), spans(cut))  # nobody is given up above infinity
    assert len({e.steps["observation.state"][0].tobytes() for e in whole}) == len(whole)
    for e in whole:
        n, length = e.metadata["attempts"], np.asarray(e.steps["observation.clock"])[:, 0]
        assert e.metadata["success"] and (length[:-1] == 0).sum() == n
        assert -e.steps["next.reward"].sum() == len(e) + 5 * (n - 1)
        assert len(e) == 30 * (n - 1) + len(e) % 30
    early = tried(16, lambda obs: elapsed_steps(obs) * (obs["observation.state"][:, 0] < 0.1), 2.5)
    for a, b in zip(whole, early, strict=True):  # the same attempts, one after the other
        assert a.metadata["attempts"] == b.metadata["attempts"] and len(a) - len(b) == 26 * (a.metadata["attempts"] - 1)


def test_attempts_do_not_depend_on_the_rows_and_end_at_the_limit():
    a, b = tried(1, backwards, 0.5, episodes=7), tried(5, backwards, 0.5, episodes=7)
    assert all(np.array_equal(x.steps[k], y.steps[k]) for x, y in zip(a, b, strict=True) for k in x.steps)
    never = tried(4, elapsed_steps, math.inf, fails=1.0, episodes=4, limit=100)
    assert all(len(e) == 100 and not e.metadata["success"] and e.steps["next.truncated"][-1] for e in never)


def test_the_closed_form_of_known_cases():
    """Geometric trials: 1 / p attempts, of which all but one fail."""
    plain = RestartForecast(0.25, 0.0, 0.0, 10.0, 40.0, 0.0, 0.0)
    assert plain.makespan() == pytest.approx(10 + 3 * 40) and plain.makespan(6) == pytest.approx(10 + 3 * 46)
    perfect = RestartForecast(0.25, 0.0, 1.0, 10.0, 0.0, 0.0, 4.0)
    assert perfect.makespan(6) == pytest.approx(10 + 3 * 10)
    blind = RestartForecast(0.25, 0.5, 0.5, 10.0, 40.0, 4.0, 4.0)  # halves the successes
    assert blind.makespan() == pytest.approx((0.125 * 10 + 0.375 * 40 + 0.5 * 4) / 0.125)
    assert RestartForecast(0.0, 0, 0, 0, 9.0, 0, 0).makespan() == math.inf
    assert RestartForecast(0.5, 1.0, 0, 0, 9.0, 1.0, 0).makespan() == math.inf


@settings(max_examples=30, deadline=None)
@given(st.floats(0.1, 1), st.floats(0, 0.8), st.floats(0, 1), st.integers(0, 10**6))
def test_the_closed_form_is_the_mean_of_simulated_trials(p, lost, caught, seed):
    times, pause, rng = (7.0, 20.0, 3.0, 5.0), 4.0, np.random.default_rng(seed)
    forecast_time = RestartForecast(p, lost, caught, *times).makespan(pause)
    success, cut = rng.random(60_000) < p, rng.random(60_000)
    given_up = np.where(success, cut < lost, cut < caught)
    took = np.select([success & ~given_up, ~success & ~given_up, success], times[:3], times[3])
    done = success & ~given_up
    assert forecast_time == pytest.approx((took.sum() + pause * (~done).sum()) / done.sum(), rel=0.15)


@pytest.mark.slow
def test_what_is_forecast_happens():
    """Attempts that run to the end tell what giving up would cost; those that are given up cost that."""
    attempts, makespans = rollout(Sometimes(0.5), Fork(50, limit=30), 400, seed=-2).map(label_attempt), []
    for judge in (backwards, elapsed_steps, lambda obs: 0 * elapsed_steps(obs)):  # the last one can tell nothing
        above, makespan = choose_threshold(attempts, judge, 5.0)
        took = spans(tried(40, judge, above, episodes=400))
        assert makespan == pytest.approx(took.mean(), abs=float(4 * took.std() / 20 + 0.1 * makespan)), above
        makespans.append(makespan)
        assert 0 <= above < 1 if judge is backwards else above > 1
    assert max(makespans[:2]) < makespans[2]


def test_nothing_is_given_up_unless_that_saves_time():
    """Where every attempt fails at once and success takes long, a cutoff only loses successes."""
    rng = np.random.default_rng(0)
    data = [label_attempt(Episode({"observation.state": np.zeros((n + 1, 1), np.float32), "action": np.zeros((n, 1))},
                                  {"success": n > 20})) for n in rng.choice([2, 30], 100)]
    assert choose_threshold(data, elapsed_steps, 1.0)[0] == math.inf
    blind = choose_threshold(data, lambda obs: torch.from_numpy(rng.random(len(obs["observation.state"]))), 1.0)
    assert blind[0] == math.inf


def test_a_policy_learns_to_foretell():
    """Of attempts that stand still, it says so once they have gone backwards; at the start it cannot know."""
    attempts = rollout(Sometimes(0.5), Fork(50, limit=30), 200, seed=-5).map(label_attempt)
    recipe = PolicyConfig(Regression(), trunk=MLP(32, 1), encoder=ConcatEncoder(), target="fails",
                          inputs=("observation.state", "observation.clock"))
    from understudy.learn.behavior_cloning import BehaviorCloning
    from understudy.learn.fit import fit
    policy = Policy(recipe, attempts.features()).fit_statistics(attempts)
    learner = BehaviorCloning(steps=250).build(policy, 0, 250, attempts)
    windows = policy.windows(attempts)
    fit(learner, lambda n: windows.batch(128, n, 0), 250)
    judge = FailureProbability(learner.trained_policy.eval())
    obs = {"observation.state": torch.tensor([[0.0, 0.0], [-0.15, 0.0], [0.6, 0.45]]),
           "observation.clock": torch.tensor([[0.0], [15.0], [7.0]])}
    unsure, fails, succeeds = judge(obs).tolist()
    assert 0.25 < unsure < 0.75 and fails > 0.85 and succeeds < 0.15


def test_what_it_cannot_do_is_said():
    with pytest.raises(UserError, match="restart_cost must be at least 0"):
        Attempts(Fork(1), ForkExpert(), restart_cost=-1)
    with pytest.raises(UserError, match=r"no attempts that ran to their end(.|\n)*\.map\(label_attempt\)"):
        choose_threshold([], elapsed_steps)
    env = Attempts(Fork(2), ForkExpert())
    env.reset(torch.arange(2), torch.arange(2))
    with pytest.raises(UserError, match=r"have shape \(2, 2\), but must have shape \(2, 1\)"):
        env.step(torch.zeros(2, 2))
    features = Fork(1).features
    with pytest.raises(UserError, match="sees 2 steps, but must see 1"):
        FailureProbability(Policy(PolicyConfig(Regression(), window=Window(2, 1)), features))
