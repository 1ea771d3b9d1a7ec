"""Initial weights of a learner's other modules, such as a critic that an offline stage trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.staged import contents, run

from understudy.checkpoint import FromStage, load_module
from understudy.core import ConfigError, DataWarning, UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.critic import CriticConfig
from understudy.learn.critics.td3 import TD3
from understudy.learn.fit_method import fit_method
from understudy.learn.method import InitializeFrom, Method, Stage
from understudy.learn.rewards.reward_models import RewardedEngine
from understudy.learn.stages import continue_from
from understudy.methods.offline_rl.iql import IQL
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig

STATE, OTHER = "observation.state", "observation.other"


def rewarded(count: int = 5, shift: float = 0.0) -> Dataset:
    rng = np.random.default_rng(0)

    def episode(n):
        state, ends = rng.normal(size=(n + 1, 3)).astype(np.float32) + shift, np.arange(n) == n - 1
        return Episode({STATE: state, OTHER: state + 1, "action": np.tanh(state[:-1, :2]),
                        "next.reward": state[1:, 0], "next.terminated": ends})
    return Dataset([episode(8 + i) for i in range(count)], {"path": "made_up.npz", "fps": 10})


def offline(steps: int, inputs=(STATE,), hidden=(8,)) -> Method:
    return Method(PolicyConfig(Regression(), MLP(8, 1), window=Window(1, 1), inputs=inputs),
                  learner=TD3(steps, 8, critic=CriticConfig(hidden)))


def continued(stage: Method, into: str = "critic", module: str = "critic", **changes) -> Method:
    return replace(offline(0, **changes), stages=(Stage("offline", stage),),
                   initialize_from=(InitializeFrom(FromStage("offline", module), into=into),))


def test_a_critic_begins_with_the_weights_and_statistics_of_a_stage(tmp_path):
    """Also its target, and with data of another mean, whose statistics are the policy's."""
    shifted = rewarded(shift=50.0)
    run(tmp_path / "base", offline(3), rewarded())
    method = replace(continued(offline(3)), learner=TD3(2, 8, critic=CriticConfig((8,))))
    run(tmp_path / "first", replace(method, learner=replace(method.learner, steps=0)), shifted,
        stages={"offline": tmp_path / "base"})
    stage, own = (load_module(tmp_path / f"{name}/modules/critic") for name in (
        "base/checkpoints/000003", "first/checkpoints/000000"))
    for (name, weight), other in zip(stage.state_dict().items(), own.state_dict().values(), strict=True):
        assert torch.equal(weight, other), name
    learners = []

    class Spy(RewardedEngine):
        def update(self, batch):
            if not learners:
                learners.append(self)
                target = self.nets.target.critic.state_dict()
                assert all(torch.equal(v, target[k]) for k, v in stage.state_dict().items())
                state = shifted[0].steps[STATE]
                coded = self.policy.codec.encode_obs({STATE: torch.from_numpy(state[None])})[STATE]
                assert coded.abs().max() < 10  # near 0 in the statistics of the new data
            return super().update(batch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("understudy.learn.critics.off_policy_actor_critic.RewardedEngine", Spy)
        run(tmp_path / "whole", method, shifted, stages={"offline": tmp_path / "base"})
    for (name, statistic), other in zip(learners[0].nets.target.critic.codec.state_dict().items(),
                                        stage.codec.state_dict().values(), strict=True):
        assert torch.equal(statistic, other), name


def test_resuming_after_an_offline_stage_is_bit_equal(tmp_path):
    run(tmp_path / "base", offline(3), rewarded())
    method = continued(offline(3))
    longer = replace(method, learner=replace(method.learner, steps=4))
    options = {"stages": {"offline": tmp_path / "base"}, "val_fraction": 0}
    run(tmp_path / "stopped", replace(method, learner=replace(method.learner, steps=2)), rewarded(), **options)
    run(tmp_path / "stopped", longer, rewarded(), **options)
    run(tmp_path / "whole", longer, rewarded(), **options)
    stopped, whole = contents(tmp_path / "stopped"), contents(tmp_path / "whole")
    weights = [name for name in whole if name.startswith("checkpoints/000004") and name.endswith(".safetensors")]
    assert any("critic" in name for name in weights) and all(stopped[name] == whole[name] for name in weights)


@pytest.mark.parametrize(("method", "says"), [
    (continued(offline(1), into="value"), "'value': the learner has no module 'value'; it has critic"),
    (continued(offline(1), module="policy"), "is a Policy, but a QFunction takes its weights"),
    (continued(offline(1), module="value"), "has no module 'value'; it has (critic, policy|policy, critic)"),
    (continued(offline(1, inputs=(STATE, OTHER))), r"reads observation.state \(3,\), observation.other \(3,\), "
     r"action \(2,\), but this one observation.state \(3,\), action \(2,\)"),
    (continued(offline(1, hidden=(9,))), "(?s)the weights of the stage do not fit: .*give it the networks"),
    (replace(continued(offline(1)), learner=BehaviorCloning(1, 8)), "has no module 'critic'; it has only the policy"),
])
def test_modules_that_do_not_fit_are_refused(method, says):
    with pytest.raises(UserError, match=says):
        fit_method(method, rewarded(), 0)


def test_parts_of_a_policy_are_not_those_of_a_critic():
    with pytest.raises(ConfigError, match="parts to load or train are of the policy"):
        InitializeFrom(FromStage("offline", "critic"), load=("encoder",), into="critic")


def test_a_run_is_continued_with_its_critic(tmp_path):
    """Not only with its policy: a new critic knows nothing, and would spoil it."""
    run(tmp_path / "base", offline(3), rewarded())
    base = tmp_path / "base/checkpoints/000003/modules/critic"
    run(tmp_path / "on", continue_from(offline(0), tmp_path / "base"), rewarded(shift=50.0),
        stages={"from": tmp_path / "base"})
    on = tmp_path / "on/checkpoints/000000/modules/critic"
    assert all(map(torch.equal, *(load_module(folder).state_dict().values() for folder in (base, on))))


def test_a_critic_of_another_shape_starts_anew_and_that_is_told(tmp_path):
    run(tmp_path / "base", offline(3), rewarded())
    with pytest.warns(DataWarning, match="the critic of .*base is not taken over, since --critic is another"):
        method = continue_from(offline(0, hidden=(9,)), tmp_path / "base")
    run(tmp_path / "on", method, rewarded(), stages={"from": tmp_path / "base"})


def test_a_value_is_not_taken_over_without_its_critic(tmp_path):
    """The value of IQL has the networks of its critic, and says as little about a new one as the other way around."""
    def iql(hidden):
        return replace(offline(2), learner=IQL(2, 8, critic=CriticConfig(hidden)))
    run(tmp_path / "base", iql((8,)), rewarded())
    assert [part.into for part in continue_from(iql((8,)), tmp_path / "base").initialize_from] == [
        "policy", "critic", "value"]
    with pytest.warns(DataWarning, match="the critic of .*base is not taken over"):
        method = continue_from(iql((9,)), tmp_path / "base")
    run(tmp_path / "on", method, rewarded(), stages={"from": tmp_path / "base"})


def test_a_clone_is_improved_with_a_new_critic(tmp_path):
    run(tmp_path / "base", replace(offline(0), learner=BehaviorCloning(2, 8)), rewarded())
    assert [part.into for part in continue_from(offline(0), tmp_path / "base").initialize_from] == ["policy"]
