"""Arms of the claims on sequences and execution are as they say."""

import numpy as np
import torch
from claims.sequence_execution import pooled_history, self_guidance, which_history

from evidence.worlds import sign_corridor
from understudy.data.window import Window
from understudy.execute.self_guidance import SelfGuided
from understudy.heads.denoising.flow import Flow
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_env, random_batch

# -- 195 and 258 --------------------------------------------------------------------------------------------------


def test_the_control_of_self_guidance_takes_the_movement_of_another_row():
    """Rows that moved alike are guided as by their own movement, and others are not."""
    policy, _ = random_batch(PolicyConfig(Flow(2), MLP(8, 1), window=Window(2, 4)))
    own, control = SelfGuided(policy, 0.7), self_guidance.OthersMovement(policy, 0.7)
    noise, start = torch.randn(3, *policy.noise_shape), torch.randn(3, 1, 3)
    alike, unlike = ({k: start + torch.randn(n, 3, 3) for k in policy.inputs} for n in (1, 3))
    torch.testing.assert_close(control.plan(alike, noise), own.plan(alike, noise))
    assert not torch.allclose(control.plan(unlike, noise), own.plan(unlike, noise))
    still = {k: v.clone() for k, v in unlike.items()}
    for v in still.values():
        v[:] = v[:, :1]
    torch.testing.assert_close(control.plan(still, noise), policy.plan({k: v[:, 1:] for k, v in still.items()}, noise))


# -- 222 ----------------------------------------------------------------------------------------------------------


def test_a_corridor_may_have_fewer_signs():
    check_env(lambda rows: sign_corridor.SignCorridor(rows, n_signs=8))
    episodes = pooled_history.CORRIDOR.source.load(1)[:20]
    assert all(len(e) == 9 and e.metadata["success"] and sign_corridor.count_signs(e.steps) == 8 for e in episodes)
    assert {e.steps[sign_corridor.RATE_COLUMN][-1, 0] for e in sign_corridor.MemoryPairs(8).apply(episodes)} == {8}


def test_arms_with_a_history_differ_in_where_the_past_ends_and_in_the_tokens_of_absent_steps():
    data, sizes, experiments = pooled_history.CORRIDOR.source.load(1)[:10], {}, (
        pooled_history.CORRIDOR, pooled_history.ABLATIONS, pooled_history.with_repeated_step(pooled_history.CORRIDOR))
    for number, experiment in enumerate(experiments):
        for arm in experiment.arms:
            policy = Policy(arm.options[0].policy, data.features())
            sizes[arm.name, number] = sum(p.numel() for p in policy.parameters()), policy.encoder.tokens
    whole, one, pooled = 65667, 65155, 65443  # as the claim says
    assert set(sizes.values()) == {(whole, 9), (one, 1), (pooled, 2)}
    assert [size for (name, _), size in sizes.items() if name == "whole history"] == [(whole, 9)] * 2
    assert [size for (name, _), size in sizes.items() if name == "one observation"] == [(one, 1)] * 2


def test_the_control_does_not_see_the_past_and_a_mean_of_the_signs_themselves_does_not_tell_the_way():
    """The signs of two walkers are exchanged. The mean over all signs is the same in every corridor."""
    data = pooled_history.CORRIDOR.source.load(1)[:10]
    features = {sign_corridor.SEEN: data.features()[sign_corridor.SEEN]}
    obs = {sign_corridor.SEEN: torch.from_numpy(np.stack([e.steps[sign_corridor.SEEN][:9] for e in data]))}
    other = {k: torch.cat([x[:, :-1].flip(0), x[:, -1:]], 1) for k, x in obs.items()}
    control = pooled_history.with_repeated_step(pooled_history.CORRIDOR).arms[0].options[0].policy.encoder
    pooled, at_once, without = (a.options[0].policy.encoder for a in pooled_history.ABLATIONS.arms)

    def changes(encoder):
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            net = encoder.build(features, 9)
            return (net(obs).flat() - net(other).flat()).abs().max().item() > 1e-4
    assert changes(pooled) and changes(without) and not changes(control) and not changes(at_once)


# -- 038, 068, 304 and 344 in one world ---------------------------------------------------------------------------


def test_the_recorded_computation_says_to_which_goal_the_expert_goes():
    for episode in which_history.ExplainedDemonstrations(6).load(1):
        at_first, at_second = episode.steps[which_history.STATE][:-1, 4:6], episode.steps[which_history.STATE][:-1, 6:8]
        onward = episode.steps[which_history.RESULT]
        assert np.array_equal(episode.steps["action"], np.where(onward, at_second, at_first))
        assert np.array_equal(episode.steps[which_history.READ][:-1], onward) and 0 < onward.mean() < 1
        silent = which_history.first_goal_always(episode).steps
        assert not silent[which_history.READ].any() and not silent[which_history.RESULT].any()
