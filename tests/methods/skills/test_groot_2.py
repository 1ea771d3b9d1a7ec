"""Skills with instructions: losses of labeled pieces, their fraction of the batches, and what few labels teach."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.learning import call_step

from understudy.core import ConfigError, Feature
from understudy.data.codec import Normalizer
from understudy.data.column_changes import ConstantColumn
from understudy.data.episode import Dataset, Episode
from understudy.data.tasks import SHOWN_TASK
from understudy.data.text_columns import TaskText
from understudy.data.window import Window
from understudy.execute.actor import ObservationWrapper
from understudy.heads.likelihood.gaussian import Gaussian
from understudy.heads.likelihood.gmm import GMM
from understudy.learn.cloning.latent_labels import SKILL
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods import find_method
from understudy.methods.skills.groot_2 import InstructedAutoencoder
from understudy.nets.ema import ConstantDecay
from understudy.nets.encoders import TokenEncoder
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner

STATE, TASK = "observation.state", "instruction"
SMALL = {"trunk": MLP(16, 1), "encoder": TokenEncoder(8)}
LOW = PolicyConfig(Gaussian(std=1.0), codec=Normalizer(unscaled=(SKILL,)), inputs=(STATE, SKILL), **SMALL)
LATENT = PolicyConfig(Gaussian(), codec=Normalizer(target="identity"), **SMALL)


def config(**fields) -> InstructedAutoencoder:
    fields = {"batch_size": 8, "ema": ConstantDecay(0.0), "posterior": MLP(16, 1), "prior": LATENT,
              "instruction": replace(LATENT, inputs=(TASK,)), "length": 4, **fields}
    return InstructedAutoencoder(**fields)


def walk(word: int, labeled: bool, length: int = 6, seed: int = 0) -> Episode:
    """The state moves up for word 1 and down for word 0."""
    rng = np.random.default_rng([seed, word])
    action = np.full((length, 1), 2.0 * word - 1, np.float32) + 0.1 * rng.normal(size=(length, 1)).astype(np.float32)
    state = np.concatenate([rng.normal(size=(1, 1)), action]).cumsum(0).astype(np.float32)
    return Episode({STATE: state, "action": action, TASK: np.full((length + 1, 1), word if labeled else 0),
                    TASK + "?": np.full(length + 1, labeled)},
                   schema={TASK: Feature("int64", (1,), "discrete", num_classes=(2,))})


def new_learner(data, low=LOW, **fields):
    torch.manual_seed(0)
    data = data.map(ConstantColumn(SKILL, (0.0, 0.0)))
    policy = Policy(low, data.features()).fit_statistics(data)
    return config(**fields).build(policy, 0, 50, data), data


@pytest.mark.slow
def test_the_contract_of_learners():
    check_learner(config(), (LOW,))
    check_learner(config(prior=replace(LATENT, window=Window(2)),
                         instruction=replace(LATENT, inputs=(TASK,), window=Window(2))), (
        replace(LOW, window=Window(2)),))


def test_labels_add_two_losses_to_labeled_pieces_alone():
    data = Dataset([walk(0, False), walk(1, True)])
    learner, data = new_learner(data, beta=0.0)
    batch = learner.batch_sampler(data).gather(np.array([0, 6, 2, 8]))  # of the first episode and the second, in turns
    assert learner.policy.inputs == (STATE, SKILL) and set(batch.obs) == {STATE}
    for module in (learner.policy, learner.nets.instruction):
        for p in module.net.parameters():
            p.data.zero_()  # actions have mean 0, and so have the skills of the instruction
    coded = learner.policy.encode(batch.action.flatten(0, 1).unsqueeze(1), {}).reshape(4, 4)
    repeated = ((0.5 * coded.square() + 0.5 * np.log(2 * np.pi)) * batch.mask).sum(1)
    with torch.no_grad():
        loss = call_step(learner, "skill_loss", batch, torch.Generator().manual_seed(0))
        learner.config = replace(learner.config, alignment=0.0)
        apart = call_step(learner, "skill_loss", batch, torch.Generator().manual_seed(0))
    torch.testing.assert_close(apart, repeated * torch.tensor([1.0, 2, 1, 2]))
    assert torch.equal(loss[::2], apart[::2]) and (loss[1::2] - apart[1::2]).abs().min() > 1e-3


def test_the_alignment_is_the_likelihood_of_the_posteriors_skill():
    learner, data = new_learner(Dataset([walk(1, True)]))
    for p in learner.nets.instruction.net.parameters():
        p.data.zero_()
    batch = learner.batch_sampler(data).gather(np.array([0, 1]))
    words = {TASK: batch.extra[TASK][:, :1]}
    with torch.no_grad():
        mean, std = learner.nets.posterior.distribution(batch)
        skill = mean + std * torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
        _, likely = learner.config.instruction_losses(learner.nets, batch, words, torch.Generator().manual_seed(3))
    s = float(np.log(2) + 0.01)  # softplus(0) and the smallest standard deviation
    want = (0.5 * (skill / s).square() + np.log(s) + 0.5 * np.log(2 * np.pi)).sum(1)
    torch.testing.assert_close(likely, want)


def test_all_modules_learn_from_the_labels():
    learner, data = new_learner(Dataset([walk(1, True)]))
    batch = learner.batch_sampler(data).gather(np.array([0, 1]))
    words = {TASK: batch.extra[TASK][:, :1]}
    followed, likely = learner.config.instruction_losses(learner.nets, batch, words, torch.Generator())

    def reached(loss):
        grads = {name: torch.autograd.grad(loss.sum(), tuple(module.net.parameters()), allow_unused=True,
                                           retain_graph=True)
                 for name, module in (("policy", learner.policy), ("instruction", learner.nets.instruction),
                                      ("posterior", learner.nets.posterior))}
        return {name for name,
                gradients in grads.items() if any(g is not None and g.abs().sum() > 0 for g in gradients)}
    assert reached(followed) == {"policy", "instruction"} and reached(likely) == {"instruction", "posterior"}


@pytest.mark.parametrize("fraction, expected", [(0.5, 0.5), (0.2, 0.2), (None, 0.25)])
def test_labeled_pieces_are_a_fixed_fraction(fraction, expected):
    data = Dataset([walk(0, i == 0, seed=i) for i in range(4)])
    learner, data = new_learner(data, labeled_fraction=fraction)
    batch = learner.batch_sampler(data).batch(4000, 0)
    assert batch.extra[TASK + "?"][:, 0].float().mean() == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("labeled", [True, False])
def test_all_episodes_may_be_labeled_or_none(labeled):
    learner, data = new_learner(Dataset([walk(i % 2, labeled, seed=i) for i in range(4)]))
    metrics = learner.update(learner.batch_sampler(data).batch(8, 0))
    assert np.isfinite(metrics["loss"])
    without = Dataset([replace(e, steps={k: v for k, v in e.steps.items() if k != TASK + "?"}) for e in data])
    learner, without = new_learner(without)  # a column without a mask is always there
    assert np.isfinite(learner.update(learner.batch_sampler(without).batch(8, 0))["loss"])


@pytest.mark.parametrize("change, words", [
    ({"instruction": replace(LATENT, head=GMM(2), inputs=(TASK,))}, "Gaussian that reads"),
    ({"instruction": LATENT}, "Gaussian that reads"),
    ({"instruction": replace(LATENT, inputs=(TASK,), window=Window(2))}, "window of the instruction"),
    ({"labeled_fraction": 1.0}, "above 0 and below 1"),
])
def test_wrong_configs_are_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        config(**change)


def test_two_labeled_episodes_name_what_many_others_show():
    data = Dataset([walk(i % 2, i < 2, seed=i) for i in range(40)]).map(ConstantColumn(SKILL, (0.0, 0.0)))
    learner = config(steps=200, batch_size=32, optimizer=OptimizerConfig(lr=3e-3))
    trained = fit_method(Method(LOW, learner=learner), data, 0)
    assert set(trained.modules) == {"policy", "prior", "posterior", "instruction"}
    instruction, key = trained.modules["instruction"], torch.arange(2)
    with torch.no_grad():
        skill = instruction.plan({TASK: torch.arange(2).reshape(2, 1, 1)}, instruction.noise(key, 0 * key))
        state = torch.tensor([[[0.3]], [[0.3]]])
        action = trained.policy.plan({STATE: state, SKILL: skill}, trained.policy.noise(key, 0 * key)).flatten()
    assert action.tolist() == pytest.approx([-1.0, 1.0], abs=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("shown", [False, True])
def test_the_method_follows_words_that_two_episodes_have(shown):
    """The words are told, or the environment shows them in more bytes. Then only the instruction reads them."""
    task = SHOWN_TASK if shown else TASK

    def described(i):
        episode, word = walk(i % 2, False, length=8, seed=i), ("down", "up")[i] if i < 2 else ""
        steps = {k: v for k, v in episode.steps.items() if k in (STATE, "action")}
        if not shown:
            return Episode(steps, {"task": word})
        return Episode({**steps, SHOWN_TASK: np.tile(TaskText(12).encode(word), (9, 1))},
                       schema={SHOWN_TASK: Feature("uint8", (12,), "text")})
    columns = described(0).features() if shown else None
    named_method = find_method("groot-2", columns, period=8, latent_dim=2, max_bytes=8)
    (stage,) = named_method.stages
    learner = replace(stage.method.learner, steps=200, batch_size=32, posterior=MLP(32, 1),
                      optimizer=OptimizerConfig(lr=3e-3))
    low = replace(stage.method.policy, head=Gaussian(std=0.5), trunk=MLP(32, 1))
    stage = replace(stage, method=replace(stage.method, policy=low, learner=learner))
    result = fit_method(replace(named_method, stages=(stage,)), Dataset([described(i) for i in range(40)]), 0)
    low = result.actor.wrapper.low
    assert set(low.inputs) == {STATE, SKILL}
    actions = {}
    for word in ("down", "up"):
        text = torch.tensor(TaskText(12 if shown else 8).encode(word))
        actor, state = ObservationWrapper(result.actor, {task: text}), torch.tensor([[0.3]])
        action, _ = actor.act({STATE: state}, actor.start({STATE: state}, torch.zeros(1, dtype=torch.int64)))
        actions[word] = action.item()
    assert actions == pytest.approx({"down": -1.0, "up": 1.0}, abs=0.3)
