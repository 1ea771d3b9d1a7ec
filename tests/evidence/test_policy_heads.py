"""Worlds and arms of the claims on policy heads are as they say."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from claims.policy_heads import (
    beso_three_steps,
    fused_experts,
    in_context_denoising,
    lerobot_examples,
    self_chosen_curriculum,
    two_level_minibatch,
)

from understudy.audit.action_motion import check_action_lag
from understudy.core import HeadSpec
from understudy.data.window import Window
from understudy.deploy.fused_experts import fuse_experts
from understudy.evaluate.behavior.modes import fork_mode
from understudy.evaluate.rollout import rollout
from understudy.heads.likelihood.regression import Regression
from understudy.learn.sample_weights import CurriculumWeights
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_env, random_batch

# -- 090 ----------------------------------------------------------------------------------------------------------


def test_both_sides_lead_to_both_ends_and_only_the_named_end_counts():
    env = beso_three_steps.TwoEnds(100)
    episodes = rollout(env.expert(), env, 400, seed=3)
    ways = [(fork_mode(e), bool(e.steps["observation.goal"][0, 1] > 0)) for e in episodes]
    assert np.mean([e.metadata["success"] for e in episodes]) > 0.97
    assert min(ways.count((side, up)) for side in ("left", "right") for up in (True, False)) > 70
    check_env(lambda rows: beso_three_steps.TwoEnds(rows))
    env.state["goal"][:] = beso_three_steps.ENDS[0]
    env.state["at"][:] = beso_three_steps.ENDS[1]
    assert not env.advance(np.zeros((100, 2), np.float32))[1].any()


def test_play_does_not_say_which_end_was_meant():
    played = beso_three_steps.PlayEpisodes(20, ("left",)).load(3)
    assert all("observation.goal" not in e.steps and fork_mode(e) == "left" for e in played)


# -- 195 and 258 --------------------------------------------------------------------------------------------------


def test_exchanged_weights_are_the_same_weights():
    policy, batch = random_batch(PolicyConfig(Regression(), MLP(8, 1), window=Window(1, 2)))
    weights, others = (w(0.5)(batch, policy) for w in (CurriculumWeights, self_chosen_curriculum.ExchangedWeights))
    assert torch.equal(weights.sort()[0], others.sort()[0]) and not torch.equal(weights, others)


# -- noise draws per observation ---------------------------------------------------------------------------------------


def test_the_fork_with_images_keeps_the_contract_and_shows_the_position():
    check_env(two_level_minibatch.ForkImages)
    at = np.array([[0.0, 0.0], [1.0, 0.4]], np.float32)
    images = two_level_minibatch.render(at).astype(int)
    lines, columns = np.nonzero(np.abs(images[0] - images[1]).sum(-1))
    position = np.stack([columns + 0.5, 40 - lines - 0.5], 1) * 1.6 / 40 + (-0.2, -0.8)
    assert (np.linalg.norm(position[:, None] - at, axis=2).min(1) < 0.09).all()  # they differ at both, and only there


def test_copies_with_the_same_draw_teach_what_one_draw_teaches():
    data = two_level_minibatch.image_demonstrations(5, 1)
    method = two_level_minibatch.repeated_draws_method(1, images=True)
    one = Policy(method.policy, data.features()).fit_statistics(data)
    batch = one.windows(data).batch(6, 0)
    losses = [one.loss(batch, torch.Generator().manual_seed(3)),
              one.with_head(two_level_minibatch.SharedDrawDiffusion()).loss(batch, torch.Generator().manual_seed(3),
                                                                            n_noise_samples=8)]
    torch.testing.assert_close(*losses)


def test_eight_draws_cost_little_with_images_and_eight_times_as_much_with_states():
    data = two_level_minibatch.image_demonstrations(2, 1)
    for images, ratio in ((True, 1.118), (False, 7.98)):
        methods = [two_level_minibatch.repeated_draws_method(k, images) for k in (1, 8)]
        work = [two_level_minibatch.count_work(method, data) for method in methods]
        assert work[1] / work[0] == pytest.approx(ratio, rel=1e-2)


def test_the_first_crossing_of_a_curve():
    curve = {50: 3.0, 100: 2.0, 150: 1.0}
    assert two_level_minibatch.first_crossing(curve, 1.5) == 125
    assert two_level_minibatch.first_crossing(curve, 4.0) == 50
    assert two_level_minibatch.first_crossing(curve, 1.0) == 150
    assert two_level_minibatch.first_crossing(curve, 0.5) == float("inf")


# -- thought cloning ---------------------------------------------------------------------------------------------------


def test_separate_steps_read_the_context_and_the_time_but_no_other_step():
    mask = in_context_denoising.SeparateSteps(8, 1, 2).attention_mask(2, 3, True)
    assert torch.equal(mask[3:, 3:], torch.eye(3, dtype=torch.bool)) and mask[3:, :3].all()
    assert torch.equal(mask[:3], in_context_denoising.InContextTransformer().attention_mask(2, 3, True)[:3])
    changed = in_context_denoising.with_separate_steps(in_context_denoising.FORK)
    (first, *others), (changed_first, *same) = in_context_denoising.FORK.arms, changed.arms
    assert same == others and changed_first != first


def test_all_networks_that_denoise_in_context_or_with_a_head_have_as_many_parameters():
    arms = {a.name: a.options[0].policy for e in (in_context_denoising.FORK, in_context_denoising.OTHERS)
            for a in e.arms}
    spec = HeadSpec(in_context_denoising.HORIZON, 1, in_context_denoising.WIDTH, token_obs_steps=(0,))
    sizes = {name: sum(p.numel() for p in policy.head.build(policy.trunk, 2, spec).parameters())
             for name, policy in arms.items()}
    assert sizes == {"in context": 28290, "head of each step": 28272, "head of the chunk": 28380, "not causal": 28290,
                     "bins": 28768, "regression": 26722}


# -- 280 ----------------------------------------------------------------------------------------------------------


def test_a_hesitant_demonstrator_waits_before_the_hand_closes():
    source = lerobot_examples.LeRobotDemonstrations(12)
    for pause in (0, 4):
        for episode in replace(source, pause=pause).load(2):
            action, closed = episode.steps["action"], episode.steps["observation.state"][:-1, 2]
            first = int(np.flatnonzero(action[:, 2] > 0)[0])
            still = (action[:first, :2] == 0).all(1) & (action[:first, 2] < 0)
            assert still.sum() == pause and still[first - pause:].all() and not closed[:first + 1].any()
            assert episode.metadata["success"]


def test_what_lerobot_files_do_not_give_back_is_noticed(monkeypatch):
    source = lerobot_examples.LeRobotDemonstrations(4)
    data = source.load(3)
    assert data.metadata["is_exact"] and lerobot_examples.read_written(data)[1]
    one = data[0]
    state = np.array(one.steps["observation.state"])
    state[2, 0] = np.nextafter(state[2, 0], 2)
    assert lerobot_examples.has_equal_steps(one, one)
    assert not lerobot_examples.has_equal_steps(one, one.replace({"observation.state": state}))
    wide = one.replace({"action": np.asarray(one.steps["action"], np.float64)})
    assert not lerobot_examples.has_equal_steps(one, wide)
    write = lerobot_examples.write_dataset
    monkeypatch.setattr(lerobot_examples, "write_dataset", lambda data, path, kind: write(
        data.map(lambda e: e.replace({"observation.state": np.asarray(e.steps["observation.state"]) + 1})), path, kind))
    assert not lerobot_examples.read_written(data)[1]


def test_late_actions_are_found_by_the_audit():
    source = lerobot_examples.LeRobotDemonstrations(30)
    right, late = source.load(4), replace(source, shift=1).load(4)
    for a, b in zip(right, late, strict=True):
        assert np.array_equal(a.steps["action"][:-1], b.steps["action"][1:])
        assert np.array_equal(a.steps["action"][0], b.steps["action"][0])
        assert np.array_equal(a.steps["observation.state"], b.steps["observation.state"])
    assert not list(check_action_lag(right))
    assert [f.code for f in check_action_lag(late) if f.severity == "warning"] == ["action-lag"]


def test_fused_experts_are_as_many_as_the_claim_says_and_the_control_cannot_be_fused():
    data = fused_experts.FORK.source.load(1)[:10]
    control = fused_experts.routed_by_observation(fused_experts.FORK).arms[0]
    operations, errors = {}, {}
    for name, option in [(a.name, a.options[0]) for a in (*fused_experts.FORK.arms, *fused_experts.SMALL.arms[:1])] + [
            ("control", control.options[0])]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            policy = Policy(option.policy, data.features()).fit_statistics(data).eval()
        has_experts = name in ("experts", "control")
        if has_experts:
            with torch.no_grad():
                for layer in policy.net.layers:  # routes that differ
                    layer.feed_forward.router[0].weight.mul_(10)
                    layer.feed_forward.router[2].weight.mul_(10)
        network = fuse_experts(policy) if has_experts else policy
        operations[name] = fused_experts.count_operations(network, data)
        errors[name] = fused_experts.plan_error(policy, network, data)
    assert operations["experts"] == operations["control"] == operations["same active size"]
    assert 0.55 < operations["experts"] / operations["same total size"] < 0.65
    assert errors["control"] > 1e-2 and max(e for n, e in errors.items() if n != "control") < 1e-6
