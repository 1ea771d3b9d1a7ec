"""Representation learning: the objectives in closed form, the learner's contract, and a policy on the encoder."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.learning import call_step
from fixtures.staged import contents, run
from torch import nn

from understudy.checkpoint import FromStage
from understudy.core import Batch, ConfigError, Feature, Unsupported
from understudy.data.augment import ColorJitter, GaussianNoise
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.categorical import Categorical
from understudy.heads.likelihood.regression import Regression
from understudy.heads.memory.neighbors import Neighbors
from understudy.learn.algorithm import Engine
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit import fit
from understudy.learn.fit_method import fit_method
from understudy.learn.method import InitializeFrom, Method, Stage, load_actor
from understudy.learn.objectives.representation import RepresentationLearning
from understudy.learn.objectives.representation_objectives import (
    BYOL,
    ForwardDynamics,
    InverseDynamics,
    MaskedPrediction,
    SoftInfoNCE,
    TimeContrastive,
    warping_distances,
)
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods import find_method
from understudy.nets.ema import ConstantDecay
from understudy.nets.encoders import ConcatEncoder, TokenEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner, random_dataset

STATE = "observation.state"
ALL = (InverseDynamics(), ForwardDynamics((16,)), MaskedPrediction(), BYOL(16, 8), TimeContrastive(16, 8),
       SoftInfoNCE(0.3))


def new_learner(objectives=ALL, data=None, head=None, policy=None, augmentations=(), **config):
    data = data or random_dataset({STATE: Feature("float32", (3,)), "action": Feature("float32", (2,))})
    if policy is None:
        torch.manual_seed(0)
        policy_config = PolicyConfig(head or Regression(), MLP(8, 1), TokenEncoder(6), window=Window(2, 3),
                              augmentations=augmentations)
        policy = Policy(policy_config, data.features()).fit_statistics(data)
    config = {"batch_size": 8, "ema": ConstantDecay(0.0), **config}
    return RepresentationLearning(objectives, **config).build(policy, 0, 50, data), data


def loss_of(learner, data, number: int, rows: int = 8):
    """The loss of objective `number`, (B,), for the first windows."""
    batch = learner.batch_sampler(data).gather(np.arange(rows))
    return call_step(learner, "losses", batch, torch.Generator().manual_seed(0))[1 + number], batch


@pytest.mark.parametrize("config", [
    RepresentationLearning(ALL, batch_size=8),
    RepresentationLearning((BYOL(16, 8),), batch_size=8, lookahead=5, optimizer=OptimizerConfig(accumulation_steps=2)),
    BehaviorCloning(batch_size=8, auxiliary_losses=(InverseDynamics(), BYOL(16, 8))),
    RepresentationLearning((ForwardDynamics((16,), two_way=True),), batch_size=8),
], ids=["all objectives", "BYOL", "with cloning", "two ways"])
def test_the_contract_of_learners(config):
    check_learner(config)


# -- objectives in closed form ----------------------------------------------------------------------------------------


def test_inverse_dynamics_reads_both_encodings_and_leaves_out_padding():
    objective = InverseDynamics(trunk=FeedForward(()), weight=2.0)
    learner, data = new_learner((objective,))
    policy = learner.policy
    # The last windows have 2 and 1 actions: what the very last one led to is not stored.
    batch = learner.batch_sampler(data).gather(np.array([0, 5, 21, 22]))
    assert batch.mask.sum(1).tolist() == [3, 3, 2, 1]
    losses = call_step(learner, "losses", batch, torch.Generator())[1].tolist()
    linear = next(m for m in learner.nets.objectives[0].modules() if isinstance(m, nn.Linear))
    both = torch.cat([policy.context(batch.obs).flat(), policy.context(batch.next).flat()], 1)
    error = (both @ linear.weight.T + linear.bias).unflatten(1, (3, 2)) - policy.codec.encode(batch.action, batch.obs)
    step = error.square().mean(-1)
    for row, n in enumerate((3, 3, 2, 1)):
        assert losses[row] == pytest.approx(2 * step[row, :n].mean().item(), rel=1e-5)


def test_inverse_dynamics_of_classes():
    data = random_dataset({STATE: Feature("float32", (3,)),
                           "action": Feature("int64", (1,), "discrete", num_classes=(4,))})
    learner, _ = new_learner((InverseDynamics(Categorical(), FeedForward(())),), data, Categorical())
    for p in learner.nets.objectives[0].parameters():
        p.data.zero_()
    loss, _ = loss_of(learner, data, 0)
    assert torch.allclose(loss, torch.full((8,), math.log(4)))


def test_masked_prediction_sees_the_other_actions_and_counts_hidden_ones():
    """A network that copies the visible actions errs where an action is hidden, by that action."""
    learner, data = new_learner((MaskedPrediction(weight=2.0),))
    inputs = []

    class Copies(nn.Module):
        def forward(self, x, t, context):
            inputs.append((x, context))
            return x[..., :2]
    learner.nets.objectives[0].net = Copies()
    loss, batch = loss_of(learner, data, 0, rows=24)
    (x, context), coded = inputs[0], learner.policy.encode_batch(batch)
    visible = x[..., 2] == 1
    assert torch.equal(x[..., :2], coded * visible.unsqueeze(-1)) and not visible[~batch.mask].any()
    assert torch.equal(context.tokens[:, 2:], learner.policy.context(batch.next).tokens)  # two tokens each
    hidden = ~visible & batch.mask
    want = 2 * (coded.square().mean(-1) * hidden).sum(1) / hidden.sum(1).clamp(min=1)
    assert torch.allclose(loss, want, atol=1e-6) and 0.2 < float(hidden.float().mean()) < 0.8


def test_masked_prediction_of_classes():
    data = random_dataset({STATE: Feature("float32", (3,)),
                           "action": Feature("int64", (2,), "discrete", num_classes=(4, 3))})
    learner, _ = new_learner((MaskedPrediction(FeedForward(())),), data, Categorical())
    for p in learner.nets.objectives[0].parameters():
        p.data.zero_()
    loss, _ = loss_of(learner, data, 0)
    none = loss == 0  # nothing was hidden
    assert torch.allclose(loss[~none], torch.tensor(math.log(12))) and not none.all()


def test_forward_dynamics_compares_directions_with_the_target_encoder():
    learner, data = new_learner((ForwardDynamics((), weight=3.0),))
    objective = learner.nets.objectives[0]
    loss, batch = loss_of(learner, data, 0)
    policy = learner.policy
    predicted = objective.predictor(torch.cat([policy.context(batch.obs).flat(),
                                               policy.encode_batch(batch).flatten(1)], 1))
    target = policy.context(batch.next).flat()  # the target is a copy of the encoder, which has made no update yet
    angle = (predicted * target).sum(1) / predicted.norm(dim=1) / target.norm(dim=1)
    assert torch.allclose(loss, 3 * (2 - 2 * angle), atol=1e-5)
    gradient = torch.autograd.grad(loss.sum(), list(objective.predictor.parameters()), retain_graph=True)
    assert any(g.abs().sum() > 0 for g in gradient)
    assert not any(p.requires_grad for p in objective.target.parameters())


@pytest.mark.parametrize("scale, expected", [(2.0, 0.0), (-0.5, 12.0)])
def test_forward_dynamics_is_zero_for_the_direction_of_the_next_encoding_and_four_for_the_opposite(scale, expected):
    learner, data = new_learner((ForwardDynamics((), weight=3.0),))
    objective, next_obs = learner.nets.objectives[0], learner.batch_sampler(data).gather(np.arange(8)).next
    encoding = learner.policy.context(next_obs).flat().detach()
    objective.predictor.forward = lambda inputs: scale * encoding
    loss, batch = loss_of(learner, data, 0, rows=8)
    assert torch.equal(batch.next[STATE], next_obs[STATE])
    torch.testing.assert_close(loss, torch.full((8,), expected), atol=1e-5, rtol=0)


def copying_policy(features):
    """A policy whose encoding of two numbers is these numbers."""
    policy = Policy(PolicyConfig(Regression(), MLP(8, 1), TokenEncoder(2), Normalizer("identity", "identity")),
                    features)
    for p in policy.encoder.parameters():
        p.data.copy_(torch.eye(2) if p.ndim == 2 else torch.zeros(2))
    return policy


def test_two_ways_add_the_backward_distance_by_hand():
    """An encoding is the observation. Each goes from (1, 0) to (0, 2), and both networks say (0, 1) whatever they read:
    right for the later one, and for the earlier one wrong by a right angle, whose squared distance at unit length is 2.
    """
    features = {STATE: Feature("float32", (2,)), "action": Feature("float32", (1,))}
    policy = copying_policy(features)
    first, last = torch.tensor([[[1.0, 0.0]]] * 3), torch.tensor([[[0.0, 2.0]]] * 3)
    batch = Batch({STATE: first}, torch.zeros(3, 1, 1), torch.ones(3, 1).bool(), next={STATE: last})
    context = policy.context(batch.obs)
    torch.testing.assert_close(context.flat(), first[:, 0])
    for two_way, weight, expected in ((False, 1.0, 0.0), (True, 1.0, 2.0), (True, 3.0, 6.0)):
        objective = ForwardDynamics((), weight=weight, two_way=two_way).build(policy)
        for linear in (objective.predictor[0], objective.backward_predictor and objective.backward_predictor[0]):
            if linear is not None:
                linear.weight.data.zero_()
                linear.bias.data.copy_(torch.tensor([0.0, 1.0]))
        loss = objective(policy, batch, torch.Generator(), {
            "context": context.tokens, "context_mask": context.mask})
        torch.testing.assert_close(loss, torch.full((3,), expected))


def test_backward_predictions_read_the_actions():
    """The step is the action, so that a linear network that knows it finds the earlier observation exactly."""
    features = {STATE: Feature("float32", (2,)), "action": Feature("float32", (2,))}
    policy = copying_policy(features)
    first, action = torch.randn(8, 1, 2), torch.randn(8, 1, 2)
    batch = Batch({STATE: first}, action, torch.ones(8, 1).bool(), next={STATE: first + action})
    objective, context = ForwardDynamics((), two_way=True).build(policy), policy.context(batch.obs)
    for linear, sign in ((objective.predictor[0], 1), (objective.backward_predictor[0], -1)):
        linear.weight.data.copy_(torch.cat([torch.eye(2), sign * torch.eye(2)], 1))
        linear.bias.data.zero_()
    loss = objective(policy, batch, torch.Generator(), {"context": context.tokens, "context_mask": context.mask})
    torch.testing.assert_close(loss, torch.zeros(8), atol=1e-5, rtol=0)


def test_byol_is_zero_for_equal_views_and_four_for_opposite_ones():
    learner, data = new_learner((BYOL(),))
    objective = learner.nets.objectives[0]
    objective.projector = objective.target_projector = objective.predictor = nn.Identity()
    loss, _ = loss_of(learner, data, 0)
    assert torch.allclose(loss, torch.zeros(8), atol=1e-5)
    for p in objective.target.parameters():
        p.data.neg_()
    loss, _ = loss_of(learner, data, 0)
    assert torch.allclose(loss, torch.full((8,), 4.0), atol=1e-5)


def test_byol_draws_two_views():
    learner, data = new_learner((BYOL(),), augmentations=(GaussianNoise(STATE, 1.0),))
    objective = learner.nets.objectives[0]
    objective.projector = objective.target_projector = objective.predictor = nn.Identity()
    assert (loss_of(learner, data, 0)[0] > 1e-3).all()
    learner.policy.eval()  # without augmentation
    assert torch.allclose(loss_of(learner, data, 0)[0], torch.zeros(8), atol=1e-5)


def test_contrast_over_time_counts_windows():
    learner, data = new_learner((TimeContrastive(temperature=0.5),))
    objective = learner.nets.objectives[0]

    class Constant(nn.Module):
        def forward(self, x):
            return torch.ones_like(x)

    class Numbered(nn.Module):
        def forward(self, x):
            return torch.eye(len(x))
    objective.projector = Constant()
    assert torch.allclose(loss_of(learner, data, 0)[0], torch.full((8,), math.log(8)))
    objective.projector = Numbered()  # the right one has similarity 1, the other seven 0
    right = -math.log(math.exp(2) / (math.exp(2) + 7))
    assert torch.allclose(loss_of(learner, data, 0)[0], torch.full((8,), right))


def test_warping_is_the_least_of_all_alignments():
    def least(costs, i, j):
        earlier = [least(costs, a, b) for a, b in ((i - 1, j), (i, j - 1), (i - 1, j - 1)) if min(a, b) >= 0]
        return costs[i, j] + (min(earlier) if earlier else 0)
    first, second = (torch.randn(5, n, 2, generator=torch.Generator().manual_seed(n)) for n in (4, 3))
    costs = (first.unsqueeze(2) - second.unsqueeze(1)).square().sum(-1)
    assert torch.allclose(warping_distances(first, second), torch.stack([least(c, 3, 2) for c in costs]))
    later = first[:, [0, 0, 0, 1, 2, 3]]
    assert torch.allclose(warping_distances(first, later), torch.zeros(5)) and (first != later[:, :4]).any()


def test_contrast_of_actions_by_hand():
    objective, temperature = SoftInfoNCE(0.15, temperature=0.5, weight=3.0), 0.5
    learner, data = new_learner((objective,))
    loss, batch = loss_of(learner, data, 0)
    chunks = learner.policy.encode_batch(batch)
    pairs = [(i, j) for i in range(8) for j in range(i)]
    by_distance = sorted(pairs, key=lambda p: float(warping_distances(chunks[[p[0]]], chunks[[p[1]]])))
    weights = torch.zeros(8, 8)
    for (i, j), weight in zip(by_distance, (1, 2 / 3, 1 / 3, 0), strict=False):  # 0.15 of the 28 pairs
        weights[i, j] = weights[j, i] = weight
    assert torch.allclose(objective.pair_weights(chunks), weights)
    x = learner.policy.context(batch.obs).flat()
    similarity = torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=-1) / temperature
    expected = torch.zeros(8)
    for i in range(8):
        others = [j for j in range(8) if j != i]
        log_total = similarity[i, others].logsumexp(0)
        if weights[i].sum() > 0:
            expected[i] = sum(weights[i, j] * (log_total - similarity[i, j]) for j in others) / weights[i].sum()
    similar = (weights.sum(1) > 0).sum()
    assert similar < 8 and torch.allclose(loss, 3 * expected * 8 / similar, atol=1e-5)


def test_contrast_of_actions_repeats_the_first_and_the_last_action_of_an_episode(monkeypatch):
    learner, data = new_learner((SoftInfoNCE(),))
    batch = learner.batch_sampler(data).gather(np.arange(2))
    batch = replace(batch, mask=torch.tensor([[True, True, False], [False, True, True]]),
                    action=torch.full_like(batch.action, 9))
    batch.action[0, :2] = batch.action[1, 1:] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    seen = []
    monkeypatch.setattr(SoftInfoNCE, "pair_weights", lambda self, chunks: seen.append(chunks) or torch.zeros(2, 2))
    assert not call_step(learner, "losses", batch, torch.Generator())[1].any()
    expected = torch.stack([batch.action[0, [0, 1, 1]], batch.action[1, [1, 1, 2]]])
    assert torch.equal(seen[0], learner.policy.codec.encode(expected, batch.obs))


def test_contrast_of_actions_keeps_what_decides_them():
    rng = np.random.default_rng(0)
    data = Dataset([Episode({STATE: np.column_stack([np.full(11, goal), *rng.normal(size=(2, 11))]).astype(np.float32),
                             "action": np.full((10, 2), goal, np.float32)}) for goal in rng.normal(size=40)])
    learner, _ = new_learner((SoftInfoNCE(0.1),), data, batch_size=64, optimizer=OptimizerConfig(lr=1e-2))
    sampler = learner.batch_sampler(data)
    fit(learner, lambda n: sampler.batch(64, n), 50)
    goal, *others = learner.policy.encoder.maps[0].weight.detach().square().sum(0)  # of one observation
    assert goal > 4 * max(others)


def test_targets_follow_slowly():
    learner, data = new_learner((BYOL(16, 8, target_decay=0.75),))
    objective, encoder = learner.nets.objectives[0], learner.policy.encoder
    before = [p.detach().clone() for p in objective.target.parameters()]
    sampler = learner.batch_sampler(data)
    fit(learner, lambda n: sampler.batch(8, n), 1)
    for old, now, target in zip(before, encoder.parameters(), objective.target.parameters(), strict=True):
        assert torch.allclose(target, 0.75 * old + 0.25 * now, atol=1e-6) and not torch.equal(old, now)


# -- the learner ------------------------------------------------------------------------------------------------------


def test_the_probe_does_not_train_the_encoder():
    still = OptimizerConfig(lr=1e-2, weight_decay=0.0)
    learner, data = new_learner((replace(InverseDynamics(), weight=0.0),), optimizer=still)
    encoder = [p.detach().clone() for p in learner.policy.encoder.parameters()]
    net = [p.detach().clone() for p in learner.policy.net.parameters()]
    sampler = learner.batch_sampler(data)
    fit(learner, lambda n: sampler.batch(8, n), 3)
    assert all(torch.equal(a, b) for a, b in zip(encoder, learner.policy.encoder.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(net, learner.policy.net.parameters(), strict=True))


def test_the_lookahead_says_which_later_observation():
    data = Dataset([Episode({STATE: np.arange(21, dtype=np.float32)[:, None],
                             "action": np.arange(20, dtype=np.float32)[:, None]})])
    for lookahead, later in ((0, 3), (7, 7)):
        learner, _ = new_learner((InverseDynamics(),), data, lookahead=lookahead)
        batch = learner.batch_sampler(data).gather(np.array([2]))
        assert batch.next[STATE][0, -1, 0] == 2 + later and batch.action.shape == (1, 3, 1)
        last = learner.batch_sampler(data).gather(np.array([13, 14, 19]))  # rows 20, 21 and 26, of 21
        loss = call_step(learner, "losses", last, torch.Generator().manual_seed(0))[1]
        assert (loss > 0).tolist() == [True, not lookahead, not lookahead]
    new_learner((InverseDynamics(),), data, lookahead=20)
    with pytest.raises(ConfigError, match="no episode has 21 steps, but the longest 20"):
        new_learner((InverseDynamics(),), data, lookahead=21)


def test_what_it_refuses():
    with pytest.raises(ConfigError, match="no objectives"):
        RepresentationLearning(())
    data = random_dataset({STATE: Feature("float32", (3,)), "action": Feature("float32", (2,))})
    policy = Policy(PolicyConfig(Regression(), encoder=ConcatEncoder()), data.features())
    with pytest.raises(ConfigError, match="ConcatEncoder has no weights"):
        RepresentationLearning().build(policy, 0, 1, data)
    policy = Policy(PolicyConfig(Regression()), data.features())
    with pytest.raises(Unsupported, match="compiled"):
        RepresentationLearning(optimizer=OptimizerConfig(compile=True)).build(policy, 0, 1, data)


# -- a policy on the encoder ------------------------------------------------------------------------------------------


INVERSE = (InverseDynamics(),)


def on_encoder(head=None, objectives=INVERSE, train=("net",), steps=(5, 4)) -> Method:
    policy_config = PolicyConfig(Regression(), MLP(8, 1), TokenEncoder(8), window=Window(1, 2))
    stage = Method(policy_config, learner=RepresentationLearning(objectives, steps[0], 8))
    return Method(replace(policy_config, head=head or Flow(n_steps=2)), learner=BehaviorCloning(steps[1], 8),
                  stages=(Stage("encoder", stage),),
                  initialize_from=(InitializeFrom(FromStage("encoder"), ("codec", "encoder"), train),))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(out, on_encoder(objectives=ALL))
    return out


def test_the_encoder_is_that_of_the_stage_and_stays(whole):
    stage, policy = Policy.load(whole / "stages" / "encoder"), Policy.load(whole)
    for (name, tensor), stage_tensor in zip(policy.encoder.state_dict().items(), stage.encoder.state_dict().values(),
                                            strict=True):
        assert torch.equal(tensor, stage_tensor), name
    actor = load_actor(whole)
    obs = {STATE: torch.zeros(2, 3)}
    action, _ = actor.act(obs, actor.start(obs, torch.arange(2)))
    assert action.shape == (2, 2) and action.isfinite().all()


@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_stopped_stage_is_the_same_run_bit_by_bit(whole, tmp_path, monkeypatch, at):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_during(patch, at)
        with pytest.raises(KeyboardInterrupt):
            run(out, on_encoder(objectives=ALL))
    run(out, on_encoder(objectives=ALL))
    assert contents(out) == contents(whole)


def stop_during(monkeypatch, at: int) -> None:
    """Presses Ctrl-C during an update of the encoder."""
    updates_left, before = [at], Engine.update

    def update(learner, batch):
        updates_left[0] -= 1
        if updates_left[0] == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return before(learner, batch)
    monkeypatch.setattr(Engine, "update", update)


def test_retrieval_on_a_learned_encoder():
    data = random_dataset({STATE: Feature("float32", (3,)), "action": Feature("float32", (2,))})
    result = fit_method(on_encoder(Neighbors(3), train=(), steps=(5, 1)), data, 0)
    assert torch.isfinite(result.policy.net.keys).all() and len(result.policy.net.keys) == data.steps
    with torch.no_grad():
        first = result.policy.windows(data).gather(np.arange(4))
        assert torch.allclose(result.policy.context(first.obs).flat(), result.policy.net.keys[:4], atol=1e-5)


def test_neighbors_in_the_features_of_byol():
    """The learner trains the encoder of the memory that acts, and no head."""
    camera = "observation.images.front"
    features = {camera: Feature("uint8", (16, 16, 3), "image"), "action": Feature("float32", (2,))}
    data = random_dataset(features, 2, 6)
    named_method = find_method("vinn-byol", features, crop=2)
    assert named_method.policy.augmentations == (ColorJitter(camera),)
    learner = replace(named_method.learner, steps=2, batch_size=8)
    policy = fit_method(replace(named_method, learner=learner), data, 0).policy
    with torch.no_grad():
        windows = policy.windows(data).gather(np.arange(data.steps))
        assert torch.allclose(policy.context(windows.obs).flat(), policy.net.keys, atol=1e-5)
        plan = policy.plan(windows.obs, torch.zeros(data.steps, *policy.noise_shape))
    assert plan.shape == (13, 1, 2) and plan.isfinite().all()


MIXING = np.linalg.qr(np.random.default_rng(123).normal(size=(6, 6)))[0]


def mixed(episodes: int) -> Dataset:
    """Walks to hidden goals. What is seen mixes the position with 4 distractors that vary slowly."""
    rng = np.random.default_rng(0)

    def episode():
        at, noise, goal, rows, actions = rng.uniform(-1, 1, 2), rng.normal(size=4), rng.uniform(-1, 1, 2), [], []
        for _ in range(21):
            rows.append(np.concatenate([at, noise]) @ MIXING)
            actions.append(np.clip(goal - at, -0.2, 0.2) + 0.05 * rng.normal(size=2))
            at, noise = at + actions[-1], 0.95 * noise + math.sqrt(1 - 0.95**2) * rng.normal(size=4)
        return Episode({STATE: np.array(rows, np.float32), "action": np.array(actions[:-1], np.float32)})
    return Dataset([episode() for _ in range(episodes)])


def position_fraction(policy: Policy, data: Dataset) -> float:
    """The part of the variance of encodings that the position explains. Encodings are linear in what is seen."""
    observations = torch.from_numpy(np.concatenate([e.steps[STATE] for e in data]))
    hidden = observations.double() @ torch.from_numpy(np.linalg.inv(MIXING))
    with torch.no_grad():
        encoded = policy.context({STATE: observations[:, None]}).flat().double()
    parts = [hidden - hidden.mean(0), encoded - encoded.mean(0)]
    maps = torch.linalg.lstsq(*parts).solution
    return float((parts[0][:, :2] @ maps[:2]).square().sum() / parts[1].square().sum())


def test_inverse_dynamics_keeps_what_actions_change():
    """An encoder of two numbers forgets the distractors. One that is trained to act keeps some: goals are hidden."""
    data = mixed(20)
    policy_config = PolicyConfig(Regression(), MLP(16, 1), TokenEncoder(2))
    optimizer = OptimizerConfig(lr=3e-2)
    learners = (RepresentationLearning((InverseDynamics(trunk=FeedForward(())),), 200, 64, optimizer=optimizer),
                BehaviorCloning(200, 64, optimizer=optimizer))
    fractions = [position_fraction(fit_method(Method(policy_config, learner=learner), data, 0).policy, data)
                 for learner in learners]
    assert fractions[0] > 0.9 and fractions[1] < 0.6, fractions
