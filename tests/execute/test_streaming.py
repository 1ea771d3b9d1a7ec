"""Streaming diffusion: the times of a rolling buffer, and the executor that keeps one."""

from dataclasses import dataclass, field, replace

import pytest
import torch

from understudy.core import Context, Feature, Unsupported, UserError, keys, normal
from understudy.data.window import Window
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.streaming import StreamingExecutor
from understudy.heads.base import RampTimes, sample_times
from understudy.heads.denoising.diffusion import Diffusion
from understudy.heads.denoising.flow import Flow
from understudy.methods import find_method
from understudy.nets.mlp import MLP
from understudy.nets.unet import UNet
from understudy.policy import PolicyConfig, StepwisePlanner
from understudy.testing import random_batch

STATE = "observation.state"
KEY = keys(0, range(3))
DIFFUSION = Diffusion(prediction="sample")


def target(step):
    """The action at each step of an episode, in [-1, 1]."""
    return torch.sin(0.7 * step)


@dataclass
class PerfectDenoiser(StepwisePlanner):
    """Observes the number of the step and knows all later actions. It also notes the times of every call."""

    config_head: Diffusion | Flow
    horizon: int = 12
    calls: list = field(default_factory=list)

    inputs, action_dim, device = (STATE,), 1, torch.device("cpu")
    features = {STATE: Feature("float32", (1,))}

    @property
    def window(self):
        return Window(1, self.horizon)

    @property
    def head(self):
        return self.config_head

    def context(self, obs):
        return Context(obs[STATE], torch.ones(len(obs[STATE]), 1, dtype=torch.bool))

    def noise(self, key, count):
        return normal(key, count, (self.horizon, 1), stream=4)

    def decode(self, coded, obs):
        return coded

    def denoise_step(self, context, x, t, t_next):
        self.calls.append((t[0], t_next[0]))
        clean = target(context.tokens[:, 0] + torch.arange(self.horizon)).unsqueeze(-1)

        def net(x, t, context):
            return clean if isinstance(self.head, Diffusion) else (clean - x) / (1 - t).clamp(min=1e-6)
        return self.head.denoise_step(net, context, x, t, t_next)

    def plan(self, obs, noise, guides=()):
        raise NotImplementedError


def acted(executor, planner, steps):
    """Actions of all rows, (steps, B)."""
    state, actions = executor.start(planner, {STATE: torch.zeros(3, 1, 1)}, KEY), []
    for t in range(steps):
        action, state = executor.act(planner, {STATE: torch.full((3, 1, 1), float(t))}, state)
        actions.append(action[:, 0])
    return torch.stack(actions)


@pytest.mark.parametrize("n, k, start", [(1, 1, "denoise"), (4, 2, "denoise"), (3, 5, "zeros"), (12, 2, "denoise")])
@pytest.mark.parametrize("head", [Diffusion, Flow])
def test_a_perfect_denoiser_gives_exact_actions_at_a_fraction_of_the_evaluations(head, n, k, start):
    planner = PerfectDenoiser(head(times=RampTimes(n)) if head is Flow else replace(DIFFUSION, times=RampTimes(n)))
    actions = acted(StreamingExecutor(n, k, start), planner, 24)
    torch.testing.assert_close(actions, target(torch.arange(24.0))[:, None].expand(24, 3), atol=1e-5, rtol=0)
    groups, first = 12 // n, 12 // n * k if start == "denoise" else 0
    assert len(planner.calls) == first + 24 // n * k  # a plan from noise would need groups * k each time
    for i in range(k):  # the times of a plan are those of the training: `groups` levels, and k steps between them
        t, t_next = planner.calls[first + i]
        group = torch.arange(12) // n
        torch.testing.assert_close(t, 1 - (group + 1) / groups + i / k / groups)
        torch.testing.assert_close(t_next, t + 1 / k / groups)


def test_later_groups_are_denoised_by_newer_observations():
    """Half of the way each action is planned for a world that then changes."""
    class Changes(PerfectDenoiser):
        def denoise_step(self, context, x, t, t_next):
            step = context.tokens[:, 0] + torch.arange(12)
            clean = torch.where(context.tokens[:, 0] < 4, 0.0, step * 0 + 1).unsqueeze(-1)
            return self.head.denoise_step(lambda *_: clean, context, x, t, t_next)
    actions = acted(StreamingExecutor(4, 1), Changes(replace(DIFFUSION, times=RampTimes(4))), 12)
    assert actions[:4].eq(0).all() and actions[4:].eq(1).all()


def test_the_first_buffer():
    """The code 0, or a plan from noise, at the noise levels of the ramp."""
    head = replace(DIFFUSION, times=RampTimes(4))
    planner, obs = PerfectDenoiser(head), {STATE: torch.zeros(3, 1, 1)}
    alpha, sigma = head.path.alpha_sigma(torch.tensor([2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0]).unsqueeze(-1) / 3)
    noise = planner.noise(KEY, torch.ones_like(KEY))
    zeros = StreamingExecutor(4, start_from="zeros").start(planner, obs, KEY)["x"]
    torch.testing.assert_close(zeros, sigma * noise)
    planned = StreamingExecutor(4).start(planner, obs, KEY)["x"]
    torch.testing.assert_close(planned, alpha * target(torch.arange(12.0)).unsqueeze(-1) + sigma * noise)


def test_the_times_of_training_are_those_of_a_buffer():
    like, rng = torch.zeros(20_000, 12, 1), torch.Generator().manual_seed(0)
    times = sample_times(RampTimes(3, 0.0), like, rng)
    group = times[:, ::3]
    assert torch.equal(times, group.repeat_interleave(3, 1))
    torch.testing.assert_close(group[:, :-1] - group[:, 1:], torch.full((20_000, 3), 0.25))
    phase = (4 * group[:, 0] - 3).sort().values  # uniform from 0 to 1
    torch.testing.assert_close(phase, torch.linspace(0, 1, 20_000), atol=0.02, rtol=0)
    mixed = sample_times(RampTimes(3, 0.2), like, rng)
    shared = (mixed == mixed[:, :1]).all(1)
    assert shared.float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert mixed[shared].mean().item() == pytest.approx(0.5, abs=0.02)


def test_buffers_that_were_not_trained_are_refused():
    def started(executor, head, horizon=8):
        policy, batch = random_batch(PolicyConfig(head, MLP(16, 1), window=Window(2, horizon)), size=3)
        executor.start(policy, batch.obs, KEY)
    with pytest.raises(Unsupported, match="trained with one for all"):
        started(StreamingExecutor(), Flow())
    with pytest.raises(UserError, match="trained for a buffer with RampTimes.n_action_steps=2"):
        started(StreamingExecutor(4), Flow(times=RampTimes(2)))
    with pytest.raises(UserError, match="shared_fraction=0 trains no such plans"):
        started(StreamingExecutor(2), Flow(times=RampTimes(2, 0.0)))
    with pytest.raises(UserError, match="no whole number of groups"):
        started(StreamingExecutor(3), Flow(times="each"))
    with pytest.raises(UserError, match="no whole number of groups"):
        started(RecedingHorizon(), Diffusion(times=RampTimes(3)))
    with pytest.raises(Unsupported, match="one time per chunk"):
        random_batch(PolicyConfig(Flow(times=RampTimes(2)), UNet((8, 16), groups=4), window=Window(2, 8)))
    with pytest.raises(UserError, match="must be at least 1"):
        RampTimes(0)


def test_the_method_takes_one_evaluation_per_action():
    method = find_method("streaming-diffusion-policy", n_action_steps=2, n_denoising_steps=2)
    assert method.policy.head.times == RampTimes(2) and method.policy.head.n_steps == 16
    assert method.executor == StreamingExecutor(2, 2)
    policy, batch = random_batch(method.policy, size=3)
    state, calls = method.executor.start(policy, batch.obs, KEY), []
    policy.net.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(4):
        _, state = method.executor.act(policy, batch.obs, state)
    assert len(calls) == 4
