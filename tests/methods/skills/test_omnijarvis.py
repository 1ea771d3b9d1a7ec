"""Codes of behavior (OmniJARVIS): quantization, symbols predicted one after the other, and the method."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.learning import call_step
from scipy import stats

from understudy.core import ConfigError, Context, Feature, HeadSpec, UserError
from understudy.data.codec import Normalizer
from understudy.data.column_changes import ConstantColumn
from understudy.data.episode import Dataset, Episode
from understudy.data.operations import ShiftedStarts
from understudy.data.text_columns import TaskText
from understudy.execute.actor import ObservationWrapper
from understudy.execute.wrappers import SkillWrapper
from understudy.heads.likelihood.categorical import Categorical
from understudy.heads.likelihood.gaussian import Gaussian
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.cloning.latent_labels import SKILL
from understudy.learn.cloning.skill_autoencoder import SkillAutoencoder
from understudy.learn.fit_method import fit_method
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods import find_method
from understudy.nets.ema import ConstantDecay
from understudy.nets.encoders import TokenEncoder
from understudy.nets.mlp import MLP
from understudy.nets.quantization import FSQ
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_latent_encoder, check_learner, random_dataset

STATE, TASK = "observation.state", "observation.task"
FEATURES = {STATE: Feature("float32", (3,)), "action": Feature("float32", (2,))}
SMALL = {"trunk": MLP(16, 1), "encoder": TokenEncoder(8)}
LEVELS = (4, 3)
LOW = PolicyConfig(Gaussian(), codec=Normalizer(unscaled=(SKILL,)), inputs=(STATE, SKILL), **SMALL)


# -- finite scalar quantization ---------------------------------------------------------------------------------------


def test_the_example_of_the_paper():
    fsq = FSQ((3, 5, 4))
    code = fsq.quantize(torch.tensor([0.25, 0.6, -7.0]))
    assert code.tolist() == pytest.approx([0.0, 0.5, -1.0])
    assert fsq.to_levels(code).tolist() == [1, 3, 0] and fsq.n_codes == 60


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8])
def test_exactly_so_many_levels_are_reached_and_come_back(n):
    fsq = FSQ((n,))
    level = fsq.to_levels(fsq.quantize(torch.linspace(-20, 20, 4001)[:, None]))[:, 0]
    assert level.unique().tolist() == list(range(n)) and (level.diff() >= 0).all()
    assert torch.equal(fsq.to_levels(fsq.from_levels(torch.arange(n)[:, None]))[:, 0], torch.arange(n))
    assert fsq.from_levels(torch.arange(n)[:, None]).abs().max() <= 1


def test_without_the_half_shift_an_even_number_of_levels_would_be_one_more():
    rounded = (torch.linspace(-20, 20, 4001).tanh() * (8 - 1) / 2 * 1.001).round().unique()
    assert len(rounded) == 9


def test_the_gradient_passes_the_rounding():
    x = torch.tensor([0.3, -0.4], requires_grad=True)
    FSQ((5, 4)).quantize(x).sum().backward()
    y = torch.tensor([0.3, -0.4], requires_grad=True)
    n = torch.tensor([5.0, 4.0])
    half, offset = (n - 1) * 1.001 / 2, torch.tensor([0.0, 0.5])
    ((y + (offset / half).atanh()).tanh() * half / 2).sum().backward()
    assert torch.allclose(x.grad, y.grad) and (x.grad > 0).all()


def test_a_component_with_one_level_is_refused():
    with pytest.raises(ConfigError, match="at least 2"):
        FSQ((5, 1))
    with pytest.raises(ConfigError, match="no levels"):
        FSQ(())


# -- symbols one after the other --------------------------------------------------------------------------------------


def test_symbols_are_drawn_jointly():
    """Two components of 3 and 2 classes that agree: alone each is even, together only two of six codes occur."""
    codes = torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 1, 0, 1]])
    action = codes[torch.arange(64) % 2][:, None]
    context, mask = Context(torch.zeros(64, 1, 1), torch.ones(64, 1, dtype=torch.bool)), torch.ones(64, 1).bool()
    loss, together = {}, {}
    for autoregressive in (True, False):
        head = Categorical(1.0, autoregressive, width=16)
        torch.manual_seed(0)
        net = head.build(MLP(16, 1), 5, HeadSpec(1, 1, 1, (3, 2)))
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(200):
            optimizer.zero_grad()
            mean = head.loss(net, context, action, mask, torch.Generator()).mean()
            mean.backward()
            optimizer.step()
        loss[autoregressive] = mean.item()
        many = Context(torch.zeros(4000, 1, 1), torch.ones(4000, 1, dtype=torch.bool))
        noise = torch.randn(4000, 1, 5, generator=torch.Generator().manual_seed(1))
        drawn = head.sample(net, many, noise)[:, 0].detach()
        assert (drawn[:, :3].sum(1) == 1).all() and (drawn[:, 3:].sum(1) == 1).all()
        together[autoregressive] = (drawn[:, 0] == drawn[:, 3]).float().mean().item()
        assert stats.binomtest(int(drawn[:, 0].sum()), 4000, 0.5).pvalue > 1e-3
        torch.testing.assert_close(head.log_prob(net, context, action), -head.loss(
            net, context, action, mask, torch.Generator()).sum(1))
    assert loss[True] == pytest.approx(np.log(2), abs=0.02) and loss[False] == pytest.approx(2 * np.log(2), abs=0.02)
    assert together[True] > 0.99 and together[False] == pytest.approx(0.5, abs=0.05)


# -- the autoencoder --------------------------------------------------------------------------------------------------


def new_learner(data: Dataset, width: int = len(LEVELS), **fields):
    torch.manual_seed(0)
    data = data.map(ConstantColumn(SKILL, (0.0,) * width))
    policy = Policy(LOW, data.features()).fit_statistics(data)
    fields = {"batch_size": 8, "ema": ConstantDecay(0.0), "posterior": MLP(16, 1), "quantizer": FSQ(LEVELS), **fields}
    return SkillAutoencoder(4, **fields).build(policy, 0, 5, data)


@pytest.mark.slow
def test_the_contract_of_learners():
    check_learner(SkillAutoencoder(4, batch_size=8, posterior=MLP(16, 1), quantizer=FSQ((5,) * 3)), (LOW,))


def test_the_loss_is_that_of_the_policy_with_the_code_of_the_piece():
    data = random_dataset(FEATURES, 2, 8)
    learner = new_learner(data)
    batch = learner.batch_sampler(data).gather(np.array([0, 5]))
    loss = call_step(learner, "skill_loss", batch, torch.Generator().manual_seed(0))
    code = learner.nets.posterior.code(batch)
    assert set(learner.modules) == {"policy", "posterior"}
    for i, value in enumerate(loss):
        one = learner.config.decoder_batch(learner.nets, batch, code)
        steps = learner.policy.loss(one, torch.Generator().manual_seed(0)).sum(1)[4 * i:4 * i + 4]
        torch.testing.assert_close(steps[batch.mask[i]].sum(), value)
    loss.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learner.nets.posterior.net.parameters())


def test_labels_are_codes():
    data = random_dataset(FEATURES, 2, 8)
    posterior = new_learner(data).modules["posterior"]
    check_latent_encoder(posterior, data)
    quantizer, code = FSQ(LEVELS), posterior.latents(data)
    torch.testing.assert_close(quantizer.from_levels(quantizer.to_levels(code)), code)


def test_a_column_of_another_width_is_refused():
    with pytest.raises(ConfigError, match="3 components, but the quantizer has levels of 2"):
        new_learner(random_dataset(FEATURES, 2, 8), width=3)


def test_the_wrapper_lets_a_policy_choose_levels():
    data = random_dataset(FEATURES, 2, 8)
    learner = new_learner(data)
    wrapper = SkillWrapper(learner.modules["policy"], 4, quantizer=FSQ(LEVELS))
    action = wrapper.features(FEATURES)["action"]
    assert action.kind == "discrete" and action.num_classes == LEVELS and action.shape == (2,)
    level = torch.tensor([[3, 0], [0, 2]])
    torch.testing.assert_close(wrapper._column_value(level), torch.tensor([[0.5, -1.0], [-1.0, 1.0]]))
    codes = FSQ(LEVELS).from_levels(torch.tensor([[i % 4, i % 3] for i in range(8)])).numpy()
    converted = wrapper.transform_episode(data[0].replace({SKILL: codes}))
    assert converted.steps["action"].tolist() == [[0, 0], [0, 1]] and SKILL not in converted.steps
    with pytest.raises(UserError, match="quantizer has 3 components"):
        replace(wrapper, quantizer=FSQ((2, 2, 2))).features(FEATURES)


# -- the method -------------------------------------------------------------------------------------------------------


def test_shifted_starts_have_all_phases():
    data = Dataset([Episode({STATE: np.arange(n + 1.0)[:, None], "action": 10 + np.arange(float(n))[:, None]})
                    for n in (5, 2)])
    shifted = ShiftedStarts(3).apply(data)
    assert [e.steps["action"][:, 0].tolist() for e in shifted] == [
        [10, 11, 12, 13, 14], [10, 11], [11, 12, 13, 14], [11], [12, 13, 14]]
    assert [len(e.steps[STATE]) - len(e) for e in shifted] == [1] * 5
    assert sorted(t for e in shifted for t in e.steps[STATE][: len(e): 3, 0]) == [0, 0, 1, 1, 2, 3, 4]
    with pytest.raises(UserError, match="n is 0, but must be at least 1"):
        ShiftedStarts(0)


def there_and_back(word: str, seed: int) -> Episode:
    """Goes where the word says for 8 steps and stays there for 4, then goes the other way for 8."""
    action = np.repeat([1.0, 0.0, -1.0], (8, 4, 8))[:, None] * (1 if word == "up" else -1)
    action = action + 0.05 * np.random.default_rng(seed).standard_normal(action.shape)
    state = np.concatenate([[[0.0]], np.cumsum(0.1 * action, 0)]).astype(np.float32)
    return Episode({STATE: state, "action": action.astype(np.float32)}, {"task": word})


@pytest.mark.slow
def test_the_method_follows_words_and_remembers_what_it_did():
    """Halfway, at the same position, only the past tells whether to go on or back."""
    data = Dataset([there_and_back(("up", "down")[i % 2], i) for i in range(40)])
    named_method = find_method("omnijarvis", period=4, levels=(5, 5), memory=4, max_bytes=8)
    (stage,) = named_method.stages
    learner = replace(stage.method.learner, steps=300, batch_size=32, posterior=MLP(32, 1),
                      optimizer=OptimizerConfig(lr=3e-3))
    low = replace(stage.method.policy, trunk=MLP(32, 1), encoder=TokenEncoder(16))
    stage = replace(stage, method=replace(stage.method, policy=low, learner=learner))
    high = replace(named_method.policy, trunk=MLP(32, 1), encoder=TokenEncoder(16))
    named_method = replace(named_method, policy=high, learner=BehaviorCloning(300, 32, OptimizerConfig(lr=3e-3)),
                           stages=(stage,))
    result = fit_method(named_method, data, 0)
    assert result.policy.features["action"].num_classes == (5, 5)
    for word, sign in (("up", 1), ("down", -1)):
        actor, at, path = ObservationWrapper(result.actor, {TASK: torch.tensor(TaskText(8).encode(word))}), 0.0, []
        state = actor.start({STATE: torch.zeros(1, 1)}, torch.zeros(1, dtype=torch.int64))
        for _ in range(20):
            action, state = actor.act({STATE: torch.tensor([[at]])}, state)
            at += 0.1 * action.item()
            path.append(at)
        assert np.array([path[7], path[11], path[19]]) * sign == pytest.approx([0.8, 0.8, 0.0], abs=0.25)


def test_the_method_learns_classes_too():
    """Which of two lights is on decides the choice."""
    light = np.random.default_rng(0).integers(2, size=200).repeat(4)
    schema = {STATE: Feature("float32", (2,)), "action": Feature("int64", (1,), "discrete", num_classes=(3,))}
    data = Dataset([Episode({STATE: np.eye(2, dtype=np.float32)[light], "action": 2 * light[:, None]}, schema=schema)])
    named_method = find_method("omnijarvis", data.features(), period=4, levels=(3, 3), memory=2)
    (stage,) = named_method.stages
    learner = replace(stage.method.learner, steps=60, batch_size=32, optimizer=OptimizerConfig(lr=3e-3))
    stage = replace(stage, method=replace(stage.method, learner=learner))
    result = fit_method(replace(named_method, learner=BehaviorCloning(10, 16), stages=(stage,)), data, 0)
    words = torch.zeros(2, 64, dtype=torch.uint8)
    obs = {STATE: torch.eye(2), TASK: words}
    action, _ = result.actor.act(obs, result.actor.start(obs, torch.arange(2)))
    assert action.tolist() == [[0], [2]]
