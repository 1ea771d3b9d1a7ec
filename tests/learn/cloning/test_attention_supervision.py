"""Memory dependency pairs: the column of distances, the attention that is captured, and the loss that trains it."""

import math

import numpy as np
import pytest
import torch

from understudy.core import Batch, Context, Feature, HeadSpec, UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.likelihood.categorical import Categorical
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.cloning.attention_supervision import MemorySupervision, steps_since_recalled
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.nets.base import capture_intermediates, is_captured
from understudy.nets.encoders import ConcatEncoder, TokenEncoder
from understudy.nets.mlp import MLP
from understudy.nets.transformer import Transformer, attention_weights, scaled_dot_product
from understudy.policy import Policy, PolicyConfig

STATE = "observation.state"
FEATURES = {STATE: Feature("float32", (2,)), "action": Feature("float32", (1,))}
TRUNK = Transformer(8, 1, 2, encoder_depth=2)


def test_pairs_become_distances():
    assert steps_since_recalled([(0, 3), (2, 3), (1, 1)], 4).tolist() == [[-1, -1], [0, -1], [-1, -1], [3, 1]]
    assert steps_since_recalled([], 2).tolist() == [[-1], [-1]] and steps_since_recalled([], 0).shape == (0, 1)
    for pair in ((3, 2), (-1, 2), (0, 4)):
        with pytest.raises(UserError, match="cannot recall"):
            steps_since_recalled([pair], 4)


# -- the attention ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["cross", "joint", "block_causal"])
def test_the_captured_weights_are_those_of_the_layer_and_head(attention):
    torch.manual_seed(0)
    spec = HeadSpec(3, 3, 5, (), None, (0, 1, 2))
    net = Transformer(8, 1, 2, attention, encoder_depth=2).build(0, 1, 0, spec)
    mask = torch.tensor([[True, True, True], [False, True, True]])
    context = Context(torch.randn(2, 3, 5), mask)
    names = ["context_attention.0", "context_attention.1"]
    with torch.no_grad(), capture_intermediates(names) as captured:
        out = net(torch.zeros(2, 3, 0), torch.zeros(2, 3, 0), context)
    torch.testing.assert_close(net(torch.zeros(2, 3, 0), torch.zeros(2, 3, 0), context), out)
    assert list(captured) == names
    weights = captured[names[0]]
    assert weights.shape == (2, 2, 4, 4) and (weights[1, :, :, 1] == 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 4))
    if attention == "block_causal":
        assert (weights[:, :, 1:].triu(2) == 0).all() and (weights[0, :, 0, 1:] == 0).all()
    # The first head of the first layer, by hand.
    tokens = torch.cat([net.null_token.expand(2, 1, 8), net.context_layer(context.tokens) + net.token_embedding], 1)
    block = net.encoder[0]
    y = block.norms[0](tokens)
    score = (block.self_attention.query_layer(y)[..., :4] @ block.self_attention.key_layer(y)[..., :4].mT) / 2
    score = score.masked_fill(~torch.cat([torch.ones(2, 1, dtype=torch.bool), mask], 1)[:, None], -torch.inf)
    if attention == "block_causal":
        score = score.masked_fill(~net.token_to_token, -torch.inf)
    torch.testing.assert_close(weights[:, 0], score.softmax(-1))


def test_the_weights_are_those_of_the_fused_attention():
    g = torch.Generator().manual_seed(0)
    query, keys, values = (torch.randn(2, 3, n, 4, generator=g) for n in (5, 6, 6))
    mask = torch.rand(2, 1, 5, 6, generator=g) < 0.7
    mask[..., 0] = True
    for each in (mask, None):
        torch.testing.assert_close(attention_weights(query, keys, each) @ values,
                                   scaled_dot_product(query, keys, values, each))


def test_an_activation_is_computed_only_where_it_is_asked_for():
    assert not is_captured("context_attention.0")
    with capture_intermediates(["context_attention.0"]):
        assert is_captured("context_attention.0") and not is_captured("context_attention.1")


# -- the loss ---------------------------------------------------------------------------------------------------------


def loss_of(window, distances, weights, mask=None, encoder=None, features=FEATURES, **options):
    policy = Policy(PolicyConfig(Regression(), TRUNK, encoder or TokenEncoder(4), window=window), features)
    distances = torch.tensor(distances)
    mask = torch.ones(distances.shape[:2], dtype=torch.bool) if mask is None else torch.tensor(mask)
    batch = Batch({}, torch.zeros(*mask.shape, 1), mask, {"recalled": distances}, None)
    supervision = MemorySupervision(**{"weight": 1.0, **options})
    return supervision.build(policy)(policy, batch, torch.Generator(), {supervision.captures[0]: weights})


def attention(*rows):
    """The weights of one head, (1, 1, 1 + N, 1 + N), from rows without the token that is always present."""
    rows = torch.tensor(rows)
    return torch.nn.functional.pad(rows, (1, 0, 1, 0))[None, None]


THREE = Window(3, 3, action_offset=-2)
ROWS = attention([0.9, 0.0, 0.0], [0.5, 0.25, 0.0], [0.2, 0.5, 0.3])


def entropy(*right, wrong=()):
    return -sum(math.log(p) for p in right) - sum(math.log(1 - p) for p in wrong)


@pytest.mark.parametrize("distances, mask, expected", [
    ([[-1], [-1], [1]], None, entropy(0.5, wrong=(0.2, 0.3)) / 3),
    ([[-1], [-1], [-1]], None, 0.0),
    ([[-1], [1], [2]], None, (entropy(0.5, wrong=(0.25,)) + entropy(0.2, wrong=(0.5, 0.3))) / 6),
    ([[-1, -1], [-1, -1], [1, 2]], None, entropy(0.5, 0.2, wrong=(0.3,)) / 3),
    ([[5], [-1], [1]], None, entropy(0.5, wrong=(0.2, 0.3)) / 3),  # before the window
    ([[-1], [1], [2]], [False, True, True], (entropy(0.5, wrong=(0.25,)) + entropy(0.2, wrong=(0.5, 0.3))) / 6),
    ([[-1], [1], [2]], [True, False, True], entropy(0.2, wrong=(0.5, 0.3)) / 3),
])
def test_the_loss_is_the_cross_entropy_of_the_rows_with_a_pair(distances, mask, expected):
    loss = loss_of(THREE, [distances], ROWS, None if mask is None else [mask])
    assert loss.tolist() == pytest.approx([expected], abs=1e-4)


def test_a_window_with_one_action_is_about_its_newest_step_and_the_weight_and_head_count():
    other = torch.cat([ROWS.flip(-1), ROWS], 1)
    loss = loss_of(Window(3), [[[1]]], other, head=1, layer=1, weight=10.0)
    assert loss.tolist() == pytest.approx([10 * entropy(0.5, wrong=(0.2, 0.3)) / 3], abs=1e-3)
    late = loss_of(Window(3, 2, action_offset=-1), [[[1], [-1]]], ROWS)  # actions of the steps 1 and 2
    assert late.tolist() == pytest.approx([entropy(0.5, wrong=(0.25,)) / 3], abs=1e-4)


def test_several_draws_of_noise_share_an_attention():
    distances = [[[-1], [-1], [1]], [[-1], [1], [2]]]
    rows = torch.cat([ROWS, ROWS.flip(-1).roll(1, -1)])
    loss = loss_of(THREE, distances, rows)
    torch.testing.assert_close(loss_of(THREE, distances, rows.repeat_interleave(3, 0)), loss)


def test_the_tokens_of_a_step_count_together():
    features = {**FEATURES, "observation.extra": Feature("float32", (1,))}
    rows = torch.zeros(4, 4)  # tokens: two columns, each with the steps 0 and 1
    rows[1], rows[3] = torch.tensor([0.2, 0.1, 0.3, 0.1]), torch.tensor([0.1, 0.2, 0.2, 0.4])
    loss = loss_of(Window(2), [[[1]]], attention(*rows.tolist()), features=features)
    assert loss.tolist() == pytest.approx([entropy((0.5 + 0.3) / 2, wrong=((0.2 + 0.6) / 2,)) / 2], abs=1e-4)


@pytest.mark.parametrize("config, words", [
    ({"trunk": MLP(8, 1)}, "no attention head"), ({"trunk": Transformer(8, 1, 2)}, "no attention head"),
    ({"encoder": ConcatEncoder()}, "token for each observation step"),
    ({"window": Window(2, action_offset=1)}, "No action"),
])
def test_policies_without_such_an_attention_are_refused(config, words):
    config = {"trunk": TRUNK, "encoder": TokenEncoder(4), "window": Window(2), **config}
    with pytest.raises(UserError, match=words):
        MemorySupervision().build(Policy(PolicyConfig(Regression(), **config), FEATURES))
    with pytest.raises(UserError, match="no attention head 2"):
        MemorySupervision(head=2).build(Policy(PolicyConfig(Regression(), TRUNK), FEATURES))


@pytest.mark.parametrize("window", [Window(4, obs_pad_mask=True),
                                    Window(4, 4, action_offset=-3, obs_pad_mask=True)], ids=["newest", "all"])
def test_pairs_teach_which_step_to_look_at(window):
    """At the last step, the marked one of three earlier numbers is the action. Which one that is, the mark tells."""
    rng = np.random.default_rng(0)

    def episode(_):
        marked, number = rng.integers(3), rng.integers(2, size=4)
        states = np.stack([number, np.arange(4) == marked], 1).astype(np.float32)
        action = np.array([0, 0, 0, number[marked]])[:, None]
        return Episode({STATE: states, "action": action, "recalled": steps_since_recalled([(marked, 3)], 4)},
                       schema={"action": Feature("int64", (1,), "discrete", num_classes=(2,))})
    data = Dataset([episode(i) for i in range(60)])
    policy = PolicyConfig(Categorical(), Transformer(16, 1, 2, "block_causal", encoder_depth=1), TokenEncoder(16),
                          window=window, inputs=(STATE,))
    trained = fit_method(Method(policy, learner=BehaviorCloning(120, 32, auxiliary_losses=(MemorySupervision(),))),
                         data, 0).policy.eval()
    fresh = Dataset([episode(i) for i in range(100)])
    batch = trained.windows(fresh, extra=("recalled",)).gather(np.arange(3, 400, 4))
    key = torch.arange(100)
    with torch.no_grad(), capture_intermediates(["context_attention.0"]) as captured:
        trained.plan(batch.obs, trained.noise(key, torch.zeros_like(key)))
    chosen = captured["context_attention.0"][:, 0, -1, 1:].argmax(-1)
    assert (chosen == 3 - batch.extra["recalled"][:, -1, 0]).float().mean() > 0.9
