"""Windows of episodes that have no actions, and what is trained on them."""

import warnings

import numpy as np
import pytest
import torch

from understudy.checkpoint import FromStage
from understudy.core import ConfigError, Unsupported
from understudy.data.device_windows import DeviceWindows
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import InitializeFrom, Method, Stage
from understudy.learn.objectives.representation import RepresentationLearning
from understudy.learn.objectives.representation_objectives import InverseDynamics, TimeContrastive
from understudy.learn.train import train
from understudy.nets.feed_forward import FeedForward
from understudy.policy import Policy, PolicyConfig

STATE = "observation.state"


def video(seed, actions=False):
    rng = np.random.default_rng(seed)
    steps = {STATE: rng.normal(size=(9, 2)).cumsum(0).astype(np.float32), "next.reward": np.arange(8, dtype=np.float32)}
    return Episode({**steps, "action": rng.normal(size=(8, 2)).astype(np.float32)} if actions else steps)


@pytest.mark.parametrize("lookahead", [0, 3])
def test_only_the_action_of_a_batch_is_empty(lookahead):
    window, data = Window(2, 3, obs_offset=1), Dataset([video(i, actions=True) for i in range(3)])
    options = {"extra": ("next.reward",), "next_obs": True, "lookahead": lookahead}
    without = window.windows(data.map(lambda e: e.replace({"action": None})), (STATE,), **options)
    batch, same = without.batch(5, 1), window.windows(data, (STATE,), "action", **options).batch(5, 1)
    assert batch.action.shape == (5, 3, 0) and (batch.mask == same.mask).all()
    assert all((batch.extra[k] == v).all() for k, v in same.extra.items())
    assert (batch.obs[STATE] == same.obs[STATE]).all() and (batch.next[STATE] == same.next[STATE]).all()
    copied = DeviceWindows(without, torch.device("cpu")).batch(5, 1)
    assert copied.action.shape == (5, 3, 0) and (copied.obs[STATE] == batch.obs[STATE]).all()


def test_an_encoder_trains_without_actions_and_a_policy_takes_it_over(tmp_path):
    data = Dataset([video(i) for i in range(6)])
    config = PolicyConfig(Regression(), FeedForward(), target="")
    learner = RepresentationLearning((TimeContrastive(),), steps=6, batch_size=16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained = train(Method(config, learner=learner), data, tmp_path / "run", device="cpu", progress=False)
    assert all((a == b).all() for a, b in zip(trained.state_dict().values(),
                                              Policy.load(tmp_path / "run").state_dict().values(), strict=True))
    with pytest.raises(Unsupported, match="(?s)predicts nothing.*InitializeFrom"):
        trained.plan({STATE: torch.zeros(1, 1, 2)}, torch.zeros(1, 0))
    stage = Stage("encoder", Method(config, learner=learner))
    frozen = InitializeFrom(FromStage("encoder"), load=("codec.obs_transforms", "encoder"), train=())
    result = fit_method(Method(PolicyConfig(Regression(), FeedForward()), learner=BehaviorCloning(2), stages=(stage,),
                               initialize_from=(frozen,)), Dataset([video(9, actions=True)]), 0,
                        stages={"encoder": tmp_path / "run"})
    for name in ("codec.obs_transforms", "encoder"):
        pairs = zip(result.policy.get_submodule(name).state_dict().values(),
                    trained.get_submodule(name).state_dict().values(), strict=True)
        assert all((a == b).all() for a, b in pairs)


def test_a_dynamics_model_trains_without_actions():
    model = Method(PolicyConfig(Regression(), target=STATE, window=Window(action_offset=1)), learner=BehaviorCloning(5))
    assert fit_method(model, Dataset([video(i) for i in range(3)]), 0).policy.action_dim == 2


def test_an_objective_of_actions_is_refused_without_them():
    method = Method(PolicyConfig(Regression(), target=""), learner=RepresentationLearning((InverseDynamics(),)))
    with pytest.raises(ConfigError, match="(?s)InverseDynamics reads actions.*TimeContrastive"):
        fit_method(method, Dataset([video(0)]), 0)
