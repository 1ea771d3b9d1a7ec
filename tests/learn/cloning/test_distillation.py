"""Optimal transport, reflow and consistency distillation, against exact flows and brute force."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from fixtures.learning import call_step
from torch import nn

from understudy.checkpoint import FromStage
from understudy.core import Context, Feature, HeadSpec, Unsupported, UserError
from understudy.heads.coupling import optimal_transport
from understudy.heads.denoising.diffusion import Diffusion
from understudy.heads.denoising.edm import EDM
from understudy.heads.denoising.flow import Flow
from understudy.heads.one_step.consistency import Consistency
from understudy.heads.one_step.one_step import OneStepGenerator
from understudy.heads.solvers import DDPM
from understudy.methods.generative.consistency_policy import ConsistencyPolicy
from understudy.methods.generative.onedp import OneDP
from understudy.methods.generative.reflow_policy import ReflowPolicy
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner, random_dataset

EMPTY = Context(torch.zeros(1, 0, 1), torch.zeros(1, 0, dtype=torch.bool))
STATE = "observation.state"


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# -- optimal transport ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_pairs_are_those_of_brute_force(weight):
    for seed in range(5):
        action, noise = torch.randn(2, 6, 3, 2, generator=rng(seed)).double()
        condition = torch.randn(6, 4, generator=rng(seed + 10)).double()
        mask = torch.rand(6, 3, generator=rng(seed + 20)) < 0.7
        cost = torch.tensor([[float(((action[i] - noise[j]) * mask[i, :, None]).square().sum()) for j in range(6)]
                             for i in range(6)])
        between = torch.tensor([[float((condition[i] - condition[j]).square().sum()) for j in range(6)]
                                for i in range(6)])
        # Squared distances at padded steps are those of the noise to the code 0, which padding has.
        total = cost / cost.mean() + weight * between / between.mean()
        best = min(itertools.permutations(range(6)), key=lambda rows: float(total[range(6), rows].sum()))
        coded = action * mask.unsqueeze(-1)
        assert optimal_transport(coded, noise, mask, condition, weight).tolist() == list(best)


def test_similar_conditions_only():
    """With a large weight noise is exchanged within rows of the same condition, and there it is in order."""
    condition = (torch.arange(40) % 2)[:, None].float()
    action, noise = torch.randn(2, 40, 1, 1, generator=rng())
    mask = torch.ones(40, 1, dtype=torch.bool)
    rows = optimal_transport(action, noise, mask, condition, 1e4)
    assert torch.equal(rows % 2, torch.arange(40) % 2) and not torch.equal(rows, torch.arange(40))
    for c in (0, 1):  # transport of numbers on a line keeps their order
        assert torch.equal(action[c::2].flatten().argsort(), noise[rows][c::2].flatten().argsort())
    free = optimal_transport(action, noise, mask, condition, 0.0)
    assert torch.equal(action.flatten().argsort(), noise[free].flatten().argsort())


def test_the_flow_trains_on_the_pairs():
    action = torch.randn(32, 2, 1, generator=rng(3)).double()
    mask, noises = torch.ones(32, 2, dtype=torch.bool), []

    def net(x, t, context):
        noises.append((x - t * action) / (1 - t))
        return torch.zeros_like(x)
    context = Context(torch.zeros(32, 1, 1), torch.ones(32, 1, dtype=torch.bool))
    plain = Flow().loss(net, context, action, mask, rng(4))
    short = Flow(coupling="optimal_transport").loss(net, context, action, mask, rng(4))
    rows = optimal_transport(action, noises[0], mask, context.flat(), 1.0)
    torch.testing.assert_close(noises[1], noises[0][rows])
    torch.testing.assert_close(short, (action - noises[1]).square().mean(-1))
    assert short.mean() < 0.5 * plain.mean()


# -- learners -----------------------------------------------------------------------------------------------------


CONFIG = PolicyConfig(Flow(n_steps=2), MLP(16, 1), inputs=(STATE,))
CONFIG = replace(CONFIG, window=replace(CONFIG.window, n_obs_steps=2, horizon=3))
FEATURES = {STATE: Feature("float32", (3,)), "action": Feature("float32", (2,))}


def build_policy(head, seed=0, **changes):
    """A policy with the statistics of the data of `check_learner`."""
    data = random_dataset(FEATURES)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Policy(replace(CONFIG, head=head, **changes), data.features()).fit_statistics(data)


def random_batch(policy, rows=256):
    return policy.windows(random_dataset(FEATURES)).batch(rows, 0, seed=0)


@pytest.mark.parametrize("learner, teacher, head", [
    (ConsistencyPolicy, EDM(n_steps=2), Consistency(n_train_levels=8)), (ReflowPolicy, Flow(n_steps=2), Flow()),
    (OneDP, EDM(n_steps=2), OneStepGenerator())])
def test_learners_keep_their_contract(learner, teacher, head):
    check_learner(learner(build_policy(teacher), steps=10, batch_size=8), (replace(CONFIG, head=head),))


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.zeros(()))

    def forward(self, x, t, context):
        return self.function(x, t) + 0 * self.weight


def test_distillation_ends_at_the_flow_of_the_teacher():
    """A zero network in EDM is exact for a Gaussian of its sigma_data S. Its flow ends at x S / sqrt(S^2 + sigma^2).

    The only error is then that of the teacher's Euler steps.
    """
    def loss(n_levels, offset=0.0):
        head = Consistency(n_train_levels=n_levels)
        teacher, policy = build_policy(EDM()), build_policy(head)

        def jump(x, t):
            sigma = head.path.alpha_sigma(t)[1]
            return x * ((sigma**2 + 0.25).sqrt() - 0.5) / sigma.clamp(min=1e-6) + offset
        teacher.net, policy.net = Function(lambda x, t: torch.zeros_like(x)), Function(jump)
        learner = ConsistencyPolicy(teacher).build(policy, 0, 10, random_dataset(FEATURES))
        batch = random_batch(policy)
        return call_step(learner, "distillation_loss", batch, rng())[batch.mask].mean().item()
    assert loss(640) < 0.2 * loss(80) and loss(640, offset=0.1) > 5 * loss(640)


def test_reflow_trains_on_what_the_teacher_makes_of_the_noise():
    """A teacher of constant velocity moves every noise by it. The same velocity is then without error, and no other."""
    teacher, policy = build_policy(Flow()), build_policy(Flow())
    teacher.net = Function(lambda x, t: torch.full_like(x, 0.7))
    learner = ReflowPolicy(teacher, teacher_steps=3).build(policy, 0, 10, random_dataset(FEATURES))
    batch, errors = random_batch(policy), []
    for velocity in (0.7, 0.0):
        policy.net = Function(lambda x, t, velocity=velocity: torch.full_like(x, velocity))
        errors.append(call_step(learner, "distillation_loss", batch, rng()))
    torch.testing.assert_close(errors[0], torch.zeros_like(errors[0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(errors[1], torch.full_like(errors[1], 0.49), atol=1e-5, rtol=0)


def test_the_pseudo_huber_norm_of_reflow_is_nearly_the_norm_of_the_error_of_a_chunk():
    """The velocities of teacher and policy differ by 0.7 in all components, so that a chunk of n steps of 2 components
    has the norm 0.7 sqrt(2 n). With c = 0 the loss would be 0.7 / sqrt(2 n)."""
    teacher, policy = build_policy(Flow()), build_policy(Flow())
    teacher.net = Function(lambda x, t: torch.full_like(x, 0.7))
    policy.net = Function(lambda x, t: torch.zeros_like(x))
    learner = ReflowPolicy(teacher, teacher_steps=3, norm="pseudo_huber").build(policy, 0, 10, random_dataset(FEATURES))
    batch = random_batch(policy)
    loss = call_step(learner, "distillation_loss", batch, rng())
    lengths = batch.mask.sum(1)
    assert set(lengths.tolist()) == {1, 2, 3}
    # (sqrt(0.49 * 2 n + (0.00108 n)^2) - 0.00108 n) / 2n, by hand:
    for n, value in ((3, 0.285234), (2, 0.349460), (1, 0.494435)):
        torch.testing.assert_close(loss[lengths == n], torch.full_like(loss[lengths == n], value), atol=2e-5, rtol=0)



@pytest.mark.parametrize("prediction", ["velocity", "sample"])
def test_reflow_makes_the_flow_to_two_points_straight(prediction):
    """The exact flow to -1 and 1, whose one-step plans are their mean 0, and a network trained on its pairs."""
    def velocity(x, t, context):
        weight = torch.tanh(t * x / (1 - t).clamp(min=1e-3) ** 2)  # E[action | x]
        return (weight - x) / (1 - t).clamp(min=1e-3)
    noise = torch.randn(512, 1, 1, generator=rng(1))
    assert Flow(n_steps=1).sample(velocity, EMPTY, noise).abs().max() < 1e-5
    pairs = torch.randn(4096, 1, 1, generator=rng(2))
    ends = Flow(n_steps=50).sample(velocity, EMPTY, pairs)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = Flow(n_steps=1, prediction=prediction)
        net = head.build(MLP(64, 1), 1, HeadSpec(1, 1, 1))
    context = Context(torch.zeros(512, 1, 1), torch.ones(512, 1, dtype=torch.bool))
    optimizer, draws = torch.optim.Adam(net.parameters(), 3e-3), rng(3)
    for _ in range(300):
        rows = torch.randint(4096, (512,), generator=draws)
        optimizer.zero_grad()
        head.pair_loss(net, context, ends[rows], pairs[rows], draws).mean().backward()
        optimizer.step()
    with torch.no_grad():
        plans = head.sample(net, context, noise)
    assert ((plans.abs() - 1).abs() < 0.25).float().mean() > 0.85
    assert (plans.sign() == noise.sign()).float().mean() > 0.95


def gaussian_denoiser(mean, std):
    """The network of `EDM` that is exact for actions from N(mean, std^2)."""
    def net(x, t):
        sigma = EDM().path.alpha_sigma(t)[1]
        variance = sigma**2 + 0.25
        x = x * variance.sqrt()
        clean = (std**2 * x + sigma**2 * mean) / (std**2 + sigma**2)
        return (clean - 0.25 / variance * x) / (0.5 * sigma / variance.sqrt())
    return Function(net)


def test_one_step_distillation_follows_the_divergence_of_two_gaussians():
    """Plans m + s z, and a teacher of N(0, S^2): both with noise, sigma^2 KL has the derivatives below."""
    head, S, values = OneStepGenerator(), 0.4, {}

    def gradients(m, s):
        teacher, policy = build_policy(EDM()), build_policy(head)
        teacher.net = gaussian_denoiser(0.0, S)
        parameters = [torch.tensor(v, requires_grad=True) for v in (m, s)]

        def generator(x, t):  # what makes the plan m + s * noise
            variance = head.sigma**2 + 0.25
            noise = x * math.sqrt(variance) / head.sigma
            plan = parameters[0] + parameters[1] * noise
            return (plan - 0.25 / variance * head.sigma * noise) / (0.5 * head.sigma / math.sqrt(variance))
        policy.net = Function(generator)
        learner = OneDP(teacher).build(policy, 0, 10, random_dataset(FEATURES))
        learner.nets.score = gaussian_denoiser(m, s)
        loss = call_step(learner, "distillation_loss", random_batch(policy, 4096), rng(3)).mean()
        return torch.stack(torch.autograd.grad(loss, parameters))
    variance = head.path.alpha_sigma(torch.linspace(0.05, 0.98, 10_001))[1] ** 2
    for m, s in ((0.0, S), (0.5, S), (0.0, 0.8), (-0.3, 0.1)):
        exact = torch.stack([(variance * m / (S**2 + variance)).mean(),
                             (variance * s * (1 / (S**2 + variance) - 1 / (s**2 + variance))).mean()])
        values[m, s] = gradients(m, s)
        torch.testing.assert_close(values[m, s], exact, atol=0.004, rtol=0.05)
    assert values[0.0, S].abs().max() < 1e-4 and values[0.5, S][0] > 0.1 and values[0.0, 0.8][1] > 0.03


def test_teachers_that_do_not_fit():
    head = Consistency()
    cases = [(ConsistencyPolicy(FromStage("teacher")), head, UserError, "not a trained policy"),
             (ConsistencyPolicy(build_policy(EDM(sigma_max=1.0))), head, Unsupported, "same noise levels"),
             (ConsistencyPolicy(build_policy(Flow())), head, Unsupported, "a teacher with the head EDM"),
             (OneDP(build_policy(EDM())), head, Unsupported, "with the head OneStepGenerator"),
             (ReflowPolicy(build_policy(Flow())), head, Unsupported, "reflow needs a policy with the head Flow"),
             (ReflowPolicy(build_policy(Diffusion(solver=DDPM()))), Flow(), Unsupported,
              "draws noise only at its start"),
             (ReflowPolicy(build_policy(Flow(), window=replace(CONFIG.window, horizon=4))), Flow(), UserError,
              "plans other chunks")]
    for config, student, kind, words in cases:
        with pytest.raises(kind, match=words) as error:
            config.build(build_policy(student), 0, 10, random_dataset(FEATURES))
        assert str(error.value)
    other = random_dataset(FEATURES, seed=5)
    teacher = Policy(replace(CONFIG, head=Flow()), FEATURES).fit_statistics(other)
    learner = ReflowPolicy(teacher, batch_size=8).build(policy := build_policy(Flow()), 0, 10, other)
    with pytest.raises(UserError, match="scale the columns differently"):
        learner.update(random_batch(policy, 8))
    assert math.isfinite(ReflowPolicy(build_policy(Flow()), batch_size=8).build(policy, 0, 10, other).update(
        random_batch(policy, 8))["loss"])
