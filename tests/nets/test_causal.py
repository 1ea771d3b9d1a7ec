"""Causal trunks, marked padding, and a loss at every row of the history."""

import dataclasses

import numpy as np
import pytest
import torch

from understudy.core import Context, HeadSpec, Unsupported, UserError, keys
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Goal, Window
from understudy.envs import make
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit import fit
from understudy.methods.behavior_cloning.bet import bet
from understudy.nets.encoders import ConcatEncoder, TokenEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.nets.lstm import LSTM
from understudy.nets.mlp import MLP
from understudy.nets.recurrent import RecurrentEncoder
from understudy.nets.transformer import Transformer
from understudy.nets.unet import UNet
from understudy.policy import Policy, PolicyConfig

CAUSAL = {"block_causal": Transformer(16, 2, 2, "block_causal"),
          "encoder": Transformer(16, 1, 2, "block_causal", encoder_depth=2), "lstm": LSTM(16, 2)}
STATE = "observation.state"


def seeded(build, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


# -- trunks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs, n_times", [(3, 1), (0, 0)])
@pytest.mark.parametrize("start", [0, 2, 5])
@pytest.mark.parametrize("trunk", CAUSAL)
def test_an_action_step_reads_observation_steps_up_to_its_own(trunk, start, inputs, n_times):
    steps = (0, 1, 2, 3, 0, 0, 1, 1, 2, 2, 3, 3)  # of a column with one token per step, and of one with two
    spec = HeadSpec(4, len(steps), 7, token_obs_steps=steps, action_start=start)
    net = seeded(lambda: CAUSAL[trunk].build(inputs, 5, n_times, spec))
    tokens, x, t = (torch.randn(2, n, w, requires_grad=True) for n, w in ((12, 7), (4, inputs), (4, n_times)))
    out = net(x, t, Context(tokens, torch.ones(2, 12, dtype=torch.bool)))
    for i in range(4):
        by_token, by_x, by_t = torch.autograd.grad(out[:, i].square().sum(), (tokens, x, t), retain_graph=True,
                                                   allow_unused=True)
        assert (by_token != 0).any(-1).any(0).tolist() == [s <= start + i for s in steps]
        if inputs:
            assert (by_x != 0).any(-1).any(0).tolist() == [j <= i for j in range(4)]
            assert (by_t != 0).any(-1).any(0).tolist() == [j <= i for j in range(4)]


def test_block_causal_attention_has_the_weights_of_cross_attention():
    spec = HeadSpec(3, 3, 7, token_obs_steps=(0, 1, 2), action_start=0)
    cross, causal = (seeded(lambda a=a: Transformer(16, 1, 2, a, causal=True).build(2, 5, 1, spec), seed)
                     for seed, a in enumerate(("cross", "block_causal")))
    causal.load_state_dict(cross.state_dict())
    x, t = torch.randn(4, 3, 2), torch.rand(4, 3, 1)
    context = Context(torch.randn(4, 3, 7), torch.ones(4, 3, dtype=torch.bool))
    plain, blocked = cross(x, t, context), causal(x, t, context)
    assert not torch.allclose(plain[:, :2], blocked[:, :2])
    torch.testing.assert_close(plain[:, 2], blocked[:, 2])  # the last step may read all tokens


@pytest.mark.parametrize("trunk", [MLP(8, 1), FeedForward((8,)), UNet((8, 16), 3, 4, 8)])
def test_a_trunk_that_reads_the_whole_chunk_refuses_a_causal_head(trunk):
    spec = HeadSpec(4, 2, 7, causal=True)
    with pytest.raises(Unsupported, match="needs a causal trunk"):
        trunk.build(2, 5, 0, spec)
    trunk.build(2, 5, 0, dataclasses.replace(spec, horizon=1))  # a single step has no later one


@pytest.mark.parametrize("trunk", [Transformer(16, 1, 2), Transformer(16, 1, 2, "joint"), LSTM(16, 1)])
def test_a_trunk_that_can_be_causal_is_so_for_a_causal_head(trunk):
    net = seeded(lambda: trunk.build(2, 5, 0, HeadSpec(4, 2, 7, token_obs_steps=(0, 0), causal=True)))
    x = torch.randn(2, 4, 2, requires_grad=True)
    out = net(x, x[..., :0], Context(torch.randn(2, 2, 7), torch.ones(2, 2, dtype=torch.bool)))
    for i in range(4):
        by_x, = torch.autograd.grad(out[:, i].square().sum(), x, retain_graph=True)
        assert (by_x != 0).any(-1).any(0).tolist() == [j <= i for j in range(4)]


@pytest.mark.parametrize("trunk", ["block_causal", "lstm"])
@pytest.mark.parametrize("encoder", [ConcatEncoder(), RecurrentEncoder(8, 1, ConcatEncoder())])
def test_an_encoder_with_one_token_for_all_steps_is_refused(trunk, encoder):
    """Its token depends on the newest row, which the first actions must not see."""
    features = Dataset([episode(9)]).features()
    window = Window(n_obs_steps=4, horizon=4, action_offset=-3)
    with pytest.raises(UserError, match="The first actions would see nothing"):
        Policy(PolicyConfig(Regression(), CAUSAL[trunk], encoder, window=window), features)
    Policy(PolicyConfig(Regression(), CAUSAL[trunk], encoder, window=Window(4, 4)), features)
    with pytest.raises(UserError, match="3 tokens and the observation steps of 0"):
        CAUSAL[trunk].build(0, 2, 0, HeadSpec(4, 3, 7))


# -- policies -------------------------------------------------------------------------------------------------------


def episode(n, number=0):
    rng = np.random.default_rng(number)
    return Episode({STATE: rng.normal(size=(n, 3)).astype(np.float32),
                    "observation.goal": rng.normal(size=(n, 2)).astype(np.float32),
                    "action": rng.normal(size=(n, 2)).astype(np.float32)}, {"number": number})


def history(k, **options):
    return Window(n_obs_steps=k, horizon=k, action_offset=1 - k, **options)


@pytest.mark.parametrize("trunk", CAUSAL)
@pytest.mark.parametrize("head", [Regression(), Flow(times="each")])
def test_the_loss_of_a_row_depends_on_no_later_row(trunk, head):
    data = Dataset([episode(12, i) for i in range(3)])
    policy = seeded(lambda: Policy(PolicyConfig(head, CAUSAL[trunk], TokenEncoder(8), window=history(5)),
                                   data.features())).fit_statistics(data).eval()
    batch = policy.windows(data).gather(np.array([7, 20]))
    obs = {k: v.clone().requires_grad_() for k, v in batch.obs.items()}
    loss = policy.loss(dataclasses.replace(batch, obs=obs), torch.Generator().manual_seed(0))
    assert batch.mask.all()
    for i in range(5):
        for slope in torch.autograd.grad(loss[:, i].sum(), tuple(obs.values()), retain_graph=True):
            assert (slope != 0).any(-1).all(0).tolist() == [row <= i for row in range(5)]


def test_action_start_is_the_observation_step_of_the_first_action():
    assert [w.action_start for w in (Window(), Window(2, 16, -1), history(5), Window(2, obs_offset=1),
                                     Window(3, 4, action_offset=1))] == [0, 0, 0, 0, 3]


def test_rows_before_the_start_are_marked():
    data = Dataset([episode(4), episode(3, 1)])
    windows = Window(3, 2, obs_pad_mask=True).windows(data, (STATE, "observation.goal"), "action", next_obs=True)
    batch = next(windows.scan())
    start = [[False, False, True], [False, True, True], [True] * 3, [True] * 3]
    for name in (STATE, "observation.goal"):
        assert batch.obs[name + "?"].tolist() == start + start[:3]
        assert batch.next[name + "?"].all()
    plain = next(Window(3, 2).windows(data, (STATE, "observation.goal"), "action", next_obs=True).scan())
    for name in plain.obs:
        assert torch.equal(plain.obs[name], batch.obs[name])
    assert set(plain.obs) == {STATE, "observation.goal"} and torch.equal(plain.action, batch.action)


def test_rows_after_the_end_are_marked():
    """An episode of three steps with four states and three actions."""
    data = Dataset([Episode({STATE: np.arange(4, dtype=np.float32)[:, None], "action": np.zeros((3, 1), np.float32)})])
    window = Window(3, 3, obs_offset=2, goals=(Goal(STATE, "observation.wish"),), obs_pad_mask=True)
    batch = next(window.windows(data, (STATE, "action", "observation.wish"), "action", next_obs=True).scan())
    assert batch.obs[STATE + "?"].tolist() == [[True] * 3, [True] * 3, [True, True, False]]
    assert batch.obs["action?"].tolist() == [[True] * 3, [True, True, False], [True, False, False]]
    assert batch.obs["action?"].tolist() == batch.mask.tolist()
    assert batch.obs["observation.wish?"].all()  # a goal has no rows
    assert batch.next[STATE + "?"].all()


def test_a_recorded_mask_and_the_start_are_both_respected():
    steps = {**episode(5).steps, STATE + "?": np.array([True, False, True, True, False])}
    windows = Window(2, obs_pad_mask=True).windows(Dataset([Episode(steps)]), (STATE, STATE + "?"), "action")
    assert next(windows.scan()).obs[STATE + "?"].tolist() == [
        [False, True], [True, False], [False, True], [True, True], [True, False]]


@pytest.mark.parametrize("offset", [0, 1])
def test_rows_on_the_device_are_marked_alike(offset):
    from understudy.data.device_windows import DeviceWindows

    steps = {**episode(9).steps, STATE + "?": np.arange(9) % 3 > 0}
    window = Window(3, 2, obs_offset=offset, goals=(Goal(STATE, "observation.wish"),), obs_pad_mask=True)
    host = window.windows(Dataset([Episode(steps)]), (STATE, STATE + "?", "observation.wish"), "action", next_obs=True)
    device = DeviceWindows(host, torch.device("cpu"))
    for step in range(5):
        a, b = host.batch(8, step), device.batch(8, step)
        assert set(a.obs) == set(b.obs) == {STATE, STATE + "?", "observation.wish", "observation.wish?"}
        assert all(torch.equal(a.obs[k], b.obs[k]) and torch.equal(a.next[k], b.next[k]) for k in a.obs)


@pytest.mark.parametrize("encoder", [TokenEncoder(8), ConcatEncoder(), RecurrentEncoder(8, 1, TokenEncoder(8))])
def test_what_stands_in_marked_rows_changes_no_loss_and_no_plan(encoder):
    data = Dataset([episode(12, i) for i in range(3)])
    policy = seeded(lambda: Policy(PolicyConfig(Regression(), Transformer(16, 1, 2), encoder,
                                                window=Window(4, 2, obs_pad_mask=True)), data.features()))
    policy.fit_statistics(data).eval()
    batch = policy.windows(data).gather(np.arange(4))
    other = {k: v if k.endswith("?") else torch.where(batch.obs[k + "?"].unsqueeze(-1), v, torch.nan)
             for k, v in batch.obs.items()}
    assert torch.isnan(other[STATE]).any()
    losses = [policy.loss(dataclasses.replace(batch, obs=obs), torch.Generator()) for obs in (batch.obs, other)]
    assert torch.equal(*losses) and torch.equal(*(policy.plan(obs, torch.zeros(4, 2, 0)) for obs in (batch.obs, other)))


class Recorder(RecedingHorizon):
    """Keeps the observation windows that an actor shows its executor."""

    def act(self, planner, obs, state):
        SEEN.append({k: v.clone() for k, v in obs.items()})
        return super().act(planner, obs, state)


SEEN: list = []


def test_an_actor_marks_the_rows_that_training_marks():
    data = Dataset([episode(7)])
    policy = seeded(lambda: Policy(PolicyConfig(Regression(), window=Window(3, 1, obs_pad_mask=True)),
                                   data.features())).fit_statistics(data).eval()
    SEEN.clear()
    actor = PolicyActor(policy, Recorder())
    rows = [{k: torch.as_tensor(v[t][None]) for k, v in data[0].steps.items() if k != "action"} for t in range(7)]
    state = actor.start(rows[0], keys(0, range(1)))
    for obs in rows:
        _, state = actor.act(obs, state)
    batch = next(policy.windows(data).scan())
    for name in batch.obs:
        assert torch.equal(torch.cat([observed[name] for observed in SEEN]), batch.obs[name])


# -- a loss at every row --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("trunk", [Transformer(64, 2, 4, "block_causal"), LSTM(64, 1)])
def test_a_history_with_a_loss_at_every_row_remembers_the_cue(trunk):
    """Who forgets the light guesses the turn and succeeds in half of the episodes."""
    env = make("memory", 50, length=0.6)
    data = rollout(env.expert(), env, episodes=60, seed=1)
    window = history(16, obs_pad_mask=True)
    policy = seeded(lambda: Policy(PolicyConfig(Regression(), trunk, TokenEncoder(32), window=window,
                                                inputs=(STATE,)), data.features())).fit_statistics(data)
    config = BehaviorCloning(steps=400, batch_size=64)
    learner = config.build(policy, 0, 400, data)
    windows = policy.windows(data)
    fit(learner, lambda step: windows.batch(64, step), steps=400)
    actor = PolicyActor(learner.policy.eval(), RecedingHorizon(n_action_steps=1, skip=15))
    played = rollout(actor, env, episodes=50, seed=2)
    success = np.mean([np.asarray(e.steps["next.success"]).any() for e in played])
    assert success > 0.8


def test_bet_with_a_loss_at_every_step_reads_no_later_observation_and_executes_the_newest():
    method, data = bet(4, n_clusters=3, every_step=True), Dataset([episode(12, i) for i in range(3)])
    policy = seeded(lambda: Policy(method.policy, data.features())).fit_statistics(data).eval()
    batch = policy.windows(data).gather(np.array([7, 20]))
    obs = {k: v.clone().requires_grad_(v.is_floating_point()) for k, v in batch.obs.items()}
    loss = policy.loss(dataclasses.replace(batch, obs=obs), torch.Generator().manual_seed(0))
    assert loss.shape == (2, 4) and batch.mask.all()
    for i in range(4):
        slope, = torch.autograd.grad(loss[:, i].sum(), obs[STATE], retain_graph=True)
        assert (slope != 0).any(-1).all(0).tolist() == [row <= i for row in range(4)]
    key = keys(0, [0, 1])
    first = {k: v[:, 0] for k, v in batch.obs.items() if not k.endswith("?")}
    action, _ = (actor := PolicyActor(policy, method.executor)).act(first, actor.start(first, key))
    start = {k: v.unsqueeze(1).expand(-1, 4, -1) for k, v in first.items()}
    presence = {f"{k}?": torch.tensor([[False] * 3 + [True]] * 2) for k in first}
    torch.testing.assert_close(action,
                               policy.plan({**start, **presence}, policy.noise(key, torch.zeros(2).long()))[:, -1])
    with pytest.raises(UserError, match="horizon is 3(?s:.*)leave both at 1"):
        bet(horizon=3, every_step=True)
