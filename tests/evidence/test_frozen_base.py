"""Rows of frozen-base: the fork in which one side counts, the control of steering, and what a near chunk is."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from fixtures.learning import call_step

from evidence.families.frozen_policy.chunk_critic import AFewEpisodes, OtherChunks
from evidence.families.frozen_policy.off_policy_residual import OffPolicy, ResidualTD3
from evidence.families.frozen_policy.residual import PPO
from evidence.families.frozen_policy.steering import Ambiguous, RedrawnNoise
from evidence.worlds.frozen_base import BothSides, DemonstratedChunks, LeftCounts, Practised, flow_method
from evidence.worlds.peg import PegDemonstrations
from understudy.data.episode import Dataset, Episode
from understudy.envs.toys.fork import ForkExpert
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor, PolicyActor
from understudy.execute.wrappers import BASE_ACTION, ResidualWrapper, WrappedActor
from understudy.improve.practice import BASE, Practice, SuccessReward
from understudy.learn.critics.noise_aliasing import NoiseAliasing
from understudy.learn.method import Method, Stage
from understudy.policy import Policy
from understudy.testing import check_env


def test_only_the_left_counts():
    check_env(LeftCounts)
    for side, success in ((1, 1.0), (-1, 0.0)):
        episodes = rollout(ForkExpert(side, noise=0.0), LeftCounts(4), 8, 3)
        assert np.mean([e.metadata["success"] for e in episodes]) == success
        assert all(e.steps["next.terminated"][-1] for e in episodes)


@dataclass(frozen=True)
class Constant(Actor):
    value: float

    def start(self, obs, key):
        return {"key": key}

    def act(self, obs, state):
        return torch.full((len(state["key"]), 16), self.value), state


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_control_of_steering_acts_like_the_policy_alone(value):
    """Whatever the actor chooses, bit for bit, where no noise is beyond the bound."""
    method, data = flow_method(0), BothSides(6).load(0)
    policy = Policy(method.policy, data.features()).fit_statistics(data).eval()
    cut = WrappedActor(Constant(value), RedrawnNoise(policy, 4, bound=100.0))
    alone = PolicyActor(policy, method.executor)
    for ours, theirs in zip(rollout(cut, LeftCounts(3), 3, 5), rollout(alone, LeftCounts(3), 3, 5), strict=True):
        assert np.array_equal(ours.steps["action"], theirs.steps["action"])


def methods(data: Dataset, *options: Practised) -> list[Method]:
    base = replace(flow_method(10), stages=(Stage(BASE.stage, flow_method(10)),))
    return [option.method(Practice(data, 5, 20, 400), base) for option in options]


def test_the_control_of_steering_changes_the_wrapper_alone():
    steered, cut = methods(BothSides(4).load(0), Ambiguous(), Ambiguous(redrawn=True))
    assert steered != cut and steered == replace(cut, wrapper=steered.wrapper)
    assert vars(cut.wrapper) == vars(steered.wrapper)


def test_the_control_of_corrections_sees_the_action_of_the_policy_alone():
    whole, blind = methods(PegDemonstrations(4).load(0), PPO, replace(PPO, sees_state=False))
    assert blind != whole and blind == replace(whole, policy=replace(whole.policy, inputs=(BASE_ACTION,)))


def test_a_chunk_is_near_within_the_usual_distance_of_demonstrations():
    def episode(x: float) -> Episode:
        state = np.array([[x, 0.0]] * 5, np.float32)
        return Episode({"observation.state": state, "action": np.zeros((4, 2), np.float32)})
    index = DemonstratedChunks(Dataset([episode(x) for x in range(5)]))
    assert index.radius == pytest.approx(1 / np.sqrt(2))  # a distance of 1 in standard deviations, which are sqrt(2)
    assert [index.share(episode(x)) for x in (2.0, 4.9, 5.1)] == [1.0, 1.0, 0.0]
    short = Episode({"observation.state": np.zeros((3, 2), "f"), "action": np.zeros((2, 2), "f")})
    assert index.share(short) == 0.0


def corrected(data: Dataset) -> Dataset:
    """Episodes whose base action is half of the action, and whose action is a correction."""
    def change(e: Episode) -> Episode:
        action = np.asarray(e.steps["action"], np.float32)
        half = np.concatenate([action, action[-1:]])[:len(e.steps["observation.state"])] / 2
        return e.replace({BASE_ACTION: half, "action": action / 2})
    return data.map(change)


def test_corrections_learn_from_the_mean_score_of_executed_actions():
    demonstrations = PegDemonstrations(4).load(0)
    method, = methods(demonstrations, OffPolicy())
    wrapper, learner_config = method.wrapper, method.learner
    assert isinstance(wrapper, ResidualWrapper) and isinstance(learner_config, ResidualTD3)
    data = corrected(demonstrations.map(SuccessReward()))
    policy = Policy(method.policy, data.features()).fit_statistics(data)
    learner = learner_config.build(policy, 0, 10, data)
    obs, plan = policy.windows(data).batch(6, 0, seed=0), torch.rand(6, 1, 3) / 10
    moved = {**obs.obs, BASE_ACTION: obs.obs[BASE_ACTION] * 0 + 0.1}
    scale = torch.tensor(wrapper.scale)
    same = {**moved, BASE_ACTION: moved[BASE_ACTION] + scale * plan}
    scores = learner.nets.critic.scores(moved, plan)
    assert torch.allclose(scores, learner.nets.critic.scores(same, plan * 0), atol=1e-6)
    assert not torch.allclose(scores, learner.nets.critic.scores(moved, plan * 0), atol=1e-6)
    untrained = learner.nets.critic.scores(moved, plan * 0).mean(0)  # the policy corrects nothing yet
    assert torch.allclose(call_step(learner, "policy_loss", obs.replace(obs=moved), torch.Generator()), -untrained)


def test_the_control_of_off_policy_corrections_has_no_layer_norm_and_no_warm_up():
    whole, bare = methods(PegDemonstrations(4).load(0), OffPolicy(), OffPolicy(is_stabilized=False))
    learner = whole.learner
    assert isinstance(learner, ResidualTD3) and learner.critic.layer_norm
    assert learner.critic_warmup_updates == 400  # those of the first round
    critic = replace(learner.critic, layer_norm=False)
    assert bare == replace(whole, learner=replace(learner, critic=critic, critic_warmup_updates=0))


def test_the_control_of_the_critic_of_chunks_changes_the_chunk_of_noise_alone():
    """The score that noise learns is that of the chunk to which the noise of the next row leads."""
    data = BothSides(4).load(0)
    whole, other, plain = methods(data, AFewEpisodes(), AFewEpisodes(other_chunks=True), AFewEpisodes(critic="noise"))
    assert isinstance(other.learner, OtherChunks) and vars(other.learner) == vars(whole.learner)
    assert other == replace(whole, learner=other.learner) and not isinstance(plain.learner, NoiseAliasing)
    base = Policy(flow_method(0).policy, data.features()).fit_statistics(data).eval()
    drawn = []
    for method in (whole, other):
        learner = replace(method.learner, steering=replace(whole.wrapper, policy=base))
        obs = {"observation.state": torch.zeros(3, 1, 2)}
        drawn.append(learner.draw_chunks(obs, torch.Generator().manual_seed(0)))
    (noise, chunks), (rolled, same_chunks) = drawn
    assert torch.equal(chunks, same_chunks) and torch.equal(rolled, noise[[2, 0, 1]])


def test_it_begins_with_its_own_chunks_and_the_demonstrations_or_without_them():
    data = BothSides(4).load(0)
    base = Policy(flow_method(0).policy, data.features()).fit_statistics(data).eval()
    for option in (AFewEpisodes(), AFewEpisodes(without_demonstrations=True)):
        method, = methods(data, option)
        first = option.first_episodes(method, base, LeftCounts(2), data, 0)
        own = len(first) - (0 if option.without_demonstrations else len(data))
        assert own >= 1 and sum(map(len, first[:own])) >= option.first_steps // 4
