"""Features of frozen networks that are computed once for a data set."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from understudy.core import Feature, Unsupported, UserError
from understudy.data.augment import ColorJitter, ConditionDropout, GaussianNoise
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Goal, Window
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.critic import CriticConfig
from understudy.learn.critics.td3 import TD3
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.objectives.reconstruction_objectives import ObservationPrediction, Reconstruction
from understudy.learn.objectives.representation import RepresentationLearning
from understudy.learn.rewards.discriminator_reward import DiscriminatorReward
from understudy.nets.encoders import TokenEncoder
from understudy.nets.mlp import MLP
from understudy.nets.recurrent import RecurrentEncoder
from understudy.nets.vision import FrozenVisionNet, ResNet, VisionEncoder
from understudy.policy import Policy, PolicyConfig

CAMERA = "observation.images.front"


@dataclass(frozen=True)
class Small(VisionEncoder):
    """One convolution that is not trained."""

    pool: str = "grid"

    def build(self, shape, width=None):
        tokens = shape[0] // 8 * (shape[1] // 8) if self.pool == "grid" else 1
        return FrozenVisionNet(_Cells(self.pool), tokens, 4, width, ["small", self.pool])


class _Cells(nn.Conv2d):
    def __init__(self, pool):
        super().__init__(3, 4, 8, 8)
        self.pool = pool

    def forward(self, image):
        cells = super().forward(image).flatten(2).transpose(1, 2)
        return cells if self.pool == "grid" else cells.mean(1, keepdim=True)


FROZEN = Small()
CACHED = TokenEncoder(8, vision=FROZEN, cache_features=True)


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Number of images that a frozen network reads, with an empty cache."""
    batch_sizes = []
    plain = FrozenVisionNet.features

    def counted(self, image):
        batch_sizes.append(len(image))
        return plain(self, image)
    monkeypatch.setattr(FrozenVisionNet, "features", counted)
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    return batch_sizes


def data(episodes=3, steps=5, seed=0, last_row=True):
    rng = np.random.default_rng(seed)
    return Dataset([Episode({CAMERA: rng.integers(0, 256, (steps + i + last_row, 8, 16, 3)).astype(np.uint8),
                             "observation.state": rng.normal(size=(steps + i, 2)).astype(np.float32),
                             "action": rng.normal(size=(steps + i, 2)).astype(np.float32)}) for i in range(episodes)])


def policy(encoder, seed=0, **config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Policy(PolicyConfig(Regression(), MLP(8, 1), encoder, **config), data().features())


@pytest.mark.parametrize("wrap", [lambda e: e, lambda e: RecurrentEncoder(6, 1, e)], ids=["tokens", "recurrent"])
def test_training_is_the_same_and_reads_each_image_once(calls, wrap):
    def weights(encoder):
        method = Method(PolicyConfig(Regression(), MLP(8, 1), wrap(encoder), window=Window(2, 3, obs_pad_mask=True),
                                     augmentations=(ConditionDropout(CAMERA, 0.3), GaussianNoise("observation.state"))),
                        learner=BehaviorCloning(4, batch_size=4))
        return fit_method(method, data(), seed=0).policy

    plain = weights(replace(CACHED, cache_features=False))
    assert sum(calls) == 4 * 4 * 2
    calls.clear()
    cached = weights(CACHED)
    assert sum(calls) == 6 + 7 + 8, "all rows of the episodes, the last observations included"
    for (name, tensor), plain_tensor in zip(cached.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(tensor, plain_tensor, rtol=1e-5, atol=1e-6, msg=name)
    obs = {k: torch.from_numpy(v[None, :2]) for k, v in data()[0].steps.items()}
    torch.testing.assert_close(cached.plan(obs, torch.zeros(1, 3, 0)), plain.plan(obs, torch.zeros(1, 3, 0)), rtol=0,
                               atol=1e-6)
    calls.clear()
    weights(CACHED)
    assert not calls, "the next training finds them in the cache"


def test_the_cache_is_of_these_images_these_weights_and_this_preprocessing(calls):
    def count(policy, data):
        calls.clear()
        windows = policy.training_windows(data)
        return sum(calls), windows

    first = policy(CACHED)
    assert count(first, data())[0] == 21
    assert count(first, data())[0] == 0
    assert count(policy(CACHED, seed=1), data())[0] == 21  # other random weights
    assert count(first, data(seed=1))[0] == 21
    assert count(first, data().select([0, 2]))[0] == 14
    assert count(first, data().filter(lambda e: True))[0] == 0  # the same images
    one = count(first, data())[1].batch(4, 0)
    assert one.obs[CAMERA].shape == (4, 1, 2, 4) and one.obs["observation.state"].shape == (4, 1, 2)
    mean = policy(replace(CACHED, vision=replace(FROZEN, pool="mean")))
    mean.encoder.load_state_dict(first.encoder.state_dict())
    assert count(mean, data())[0] == 21
    assert first.windows(data()).batch(4, 0).obs[CAMERA].dtype == torch.uint8  # others read the images


def test_windows_have_the_features_of_their_rows(calls):
    goals = (Goal(CAMERA, "observation.goal"),)
    shared = policy(replace(CACHED, vision=FROZEN), window=Window(2, 3, obs_offset=1, goals=goals))
    front, goal = (shared.encoder.cached_features[k] for k in (CAMERA, "observation.goal"))
    with pytest.raises(UserError, match="read by two networks"):  # two networks with their own random weights
        shared.training_windows(data())
    goal.body.load_state_dict(front.body.state_dict())
    windows, plain = shared.training_windows(data(), next_obs=True), shared.windows(data(), next_obs=True)
    one, other = windows.batch(6, 0, seed=3), plain.batch(6, 0, seed=3)
    for cached_obs, plain_obs in ((one.obs, other.obs), (one.next, other.next)):
        for name in (CAMERA, "observation.goal"):
            want = front.features(plain_obs[name].flatten(0, 1)).unflatten(0, (6, 2))
            torch.testing.assert_close(cached_obs[name], want, rtol=1e-4, atol=1e-5)
    shared.fit_statistics(data())
    torch.testing.assert_close(shared.eval().context(one.obs).tokens, shared.context(other.obs).tokens, rtol=1e-4,
                               atol=1e-5)


@pytest.mark.parametrize("config, said", [
    ({"encoder": replace(CACHED, vision=ResNet(pool="mean"))}, "ResNet is trained with the policy"),
    ({"encoder": TokenEncoder()}, None),
    ({"encoder": CACHED, "augmentations": (ColorJitter(CAMERA),)}, "ColorJitter changes the images"),
    ({"encoder": RecurrentEncoder(8, 1, CACHED), "augmentations": (ColorJitter(CAMERA),)}, "ColorJitter changes"),
    ({"encoder": replace(CACHED, crop=2)}, r"Random crops \(crop=2\) change the images")])
def test_caching_and_changes_of_images_exclude_each_other(config, said):
    if said is None:
        assert not policy(**config).encoder.cached_features
        return
    with pytest.raises(UserError, match=f"cache_features: {said}"):
        policy(**config)


@pytest.mark.parametrize("learner", [
    TD3(1, 4, critic=CriticConfig(encoder=TokenEncoder())),
    TD3(1, 4, critic=CriticConfig(encoder=CACHED), reward=DiscriminatorReward(encoder=TokenEncoder())),
    RepresentationLearning((Reconstruction(),), 1, 4), RepresentationLearning((ObservationPrediction(),), 1, 4)])
def test_networks_that_read_images_beside_the_policy_refuse_its_cached_features(learner, calls):
    episodes = [replace(e.replace({"next.reward": np.ones(len(e)), "next.terminated": np.zeros(len(e), bool),
                                   "observation.state": np.zeros((len(e) + 1, 2), np.float32)}),
                        metadata={"expert": i > 0}) for i, e in enumerate(data())]
    method = Method(PolicyConfig(Regression(), MLP(8, 1), CACHED), learner=learner)
    with pytest.raises(Unsupported, match=f"cache_features: (SmallConv reads images|pixels of '{CAMERA}')"):
        fit_method(method, Dataset(episodes), seed=0)


def test_other_kinds_of_columns_are_not_cached():
    assert list(policy(CACHED).encoder.cached_features) == [CAMERA]
    features = {"observation.state": Feature("float32", (2,)), "action": Feature("float32", (2,))}
    assert not Policy(PolicyConfig(Regression(), encoder=CACHED), features).encoder.cached_features
