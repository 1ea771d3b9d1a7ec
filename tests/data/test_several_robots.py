"""Several robots in one policy: padded columns, statistics per robot, and a trunk that reads the robot by name."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from understudy.core import Context, Feature, HeadSpec, UserError
from understudy.data.codec import Normalizer
from understudy.data.column_changes import ColumnPadding
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit import fit
from understudy.nets.base import Trunk, TrunkNet, precomputed
from understudy.nets.encoders import TokenEncoder
from understudy.nets.mlp import MLP
from understudy.nets.recurrent import RecurrentEncoder
from understudy.nets.transformer import Transformer
from understudy.nets.unet import UNet
from understudy.policy import Policy, PolicyConfig

STATE, ROBOT = "observation.state", "observation.robot"
NAMES = {"arm": 2, "hand": 3}  # width of each robot's state; its action is one narrower


def text(name, size=8):
    return np.frombuffer(name.encode().ljust(size, b"\0"), np.uint8)


def robot(name, episodes, steps=30, seed=0):
    """Its action is minus the state without the last component, in the units of the robot."""
    rng, width = np.random.default_rng(seed + len(name)), NAMES[name]
    unit = {"arm": 100.0, "hand": 0.01}[name]

    def episode(number):
        state = (unit * (rng.normal(size=(steps, width)) + 5)).astype(np.float32)
        return Episode({STATE: state, ROBOT: np.broadcast_to(text(name), (steps, 8)),
                        "action": -state[:, :-1]}, {"number": number}, schema={
            STATE: Feature("float32", (width,)), ROBOT: Feature("uint8", (8,), "text"),
            "action": Feature("float32", (width - 1,))})
    return Dataset([episode(i) for i in range(episodes)])


def padded(data):
    return data.map(ColumnPadding(STATE, 3)).map(ColumnPadding("action", 2))


def both(episodes=4):
    return padded(robot("arm", episodes)) + padded(robot("hand", episodes))


# -- padding --------------------------------------------------------------------------------------------------------


def test_padding_appends_zeros_and_names():
    steps = {STATE: np.arange(6, dtype=np.float32).reshape(3, 2), "action": np.ones((3, 1), np.float32)}
    episode = Episode(steps, schema={STATE: Feature("float32", (2,), names=("x", "y"))})
    wide = ColumnPadding(STATE, 4)(episode)
    assert wide.steps[STATE].tolist() == [[0, 1, 0, 0], [2, 3, 0, 0], [4, 5, 0, 0]]
    assert wide.features()[STATE].names == ("x", "y", "padding.2", "padding.3")
    assert wide.steps[STATE].dtype == np.float32 and episode.steps[STATE].shape == (3, 2)
    assert ColumnPadding(STATE, 2)(episode) is episode
    with pytest.raises(UserError, match="has 2 components, more than size=1"):
        ColumnPadding(STATE, 1)(episode)
    with pytest.raises(UserError, match="'observation.other'"):
        ColumnPadding("observation.other", 3)(episode)
    with pytest.raises(UserError, match="Only vectors"):
        ColumnPadding("observation.image", 9)(Episode({"observation.image": np.zeros((3, 4, 4, 3), np.uint8)}))


# -- statistics per group -------------------------------------------------------------------------------------------


def fitted(codec, data, inputs=(STATE, ROBOT)):
    module = codec.build(data.features(), inputs, "action")
    module.fit_statistics(lambda: Window(2, 3).windows(data, inputs, "action").scan(7))
    return module


@pytest.mark.parametrize("scale", ["zscore", "minmax", "quantile"])
def test_each_group_has_the_statistics_of_its_own_data(scale):
    together = fitted(Normalizer(scale, scale, group_by=ROBOT), both())
    for name in NAMES:
        data = padded(robot(name, 4))
        alone = fitted(Normalizer(scale, scale), data)
        batch = Window(2, 3).windows(data, (STATE, ROBOT), "action").batch(50, 0)
        coded = together.encode(batch.action, batch.obs)
        torch.testing.assert_close(coded, alone.encode(batch.action, batch.obs), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(together.encode_obs(batch.obs)[STATE], alone.encode_obs(batch.obs)[STATE],
                                   rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(together.decode(coded, batch.obs), batch.action, rtol=1e-5, atol=1e-4)


def test_the_mean_and_range_of_each_group_in_closed_form():
    data = both()
    module = fitted(Normalizer("zscore", "minmax", group_by=ROBOT), data)
    for name, width in NAMES.items():
        group = module.groups.tolist().index(text(name).tolist())
        state = np.concatenate([e.steps[STATE] for e in padded(robot(name, 4))]).astype(np.float64)
        np.testing.assert_allclose(module.obs_transforms[0].offset[group], state.mean(0), rtol=1e-6)
        np.testing.assert_allclose(module.obs_transforms[0].scale[group][:width], state.std(0)[:width], rtol=1e-5)
        action = np.concatenate([e.steps["action"] for e in padded(robot(name, 4))])
        np.testing.assert_allclose(module.action_transform.scale[group], np.ptp(action, 0) / 2, rtol=1e-6)
        assert not module.obs_transforms[0].scale[group][width:].any(), "padding is constant"


def test_groups_by_class_and_mixed_batches():
    data = Dataset([Episode({STATE: np.float32([[i + 10 * r] for i in range(4)]), ROBOT: np.full(4, r),
                             "action": np.float32([[2.0 * i - r] for i in range(4)])},
                            schema={ROBOT: Feature("int64", (), "discrete", num_classes=(9,))}) for r in (7, 2)])
    module = fitted(Normalizer("minmax", "minmax", group_by=ROBOT), data)
    obs = {STATE: torch.tensor([[[70.0]], [[20.0]], [[73.0]]]), ROBOT: torch.tensor([[7], [2], [7]])}
    assert module.encode_obs(obs)[STATE].flatten().tolist() == [-1, -1, 1]
    assert module.decode(torch.ones(3, 1, 1), obs).flatten().tolist() == [-1, 4, -1]
    with pytest.raises(UserError, match=r"no statistics for 3. Known are 2, 7"):
        module.encode_obs({**obs, ROBOT: torch.tensor([[7], [3], [7]])})


def test_an_unknown_robot_is_named():
    module = fitted(Normalizer(group_by=ROBOT), both())
    batch = Window(2, 3).windows(both(), (STATE, ROBOT), "action").batch(4, 0)
    foreign = {**batch.obs, ROBOT: torch.as_tensor(text("leg").copy()).expand(4, 2, 8)}
    for use in (lambda: module.encode_obs(foreign), lambda: module.encode(batch.action, foreign),
                lambda: module.decode(batch.action, foreign)):
        with pytest.raises(UserError, match="no statistics for 'leg'. Known are 'arm', 'hand'"):
            use()


def test_a_sensor_that_one_robot_lacks_reads_as_zero_there():
    data = both()
    here = {name: np.full(30, name == "arm") for name in NAMES}
    data = Dataset([e.replace({STATE + "?": here["arm" if i < 4 else "hand"]}) for i, e in enumerate(data)])
    module = fitted(Normalizer(group_by=ROBOT), data, (STATE, STATE + "?", ROBOT))
    batch = next(Window(1).windows(data, (STATE, STATE + "?", ROBOT), "action").scan())
    coded = module.encode_obs(batch.obs)[STATE]
    assert coded[:120].any() and not coded[120:].any()


@pytest.mark.parametrize("codec, words", [
    (Normalizer(group_by="observation.nothing"), "does not read 'observation.nothing'"),
    (Normalizer(group_by=STATE), "groups need a text or class column")])
def test_groups_that_cannot_be(codec, words):
    with pytest.raises(UserError, match=words):
        codec.build(both().features(), (STATE, ROBOT), "action")


# -- columns by name ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OutputPerRobot(Trunk):
    """A trunk with one output layer per robot, chosen by `context.named`."""

    robots: tuple[str, ...]
    trunk: Trunk

    def build(self, inputs, outputs, n_times, spec):
        return _OutputPerRobotNet(self, inputs, outputs, n_times, spec)


class _OutputPerRobotNet(TrunkNet):
    def __init__(self, config, inputs, outputs, n_times, spec):
        super().__init__()
        self.trunk = config.trunk.build(inputs, 32, n_times, spec)
        self.layers = nn.ModuleList(nn.Linear(32, outputs) for _ in config.robots)
        self.register_buffer("names", torch.stack([torch.as_tensor(text(r).copy()) for r in config.robots]))

    def forward(self, x, t, context):
        h = self.trunk(x, t, context)
        number = (context.named[ROBOT].unsqueeze(1) == self.names).all(-1).int().argmax(1)
        return torch.stack([layer(h) for layer in self.layers], 1)[torch.arange(len(h)), number]


def test_a_named_column_is_its_newest_row_unchanged():
    obs = {STATE: torch.randn(4, 3, 3), ROBOT: torch.randint(0, 255, (4, 3, 8)).to(torch.uint8)}
    features = {STATE: Feature("float32", (3,)), ROBOT: Feature("uint8", (8,), "text")}
    row_encoder = TokenEncoder(8, named=(ROBOT,))
    for encoder in (row_encoder, RecurrentEncoder(8, 1, row_encoder)):
        context = encoder.build(features, 3)(obs)
        assert set(context.named) == {ROBOT} and torch.equal(context.named[ROBOT], obs[ROBOT][:, -1])
        assert torch.equal(context.repeat(2).named[ROBOT], obs[ROBOT][:, -1].repeat_interleave(2, 0))
    with pytest.raises(UserError, match="does not read a column 'observation.body'"):
        TokenEncoder(named=("observation.body",)).build(features, 3)


@pytest.mark.parametrize("trunk", [MLP(8, 1), Transformer(8, 1, 2), UNet((8, 16), 3, 4, 8)])
def test_precomputing_keeps_the_named_columns(trunk):
    net = trunk.build(2, 3, 1, HeadSpec(4, 1, 5))
    context = Context(torch.randn(2, 1, 5), torch.ones(2, 1, dtype=torch.bool), {ROBOT: torch.arange(2)})
    kept = net.with_time_embedding(precomputed(net, context), net.embed_time(torch.tensor([[0.5]]))[0])
    assert torch.equal(kept.named[ROBOT], context.named[ROBOT])


@pytest.mark.slow
def test_one_policy_drives_two_robots_of_different_width(tmp_path):
    data = both(6)
    config = PolicyConfig(Regression(), OutputPerRobot(tuple(NAMES), MLP(64, 1)), TokenEncoder(16, named=(ROBOT,)),
                          Normalizer(group_by=ROBOT), Window(1, 2), inputs=(STATE, ROBOT))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = Policy(config, data.features()).fit_statistics(data)
    learner = BehaviorCloning(steps=300, batch_size=64).build(policy, 0, 300, data)
    windows = policy.windows(data)
    fit(learner, lambda step: windows.batch(64, step), steps=300)
    policy = learner.policy.eval()
    policy.save(tmp_path)
    loaded = Policy.load(tmp_path, trust=("tests", __name__))
    for name, width in NAMES.items():
        test = padded(robot(name, 2, seed=9))
        batch = next(policy.windows(test).scan())
        plan = policy.plan(batch.obs, torch.zeros(len(batch), 2, 0))
        assert torch.equal(plan, loaded.plan(batch.obs, torch.zeros(len(batch), 2, 0)))
        assert not plan[..., width - 1:].any(), "padded components are decoded as zero"
        spread = batch.action[:, 0, :width - 1].std(0)
        error = (plan - batch.action)[:, 0, :width - 1].square().mean(0).sqrt() / spread
        assert (error < 0.3).all(), f"{name}: {error}"
