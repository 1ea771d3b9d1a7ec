"""Tokens of single numbers: what each may read, which are missing, and the objectives in closed form."""

import pytest
import torch
from fixtures.learning import call_step

from understudy.core import ConfigError, Feature, UserError
from understudy.data.augment import SensorDropout
from understudy.data.codec import Normalizer
from understudy.data.window import Window
from understudy.heads.likelihood.regression import Regression
from understudy.learn.objectives.representation import RepresentationLearning
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.representation.pasta import ComponentTokenEncoder, MaskedTokenPrediction, NextTokenPrediction
from understudy.nets.encoders import TokenEncoder
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_encoder, check_learner, random_dataset

STATE, FLAGS, LAST = "observation.state", "observation.sensors", "observation.last_action"
FEATURES = {STATE: Feature("float32", (3,)), FLAGS: Feature("float32", (3,)), LAST: Feature("float32", (2,))}
PAIR = ((STATE, FLAGS),)


def encoder(level="component", causal=False, **options):
    return ComponentTokenEncoder(8, 2, 2, level, causal, flags=PAIR, **options)


def build(config, steps=2, seed=0):
    torch.manual_seed(seed)
    return config.build(FEATURES, steps).eval()


def observed(size=4, steps=2, seed=0):
    rng = torch.Generator().manual_seed(seed)
    obs = {k: torch.randn(size, steps, *f.shape, generator=rng) for k, f in FEATURES.items()}
    return {**obs, FLAGS: torch.ones_like(obs[FLAGS])}


@pytest.mark.parametrize("level", ["component", "modality"])
@pytest.mark.parametrize("causal", [False, True])
def test_contract(level, causal):
    check_encoder(encoder(level, causal), FEATURES, rows=3)


def test_both_levels_have_the_same_weights_but_for_the_positions():
    component, modality = build(encoder()), build(encoder("modality"))
    assert component.names == (LAST, STATE)
    assert component.group.tolist() == [0, 1, 2, 3, 4] and modality.group.tolist() == [0, 0, 1, 1, 1]
    assert (component.tokens, modality.tokens) == (5, 2)
    sizes = [{n: p.numel() for n, p in net.named_parameters() if n != "component_embedding"}
             for net in (component, modality)]
    assert sizes[0] == sizes[1]


def test_a_modality_is_the_sum_of_its_components():
    """Without blocks, the token of a modality is the sum of what its components add to their embedding."""
    config = ComponentTokenEncoder(8, 0, 2, "modality", flags=PAIR)
    net, obs = build(config), observed()
    values = torch.cat([obs[LAST], obs[STATE]], -1).unsqueeze(-1)
    parts = values * net.value_embedding + net.presence_embedding
    state = parts[:, -1, 2:].sum(1) + net.component_embedding[1] + net.step_embedding[-1, 0]
    torch.testing.assert_close(net(obs).tokens[:, 1], net.norm(state))


@pytest.mark.parametrize("level", ["component", "modality"])
def test_the_value_of_a_failed_sensor_does_not_matter_but_its_failure_does(level):
    net, obs = build(encoder(level)), observed()
    failed = {**obs, FLAGS: obs[FLAGS].clone()}
    failed[FLAGS][..., 1] = 0
    other = {**failed, STATE: failed[STATE].clone()}
    other[STATE][..., 1] = float("nan")
    assert torch.equal(net(failed).tokens, net(other).tokens)
    assert not torch.allclose(net(failed).tokens, net(obs).tokens)
    assert net(failed).mask.all()  # the token stays, so that the transformer can infer what is missing


def test_causal_tokens_read_only_earlier_ones():
    net, obs = build(encoder(causal=True)), observed()
    before = net.encode(obs).tokens.flatten(1, 2)
    changed = {**obs, STATE: obs[STATE].clone()}
    changed[STATE][:, 0, 1] += 1  # token 3 of 10
    after = net.encode(changed).tokens.flatten(1, 2)
    same = (before == after).all(-1).all(0)
    assert same.tolist() == [True] * 3 + [False] * 7


def test_hidden_tokens_are_not_read():
    net, obs = build(encoder()), observed()
    hidden = torch.zeros(4, 2, 5, dtype=torch.bool)
    hidden[:, 1, 3] = True  # state 1, at the newest step
    other = {**obs, STATE: obs[STATE].clone()}
    other[STATE][:, 1, 1] = 7.0
    one, two = net.encode(obs, hidden), net.encode(other, hidden)
    assert torch.equal(one.tokens, two.tokens)
    assert one.values[0, 1, 3] == obs[STATE][0, 1, 1] and one.is_given.all()


def policy_of(config, data=None, **options):
    data = data or random_dataset({**FEATURES, "action": Feature("float32", (2,))})
    torch.manual_seed(0)
    policy = PolicyConfig(Regression(), MLP(8, 1), config, Normalizer(unscaled=(FLAGS,)), Window(2, 1),
                          inputs=(STATE, FLAGS, LAST), **options)
    return Policy(policy, data.features()).fit_statistics(data), data


@pytest.mark.parametrize("objective, causal", [(MaskedTokenPrediction(0.5), False), (NextTokenPrediction(), True)])
def test_the_loss_is_the_mean_square_of_what_is_predicted_if_the_prediction_is_zero(objective, causal):
    policy, data = policy_of(encoder(causal=causal))
    batch = policy.windows(data).batch(6, 0)
    batch = batch.replace(obs={**batch.obs, FLAGS: torch.ones_like(batch.obs[FLAGS])})
    learner = RepresentationLearning((objective,)).build(policy, 0, 1, data)
    torch.nn.init.zeros_(learner.nets.objectives[0].readout.weight)
    losses = call_step(learner, "losses", batch, torch.Generator().manual_seed(1))[1]
    coded = policy.codec.encode_obs(batch.obs)
    values = torch.cat([coded[LAST], coded[STATE]], -1).flatten(1)
    if causal:
        expected = values[:, 1:].square().mean(1)
    else:
        rng = torch.Generator().manual_seed(1)
        hidden = torch.rand(6, 2, 5, generator=rng).flatten(1) < 0.5
        expected = (values.square() * hidden).sum(1) / hidden.sum(1).clamp(min=1)
    torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize("objective, causal", [(MaskedTokenPrediction(0.5), False), (NextTokenPrediction(), True)])
def test_learner_contract(objective, causal):
    encoder = ComponentTokenEncoder(8, 1, 2, causal=causal)
    policy = PolicyConfig(Regression(), MLP(8, 1), encoder, window=Window(2, 3), inputs=(STATE, LAST))
    check_learner(RepresentationLearning((objective,), batch_size=8), (policy,))


def test_a_masked_number_is_inferred_from_the_others():
    """The third number is the sum of the first two. Hidden, it is predicted from them with half of its variance."""
    rng = torch.Generator().manual_seed(0)
    data = random_dataset({**FEATURES, "action": Feature("float32", (2,))}, episodes=20)

    def summed(episode):
        state = torch.randn(len(episode), 3, generator=rng).numpy()
        state[:, 2] = state[:, 0] + state[:, 1]
        return episode.replace({STATE: state, FLAGS: 0 * state + 1, LAST: state[:, :2] * 0})
    data = type(data)([summed(e) for e in data])
    policy, _ = policy_of(ComponentTokenEncoder(16, 2, 2, flags=PAIR), data)
    learner = RepresentationLearning((MaskedTokenPrediction(0.3),), optimizer=OptimizerConfig(lr=3e-3)).build(
        policy, 0, 300, data)
    windows = policy.windows(data)
    for step in range(300):
        learner.update(windows.batch(64, step))
    batch = windows.batch(256, 1000)
    net, hidden = policy.encoder, torch.zeros(256, 2, 5, dtype=torch.bool)
    hidden[:, :, 4] = True
    with torch.no_grad():
        encoded = net.encode(policy.codec.encode_obs(batch.obs), hidden)
        error = learner.nets.objectives[0].readout.loss(net, encoded.tokens, encoded.values, hidden)
    assert error.mean() < 0.45  # 1 is the variance


def test_sensor_dropout_marks_one_given_sensor_in_some_windows():
    obs = observed(2000, 2)
    obs[FLAGS][:, :, 0] = 0  # has failed already
    flags = SensorDropout(FLAGS, 0.25)(obs, torch.Generator().manual_seed(0))[FLAGS]
    n_dropped = obs[FLAGS][:, 0].sum(1) - flags[:, 0].sum(1)
    assert torch.equal(flags[:, 0], flags[:, 1]) and set(n_dropped.tolist()) == {0.0, 1.0}
    assert abs(n_dropped.mean() - 0.25) < 0.03 and abs((flags[:, 0, 1] == 0).float().mean() - 0.125) < 0.03
    assert torch.equal(SensorDropout(FLAGS, 0.0)(obs, torch.Generator())[FLAGS], obs[FLAGS])


def test_errors_name_what_to_change():
    with pytest.raises(UserError, match="does not read a column 'observation.other'"):
        ComponentTokenEncoder(flags=((STATE, "observation.other"),)).build(FEATURES, 2)
    with pytest.raises(UserError, match="has 2 flags, but 'observation.state' has 3"):
        ComponentTokenEncoder(flags=((STATE, LAST),)).build(FEATURES, 2)
    with pytest.raises(UserError, match="cannot read a column of kind 'image'"):
        ComponentTokenEncoder().build({"observation.images.top": Feature("uint8", (8, 8, 3), "image")}, 2)
    with pytest.raises(UserError, match="flags that are constant"):
        encoder().check_policy(Normalizer(), ())
    policy, _ = policy_of(encoder())
    with pytest.raises(ConfigError, match="reads those that it would predict"):
        NextTokenPrediction().build(policy)
    policy, _ = policy_of(TokenEncoder(8))
    with pytest.raises(ConfigError, match="no tokens of single numbers"):
        MaskedTokenPrediction().build(policy)
