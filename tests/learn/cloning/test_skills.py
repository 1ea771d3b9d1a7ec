"""Latent skills: the autoencoder, labels from it, and policies that choose skills."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.staged import call, contents, run

from understudy.checkpoint import FromStage
from understudy.core import ConfigError, Feature, Unsupported, UserError
from understudy.data.codec import Normalizer
from understudy.data.column_changes import ConstantColumn
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Goal, Window
from understudy.evaluate.training_report import training_verdict
from understudy.execute.planners import Hierarchical
from understudy.execute.wrappers import SkillWrapper
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.categorical import Categorical
from understudy.heads.likelihood.gaussian import Gaussian
from understudy.heads.likelihood.gmm import GMM
from understudy.heads.likelihood.regression import Regression
from understudy.learn.algorithm import Engine
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.cloning.latent_labels import SKILL, LatentLabels
from understudy.learn.cloning.skill_autoencoder import SkillAutoencoder, SkillPosterior
from understudy.learn.fit import fit
from understudy.learn.fit_method import fit_method
from understudy.learn.method import InitializeFrom, Method, Stage, TrainedRun, load_actor
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.train import train
from understudy.learn.training_curves import TrainingCurves
from understudy.methods import find_method
from understudy.nets.ema import ConstantDecay
from understudy.nets.encoders import TokenEncoder
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import ContractViolation, check_latent_encoder, check_learner, random_dataset

STATE = "observation.state"
FEATURES = {STATE: Feature("float32", (3,)), "action": Feature("float32", (2,))}
SMALL = {"trunk": MLP(16, 1), "encoder": TokenEncoder(8)}


def low_config(head=None, **window) -> PolicyConfig:
    return PolicyConfig(head or Gaussian(std=1.0), codec=Normalizer(unscaled=(SKILL,)), window=Window(**window),
                        **SMALL)


def prior_config(head=None, **window) -> PolicyConfig:
    return PolicyConfig(head or Gaussian(temperature=1.0), codec=Normalizer(target="identity"), window=Window(**window),
                        **SMALL)


def autoencoder(length: int = 4, prior=None, n_obs_steps: int = 1, **fields) -> SkillAutoencoder:
    fields = {"batch_size": 8, "ema": ConstantDecay(0.0), "posterior": MLP(16, 1), **fields}
    return SkillAutoencoder(length, prior=prior_config(prior, n_obs_steps=n_obs_steps), **fields)


def new_learner(data, head=None, width: int = 2, n_obs_steps: int = 1, **fields) -> Engine:
    torch.manual_seed(0)
    data = data.map(ConstantColumn(SKILL, (0.0,) * width))
    policy = Policy(low_config(head, n_obs_steps=n_obs_steps), data.features()).fit_statistics(data)
    return autoencoder(n_obs_steps=n_obs_steps, **fields).build(policy, 0, 50, data)


def numbered(*lengths: int) -> Dataset:
    """The state is the number of the row, the action 100 more."""
    return Dataset([Episode({STATE: np.arange(n + 1, dtype=np.float32)[:, None],
                             "action": 100 + np.arange(n, dtype=np.float32)[:, None]}) for n in lengths])


@pytest.mark.slow
def test_the_contract_of_learners():
    inputs = (STATE, SKILL)
    check_learner(autoencoder(), (replace(low_config(), inputs=inputs), replace(low_config(Flow(n_steps=2)),
                                                                               inputs=inputs)))
    check_learner(autoencoder(prior=GMM(2), n_obs_steps=2, optimizer=OptimizerConfig(accumulation_steps=2)), (
        replace(low_config(Regression(), n_obs_steps=2, obs_pad_mask=False), inputs=inputs),))


# -- the loss in closed form ------------------------------------------------------------------------------------------


def test_each_step_of_a_piece_sees_its_own_history_and_the_same_skill():
    data = numbered(6, 9)
    learner = new_learner(data, n_obs_steps=2)
    batch = learner.batch_sampler(data).gather(np.array([0, 4, 7]))  # rows 0 and 4 of the first, 1 of the second
    assert batch.mask.tolist() == [[True] * 4, [True, True, False, False], [True] * 4]
    skill = torch.tensor([[1.0, 2], [3, 4], [5, 6]])
    steps = learner.config.decoder_batch(learner.nets, batch, skill)
    assert steps.obs[STATE][:, :, 0].tolist() == [[0, 0], [0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [5, 6], [6, 6],
                                                  [0, 1], [1, 2], [2, 3], [3, 4]]
    assert steps.action[[0, 1, 2, 3, 4, 5, 8], 0, 0].tolist() == [100, 101, 102, 103, 104, 105, 101]
    assert steps.mask[:, 0].tolist() == [*[True] * 6, False, False, *[True] * 4]
    assert torch.equal(steps.obs[SKILL], skill.repeat_interleave(4, 0)[:, None].expand(-1, 2, -1))


def test_the_reconstruction_is_the_likelihood_of_all_steps():
    data = numbered(6)
    learner = new_learner(data, beta=0.0)
    for p in learner.policy.net.parameters():
        p.data.zero_()  # the mean of every action is 0 in coded units, with standard deviation 1
    batch = learner.batch_sampler(data).gather(np.array([0, 4]))
    loss, logged = learner.config.skill_loss(learner.nets, batch, torch.Generator().manual_seed(0))
    coded = (batch.action[..., 0] - 102.5) / 2.5
    want = ((0.5 * coded.square() + 0.5 * np.log(2 * np.pi)) * batch.mask).sum(1)
    assert torch.allclose(loss, want, atol=1e-5) and torch.allclose(logged["reconstruction"], want, atol=1e-5)


@pytest.mark.parametrize("head", [Gaussian(), GMM(3)])
def test_the_divergence_is_that_of_two_gaussians(head):
    """The prior is a standard deviation s around 0 (a mixture of three equal ones is the same)."""
    data = numbered(6)
    learner = new_learner(data, prior=head)
    for p in learner.nets.prior.net.parameters():
        p.data.zero_()
    s = float(np.log(2) + 0.01)  # softplus(0) and the smallest standard deviation
    mean, std = torch.tensor([0.5, -1.0]), torch.tensor([0.3, 0.8])
    want = float((np.log(s) - std.log() + (std.square() + mean.square()) / (2 * s * s) - 0.5).sum())
    one, n = learner.batch_sampler(data).gather(np.array([0])), 4000
    batch = replace(one, obs={k: v.expand(n, *v.shape[1:]) for k, v in one.obs.items()},
                    mask=one.mask.expand(n, -1))
    rng = torch.Generator().manual_seed(0)
    skill = mean + std * torch.randn(n, 2, generator=rng)
    with torch.no_grad():
        divergences = learner.config.kl_divergence(learner.nets, std.expand(n, -1), skill, batch, rng)
    assert abs(float(divergences.mean()) - want) < 4 * float(divergences.std()) / n**0.5
    batch = learner.batch_sampler(data).gather(np.arange(6))
    doubled = replace(learner.config, beta=2.0)
    total, logged = doubled.skill_loss(learner.nets, batch, torch.Generator().manual_seed(0))
    assert torch.equal(total, logged["reconstruction"] + 2 * logged["kl"])


def test_a_posterior_reads_all_of_its_piece_and_nothing_after_the_end():
    data = random_dataset(FEATURES, 2, 6)
    posterior = new_learner(data, n_obs_steps=2).nets.posterior.eval()
    batch = posterior.windows(data).gather(np.array([0, 4]))  # of the second, 2 of 4 steps are in the episode
    mean, std = posterior.distribution(batch)
    assert mean.shape == std.shape == (2, 2) and (std > 0).all()

    def changed(row, action=None, obs=None):
        actions, states = batch.action.clone(), batch.obs[STATE].clone()
        if action is not None:
            actions[row, action] += 1
        if obs is not None:
            states[row, obs] += 1
        again, _ = posterior.distribution(replace(batch, action=actions, obs={STATE: states}))
        return not torch.allclose(again[row], mean[row], atol=1e-6)
    assert all(changed(0, action=i) for i in range(4)) and all(changed(0, obs=i) for i in range(5))
    assert changed(1, action=1) and not changed(1, action=2) and not changed(1, action=3)
    assert changed(1, obs=2) and not changed(1, obs=3) and not changed(1, obs=4)


def test_goals_are_read_by_policy_and_prior_and_not_by_the_posterior():
    data = random_dataset(FEATURES, 2, 8)
    with_skill = data.map(ConstantColumn(SKILL, (0.0, 0.0)))
    goals = {"goals": (Goal(STATE, max_steps=4),)}
    policy = Policy(low_config(**goals), with_skill.features()).fit_statistics(with_skill)
    learner = replace(autoencoder(), prior=prior_config(**goals)).build(policy, 0, 5, with_skill)
    assert "observation.goal" in learner.nets.prior.inputs and SKILL not in learner.nets.prior.inputs
    assert learner.nets.posterior.inputs == (STATE,)
    sampler = learner.batch_sampler(with_skill)
    fit(learner, lambda n: sampler.batch(8, n), 2)
    check_latent_encoder(learner.modules["posterior"], data)


def test_classes_are_repeated_too():
    data = random_dataset({**FEATURES, "action": Feature("int64", (1,), "discrete", num_classes=(3,))}, 2, 8)
    learner = new_learner(data, Categorical())
    sampler = learner.batch_sampler(data)
    fit(learner, lambda n: sampler.batch(8, n), 2)
    assert learner.modules["posterior"](learner.modules["posterior"].windows(data).gather(np.arange(3))).shape == (3, 2)


@pytest.mark.parametrize(("change", "said"), [
    ({"codec": Normalizer()}, "codec of the policy changes the skill"),
    ({"window": Window(1, 2)}, "step by step"),
    ({"window": Window(2)}, "window of the prior"),
    ({"inputs": (STATE,), "codec": Normalizer()}, "does not read 'observation.skill'"),
])
def test_a_policy_that_cannot_carry_out_skills_is_refused(change, said):
    data = random_dataset(FEATURES, 2, 8).map(ConstantColumn(SKILL, (0.0, 0.0)))
    policy = Policy(replace(low_config(), **change), data.features()).fit_statistics(data)
    with pytest.raises((ConfigError, Unsupported), match=said):
        learner = autoencoder().build(policy, 0, 5, data)
        learner.update(learner.batch_sampler(data).batch(8, 0))


def test_a_prior_without_a_density_or_with_scaled_skills_is_refused():
    with pytest.raises(ConfigError, match="no density"):
        autoencoder(prior=Regression())
    data = random_dataset(FEATURES, 2, 8).map(ConstantColumn(SKILL, (0.5, 1.0)))
    policy = Policy(low_config(), data.features()).fit_statistics(data)
    learner = replace(autoencoder(), prior=replace(prior_config(), codec=Normalizer())).build(policy, 0, 5, data)
    with pytest.raises(ConfigError, match="codec of the prior changes the skill"):
        learner.update(learner.batch_sampler(data).batch(8, 0))


# -- labels -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def posterior() -> SkillPosterior:
    return new_learner(random_dataset(FEATURES), n_obs_steps=2).modules["posterior"]


def test_the_contract_of_latent_encoders(posterior):
    check_latent_encoder(posterior, random_dataset(FEATURES, 3, 7))

    class Sampled(SkillPosterior):
        def forward(self, batch):
            mean, std = self.distribution(batch)
            return mean + std * torch.randn(mean.shape)
    random = Sampled(posterior.about, posterior.features, posterior.codec).eval()
    with pytest.raises(ContractViolation, match="the same latent"):
        check_latent_encoder(random, random_dataset(FEATURES, 3, 7))


def test_labels_are_the_means_of_the_posterior(posterior):
    data = random_dataset(FEATURES, 4, 7)
    chosen = data.select([3, 1])
    labeled = LatentLabels(posterior).apply(chosen)
    assert len(labeled) == 2 and labeled.metadata == data.metadata
    assert labeled.features() == {**data.features(), SKILL: posterior.latent}
    for episode, before in zip(labeled, (data[3], data[1]), strict=True):
        assert SKILL not in before.steps and episode.metadata == before.metadata
        for t in (0, 3, len(before) - 1):
            batch = posterior.windows(Dataset([before])).gather(np.array([t]))
            np.testing.assert_allclose(episode.steps[SKILL][t], posterior(batch)[0].detach(), atol=1e-5)
        assert episode.steps[SKILL].shape == (len(before), 2)
        np.testing.assert_array_equal(episode.steps["action"], before.steps["action"])
    some = labeled.select([1])
    np.testing.assert_array_equal(some[0].steps[SKILL], labeled[1].steps[SKILL])
    windows = Window(2, 3).windows(labeled, (STATE, SKILL), "action").gather(np.array([2]))
    np.testing.assert_array_equal(windows.obs[SKILL][0], labeled[0].steps[SKILL][1:3])


def test_steps_of_a_period_share_a_label(posterior):
    data = random_dataset(FEATURES, 2, 7)
    each, periodic = LatentLabels(posterior).apply(data), LatentLabels(posterior, "observation.plan", 3).apply(data)
    for one, other in zip(each, periodic, strict=True):
        rows = [0, 0, 0, 3, 3, 3, 6, 6][: len(one)]
        np.testing.assert_array_equal(other.steps["observation.plan"], one.steps[SKILL][rows])


def test_labels_need_a_trained_module(posterior):
    with pytest.raises(UserError, match="is not a trained module"):
        LatentLabels(FromStage("skills", "posterior")).apply(random_dataset(FEATURES))
    with pytest.raises(UserError, match="period is 0, but must be at least 1"):
        LatentLabels(posterior, period=0)


# -- methods that use them --------------------------------------------------------------------------------------------


def labeled_skills(steps=(5, 4), length: int = 3) -> Method:
    """A policy that learns which skill to begin, from labels (OPAL)."""
    skills = Method(low_config(), learner=autoencoder(length, steps=steps[0]),
                    transforms=(ConstantColumn(SKILL, (0.0, 0.0)),))
    high = PolicyConfig(Regression(), **SMALL)
    return Method(high, learner=BehaviorCloning(steps[1], 8),
                  transforms=(LatentLabels(FromStage("skills", "posterior")),), stages=(Stage("skills", skills),),
                  wrapper=SkillWrapper(FromStage("skills"), length))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(out, labeled_skills())
    return out


def test_a_run_learns_from_labels_and_acts(whole):
    trained = TrainedRun.load(whole)
    assert trained.policy.features["action"].shape == (2,)  # a skill
    stage = TrainedRun.load(whole / "stages" / "skills")
    assert set(stage.modules) == {"policy", "prior", "posterior"}
    actor = load_actor(whole)
    obs = {STATE: torch.zeros(2, 3)}
    state = actor.start(obs, torch.arange(2))
    for _ in range(4):
        action, state = actor.act(obs, state)
        assert action.shape == (2, 2) and action.isfinite().all()


def test_a_run_learns_from_labels_where_no_episode_is_held_out(tmp_path):
    train(labeled_skills((1, 1)), random_dataset(FEATURES, 3, 20), tmp_path / "run", val_fraction=0.0, device="cpu")
    assert load_actor(tmp_path / "run") is not None


@pytest.mark.parametrize("at", [2, 5])
def test_a_stopped_stage_is_the_same_run_bit_by_bit(whole, tmp_path, monkeypatch, at):
    out, updates_left, before = tmp_path / "run", [at], Engine.update

    def update(learner, batch):
        updates_left[0] -= 1
        if updates_left[0] == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return before(learner, batch)
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "update", update)
        with pytest.raises(KeyboardInterrupt):
            run(out, labeled_skills())
    run(out, labeled_skills())
    assert contents(out) == contents(whole)


def test_the_prior_can_be_the_high_level_policy():
    """Without training: its weights are those of the stage."""
    data = random_dataset(FEATURES)
    skill_method = labeled_skills((5, 1))
    prior = replace(skill_method, policy=replace(prior_config()), initialize_from=(
        InitializeFrom(FromStage("skills", "prior"), train=()),))
    stage = fit_method(skill_method.stages[0].method, data, 0)
    result = fit_method(prior, data, 0, stages={"skills": stage})
    policy_state, prior_state = result.policy.state_dict(), stage.modules["prior"].state_dict()
    assert policy_state.keys() == prior_state.keys()
    assert all(torch.equal(v, prior_state[k]) for k, v in policy_state.items())


def test_a_latent_can_be_planned_at_every_step():
    """Latent plans: one stage learns latents, the next predicts them, and the policy reads them."""
    labels, learner = LatentLabels(FromStage("skills", "posterior")), BehaviorCloning(3, 8)
    high = Method(PolicyConfig(Regression(), inputs=(STATE,), target=SKILL, **SMALL), learner=learner,
                  transforms=(labels,))
    low = Method(PolicyConfig(Regression(), **SMALL), learner=learner, transforms=(labels,),
                 stages=(*labeled_skills().stages, Stage("high", high)),
                 inference=(Hierarchical(FromStage("high"), as_key=SKILL),))
    result = fit_method(low, random_dataset(FEATURES), 0)
    assert result.policy.inputs == (SKILL, STATE)
    obs = {STATE: torch.randn(2, 3, generator=torch.Generator().manual_seed(0))}
    action, _ = result.actor.act(obs, result.actor.start(obs, torch.arange(2)))
    planned = result.method.inference[0].high.plan({STATE: obs[STATE][:, None]}, torch.zeros(2, 1, 0))
    want = result.policy.plan({STATE: obs[STATE][:, None], SKILL: planned}, torch.zeros(2, 1, 0))[:, 0]
    assert torch.allclose(action, want, atol=1e-5)


def both_ways(episodes: int = 24) -> Dataset:
    """Steps of one sign for four steps each. The observation says nothing."""
    rng = np.random.default_rng(0)

    def episode():
        sign = rng.choice([-1.0, 1.0], 5).repeat(4)[:, None]
        return Episode({STATE: rng.normal(size=(21, 1)).astype(np.float32), "action": sign.astype(np.float32)})
    return Dataset([episode() for _ in range(episodes)])


@pytest.mark.slow
def test_skills_tell_the_ways_apart_and_are_kept():
    data = both_ways()
    optimizer = OptimizerConfig(lr=1e-2)
    low = Method(low_config(Gaussian(std=0.3)), transforms=(ConstantColumn(SKILL, (0.0,)),), learner=autoencoder(
        4, steps=150, batch_size=64, optimizer=optimizer))
    result = fit_method(low, data, 0)
    policy, labeled = result.policy, LatentLabels(result.modules["posterior"]).apply(data)
    with torch.no_grad():
        for episode in labeled[:4]:
            first = slice(0, 17, 4)  # pieces in which the sign does not change
            obs = {STATE: torch.from_numpy(episode.steps[STATE][first])[:, None],
                   SKILL: torch.from_numpy(episode.steps[SKILL][first])[:, None]}
            plan = policy.plan(obs, torch.zeros(5, *policy.noise_shape))[:, 0, 0].numpy()
            np.testing.assert_allclose(plan, episode.steps["action"][first, 0], atol=0.3)
    prior = replace(labeled_skills(), policy=prior_config(GMM(2)), stages=(Stage("skills", low),),
                    learner=BehaviorCloning(150, 64, optimizer=optimizer), wrapper=SkillWrapper(FromStage("skills"), 4))
    actor = fit_method(prior, data, 0, stages={"skills": result}).actor
    rng, obs = torch.Generator().manual_seed(0), {STATE: torch.zeros(64, 1)}
    state, actions = actor.start(obs, torch.arange(64)), []
    for _ in range(4):
        action, state = actor.act({STATE: torch.randn(64, 1, generator=rng)}, state)
        actions.append(action[:, 0])
    signs = torch.stack(actions).sign()
    assert (signs == signs[0]).all()  # a skill is kept for its period
    assert 10 < int((signs[0] > 0).sum()) < 54  # and both are chosen
    assert float((torch.stack(actions).abs() - 1).abs().max()) < 0.5


def short_skills() -> Method:
    """Three updates of each part, for the command."""
    return labeled_skills((3, 3))


def test_one_command_learns_skills_and_evaluates(tmp_path):
    demos, out = tmp_path / "demos", tmp_path / "run"
    assert call("record", "particle", "--out", demos, "--episodes", 6)[0] == 0
    command = ("train", f"{__name__}:short_skills", demos, "--trust", "tests", "--out", out, "--device", "cpu")
    status, text = call(*command)
    assert status == 0, text
    assert "stage skills: update 1 of 3, loss " in text and "stage skills: update 3 of 3, loss " in text
    assert text.index("stage skills: update 3") < text.index("\nupdate 3: ")
    assert "update 3: error of latents on held-out episodes " in text
    assert "error on" not in text and "recorded actions" not in text
    card = (out / "CARD.md").read_text()
    assert "energy score of latents on held-out episodes" in card and "of the latents' standard deviation" in card
    assert Method.load(out) == short_skills()
    status, text = call("plot", out, "--html", tmp_path / "curves.html")
    assert status == 0 and "error of latents on held-out episodes" in text and "recorded actions" not in text
    assert "The errors of run are of latents" in (tmp_path / "curves.html").read_text()
    same = TrainingCurves.load(out)
    head, _, _ = training_verdict({"a": same, "b": same})
    assert head == "2 trainings."  # errors of different latents do not compare
    status, text = call("eval", out, "particle", "--episodes", 2, "--device", "cpu", "--html", tmp_path / "acts.html")
    assert status == 0 and "The errors of run are of latents" in (tmp_path / "acts.html").read_text(), text
    status, text = call("eval", out, demos, "--device", "cpu", "--html", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert status == 0 and "foretold" not in text + page and "action[0]" not in text + page
    assert "Latents of skills, and not actions, are compared. On" in text
    assert "cannot be compared with other runs" in text
    assert "latent[0]" in text and "latent[0]" in page and "By component of the latent" in page


@pytest.mark.parametrize("name", ["opal", "play-lmp", "groot-2", "skill-retrieval", "dichotomy-of-control"])
@pytest.mark.parametrize("latent_dim", [0, -1])
def test_a_latent_without_components_is_refused(name, latent_dim):
    with pytest.raises(ConfigError, match=r"0 components, but must have at least 1(.|\n)*latent-dim"):
        find_method(name, latent_dim=latent_dim)


@pytest.mark.parametrize("name", ["opal", "play-lmp"])
def test_named_methods_train_and_act(name):
    named_method = find_method(name, FEATURES, period=5)
    short = [replace(s, method=replace(s.method, learner=replace(s.method.learner, steps=2, batch_size=8)))
             for s in named_method.stages]
    named_method = replace(named_method, stages=tuple(short),
                           learner=replace(named_method.learner, steps=2, batch_size=8))
    actor = fit_method(named_method, random_dataset(FEATURES, 3, 20), 0).actor
    obs = {STATE: torch.zeros(2, 3), "observation.goal": torch.zeros(2, 3)}
    action, _ = actor.act(obs, actor.start(obs, torch.arange(2)))
    assert action.shape == (2, 2) and action.isfinite().all()
