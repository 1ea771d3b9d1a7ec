"""The fork."""

from dataclasses import dataclass

import torch

from understudy.core import keys
from understudy.envs.toys.fork import Fork, ForkExpert
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor


def test_the_mean_of_both_ways_round_the_fork_is_the_pillar():
    @dataclass(frozen=True)
    class Mean(Actor):
        def start(self, obs, key):
            return {str(s): ForkExpert(s, 0.0).start(obs, key) for s in (1, -1)}

        def act(self, obs, state):
            return sum(ForkExpert(s, 0.0).act(obs, state[str(s)])[0] for s in (1, -1)) / 2, state
    episodes = rollout(Mean(), Fork(50), 200, seed=0)
    assert not any(e.metadata["success"] for e in episodes)
    assert all(e.steps["next.reward"][-1] == -1 for e in episodes)


def test_both_ways_are_taken_equally_often():
    episodes = rollout(ForkExpert(), Fork(400), 400, seed=1)
    n_left = sum(e.steps["observation.state"][:, 1].mean() > 0 for e in episodes)
    assert 160 <= n_left <= 240  # four standard deviations of a fair coin
    assert all(e.steps["observation.state"][:, 1].mean() > 0 for e in rollout(ForkExpert(side=1), Fork(20), 20))


def test_the_side_says_nothing_of_the_first_unsteadiness():
    key, obs = keys(0, range(4000)), {"observation.state": torch.zeros(4000, 2)}
    state = ForkExpert().start(obs, key)
    shaken = ForkExpert(noise=1.0).act(obs, state)[0] - ForkExpert(noise=0.0).act(obs, state)[0]
    alike = (shaken.sign() == state["way"].unsqueeze(1)).float().mean(0)
    assert (alike - 0.5).abs().max() < 4.5 * 0.5 / 4000 ** 0.5


def test_the_fork_moves_by_velocity_and_clips_it():
    env = Fork(2)
    start = env.reset(torch.arange(2), keys(0, [0, 1]))["observation.state"]
    states = env.step(torch.tensor([[0.5, -0.25], [9.0, 0.0]])).obs["observation.state"]
    torch.testing.assert_close(states - start, torch.tensor([[0.05, -0.025], [0.1, 0.0]]), atol=1e-7, rtol=0)


def test_gusts_are_drawn_by_the_row():
    a, b = (rollout(ForkExpert(noise=0.0), Fork(n, gust=0.3), 6, seed=2) for n in (1, 6))
    assert a.fingerprint() == b.fingerprint() != rollout(ForkExpert(noise=0.0), Fork(6), 6, seed=2).fingerprint()
