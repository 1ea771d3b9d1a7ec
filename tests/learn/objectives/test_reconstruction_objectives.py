"""Autoencoders: with linear networks their optima are known."""

import numpy as np
import pytest
import torch

from understudy.core import Batch, ConfigError, Feature
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.likelihood.regression import Regression
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.objectives.reconstruction_objectives import (
    VAE,
    ObservationPrediction,
    Reconstruction,
    observation_vector,
)
from understudy.learn.objectives.representation import RepresentationLearning
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.encoders import ConcatEncoder, TokenEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner

RAW = Normalizer("identity", "identity")
STATE, SIZE, WIDTH, BETA = "observation.state", 5, 2, 0.3
VARIANCES = np.array([4.0, 2.0, 0.5, 0.2, 0.1])


def gaussian_batch():
    """Observations whose covariance is exact: turned axes with `VARIANCES`."""
    rng = np.random.default_rng(0)
    x = np.linalg.qr(rng.normal(size=(400, SIZE)) - 0)[0]
    x = np.linalg.qr(x - x.mean(0))[0] * np.sqrt(400 * VARIANCES)
    turn = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
    obs = torch.tensor(x @ turn.T, dtype=torch.float32)[:, None]
    return Batch({STATE: obs}, torch.zeros(400, 1, 0), torch.ones(400, 1).bool()), turn


def descend(objective, updates):
    torch.manual_seed(0)
    batch, turn = gaussian_batch()
    config = PolicyConfig(Regression(), FeedForward(()), TokenEncoder(SIZE), RAW, target="")
    policy = Policy(config, {STATE: Feature("float32", (SIZE,))})
    loss, rng = objective.build(policy), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([*policy.encoder.parameters(), *loss.parameters()], lr=2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for _ in range(updates):
        context = policy.context(batch.obs)
        value = loss(policy, batch, rng, {"context": context.tokens, "context_mask": context.mask}).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    return loss, value.item(), turn


def test_a_linear_vae_is_probabilistic_principal_component_analysis():
    loss, _, turn = descend(VAE(WIDTH, BETA, hidden=()), 1500)
    weight = loss.decoder[0].weight.detach().double().numpy()
    expected = turn[:, :WIDTH] @ np.diag(VARIANCES[:WIDTH] - BETA) @ turn[:, :WIDTH].T
    assert np.abs(weight @ weight.T - expected).max() < 0.15
    bare, _, _ = descend(VAE(WIDTH, 5.0, hidden=()), 300)  # larger than every variance: nothing is carried
    assert bare.decoder[0].weight.abs().max() < 0.1


def test_an_encoding_can_be_the_mean_of_the_latent():
    batch, _ = gaussian_batch()
    policy = Policy(PolicyConfig(Regression(), FeedForward(()), TokenEncoder(WIDTH), RAW, target=""),
                    {STATE: Feature("float32", (SIZE,))})
    own, mapped = (VAE(latent, BETA).build(policy) for latent in (0, WIDTH))
    mapped.decoder.load_state_dict(own.decoder.state_dict())
    linear = own.to_latent[0]
    mapped.to_latent[0].weight.data = torch.cat([torch.eye(WIDTH), linear.weight])
    mapped.to_latent[0].bias.data = torch.cat([torch.zeros(WIDTH), linear.bias])
    context = policy.context(batch.obs)
    losses = [loss(policy, batch, torch.Generator().manual_seed(1), {
        "context": context.tokens, "context_mask": context.mask}) for loss in (own, mapped)]
    torch.testing.assert_close(*losses)


def test_a_linear_autoencoder_loses_the_smallest_variances():
    class Narrow(Reconstruction):
        def build(self, policy):
            loss = super().build(policy)
            loss.decoder = torch.nn.Sequential(torch.nn.Linear(SIZE, WIDTH), torch.nn.Linear(WIDTH, SIZE))
            return loss
    _, value, _ = descend(Narrow(()), 500)
    assert value == pytest.approx(VARIANCES[WIDTH:].sum() / SIZE, rel=0.02)


def test_targets_are_coded_numbers_and_pixels():
    features = {"observation.images.top": Feature("uint8", (4, 4, 3), "image"), STATE: Feature("float32", (2,))}
    policy = Policy(PolicyConfig(Regression(), FeedForward(()), codec=RAW, target=""), features)
    obs = {"observation.images.top": torch.full((3, 1, 4, 4, 3), 255, dtype=torch.uint8),
           STATE: torch.full((3, 1, 2), 7.0)}
    target = observation_vector(policy, obs)
    assert target.shape == (3, 50) and sorted(set(target.flatten().tolist())) == [1.0, 7.0]


def test_prediction_of_a_linear_world_with_its_own_matrices_has_no_error():
    """The later observation is ``x + a_0 + a_1``, and a step's reward twice its action. Padding counts for nothing."""
    features = {STATE: Feature("float32", (1,)), "action": Feature("float32", (1,))}
    policy = Policy(PolicyConfig(Regression(), FeedForward(()), ConcatEncoder(), RAW, window=Window(2, 2)), features)
    obs, action = torch.tensor([[9.0, 1], [9, 2]]), torch.tensor([[3.0, 4], [5, 0]])
    mask = torch.tensor([[1, 1], [1, 0]])
    later = obs[:, 1] + (action * mask).sum(1)
    batch = Batch({STATE: obs[..., None]}, action[..., None], mask.bool(),
                  extra={"next.reward": torch.tensor([[6.0, 8], [10, 77]])[..., None]},
                  next={STATE: torch.stack([obs[:, 0], later], 1)[..., None]})
    context = policy.context(batch.obs)

    def loss(weights, **options):
        built = ObservationPrediction((), **options).build(policy)
        for p, value in zip(built.parameters(), (weights, torch.zeros(2)), strict=True):
            p.data.copy_(value)
        return built(policy, batch, torch.Generator(), {"context": context.tokens, "context_mask": context.mask})

    exact = torch.tensor([[0.0, 1, 1, 1], [0, 0, 2, 2]])
    assert torch.equal(loss(exact, reward_weight=3.0), torch.zeros(2))
    assert torch.equal(loss(exact * torch.tensor([[1.0], [0]])), torch.zeros(2))  # without rewards as a target
    wrong = loss(torch.zeros(2, 4), reward_weight=3.0, weight=0.5)
    assert torch.allclose(wrong, 0.5 * (later.square() + 3 * torch.tensor([14.0, 10]).square()))


@pytest.mark.parametrize("objective", [Reconstruction((8,)), VAE(2, hidden=(8,)), VAE(0, hidden=(8,)),
                                       ObservationPrediction((8,))])
def test_the_contract(objective):
    check_learner(RepresentationLearning((objective,), batch_size=8))


# -- other columns --------------------------------------------------------------------------------------------------

VIEW, CAMERA = "observation.view", "observation.images.side"


def episodes_with_views(n=12, steps=20):
    """The state has five independent components. The view shows the first one twice, in other units, and the second."""
    rng = np.random.default_rng(0)
    episodes = []
    for _ in range(n):
        x = rng.normal(size=(steps, SIZE)).astype(np.float32)
        view = np.stack([100 * x[:, 0] + 7, -x[:, 0], x[:, 1]], 1)
        side = np.broadcast_to(np.arange(steps, dtype=np.uint8)[:, None, None, None], (steps, 2, 2, 3))
        episodes.append(Episode({STATE: x, VIEW: view, CAMERA: side, "action": np.zeros((steps, 1), np.float32)}))
    return Dataset(episodes)


def test_a_narrow_encoding_keeps_what_most_of_the_other_columns_show():
    """Of one number, linear maps reconstruct the first component, which is two of the three: the third is lost, and
    with it 1/3 of the variance. All components of the state itself have the same variance."""
    data = episodes_with_views()
    config = PolicyConfig(Regression(), FeedForward(()), TokenEncoder(1), inputs=(STATE,))
    learner = RepresentationLearning((Reconstruction((), columns=(VIEW,)),), steps=600, batch_size=240,
                                     optimizer=OptimizerConfig(lr=3e-2, weight_decay=0.0))
    method = fit_method(Method(config, learner=learner), data, seed=0)
    policy = method.policy
    x = torch.from_numpy(np.concatenate([e.steps[STATE] for e in data]))
    encoding = policy.context({STATE: x[:, None]}).flat().detach()
    kept = np.abs(np.corrcoef(encoding[:, 0], x.T.numpy())[0, 1:])
    assert kept[0] > 0.99 and kept[1:].max() < 0.2


def test_other_columns_are_those_of_the_observed_step():
    """A decoder of zeros with the target as its bias has no loss where the step is that of the observation."""
    data = episodes_with_views()
    window = Window(n_obs_steps=2, horizon=3, action_offset=-1)
    policy = Policy(PolicyConfig(Regression(), MLP(8, 1), ConcatEncoder(), window=window, inputs=(STATE,)),
                    data.features()).fit_statistics(data)
    objective = Reconstruction((), weight=2.0, columns=(VIEW, CAMERA))
    batch = policy.windows(data, extra=objective.columns).batch(8, 0, 0)
    values = np.concatenate([e.steps[VIEW] for e in data])
    state, view = batch.obs[STATE][0, -1].numpy(), batch.extra[VIEW][0, 1].numpy()
    np.testing.assert_allclose(view, [100 * state[0] + 7, -state[0], state[1]], rtol=1e-5)
    function = objective.build_for(policy, data)
    function.decoder[0].weight.data.zero_()
    function.decoder[0].bias.data[:] = torch.tensor([*(view - values.mean(0)) / values.std(0),
                                                     *[float(batch.extra[CAMERA][0, 1].flatten()[0]) / 255] * 12])
    context = policy.context(batch.obs)
    loss = function(policy, batch, torch.Generator(), {"context": context.tokens, "context_mask": context.mask})
    assert loss.shape == (8,) and loss[0].item() == pytest.approx(0, abs=1e-6) and loss[1] > 1e-3
    check_learner(RepresentationLearning((Reconstruction((8,), columns=(STATE,)),), batch_size=8))


@pytest.mark.parametrize("window, columns, message", [
    (Window(action_offset=1), (VIEW,), r"action_offset=1, horizon=1\) do not contain the observed step"),
    (Window(), ("task",), "task contains string")])
def test_columns_that_cannot_be_reconstructed(window, columns, message):
    data = episodes_with_views().map(lambda e: e.replace({"task": np.array(["go"] * len(e))}))
    policy = Policy(PolicyConfig(Regression(), MLP(8, 1), ConcatEncoder(), window=window, inputs=(STATE,)),
                    data.features())
    with pytest.raises(ConfigError, match=message):
        Reconstruction(columns=columns).build_for(policy, data)
