"""A history whose past becomes one token: the mean, what reads what, and the start of an episode."""

import pytest
import torch
from fixtures.mean_attention import attend_evenly
from torch import nn

from understudy.core import Feature, UserError
from understudy.methods import find_method
from understudy.methods.generative.contextvla import PooledHistoryEncoder
from understudy.nets.encoders import ConcatEncoder, TokenEncoder

STATE, GOAL, STEPS = "observation.state", "observation.goal", 4
FEATURES = {STATE: Feature("float32", (3,)), GOAL: Feature("float32", (2,))}  # two tokens in each step


def built(depth, pool_after, steps=STEPS):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = PooledHistoryEncoder(depth, pool_after, 2, encoder=TokenEncoder(8)).build(FEATURES, steps)
        nn.init.normal_(net.token_embedding)  # large, so that it matters
    net.norm = nn.Identity()
    return net


def observed(n_padded=0, steps=STEPS):
    g = torch.Generator().manual_seed(1)
    obs = {k: torch.randn(5, steps, *f.shape, generator=g) for k, f in FEATURES.items()}
    present = torch.arange(steps).expand(5, -1) >= n_padded
    return {**obs, **{k + "?": present for k in FEATURES}}


def test_the_context_token_is_the_mean_of_the_observed_tokens_of_past_steps():
    net, obs = built(0, 0), observed()
    obs[STATE + "?"] = torch.rand(5, STEPS, generator=torch.Generator().manual_seed(2)) < 0.5
    obs[GOAL + "?"] = obs[GOAL + "?"] & (torch.arange(5) > 0)[:, None]  # in the first row there are no goals at all
    context, (by_state, by_goal) = net(obs), net.encoder.maps
    for row in range(5):
        past = []
        for name, module, first in ((STATE, by_state, 0), (GOAL, by_goal, STEPS)):
            for step in range(STEPS):
                token = module.weight @ obs[name][row, step] + module.bias + net.token_embedding[first + step]
                there = bool(obs[name + "?"][row, step])
                if step < STEPS - 1 and there:
                    past.append(token)
                elif step == STEPS - 1:
                    place = 1 if name == STATE else 2
                    assert bool(context.mask[row, place]) == there
                    if there:
                        torch.testing.assert_close(context.tokens[row, place], token)
        assert bool(context.mask[row, 0]) == bool(past)
        want = torch.stack(past).mean(0) if past else torch.zeros(8)
        torch.testing.assert_close(context.tokens[row, 0], want)


def test_the_mean_is_taken_of_what_the_first_blocks_give_for_all_steps():
    """The tokens before the mean are those of a network that continues with all of them."""
    pooled, whole, obs = built(2, 2), built(2, None), observed(1)
    tokens = whole(obs).tokens.unflatten(1, (2, STEPS))  # ordered by column, then by step
    context = pooled(obs)
    torch.testing.assert_close(context.tokens[:, 0], tokens[:, :, 1:-1].mean((1, 2)))
    torch.testing.assert_close(context.tokens[:, 1:], tokens[:, :, -1])
    later = built(3, 2)  # the third block reads the context token and the current step, and nothing else
    later.load_state_dict(pooled.state_dict(), strict=False)
    h = torch.cat([context.tokens[:, :1], tokens[:, :, -1]], 1)
    reads = torch.tensor([[True, False, False], [True, True, True], [True, True, True]])
    torch.testing.assert_close(later(obs).tokens, later.blocks[2](h, mask=reads))


@pytest.mark.parametrize("pool_after, n_padded, expected", [
    (0, 0, [[7, 0], [6, -2]]), (1, 0, [[5.5, 1.5], [16 / 3, -4 / 3]]), (2, 0, [[4, 3], [14 / 3, -2 / 3]]),
    (None, 0, [[-1, 5], [9, 1], [14 / 3, -2 / 3]]), (1, 1, [[11, -1], [6, -2]])])
def test_tokens_worked_out_by_hand(pool_after, n_padded, expected):
    """Steps are the tokens (1, 3), (9, 1) and (4, 0): normalized (-1, 1), (1, -1) and (1, -1). A block adds the mean of
    the normalized tokens that are read. The first gives (0, 4), (9, 1) and (13/3, -1/3). The mean of the past is then
    (4.5, 2.5), normalized (1, -1), so that the second block adds (1, -1) to it and to the current step. Without a mean
    it adds (1/3, -1/3) to the current step, as the first. The mean before any block is (5, 2)."""
    net = PooledHistoryEncoder(2, pool_after, 1, encoder=TokenEncoder(2)).build({STATE: Feature("float32", (2,))}, 3)
    attend_evenly(net)
    nn.init.eye_(net.encoder.maps[0].weight)
    for weights in (net.encoder.maps[0].bias, net.token_embedding):
        nn.init.zeros_(weights)
    net.norm = nn.Identity()
    context = net({STATE: torch.tensor([[[1.0, 3], [9, 1], [4, 0]]]), STATE + "?": torch.arange(3)[None] >= n_padded})
    assert context.mask.all()
    torch.testing.assert_close(context.tokens[0], torch.tensor(expected).float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("pool_after", [0, 1, 3, None])
@pytest.mark.parametrize("n_padded", [1, 2, 3])
def test_rows_before_the_episode_have_no_effect(n_padded, pool_after):
    """The tokens are those of a window that is as long as what was observed. With one row there is no context token."""
    obs, n_real = observed(n_padded), STEPS - n_padded
    obs[STATE][:, :n_padded], obs[GOAL][:, :n_padded] = float("nan"), 1e6
    net, short = built(3, pool_after), built(3, pool_after, n_real)
    embedding = net.token_embedding.unflatten(0, (2, STEPS))[:, n_padded:].flatten(0, 1)
    short.load_state_dict({**net.state_dict(), "token_embedding": embedding})
    tokens, want = net(obs), short({k: v[:, n_padded:] for k, v in obs.items()})
    assert tokens.mask.sum(1).tolist() == [short.tokens] * 5 and want.mask.all()
    torch.testing.assert_close(tokens.tokens[tokens.mask], want.tokens.flatten(0, 1))
    assert short.tokens == (2 * n_real if pool_after is None else 2 if n_real == 1 else 3)


@pytest.mark.parametrize("pool_after", [0, 2, 3, None])
def test_a_token_reads_its_own_and_earlier_steps(pool_after):
    net, obs = built(3, pool_after), observed()
    x = obs[STATE].requires_grad_()
    tokens = net(obs).tokens
    steps = (0, 1, 2, 3, 0, 1, 2, 3) if pool_after is None else (2, 3, 3)
    assert net.token_obs_steps == steps
    for place, step in enumerate(steps):
        by_x, = torch.autograd.grad(tokens[:, place].square().sum(), x, retain_graph=True)
        reads = (by_x != 0).any(-1).any(0).tolist()
        assert reads == [s <= step for s in range(STEPS)]


@pytest.mark.parametrize("pool_after, keeps_order", [(0, False), (1, True)])
def test_without_blocks_before_it_the_mean_forgets_what_belongs_together(pool_after, keeps_order):
    """The states of the past change places, and the goals stay."""
    net, obs = built(3, pool_after), observed()
    moved = {**obs, STATE: obs[STATE][:, [2, 0, 1, 3]]}
    assert torch.allclose(net(obs).tokens, net(moved).tokens, atol=1e-5) != keeps_order


def test_what_cannot_be_built_is_said():
    with pytest.raises(UserError, match="pool_after is 3, but there are 2 blocks"):
        PooledHistoryEncoder(2, 3)
    with pytest.raises(UserError, match="all tokens of ConcatEncoder depend on the current step"):
        PooledHistoryEncoder(2, 1, encoder=ConcatEncoder()).build(FEATURES, 2)
    with pytest.raises(UserError, match="width=10 is not a multiple of heads=4"):
        PooledHistoryEncoder(encoder=TokenEncoder(10)).build(FEATURES, 2)


def test_the_method_marks_rows_before_the_episode_and_pools_after_two_of_its_blocks():
    policy = find_method("contextvla").policy
    assert policy.window.n_obs_steps == 8 and policy.window.obs_pad_mask
    assert policy.encoder.pool_after == 2 < policy.encoder.depth
