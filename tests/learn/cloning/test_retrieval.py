"""Retrieval of prior data: embeddings, what is retrieved, and what is learned from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.learning import call_step
from fixtures.staged import call
from torch import distributions as D

from understudy import config
from understudy.checkpoint import FromStage, find_checkpoint, read_checkpoint_json
from understudy.core import DataError, Feature, Unsupported, UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import mix
from understudy.data.window import Goal, Window
from understudy.files import write_json
from understudy.heads.likelihood.gmm import GMM
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.cloning.latent_labels import LatentEncoder
from understudy.learn.cloning.retrieval import SAMPLING_WEIGHT, Retrieve
from understudy.learn.fit_method import fit_method
from understudy.learn.method import load_modules, training_data
from understudy.methods import find_method
from understudy.methods.retrieval.behavior_retrieval import StateActionVAE
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_latent_encoder, check_learner, random_dataset

STATE = "observation.state"
SMALL = StateActionVAE(3, widths=(16,), batch_size=8)


class Place(LatentEncoder):
    """The latent of a step is its state."""

    def __init__(self):
        super().__init__()
        self.latent, self.nothing = Feature("float32", (1,)), torch.nn.Parameter(torch.zeros(()))

    def windows(self, data):
        return Window().windows(data, (STATE,), "action")

    def forward(self, batch):
        return batch.obs[STATE][:, 0]

    def save(self, folder):
        raise NotImplementedError

    @staticmethod
    def load(folder, trust=(), device="cpu"):
        raise NotImplementedError


def walks(*states):
    """Episodes of given states. The actions are 0."""
    return Dataset([Episode({STATE: np.array(s, np.float32)[:, None], "action": np.zeros((len(s), 1), np.float32)})
                    for s in states])


def weights_of(data, **fields):
    return [e.steps[SAMPLING_WEIGHT].flatten().tolist() for e in Retrieve(Place(), **fields).apply(data)]


MIXED, _ = mix(task=(walks([0, 10]), 0.5), prior=(walks([1, 5, 12], [9, -4]), 0.5))  # distances 1, 5, 2 and 1, 4


def test_the_nearest_windows_are_retrieved():
    assert weights_of(MIXED, fraction=0.6) == [[0.25, 0.25], [1 / 6, 0, 1 / 6], [1 / 6, 0]]
    assert weights_of(MIXED, fraction=0.2, task_fraction=0.9) == [[0.45, 0.45], [pytest.approx(0.1), 0, 0], [0, 0]]
    assert weights_of(MIXED, fraction=1.0) == [[0.25, 0.25], [0.1] * 3, [0.1] * 2]
    # similarities 1, 0, 0.75 and 1, 0.25: 1 - (d - min) / (max - min)
    assert weights_of(MIXED, threshold=0.75) == [[0.25, 0.25], [1 / 6, 0, 1 / 6], [1 / 6, 0]]
    assert weights_of(MIXED, threshold=0.2)[2] == [0.125, 0.125]


def test_what_cannot_be_retrieved():
    assert weights_of(MIXED[:1]) == [[0.25, 0.25]]  # no prior data
    assert weights_of(MIXED[1:]) == [[0, 0, 0], [0, 0]]  # held-out episodes without the task
    with pytest.raises(DataError, match=r"(?s)which part of a mixture.*--prior PRIOR"):
        weights_of(walks([1, 2]))
    with pytest.raises(UserError, match="is not a trained module"):
        Retrieve(FromStage("embedding", "embedding")).apply(MIXED)
    with pytest.raises(UserError, match="fraction is 0.0, but must be above 0 and at most 1"):
        Retrieve(Place(), fraction=0.0)


def test_batches_have_the_rates_of_the_column():
    data = Retrieve(Place(), fraction=0.4).apply(MIXED)
    method = BehaviorCloning(sampling_column=SAMPLING_WEIGHT)
    policy = Policy(PolicyConfig(Regression(), MLP(8, 1)), data.features()).fit_statistics(data)
    sampler = method.build(policy, 0, 1, data).batch_sampler(data, lambda e: np.ones(len(e)))
    drawn = torch.cat([sampler.batch(2000, step).extra["index"].flatten() for step in range(5)])
    rates = torch.bincount(drawn, minlength=7) / len(drawn)
    assert rates[[3, 4, 6]].tolist() == [0, 0, 0]
    np.testing.assert_allclose(rates[[0, 1, 2, 5]], 0.25, atol=0.02)
    with pytest.raises(UserError, match="no column 'sampling_weight'"):
        method.build(policy, 0, 1, MIXED).batch_sampler(MIXED)


def test_contracts():
    check_learner(SMALL)
    features = {STATE: Feature("float32", (3,)), "observation.mode": Feature("int64", (1,), "discrete",
                                                                          num_classes=(3,)),
                "action": Feature("float32", (2,))}
    data = random_dataset(features, episodes=3, steps=9)
    policy = Policy(PolicyConfig(Regression(), window=Window(2, 4)), features).fit_statistics(data)
    modules = SMALL.build(policy, 0, 1, data).modules
    assert modules["embedding"].latent.shape == (3 + 4 * 2,)
    check_latent_encoder(modules["embedding"].eval(), data)
    with pytest.raises(Unsupported, match="goals are drawn at random"):
        goals = Window(goals=(Goal(STATE),))
        SMALL.build(Policy(PolicyConfig(Regression(), window=goals), features), 0, 1, data)


def test_the_loss_is_the_evidence_lower_bound():
    features = {STATE: Feature("float32", (3,)), "action": Feature("float32", (2,))}
    data = random_dataset(features, episodes=3, steps=9)
    policy = Policy(PolicyConfig(Regression(), window=Window(1, 2)), features).fit_statistics(data)
    learner = replace(SMALL, beta=0.3).build(policy, 0, 1, data)
    batch, embedding = learner.batch_sampler(data).batch(40, 0), learner.nets.embedding
    with torch.no_grad():
        loss = call_step(learner, "losses", batch, torch.Generator().manual_seed(1))[1]
        values = torch.cat([policy.codec.encode_obs(batch.obs)[STATE].flatten(1),
                            (policy.codec.encode(batch.action, batch.obs) * batch.mask[..., None]).flatten(1)], 1)
        mean, log_std = embedding.posterior(values)
        noise = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
        posterior = D.Normal(mean, log_std.exp())
        error = (embedding.decoder(mean + log_std.exp() * noise) - values).square().mean(1)
        expected = error + 0.3 * D.kl_divergence(posterior, D.Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(embedding(batch), torch.cat([mean, values[:, 3:]], 1))


def opposites(rng, low, high, sign, n=10):
    """The action is the sign times the state, which is in a range."""
    state = [rng.uniform(low, high, (12, 1)).astype(np.float32) for _ in range(n)]
    return Dataset([Episode({STATE: s, "action": sign * s}) for s in state])


def short(method, steps):
    stages = tuple(replace(s, method=replace(s.method, learner=replace(s.method.learner, steps=steps)))
                   for s in method.stages)
    policy = replace(method.policy, trunk=MLP(32, 1), head=GMM(2))
    return replace(method, policy=policy, stages=stages, learner=replace(method.learner, steps=steps))


@pytest.mark.slow
def test_the_task_is_learned_from_prior_data_that_do_it():
    """The task goes one way, and of the prior data half. It is retrieved by its actions, and from all data the two ways
    could not be told apart."""
    rng = np.random.default_rng(0)
    data, weights = mix(task=(opposites(rng, 0.5, 1, 1, 1), 0.5), prior=(
        opposites(rng, 0.3, 1, 1) + opposites(rng, 0.3, 1, -1), 0.5))
    method = short(find_method("behavior-retrieval", fraction=0.4, latent_dim=2), 150)
    result = fit_method(method, data, 0, sampling_weights=weights)
    weight_sums = np.array([e.steps[SAMPLING_WEIGHT].sum() for e in training_data(data, result.method)])
    assert weight_sums[0] == pytest.approx(0.5) and weight_sums[1:11].sum() > 0.45  # hardly anything of the other way
    state = torch.full((1, 1, 1), 0.4)  # where the task has no demonstration
    assert result.policy.plan({STATE: state}, torch.zeros(1, 1, *result.policy.noise_shape[1:])).item() > 0.2


def test_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, seed in (("task", 0), ("prior", 1)):
        assert call("record", "fork", "--out", name, "--episodes", 6, "--seed", seed)[0] == 0
    for name in ("behavior-retrieval", "skill-retrieval", "retrieve-align-replay"):
        status, output = call("train", name, "task", "--out", "run", "--steps", 5)
        assert status == 2
        assert f"{name} learns from two sets of episodes: task, which show the task, and prior" in output
        assert f"understudy train {name} task --out run --steps 5 --prior DATA" in output
        assert "Stage" not in output and "mix(" not in output
    method = short(find_method("behavior-retrieval"), 5)
    write_json(tmp_path / "method.json", config.dump(method))
    status, output = call("train", "method.json", "task", "--prior", "prior", "--out", "run")
    assert status == 0, output
    assert call("eval", "run", "fork", "--episodes", 2)[0] == 0
    held_out = read_checkpoint_json(find_checkpoint(tmp_path / "run"), "provenance.json")["held_out"]
    assert len(held_out) == 1 and held_out[0] < 6  # of the task alone
    assert set(load_modules(tmp_path / "run/stages/embedding")) == {"policy", "embedding"}
