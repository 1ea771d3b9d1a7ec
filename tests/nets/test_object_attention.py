"""Attention over objects, and the labels that train it."""

import math

import numpy as np
import pytest
import torch

from understudy.core import Batch, Feature, UserError
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.text_columns import TaskText
from understudy.data.window import Window
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.cloning.attention_supervision import AttentionSupervision
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.objectives.representation import RepresentationLearning
from understudy.learn.sample_weights import ColumnWeights
from understudy.nets.base import capture_intermediates
from understudy.nets.encoders import TokenEncoder
from understudy.nets.mlp import MLP
from understudy.nets.object_attention import ObjectAttentionEncoder
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_encoder

OBJECTS, TASK, STATE = "observation.objects", "observation.task", "observation.state"
FEATURES = {STATE: Feature("float32", (2,)), OBJECTS: Feature("float32", (4, 3)), TASK: Feature("uint8", (8,), "text")}


@pytest.mark.parametrize("query", [TASK, STATE])
def test_keeps_the_contract_of_encoders(query):
    check_encoder(ObjectAttentionEncoder(query=query, hidden=8, encoder=TokenEncoder(8)), FEATURES, rows=3)


def observed(n_obs_steps=2):
    g = torch.Generator().manual_seed(0)
    return {STATE: torch.randn(5, n_obs_steps, 2, generator=g), OBJECTS: torch.randn(5, n_obs_steps, 4, 3, generator=g),
            TASK: torch.randint(1, 256, (5, n_obs_steps, 8), generator=g).to(torch.uint8)}


def test_the_attended_object_is_the_mean_by_the_softmax_of_the_gated_logits():
    net, obs = ObjectAttentionEncoder(hidden=8, encoder=TokenEncoder(8)).build(FEATURES, 2), observed()
    with torch.no_grad(), capture_intermediates(["object_attention"]) as captured:
        context = net(obs)
        captured_logits = captured["object_attention"]
        row, step = 3, 1
        query = net.encoder(obs).tokens[row, step]  # the query's tokens are the first
        objects = obs[OBJECTS][row, step]
        pair = net.query_layer.weight @ query + net.query_layer.bias + objects @ net.object_layer.weight.T
        logits = (torch.tanh(pair[:, :8]) * torch.sigmoid(pair[:, 8:])) @ net.logit_layer.weight[0]
        attended = (logits.softmax(0)[:, None] * objects).sum(0)
        token = net.output_layer.weight @ attended + net.output_layer.bias
    torch.testing.assert_close(captured_logits[row, step], logits)
    torch.testing.assert_close(context.tokens[row, -2 + step], token)
    assert net.token_obs_steps == (0, 1, 0, 1, 0, 1)


def test_the_order_of_the_objects_does_not_matter_and_the_query_does():
    net, obs = ObjectAttentionEncoder(hidden=8, encoder=TokenEncoder(8)).build(FEATURES, 2), observed()
    with torch.no_grad():
        plain = net(obs).tokens
        torch.testing.assert_close(net({**obs, OBJECTS: obs[OBJECTS].flip(2)}).tokens, plain)
        assert not torch.allclose(net({**obs, TASK: obs[TASK].flip(0)}).tokens[:, -2:], plain[:, -2:], atol=1e-5)


@pytest.mark.parametrize(("options", "words"), [
    ({"query": "observation.image"}, "cannot be the query"), ({"query": OBJECTS}, "cannot be the query"),
    ({"objects": STATE}, "not (objects, features)"), ({"objects": "observation.thing"}, "does not read"),
])
def test_other_columns_are_refused(options, words):
    features = {**FEATURES, "observation.image": Feature("uint8", (8, 8, 3), "image")}
    with pytest.raises(UserError) as error:
        ObjectAttentionEncoder(**options).build(features, 1)
    assert words in str(error.value)


def test_a_codec_that_scales_each_row_of_the_objects_is_refused():
    for codec in (Normalizer(), Normalizer(unscaled=(STATE,))):
        with pytest.raises(UserError, match="order of the objects"):
            Policy(PolicyConfig(Regression(), encoder=ObjectAttentionEncoder(), codec=codec),
                   {**FEATURES, "action": Feature("float32", (1,))})


# -- labels ---------------------------------------------------------------------------------------------------------


def supervised(window, label, logits, weight=2.0):
    policy = Policy(PolicyConfig(Regression(), window=window), {STATE: FEATURES[STATE],
                                                                "action": Feature("float32", (1,))})
    label = torch.tensor(label)
    batch = Batch({}, torch.zeros(*label.shape[:2], 1), torch.ones(label.shape[:2], dtype=torch.bool),
                  {"target": label}, None)
    loss = AttentionSupervision("target", weight).build(policy)
    return loss(policy, batch, torch.Generator(), {"object_attention": torch.tensor(logits)})


def test_the_loss_is_the_cross_entropy_of_the_newest_step_and_unknown_labels_give_none():
    logits = [[[9.0, 0.0], [0.0, math.log(3)]]] * 3  # the attention of the newest step is 1/4 and 3/4
    loss = supervised(Window(2, 2), [[[0], [1]], [[1], [0]], [[-1], [0]]], logits)
    torch.testing.assert_close(loss, torch.tensor([2 * math.log(4), 2 * math.log(4 / 3), 0.0]))


def test_the_label_is_that_of_the_newest_observation_in_every_window():
    logits, label = [[[0.0, math.log(3)]]], [[0, 1, 0]]
    for window, chosen in ((Window(1, 3, action_offset=-1), 4 / 3), (Window(1, 3, action_offset=-2), 4),
                           (Window(1, 3, action_offset=2), 4), (Window(1, 3, obs_offset=1), 4 / 3)):
        assert supervised(window, label, logits, 1.0).item() == pytest.approx(math.log(chosen))


def test_learners_ask_for_the_columns_of_their_losses_once():
    loss = AttentionSupervision("target")
    assert BehaviorCloning(auxiliary_losses=(loss, loss)).extra == ("target",)
    weights = ColumnWeights("good", 1.0, 0.0)
    assert BehaviorCloning(sample_weights=weights, auxiliary_losses=(loss,)).extra == ("good", "target")
    assert RepresentationLearning((loss,)).extra == ("target",) and RepresentationLearning().extra == ()


@pytest.mark.parametrize("label", [4, -2])
def test_a_label_of_no_object_is_refused(label):
    steps = {OBJECTS: np.zeros((2, 4, 3), np.float32), STATE: np.zeros((2, 1), np.float32),
             "action": np.zeros((2, 1), np.float32), "target": np.full((2, 1), label)}
    policy = PolicyConfig(Regression(), MLP(8, 1), ObjectAttentionEncoder(query=STATE, encoder=TokenEncoder(8)),
                          Normalizer(unscaled=(OBJECTS,)))
    learner = BehaviorCloning(1, 4, auxiliary_losses=(AttentionSupervision("target"),))
    with pytest.raises(UserError, match=f"column 'target': the labels go from {label} to {label}, but the 4 objects"):
        fit_method(Method(policy, learner=learner), Dataset([Episode(steps)]), 0)


def test_labels_teach_the_attention_to_follow_the_words():
    rng = np.random.default_rng(0)
    marks = np.eye(4, dtype=np.float32)

    def episode(_):
        order, target = rng.permutation(4), rng.integers(4)
        objects = np.concatenate([rng.uniform(-1, 1, (4, 1)).astype(np.float32), marks[order]], 1)
        task = "abcd"[order[target]]
        return Episode({OBJECTS: objects[None].repeat(2, 0), STATE: np.zeros((2, 1), np.float32),
                        "action": objects[target, :1][None].repeat(2, 0), "target": np.full((2, 1), target)},
                       {"task": task})
    data = Dataset([episode(n) for n in range(200)])
    policy = PolicyConfig(Regression(), MLP(16, 1), ObjectAttentionEncoder(encoder=TokenEncoder(16)),
                          Normalizer(unscaled=(OBJECTS,)))
    method = Method(policy, learner=BehaviorCloning(150, 64, auxiliary_losses=(AttentionSupervision("target"),)),
                    transforms=(TaskText(4),))
    trained = fit_method(method, data, 0).policy
    fresh = data.map(TaskText(4))
    batch = trained.windows(fresh, extra=("target",)).batch(200, 0)
    with torch.no_grad(), capture_intermediates(["object_attention"]) as captured:
        trained.context(batch.obs)
    chosen = captured["object_attention"][:, -1].argmax(-1)
    assert (chosen == batch.extra["target"][:, 0, 0]).float().mean() > 0.95
