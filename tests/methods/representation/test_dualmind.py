"""The prompted encoder: a trunk that is trained without the prompt, and cross-attention that reads it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.mean_attention import attend_evenly

from understudy.core import Feature, UserError
from understudy.data.episode import Dataset, Episode
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods import find_method
from understudy.methods.representation.dualmind import PromptedEncoder
from understudy.nets.encoders import TokenEncoder
from understudy.testing import check_encoder

FEATURES = {"observation.state": Feature("float32", (3,)), "observation.other": Feature("float32", (2,)),
            "observation.task": Feature("uint8", (9,), "text")}
CONFIG = PromptedEncoder(encoder=TokenEncoder(16))


def test_it_keeps_the_contract_of_encoders():
    check_encoder(CONFIG, FEATURES)
    check_encoder(PromptedEncoder(encoder=TokenEncoder(16), depth=1),
                  {k: FEATURES[k] for k in ("observation.state", "observation.task")})


def test_the_prompt_matters_only_where_it_is_read():
    torch.manual_seed(0)
    obs = {"observation.state": torch.randn(4, 1, 3), "observation.other": torch.randn(4, 1, 2),
           "observation.task": torch.randint(1, 255, (4, 1, 9), dtype=torch.uint8)}
    other = {**obs, "observation.task": obs["observation.task"].flip(0)}
    absent = {**obs, "observation.task?": torch.zeros(4, 1, dtype=torch.bool)}
    read, unread = CONFIG.build(FEATURES, 1).eval(), PromptedEncoder(prompted=False, encoder=CONFIG.encoder).build(
        FEATURES, 1).eval()
    assert not torch.equal(read(obs).tokens, read(other).tokens)
    assert not torch.equal(read(obs).tokens, read(absent).tokens)
    assert torch.equal(unread(obs).tokens, unread(other).tokens)


@pytest.mark.parametrize("prompted, given, expected", [
    (False, True, [[4, 0], [6, 1]]), (True, True, [[1, 7], [3, 8]]), (True, False, [[-12, 4], [-10, 5]])])
def test_tokens_worked_out_by_hand(prompted, given, expected):
    """The observation has the tokens (3, 1) and (5, 2), normalized (1, -1) both. The block of the trunk adds the mean
    of these, and gives (4, 0) and (6, 1). Cross-attention first adds the mean of the learned token (-14, 2) and of the
    prompt (12, 8), which makes (2, 6) and (4, 7), normalized (-1, 1). Without a prompt it adds (-14, 2)."""
    features = {name: Feature("float32", (2,)) for name in ("observation.a", "observation.b", "observation.task")}
    net = PromptedEncoder(prompted=prompted, encoder=TokenEncoder(2), depth=1, heads=1).build(features, 1)
    attend_evenly(net)
    net.trunk.norm = torch.nn.Identity()
    for name, weights in net.named_parameters():
        if "tokens.maps" in name or "projection" in name:
            torch.nn.init.zeros_(weights) if weights.ndim == 1 else torch.nn.init.eye_(weights)
    torch.nn.init.zeros_(net.trunk.position)
    if prompted:
        net.prompt.null_token.data[0] = torch.tensor([-14.0, 2])
    obs = {"observation.a": torch.tensor([[[3.0, 1]]]), "observation.b": torch.tensor([[[5.0, 2]]]),
           "observation.task": torch.tensor([[[12.0, 8]]]), "observation.task?": torch.tensor([[given]])}
    torch.testing.assert_close(net(obs).tokens[0], torch.tensor(expected).float(), atol=1e-4, rtol=0)


def test_the_trunk_of_the_first_phase_fits_the_second():
    first, second = (PromptedEncoder(prompted=p, encoder=CONFIG.encoder).build(FEATURES, 2) for p in (False, True))
    second.trunk.load_state_dict(first.trunk.state_dict())
    assert {name.partition(".")[0] for name, _ in second.named_parameters()} == {"trunk", "prompt"}
    assert {name.partition(".")[0] for name, _ in first.named_parameters()} == {"trunk"}


def test_a_policy_without_the_prompt_is_refused():
    with pytest.raises(UserError, match="must read the prompt 'observation.task'"):
        CONFIG.build({"observation.state": FEATURES["observation.state"]}, 1)


def test_a_frozen_trunk_follows_the_prompt_through_what_is_new():
    """The action is one of four directions, and only the prompt tells which."""
    rng, directions = np.random.default_rng(0), np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], np.float32)
    task = Feature("int64", (1,), "discrete", num_classes=(4,))

    def episode(number):
        state = rng.uniform(-1, 1, (11, 2)).astype("float32")
        return Episode({"observation.state": state, "observation.task": np.full((11, 1), number % 4),
                        "action": np.tile(directions[number % 4], (10, 1))}, schema={"observation.task": task})
    data = Dataset([episode(number) for number in range(40)])
    method = find_method("dualmind", data.features(), horizon=2)
    (stage,) = method.stages
    trunk = fit_method(replace(stage.method, learner=replace(stage.method.learner, steps=20)), data, 0)
    learner = BehaviorCloning(150, 64, OptimizerConfig(lr=3e-3))
    policy = fit_method(replace(method, learner=learner), data, 0, stages={"trunk": trunk}).policy

    first, second = (dict(trained.named_parameters()) for trained in (trunk.policy, policy))
    frozen = [name for name in second if name.startswith("encoder.trunk")]
    assert frozen and all(torch.equal(second[name], first[name]) for name in frozen)
    assert not any(name.startswith("encoder.prompt") for name in first)
    obs = {"observation.state": torch.zeros(4, 1, 2), "observation.task": torch.arange(4).reshape(4, 1, 1)}
    actions = policy.plan(obs, torch.zeros(4, *policy.noise_shape))[:, 0]
    assert (actions - torch.from_numpy(directions)).abs().max() < 0.3
