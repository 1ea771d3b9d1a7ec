"""FB: successor measures as products of two networks, and the vectors z that name policies."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.learning import call_step

from understudy.core import UserError, keys
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Goal, Window
from understudy.heads.likelihood.gaussian import Gaussian
from understudy.learn.critic import CriticConfig
from understudy.learn.devices import Processes
from understudy.learn.fit_method import fit_method
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.train import train
from understudy.methods import find_method
from understudy.methods.goal_conditioned.fb import FB, LATENT, embed, infer_latent
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner

STATE, GOAL, N, COPIES = "observation.state", "observation.goal", 4, 12  # states of a chain that is closed to a ring
CONFIG = PolicyConfig(Gaussian(std=1.0), FeedForward((8,)), ConcatEncoder(), Normalizer("identity", unscaled=(LATENT,)),
                      Window(goals=(Goal(STATE),)), (STATE, LATENT))


class RecordingFB(FB):
    """FB that records the vectors z of its batches."""

    drawn = []

    def with_latents(self, nets, batch, rng):
        batch = super().with_latents(nets, batch, rng)
        self.drawn.append(batch.obs[LATENT].squeeze(1))
        return batch


def built(config: type[FB] = FB, **options):
    """A learner with linear networks, and a batch with each step of the chain equally often."""
    states = np.arange(2 * N + 1) % N
    columns = {STATE: np.eye(N)[states], LATENT: np.zeros((2 * N + 1, N)), "action": np.eye(2 * N)[:, :1]}
    data = Dataset([Episode({k: v.astype(np.float32) for k, v in columns.items()})])
    torch.manual_seed(0)
    learner = config(critic=CriticConfig(()), batch_size=N * COPIES, **options).build(
        Policy(CONFIG, data.features()).fit_statistics(data), 0, 300, data)
    batch, eye = learner.batch_sampler(data).batch(N * COPIES, 0), torch.eye(N).repeat(COPIES, 1).unsqueeze(1)
    side = 2.0 * (torch.arange(N * COPIES) // N % 2).reshape(-1, 1, 1) - 1  # the actions, which change nothing
    return learner, batch.replace(obs={**batch.obs, STATE: eye}, action=side,
                                  next={**batch.next, STATE: eye.roll(1, -1)})


def test_contract():
    check_learner(FB(batch_size=8, critic=CriticConfig((8,), layer_norm=True)), [CONFIG])


def test_on_a_chain_the_product_is_the_successor_measure():
    learner, batch = built(discount=0.7, target_decay=0.8, optimizer=OptimizerConfig(
        lr=0.03, weight_decay=0.0, warmup_steps=0, grad_clip_norm=None))
    with learner.evaluation():
        drawn = call_step(learner, "with_latents", batch, learner.generator()).obs[LATENT]
    latent = {LATENT: drawn[:1].expand(len(batch), 1, N)}
    batch = batch.replace(obs={**batch.obs, **latent}, next={**batch.next, **latent})
    for _ in range(300):
        learner.minimize("representation", lambda *part: call_step(learner, "representation_loss", *part), batch)
        learner.end_update()
    move, share = np.roll(np.eye(N), 1, 1), (COPIES - 1) / (N * COPIES - 1)  # of a next state among other steps
    visits = move @ np.linalg.inv(np.eye(N) - 0.7 * move) / share
    with torch.no_grad():
        learned = learner.nets.representation[0](batch.obs, batch.action) @ embed(learner.nets.backward, batch.obs).mT
    np.testing.assert_allclose(learned, np.tile(visits, (2, COPIES, COPIES)), rtol=0.01)


def test_the_components_of_b_become_uncorrelated():
    learner, batch = built(orthonormality_weight=100.0, optimizer=OptimizerConfig(lr=0.03, grad_clip_norm=None))
    for _ in range(300):
        learner.update(batch)
    vectors = embed(learner.nets.backward, batch.obs)
    torch.testing.assert_close(vectors.mT @ vectors / len(batch), torch.eye(N), atol=0.05, rtol=0)


def test_latents_lie_on_the_sphere_and_some_are_those_of_states():
    learner, batch = built(RecordingFB, p_goal=0.25)
    states = embed(learner.nets.backward, batch.next)
    learner.update(batch)
    learner.update(batch)
    learner.n_updates, learner.processes = 0, Processes(rank=1)
    learner.update(batch)
    drawn, later, of_another_process = RecordingFB.drawn
    torch.testing.assert_close(drawn.norm(dim=-1), torch.full((len(batch),), math.sqrt(N)))
    are_states = (torch.cdist(drawn, states).amin(1) < 1e-3).float().mean()
    assert (of_another_process != drawn).any(1).float().mean() > 0.9, "rows of another process have others"
    assert 0.1 < are_states < 0.4 and not torch.equal(drawn, later)


def test_states_rewards_and_goals_become_latents():
    data = Dataset([Episode({STATE: np.random.default_rng(i).normal(size=(13, 2)).astype(np.float32),
                             "action": np.linspace(-1, 1, 12, dtype=np.float32)[:, None]}) for i in range(3)])
    method = find_method("fb", data.features(), latent_dim=3)
    learner = replace(method.learner, steps=2, batch_size=16, critic=CriticConfig((8,)))
    policy = replace(method.policy, trunk=FeedForward((8,)))
    result = fit_method(replace(method, learner=learner, policy=policy), data, 0)
    policy, backward = result.modules["policy"], result.modules["backward"]
    obs = {STATE: torch.tensor([[0.1, 0.2], [0.3, -1.0]]), GOAL: torch.tensor([[1.0, 2.0], [-3.0, 0.5]])}
    one, other = (infer_latent(backward, goal[None]) for goal in obs[GOAL])
    both, twice = infer_latent(backward, obs[GOAL]), infer_latent(backward, obs[GOAL], torch.tensor([2.0, 1.0]))
    for latent, total in ((both, one + other), (twice, 2 * one + other)):
        torch.testing.assert_close(latent, math.sqrt(3) * total / total.norm())
    action, _ = result.actor.act(obs, result.actor.start(obs, keys(0, range(2))))
    expected = policy.plan({STATE: obs[STATE][:, None], LATENT: torch.stack([one, other])[:, None]},
                           torch.zeros(2, *policy.noise_shape))
    torch.testing.assert_close(action, expected[:, 0])
    nothing = torch.zeros(2)
    for states, rewards in ((obs[GOAL][:0], None), (obs[GOAL], nothing), (obs[GOAL], nothing / 0)):
        with pytest.raises(UserError, match="no policy follows"):
            infer_latent(backward, states, rewards)


@pytest.mark.parametrize("name", ["fb", "hilp"])
def test_no_error_on_held_out_episodes_chooses_a_checkpoint(name, tmp_path):
    """While training, the policy never reads the zeros that the episodes have as its vector."""
    data = Dataset([Episode({STATE: np.random.default_rng(i).normal(size=(13, 2)).astype(np.float32),
                             "action": np.linspace(-1, 1, 12, dtype=np.float32)[:, None]}) for i in range(6)])
    train(find_method(name, data.features()), data, tmp_path / "run", steps=1, progress=False)
    assert "validation" not in (tmp_path / "run/metrics.jsonl").read_text()
