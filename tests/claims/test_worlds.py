"""The little worlds that claims are tested in are as they say, and their arms learn what they say."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from claims.conditioning import (
    composed_constraints,
    few_labels,
    interactive_language,
    language_attention,
    memory_pairs,
    thought_cloning,
    weakly_labeled_skills,
)
from claims.data_curation import critical_steps
from claims.evaluation import functional_manipulation as fmb
from claims.evaluation import imitation_promise, pretrained_behavior
from claims.interactive_deployment import preemptive_restart
from claims.policy_heads import (
    beso_three_steps,
    fused_experts,
    in_context_denoising,
    lerobot_examples,
    self_chosen_curriculum,
    two_level_minibatch,
)
from claims.retrieval import vinn_few_demonstrations as vinn
from claims.sequence_execution import pooled_history, self_guidance
from claims.token_policies import cross_episodic_curriculum as cross
from claims.token_policies import dual_phase, masked_trajectories, procedure_cloning
from claims.worlds import named_places, sign_corridor
from claims.worlds.curation import cloning_method
from claims.worlds.directed_push import DirectedPush, direction_demonstrations, train_policy
from understudy.audit.action_motion import check_action_lag
from understudy.claims.memo import empty_memos
from understudy.core import HeadSpec, keys
from understudy.data.episode import Dataset, Episode
from understudy.data.segments import CutSegments
from understudy.data.text_columns import ThoughtText
from understudy.data.window import Window
from understudy.deploy.fused_experts import fuse_experts
from understudy.envs.episode_wrappers import NEW_TRIAL, MultiTrialEnv
from understudy.envs.toys.push import Push, PushExpert
from understudy.evaluate.behavior.modes import fork_mode
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor
from understudy.execute.self_guidance import SelfGuided
from understudy.heads.flow import Flow
from understudy.heads.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import training_data
from understudy.learn.sample_weights import ColumnWeights, CurriculumWeights
from understudy.methods.reasoning.procedure_cloning import GridSearch
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_column_change, check_env, check_speaker, random_batch


def directions(episodes):
    state = np.stack([e.steps["observation.state"][0] for e in episodes])
    return np.degrees(np.arctan2(state[:, 7] - state[:, 3], state[:, 6] - state[:, 2])) % 360


def test_goals_lie_in_the_sectors_that_were_asked_for_and_all_of_them():
    found = directions(rollout(PushExpert(), DirectedPush(50, (1, 6), limit=1), 200, seed=3))
    assert (((found >= 45) & (found < 90)) | ((found >= 270) & (found < 315))).all()
    assert (found < 90).sum() > 60 < (found > 90).sum()
    everywhere = rollout(PushExpert(), DirectedPush(5, tuple(range(8)), limit=1), 20, seed=3)
    plain = rollout(PushExpert(), Push(5, limit=1), 20, seed=3)
    assert np.array_equal(directions(everywhere), directions(plain))


def test_towards_keeps_the_contract():
    check_env(lambda rows: DirectedPush(rows, (4,), limit=15))


def test_demonstrations_succeed_and_parts_are_others():
    first, second = (direction_demonstrations(PushExpert(), (2,), 5, 1, part) for part in (0, 1))
    assert all(e.metadata["success"] for e in first + second) and len(first) == len(second) == 5
    assert not set(directions(first)) & set(directions(second))


def test_training_on_keeps_the_statistics_and_the_policy_it_began_from():
    data = Dataset(direction_demonstrations(PushExpert(), (0,), 4, 1))
    base = train_policy(cloning_method(1e-3, steps=3), data, 0)
    before = {k: v.clone() for k, v in base.state_dict().items()}
    other = Dataset(direction_demonstrations(PushExpert(), (4,), 4, 2))
    further = train_policy(cloning_method(1e-3, steps=3), other, 0, base)
    assert all(torch.equal(v, before[k]) for k, v in base.state_dict().items())
    changed = {k for k, v in further.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and changed <= set(dict(base.named_parameters()))  # no buffer, so no statistic
    fresh = Policy(base.config, other.features()).fit_statistics(other)
    assert any(not torch.equal(v, before[k]) for k, v in fresh.named_buffers())


# -- 025 ----------------------------------------------------------------------------------------------------------


def test_assembly_keeps_the_contract_and_its_expert_always_does_it():
    check_env(lambda rows: fmb.Assembly(rows, limit=30))
    ran = rollout(fmb.AssemblyExpert(noise=0.0), fmb.Assembly(50, sizes=fmb.SEEN_SIZES + fmb.UNSEEN_SIZES), 100, seed=2)
    assert all(e.metadata["success"] for e in ran)
    for e in ran:  # all four skills, in their order
        order = e.steps["observation.skill"].argmax(1)
        assert (np.diff(order) >= 0).all() and set(order.tolist()) == {0, 1, 2, 3}


def test_an_askew_peg_does_not_fit_and_its_angle_is_seen_in_the_hand():
    env = fmb.Assembly(1, sizes=(0.1,))
    state = torch.tensor([[0.5, 0.1, 1, 0.5, 0.1, 0, 0, 0.1, 0.8, 0.8, 0.4, 0.1]])
    for angle, fits in ((0.0, True), (1.0, False)):
        turn = torch.tensor([np.cos(angle), np.sin(angle)]).float()
        hand = torch.tensor([0.4, 0.1]) + 0.1 * turn
        state[0, :2] = state[0, 3:5] = hand  # the peg's centre is in the hole
        state[0, 5:7] = turn
        env.restore(torch.tensor([0]), {"observation.state": state})
        out = env.step(torch.tensor([[0.0, 0.0, 1.0]]))
        assert bool(out.info["success"]) == fits
        assert out.obs["observation.state"][0, 5:7].numpy() == pytest.approx(turn.numpy())
    out = env.step(torch.tensor([[0.0, 0.0, -1.0]]))  # let go outside of the fixture: as askew as before
    assert out.obs["observation.state"][0, 5:7].numpy() == pytest.approx(turn.numpy())


def test_the_observation_alone_tells_the_skill():
    ran = rollout(fmb.AssemblyExpert(), fmb.Assembly(20), 20, seed=3)
    seen = np.concatenate([e.steps["observation.state"] for e in ran])
    upright, held = seen[:, 5] == 1, seen[:, 2] == 1
    assert np.array_equal(np.concatenate([e.steps["observation.skill"] for e in ran]).argmax(1), 2 * upright + held)


def test_the_policy_acts_with_the_skill_that_is_chosen_from_the_same_observation():
    class FromHand(fmb.Actor):
        """Chooses the skill by the x coordinate of the hand."""

        def start(self, obs, key):
            return {}

        def act(self, obs, state):
            return torch.eye(4)[obs["observation.state"][:, 0].long()], state

    class CopySkill(fmb.Actor):
        def start(self, obs, key):
            return {}

        def act(self, obs, state):
            return obs["observation.skill"], state
    actor = fmb.SkillConditionedActor(FromHand(), CopySkill())
    obs = {"observation.state": torch.zeros(2, 12), "observation.skill": torch.eye(4)[[0, 0]]}
    state = actor.start(obs, torch.arange(2))
    for skills in ([3, 1], [0, 2]):
        obs["observation.state"][:, 0] = torch.tensor(skills)
        action, state = actor.act(obs, state)
        assert action.argmax(1).tolist() == state["record"]["chosen"].tolist() == skills


def test_both_arms_of_the_assembly_have_as_many_parameters_and_updates():
    data = fmb.AssemblyDemonstrations(2).load(1)
    data = fmb.Dataset([e.replace({"skill": e.steps["observation.skill"][:-1]}) for e in data])
    flat, chosen = (replace(arm.options[0], steps=2) for arm in fmb.ASSEMBLY.arms)

    def size(method):
        return sum(p.numel() for p in fmb.train_policy(method, data, 1).parameters())
    single = flat.method("observation.state")
    skilled = (chosen.method("observation.state", target="skill"),
               chosen.method("observation.skill", "observation.state"))
    assert single.learner.steps == sum(m.learner.steps for m in skilled) == 2
    assert size(single) == pytest.approx(sum(map(size, skilled)), rel=0.03)


# -- what the arms see --------------------------------------------------------------------------------------------


def test_how_alike_is_the_share_of_variance_that_is_explained():
    class Same(torch.nn.Module):
        def __init__(self, scale, mean):
            super().__init__()
            self.scale, self.mean = scale, mean

        def noise(self, key, count):
            return key

        def plan(self, obs, noise):
            return self.mean + self.scale * (obs["observation.state"] - self.mean)
    values = np.random.default_rng(0).normal(3, 1, (200, 2)).astype(np.float32)
    data = Dataset([Episode({"observation.state": v, "action": v}) for v in (values[:100], values[100:])])
    mean = torch.as_tensor(values.mean(0))
    for scale, share in ((1.0, 1.0), (0.0, 0.0), (0.5, 0.75)):
        assert imitation_promise.explained_variance(Same(scale, mean), data) == pytest.approx(share, abs=1e-5)


def test_the_imitator_is_shown_half_of_the_tasks_and_its_twin_all():
    for wide in (False, True):
        data = imitation_promise.WeakAndStrongDemonstrations(6, 24, 4, wide).load(1)
        found = {s: directions([e for e in data if e.metadata["set"] == s]) for s in ("base", "broader", "imitation",
                                                                                      "held")}
        assert [len(v) for v in found.values()] == [6, 24, 24, 4]
        inside = {s: (np.cos(np.radians(v)) > 0).all() for s, v in found.items()}
        assert inside["held"] and inside["imitation"] == (not wide) and not inside["broader"]


def test_pretraining_never_sees_the_new_task_and_its_twin_sees_other_actions(monkeypatch):
    claim, seen = pretrained_behavior, []
    monkeypatch.setattr(claim, "train_policy",
                        lambda method, data, seed, policy=None: seen.append((data, policy)) or len(seen))
    monkeypatch.setattr(claim, "rollout_policy", lambda policy, *rest: [])
    data = claim.MultiTaskDemonstrations(12, 6).load(1)
    with empty_memos():
        for method in (claim.TransferMethod(2, False), claim.TransferMethod(2, True),
                       claim.TransferMethod(2, True, shuffle_pretraining=True)):
            claim.new_task_success(None, method, data, 1, 5, 0)
    (scratch, none), (before, _), (after, began), (mixed, _), _ = seen
    assert none is None and began == 2 and len(scratch) == len(after) == 2
    assert (np.abs(directions(scratch) - 202.5) <= 22.5).all()
    assert (np.cos(np.radians(directions(before))) > -0.71).all()
    actions = [np.concatenate([e.steps["action"] for e in d]) for d in (before, mixed)]
    assert np.array_equal(*(a[np.lexsort(a.T)] for a in actions))
    assert np.corrcoef(actions[0].ravel(), actions[1].ravel())[0, 1] < 0.2
    for a, b in zip(before, mixed, strict=True):
        assert abs(a.steps["action"].mean(0) - b.steps["action"].mean(0)).max() > 0.01
        assert np.array_equal(a.steps["observation.state"], b.steps["observation.state"])


def test_only_the_predictor_of_the_twin_learns_from_exchanged_outcomes():
    changed = preemptive_restart.shuffled_outcomes(preemptive_restart.PUSH)
    assert {a.name: a.options[0].shuffle_outcomes for a in changed.arms} == {
        "to the end": False, "timed out": False, "preempted": True}
    flat = fmb.shuffled_skills(fmb.ASSEMBLY)
    assert [a.options[0].shuffle_skills for a in flat.arms] == [False, True]
    assert replace(flat.arms[1].options[0], shuffle_skills=False) == fmb.ASSEMBLY.arms[1].options[0]


# -- 301 ----------------------------------------------------------------------------------------------------------


def test_errand_keeps_the_contract_and_its_expert_always_does_it():
    check_env(lambda rows: critical_steps.Errand(rows, limit=15, slip=0.0))
    ran = rollout(critical_steps.ErrandScript(), critical_steps.Errand(50, limit=60, slip=0.0), 100, seed=2)
    assert all(e.metadata["success"] for e in ran)


def test_critical_steps_are_plans_discoveries_and_deeds():
    """Each errand takes the key, opens one or two chests, delivers; before each of these it thinks of the thing."""
    ran = rollout(critical_steps.ErrandScript(), critical_steps.Errand(50, limit=60, slip=0.0), 50, seed=3)
    openings = set()
    for e in ran:
        critical = critical_steps.critical_steps(e)
        thought, primitive = np.divmod(np.asarray(e.steps["action"])[:, 0], 5)
        handles = primitive == critical_steps.INTERACT
        chests = int((handles & np.isin(thought, (1, 2))).sum())
        openings.add(chests)
        changes = np.r_[True, thought[1:] != thought[:-1]]
        assert np.array_equal(critical, handles | changes)
        assert handles.sum() == changes.sum() == 2 + chests
    assert openings == {1, 2}  # a chest may be empty, and then the plan is corrected


def test_arms_of_an_errand_have_as_many_steps_and_shuffling_keeps_their_number():
    data = critical_steps.ErrandDemonstrations(6).load(1)
    shuffled = critical_steps.ErrandDemonstrations(6, shuffle_steps=True).load(1)
    for e, s in zip(data, shuffled, strict=True):
        counts = {float(x.steps[f"keep.{k}"].sum()) for x in (e, s) for k in ("critical", "random")}
        assert len(counts) == 1 and e.steps["keep.all"].all()
    assert any(not np.array_equal(e.steps["keep.critical"], s.steps["keep.critical"])
               for e, s in zip(data, shuffled, strict=True))


def test_balanced_steps_have_each_action_as_often_as_the_critical_ones():
    data = critical_steps.ErrandDemonstrations(6).load(1)
    action = np.concatenate([e.steps["action"][:, 0] for e in data])
    critical, balanced = (np.concatenate([e.steps[f"keep.{k}"] for e in data]) > 0 for k in ("critical", "balanced"))
    assert np.array_equal(np.bincount(action[critical], minlength=20), np.bincount(action[balanced], minlength=20))
    assert (balanced & ~critical).any()


# -- 079 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("untrained", "verdict"), [(2.0, "fails"), (0.5, "undecided")])
def test_retrieval_is_judged_only_if_self_supervision_helps(untrained, verdict):
    """Retrieval is worse than cloning, which counts against it only if its encoder beats random weights."""
    near = [[0.001 * i] for i in range(8)]
    errors = {arm: {"error": [[mean + x[0]] for x in near]}
              for arm, mean in (("retrieval", 1.0), ("cloning", 0.6), ("untrained", untrained))}
    part = vinn.CLAIM.parts[0]
    assert part.rule.judge(errors, dict(part.experiment.measures)).verdict == verdict


def test_the_error_of_steering_is_a_fraction_of_that_of_the_mean_angle():
    """Learned angles are 0 and 2. Where 3 is right, their mean errs by 2, and the nearest picture's angle by 1."""
    pictures = np.random.default_rng(0).normal(size=(2, vinn.HEIGHT, vinn.WIDTH)).astype(np.float32)

    def segment(picture, angle, learned):
        return vinn.Episode({"observation.images.front": pictures[[picture]],
                             "action": np.full((1, 1), angle, np.float32)}, {"learned": learned})
    data = vinn.Dataset([segment(0, 0, True), segment(1, 2, True), segment(1, 3, False)])
    found = vinn.steering_error(None, vinn.VisualMethod("untrained", n_neighbors=1), data, 0, 1, 0)
    assert found["error"] == pytest.approx([0.25]) and found["score"] == pytest.approx([0.75])


def test_retrieval_gives_the_weighted_mean_of_the_nearest_pictures():
    """Features 0, 1, 2 and 5 on a line are at mean distance (1 + 1 + 1 + 3) / 4 = 1.5 of their nearest."""
    keys = torch.zeros(4, vinn.FEATURES)
    keys[:, 0] = torch.tensor([0.0, 1, 2, 5])
    action = torch.tensor([[1.0], [2], [3], [4]])
    query = torch.zeros(1, vinn.FEATURES)
    query[0, 0] = 0.75
    found = vinn.retrieve(torch.nn.Identity(), keys, action, query, 2)
    weight = np.exp(-np.array([0.75, 0.25]) / 1.5)
    assert found.item() == pytest.approx(weight @ [1, 2] / weight.sum(), rel=1e-5)


def test_an_augmented_picture_is_a_crop_of_it():
    rng = torch.Generator().manual_seed(0)
    images = torch.ones(200, 1, vinn.HEIGHT, vinn.WIDTH) * torch.linspace(-1, 1, vinn.WIDTH)
    seen = vinn.augment(images, 0.6, rng)
    assert seen.shape == images.shape
    slopes = (seen[..., -3] - seen[..., 2]).mean((1, 2)) / (images[0, 0, 0, -3] - images[0, 0, 0, 2])
    assert 0.6 * 0.6**0.5 - 0.01 < slopes.min() < 0.7 < 1.1 < slopes.max() < 1.4 + 0.01  # side times contrast


def test_self_supervision_does_not_see_actions_and_moves_the_encoder():
    images = torch.randn(60, 1, vinn.HEIGHT, vinn.WIDTH, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        first = vinn.small_encoder()
        torch.manual_seed(0)
        trained = vinn.self_supervised_encoder(images, vinn.VisualMethod("retrieval", n_updates=2), 0)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), trained.parameters(), strict=True))
    assert not trained.training


# -- 090 ----------------------------------------------------------------------------------------------------------


def test_both_sides_lead_to_both_ends_and_only_the_named_end_counts():
    env = beso_three_steps.TwoEnds(100)
    ran = rollout(env.expert(), env, 400, seed=3)
    ways = [(fork_mode(e), bool(e.steps["observation.goal"][0, 1] > 0)) for e in ran]
    assert np.mean([e.metadata["success"] for e in ran]) > 0.97
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
    mine, others = (w(0.5)(batch, policy) for w in (CurriculumWeights, self_chosen_curriculum.ExchangedWeights))
    assert torch.equal(mine.sort()[0], others.sort()[0]) and not torch.equal(mine, others)


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


def test_the_plane_keeps_the_contract_and_its_expert_does_what_is_asked():
    check_env(composed_constraints.Plane)
    env = composed_constraints.Plane(50)
    ran = rollout(composed_constraints.PlaneExpert(noise=0.0), env, 200, seed=3)
    assert all(e.metadata["success"] for e in ran)
    asked = np.stack([np.append(e.steps["observation.side"][0], e.steps["observation.end"][0]) for e in ran])
    _, counts = np.unique(asked, axis=0, return_counts=True)
    assert len(counts) == 4 and counts.min() > 35
    assert all(e.steps["next.reward"][-1] == pytest.approx(1 - len(e) / 12) for e in ran)


def test_success_in_the_plane_is_to_go_the_way_that_was_asked_for():
    env = composed_constraints.Plane(4)
    state = {"observation.state": torch.tensor([[1.0, 0.4]] * 3 + [[0.5, 0.05]]),
             "observation.side": torch.tensor([[1.0], [-1.0], [1.0], [1.0]]),
             "observation.end": torch.tensor([[1.0], [1.0], [-1.0], [1.0]]),
             "simulator.state": torch.tensor([[1.0], [1.0], [1.0], [0.0]])}
    env.restore(torch.arange(4), state)
    out = env.step(torch.tensor([[1.0, 0.0]] * 3 + [[0.5, 0.0]]))
    assert out.info["success"].tolist() == [True, False, False, False], "the last one touches the pillar"
    assert out.terminated.all() and out.reward.tolist() == pytest.approx([11 / 12] * 3 + [0])


def test_demonstrations_tell_one_constraint_each():
    data = composed_constraints.SingleLabels(40).load(1)
    told = np.array([[e.steps[f"observation.{k}?"].mean() for k in ("side", "end")] for e in data])
    assert np.array_equal(told.sum(1), np.ones(len(data))) and set(told[:, 0]) == {0, 1}
    assert abs(told[:, 0].mean() - 0.5) < 0.02


def test_episodes_of_the_plane_are_of_any_quality():
    found = [e.steps["next.reward"].sum() for e in composed_constraints.MixedEpisodes(200).load(1)]
    assert min(found) == 0 and 0.1 < np.mean(np.array(found) == 0) < 0.5 and 0.6 < max(found) < 0.8


def test_a_plan_for_a_constraint_is_guided_by_it_alone():
    """Untrained weights: the rollouts of all arms differ, and the control is that of one constraint."""
    short = replace(composed_constraints.LEARNER, steps=2)
    experiment = composed_constraints.PLANE
    data, found = composed_constraints.SingleLabels(20).load(1), {}
    for arm in experiment.arms:
        (option,) = arm.options
        option = replace(option, states=replace(option.states, learner=short))
        ran = composed_constraints.roll_out(experiment, option, data, 1, 5, 1)
        found[arm.name] = np.concatenate([e.steps["action"].ravel() for e in ran])
    first = [v[:20].tobytes() for v in found.values()]
    assert len(set(first)) == len(first)
    control = composed_constraints.CLAIM.negative_control.change(experiment)
    assert control.arms[0].options == experiment.arms[2].options and control.arms[1:] == experiment.arms[1:]


def test_the_named_object_is_known_by_both_words_alone_and_new_pairs_are_new():
    for new in (False, True):
        table = language_attention.ShapeTable(50, limit=12, new_pairs=new)
        check_env(lambda rows, new=new: language_attention.ShapeTable(rows, limit=12, n_names=5, new_pairs=new))
        table.reset(torch.arange(50), torch.arange(50))
        pairs, target = table.state["pairs"], table.state["target"]
        named = pairs[np.arange(50), target]
        same = pairs == named[:, None]
        assert (same.sum(1) == 2).all() and (same.all(2).sum(1) == 1).all()  # two of each word, one of both
        is_new = pairs[..., 0] == pairs[..., 1]
        assert np.array_equal(is_new, (np.arange(4) == target[:, None]) & new)
        assert np.array_equal(table.observe()["observation.task"], named)
    ran = rollout(language_attention.ShapeTableExpert(noise=0), language_attention.ShapeTable(20), 40, seed=1)
    assert all(e.metadata["success"] for e in ran)


def test_shuffled_sentences_are_those_of_other_demonstrations_and_nothing_else_changes():
    plain, shuffled = (language_attention.NamedObjects(40, shuffled=s).load(1) for s in (False, True))
    task = "observation.task"
    assert all(np.array_equal(a.steps[k], b.steps[k]) for a, b in zip(plain, shuffled, strict=True)
               for k in a.steps if k != task)
    sentences = [[tuple(e.steps[task][0]) for e in data] for data in (plain, shuffled)]
    assert sorted(sentences[0]) == sorted(sentences[1]) and sentences[0] != sentences[1]
    assert all((e.steps[task] == e.steps[task][0]).all() for e in shuffled)


def test_attention_is_counted_where_it_is_largest_at_the_named_object():
    shown = language_attention.NamedObjects(20).load(1)
    method = language_attention.ARMS[0].options[0]
    policy = Policy(method.policy, shown.features()).fit_statistics(shown)
    with torch.no_grad():
        policy.encoder.logit_layer.weight.zero_()  # all logits are equal, and the first is the largest
    target = [float(e.steps["simulator.target"][0, 0] == 0) for e in shown]
    assert language_attention.attends_named_object(policy, shown) == target


def test_the_sign_of_the_junctions_color_tells_where_to_turn_and_arrows_are_balanced():
    check_env(sign_corridor.SignCorridor)
    ran = rollout(sign_corridor.SignCorridorExpert(), sign_corridor.SignCorridor(20), 40, seed=1)
    n, turns = sign_corridor.N_SIGNS, []
    for e in ran:
        seen, action = np.asarray(e.steps[sign_corridor.SEEN]), np.asarray(e.steps["action"])[:, 0]
        assert e.metadata["success"] and len(e) == n + 1 and (action[:-1] == sign_corridor.FORWARD).all()
        assert sorted(seen[:n, 0]) == list(range(n)) and (seen[:n, 1] == sign_corridor.LEFT).sum() == n // 2
        sign = sign_corridor.recalled_sign(e)
        assert seen[sign, 0] == seen[n, 0] and seen[sign, 1] == action[-1] and seen[n, 1] == 0
        turns.append(action[-1])
    assert set(turns) == {sign_corridor.LEFT, sign_corridor.RIGHT}
    assert len({sign_corridor.recalled_sign(e) for e in ran}) > n / 2


def test_an_early_or_a_wrong_turn_ends_the_episode_without_success():
    corridor = sign_corridor.SignCorridor(2)
    corridor.reset(torch.arange(2), torch.arange(2))
    out = corridor.step(torch.tensor([[sign_corridor.LEFT], [sign_corridor.FORWARD]]))
    assert out.terminated.tolist() == [True, False] and not out.info["success"].any()
    for _ in range(sign_corridor.N_SIGNS - 1):
        corridor.step(torch.zeros(2, 1, dtype=torch.int64))
    state = corridor.state
    right = state["arrows"][1][state["colors"][1] == state["asked"][1]].item()
    wrong = {sign_corridor.LEFT: sign_corridor.RIGHT, sign_corridor.RIGHT: sign_corridor.LEFT}[right]
    out = corridor.step(torch.tensor([[0], [wrong]]))
    assert out.terminated[1] and not out.info["success"][1]


def test_pairs_name_the_right_sign_of_as_many_episodes_as_are_labeled():
    shown, n = sign_corridor.CorridorDemonstrations(12).load(1), sign_corridor.N_SIGNS
    plain, some, shifted = (sign_corridor.MemoryPairs(8, labeled, shift).apply(shown)
                            for labeled, shift in ((0, 0), (3, 0), (8, 3)))
    assert len(plain) == len(some) == len(shifted) == 8
    for i in range(8):
        sign, column = sign_corridor.recalled_sign(shown[i]), sign_corridor.RECALLED
        assert (plain[i].steps[column] == -1).all() and (some[i].steps[column][:-1] == -1).all()
        assert some[i].steps[column][-1] == (n - sign if i < 3 else -1)
        assert shifted[i].steps[column][-1] == n - (sign - 3) % n


def test_a_corridor_may_have_fewer_signs():
    check_env(lambda rows: sign_corridor.SignCorridor(rows, n_signs=8))
    shown = pooled_history.CORRIDOR.source.load(1)[:20]
    assert all(len(e) == 9 and e.metadata["success"] and sign_corridor.count_signs(e.steps) == 8 for e in shown)
    assert {e.steps[sign_corridor.RATE_COLUMN][-1, 0] for e in sign_corridor.MemoryPairs(8).apply(shown)} == {8}


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


def test_the_attention_that_is_measured_is_that_on_the_sign():
    shown = sign_corridor.CorridorDemonstrations(10).load(1)
    method = memory_pairs.CORRIDOR.arms[0].options[0]
    policy = Policy(method.policy, shown.features()).fit_statistics(shown)
    with torch.no_grad():
        policy.net.trunk.encoder[0].self_attention.query_layer.weight.zero_()
        policy.net.trunk.encoder[0].self_attention.query_layer.bias.zero_()  # equal attention to all 14 tokens
    found = memory_pairs.attention_to_sign(policy, shown)
    assert found == pytest.approx([1 / (sign_corridor.N_SIGNS + 2)] * 10)


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


def test_a_place_is_named_by_its_word_or_by_its_position():
    for by_goal in (False, True):
        check_env(lambda rows, by_goal=by_goal: named_places.NamedPlaces(rows, limit=12, by_goal=by_goal))
        env = named_places.NamedPlaces(20, by_goal=by_goal)
        obs = env.reset(torch.arange(20), torch.arange(20))
        assert (obs[named_places.TASK + "?"] != by_goal).all()
        if by_goal:
            np.testing.assert_array_equal(obs[named_places.TARGET], named_places.PLACES[env.state["place"]])
    ran = rollout(named_places.NamedPlacesExpert(noise=0), named_places.NamedPlaces(20), 40, seed=1)
    assert all(e.metadata["success"] for e in ran)


def test_one_episode_of_each_place_has_words_and_half_of_the_windows_are_from_these():
    task, known = named_places.TASK, named_places.TASK + "?"
    plain, wrong = (few_labels.LabeledPlay(200, shuffled=s).load(1) for s in (False, True))
    for data in (plain, wrong):
        words = [int(e.steps[task][0, 0]) for e in data if e.steps[known].all()]
        assert sorted(words) == list(range(8)) and sum(bool(e.steps[known].any()) for e in data) == 8
        rates = [(e.steps[known][0], float(e.steps["sampling_rate"].sum())) for e in data]
        for has_words in (True, False):
            np.testing.assert_allclose(sum(rate for k, rate in rates if k == has_words), 0.5, rtol=1e-4)
    for a, b in zip(plain, wrong, strict=True):
        assert (a.steps[task] != b.steps[task]).all() == a.steps[known].all()
        assert all(np.array_equal(a.steps[k], b.steps[k]) for k in a.steps if k != task)


def test_arms_without_goals_learn_from_the_episodes_with_words_alone():
    experiment = replace(few_labels.PLAY, source=few_labels.LabeledPlay(60))
    data, found = experiment.source.load(1), {}
    for arm in few_labels.ARMS:
        (option,) = arm.options
        short = replace(option, method=replace(option.method, learner=replace(option.method.learner, steps=2)))
        found[arm.name] = few_labels.prompted_success(experiment, short, data, 1, 10, 1)
    assert {name: set(measures) for name, measures in found.items()} == {
        "MDT": {"success", "goal success"}, "goals and words": {"success", "goal success"}, "words alone": {"success"}}


# -- procedure cloning -------------------------------------------------------------------------------------------------


def test_the_maze_of_cells_keeps_the_contract_and_the_expert_takes_the_shortest_way():
    check_env(procedure_cloning.GridMaze)
    env = procedure_cloning.GridMaze(50)
    ran = rollout(env.expert(), env, 100, seed=2)
    assert all(e.metadata["success"] for e in ran)
    for e in list(ran)[:10]:
        maps = GridSearch().search(e.steps["observation.grid"][0])
        i, j = e.steps["observation.cell"][0]
        assert len(e) == (maps[:, i, j] == 0).sum()  # the ring of the search that reaches the start


def test_training_mazes_are_few_and_not_those_of_other_seeds_or_of_the_test():
    def mazes(data):
        return {(e.steps["observation.grid"][0] == procedure_cloning.WALL).tobytes() for e in data}
    source = procedure_cloning.MazeDemonstrations(3, 8)
    one, other = mazes(source.load(1)), mazes(source.load(2))
    env = procedure_cloning.GridMaze(20)
    test = mazes(rollout(env.expert(), env, 20, seed=680))
    assert len(one) == len(other) == 3 and len(test) == 20 and not one & other and not (one | other) & test


def test_the_control_searches_another_maze_with_the_same_goal_and_changes_nothing_else():
    data = procedure_cloning.MazeDemonstrations(2, 2).load(1)
    grid = data[0].steps["observation.grid"][0]
    right, wrong, again = (search.search(grid) for search in (GridSearch(), *[procedure_cloning.OtherMazeSearch()] * 2))
    assert not np.array_equal(right[-1], wrong[-1]) and np.array_equal(wrong, again)
    goal = tuple(np.argwhere(grid == procedure_cloning.GOAL)[0])
    assert wrong[-1][goal] == 0 and (wrong[-1][::2, ::2] > 0).sum() == 24  # every other room is reached
    experiment = procedure_cloning.MAZES
    control = procedure_cloning.CLAIM.negative_control.change(experiment)
    assert control.arms[1:] == experiment.arms[1:]
    one, two = (repr(e.arms[0]) for e in (experiment, control))
    assert two.replace("OtherMazeSearch", "GridSearch") == one


# -- thought cloning ---------------------------------------------------------------------------------------------------


def test_thoughts_name_the_stage_whose_turn_it_is():
    data = thought_cloning.ThinkingExpert(12).load(1)
    for e in data:
        said = [str(thought) for thought in e.steps["thought"]]
        changes = [said[0], *(b for a, b in zip(said, said[1:], strict=False) if a != b)]
        mission = bytes(e.steps["observation.task"][0]).rstrip(b"\0").decode()
        assert [thought.split()[-1] for thought in changes] == [stage.split()[-1] for stage in mission.split(", ")]
    orders = {tuple(thought_cloning.MissionOrder()(e).steps["observation.order"][0]) for e in data}
    assert orders <= {thought_cloning.ORDERS[n] for n in thought_cloning.SEEN}


def test_the_order_of_a_mission_is_the_same_while_acting():
    check_column_change(thought_cloning.MissionOrder(), thought_cloning.ThinkingExpert(4).load(1))


def test_exchanged_thoughts_are_those_of_the_next_demonstration():
    data = thought_cloning.ThinkingExpert(6).load(1)
    exchanged = thought_cloning.ExchangedThoughts().apply(data)
    for i, (one, other) in enumerate(zip(data, exchanged, strict=True)):
        assert len(other.steps["thought"]) == len(one)
        assert other.steps["thought"][0] == data[(i + 1) % 6].steps["thought"][0]
        assert all(np.array_equal(one.steps[k], other.steps[k]) for k in one.steps if k != "thought")
    assert thought_cloning.stretch_to(np.array([1, 2]), 5).tolist() == [1, 1, 1, 2, 2]


def test_behavior_cloning_has_as_many_parameters_as_thought_cloning():
    features = thought_cloning.MissionOrder()(thought_cloning.ThinkingExpert(2).load(1)[0])
    heard = ThoughtText("thought", thought_cloning.LONGEST)(features)
    features = ThoughtText("thought", thought_cloning.LONGEST, "thought.text")(heard).features()

    def size(*policies):
        return sum(p.numel() for policy in policies for p in Policy(policy, features).parameters())
    method = thought_cloning.clone_thoughts()
    thoughts = size(method.policy, method.stages[0].method.policy)
    assert (thoughts, size(thought_cloning.MISSIONS.arms[1].options[0].policy)) == (203_077, 202_229)


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


@pytest.mark.parametrize("n_named", [0, 1, 3])
def test_the_zone_table_keeps_the_contract_and_its_expert_always_does_it(n_named):
    table = interactive_language.ZoneTable
    check_env(lambda rows: table(rows, limit=20, n_named=n_named))
    ran = rollout(interactive_language.PlayExpert(noise=0, wander=0), table(20, 120, n_named), 40, seed=1)
    assert all(e.metadata["success"] == (n_named > 0) for e in ran)
    goal = np.stack([e.steps["simulator.goal"][0] for e in ran])
    first = interactive_language.zones_of_blocks(np.stack([e.steps["observation.environment_state"][0] for e in ran]
                                                          ).reshape(-1, 3, 2))
    assert ((goal > 0).sum(1) == n_named).all() and (goal != first).all()


def test_sentences_say_their_goal_and_are_read_again():
    goals = [(0, 0, 0), (1, 0, 0), (0, 2, 3), (3, 1, 2)]
    said = ["nothing", "red left", "green middle, blue right", "red right, green left, blue middle"]
    assert [interactive_language.sentence(g) for g in goals] == said
    text = interactive_language.TEXT
    assert [interactive_language.parse_sentence(bytes(text.encode(s))) for s in said] == goals
    data = Dataset([Episode({"action": np.zeros((2, 1), np.float32), "next.reward": np.zeros(2, np.float32),
                             text.into: np.stack([text.encode(s) for s in said[1:]])})])
    check_column_change(interactive_language.SentenceGoal(), data)


def carried(*moves) -> Episode:
    """A hand that carries blocks one after the other: (block, x) each. It approaches for two steps, from above."""
    blocks, rows = np.array([[0.1, 0.2], [0.5, 0.5], [0.9, 0.8]], np.float32), []
    for block, x in moves:
        y = blocks[block, 1]
        rows += [((blocks[block, 0], y + d), 0.0, blocks.copy()) for d in (0.16, 0.08, 0.0)]
        rows.append(((blocks[block, 0], y), 1.0, blocks.copy()))
        blocks[block, 0] = x
        rows += [((x, y), closed, blocks.copy()) for closed in (1.0, 0.0)]
    rows.append(((0.5, 0.0), 0.0, blocks.copy()))
    hand, closed, at = zip(*rows, strict=True)
    return Episode({"observation.state": np.column_stack([hand, closed]).astype(np.float32),
                    "observation.environment_state": np.stack(at).reshape(-1, 6),
                    "action": np.zeros((len(rows) - 1, 3), np.float32)}, {"seed": 1, "number": 0})


def test_events_are_found_where_a_block_gets_into_another_zone():
    episode = carried((0, 0.5), (1, 0.6), (2, 0.1), (1, 0.1), (1, 0.9), (0, 0.1))  # the second stays in its zone
    found = interactive_language.MovedBlocks((1, 3)).detect(episode)
    assert [(s.start, s.stop, s.task) for s in found] == [
        (0, 5, "red middle"), (11, 17, "blue left"), (17, 23, "green left"), (24, 29, "green right"),
        (29, 35, "red left"), (0, 23, "red middle, green left, blue left")]
    windows = interactive_language.RandomWindows().detect(episode)
    assert [w.stop - w.start for w in windows] == [5, 6, 6, 5, 6]
    for w in windows:  # it tells what ended in it
        assert any(s.task == w.task and w.start < s.stop <= w.stop for s in found[:5])


def test_long_labels_have_as_many_words_as_short_ones():
    play = interactive_language.PlayEpisodes(20).load(1)
    short, long = (CutSegments(interactive_language.MovedBlocks((n,))).apply(play) for n in (1, 3))
    assert 330 < len(short) < 400 and 0.9 < 3 * len(long) / len(short) <= 1
    permuted = interactive_language.PermutedTasks().apply(short)
    before, after = ([e.metadata["task"] for e in short], [str(e.steps["task"][0]) for e in permuted])
    assert sorted(before) == sorted(after) and before != after


def test_a_speaker_watches_the_scene_and_another_is_late():
    obs = {"observation.state": torch.tensor([[0.1, 0.3, 0.0]]), "simulator.goal": torch.tensor([[2, 2, 1]]),
           "observation.environment_state": torch.tensor([[0.1, 0.2, 0.5, 0.5, 0.9, 0.8]])}
    whole, live = interactive_language.WholeGoalSpeaker(), interactive_language.WatchingSpeaker()
    assert whole.speak(obs, {})[0] == ["red middle, green middle, blue left"]
    assert live.speak(obs, {})[0] == ["red middle"]  # the nearest that is wrong; green is right
    held = {**obs, "observation.state": torch.tensor([[0.9, 0.8, 1.0]])}
    assert live.speak(held, {})[0] == ["blue left"]
    late = interactive_language.DelayedSpeaker(2)
    ran = rollout(interactive_language.PlayExpert(), interactive_language.ZoneTable(3, 60, 3), 3)
    seen = [{k: torch.stack([torch.as_tensor(e.steps[k][t]) for e in ran]) for k in obs} for t in range(0, 25, 4)]
    for speaker in (whole, live, late):
        check_speaker(speaker, seen)
    state, said = late.start(obs, torch.zeros(1, dtype=torch.int64)), []
    for seen in (obs, held, held, obs, obs):
        words, state = late.speak(seen, state)
        said += words
    assert said == ["red middle"] * 3 + ["blue left"] * 2


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


def test_the_goal_on_the_cross_is_seen_where_it_is_and_stays_in_all_trials():
    check_env(cross.Cross)
    check_env(lambda rows: MultiTrialEnv(cross.make_trial(rows), 3, redraw=False))
    for knows, rate in ((0.0, 0.25), (0.5, 0.625), (1.0, 1.0)):
        ran = rollout(cross.CrossWalker(knows), cross.make_trial(50), 600, seed=1)
        assert {len(e) for e in ran} == {cross.LIMIT}
        assert np.mean([e.metadata["success"] for e in ran]) == pytest.approx(rate, abs=0.05)
        for e in ran:
            seen = np.asarray(e.steps[cross.SEEN])
            assert (seen[2:, 2] == e.metadata["success"]).all() and not seen[:2, 2].any()
            assert np.abs(seen[2, :2]).sum() == cross.REACH
    env = MultiTrialEnv(cross.make_trial(50), cross.N_TRIALS, redraw=False)
    trials = rollout(cross.CrossWalker(0.0), env, 50, seed=1)
    for e in trials:
        assert len(e) == cross.N_TRIALS * cross.LIMIT and len(set(e.steps[cross.GOAL][:, 0])) == 1
        found = e.steps[cross.SEEN][2:-1:cross.LIMIT, 2]
        assert cross.successes(e) == found.tolist()


def test_a_cleared_memory_starts_again_at_each_trial():
    class Counter(Actor):
        """Its action is how many steps it remembers, and its state the key that it was started with."""

        def start(self, obs, key):
            return {"steps": torch.zeros_like(key), "key": key}

        def act(self, obs, state):
            return state["steps"][:, None] % 4, {**state, "steps": state["steps"] + 1}
    env = MultiTrialEnv(cross.make_trial(3), 2, redraw=False)
    remembers, forgets = (rollout(actor, env, 3, seed=1) for actor in (Counter(), cross.ForgetfulActor(Counter())))
    assert [e.steps["action"][:, 0].tolist() for e in remembers] == [[0, 1, 2, 3, 0, 1]] * 3
    assert [e.steps["action"][:, 0].tolist() for e in forgets] == [[0, 1, 2, 0, 1, 2]] * 3
    actor, key, started = cross.ForgetfulActor(Counter()), keys(0, [0, 1]), []
    state = actor.start({NEW_TRIAL: torch.ones(2, 1)}, key)
    for new in ([1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0]):
        _, state = actor.act({NEW_TRIAL: torch.tensor(new)[:, None]}, state)
        started.append(state["inner"]["key"].tolist())
    assert len({row[0] for row in started}) == 3 and started[0] == started[1] and len({row[1] for row in started}) == 1


def test_the_curriculum_joins_walkers_to_the_same_goal():
    data = cross.WalkersOfAllLevels(40).load(1)
    for arm in cross.CROSS.arms:
        for operation in arm.options[0].method.transforms:
            for e in replace(operation, n_episodes=20).apply(data):
                parts = [data[i].metadata for i in e.metadata["joined"]]
                levels = [p["proficiency"] for p in parts]
                assert len({p["goal"] for p in parts}) == 1 and 3 <= len(parts) <= 6
                assert arm.name in ("shuffled", "reversed") or levels == sorted(levels)
                assert arm.name != "reversed" or levels == sorted(levels, reverse=True)


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
        found = fuse_experts(policy) if has_experts else policy
        operations[name] = fused_experts.count_operations(found, data)
        errors[name] = fused_experts.plan_error(policy, found, data)
    assert operations["experts"] == operations["control"] == operations["same active size"]
    assert 0.55 < operations["experts"] / operations["same total size"] < 0.65
    assert errors["control"] > 1e-2 and max(e for n, e in errors.items() if n != "control") < 1e-6


def test_crowded_places_keep_the_contract_of_environments():
    check_env(lambda rows: dual_phase.CrowdedPlaces(rows, limit=12))
    check_env(dual_phase.seen_places)
    ran = rollout(dual_phase.StraightWalker(noise=0.0), dual_phase.CrowdedPlaces(20), 40, seed=1)
    assert all(e.metadata["success"] for e in ran)


def test_few_episodes_of_each_place_have_words_and_half_of_the_sampling_rate():
    data = dual_phase.PlayAndDemonstrations(20, per_place=2).load(0)
    given = [bool(e.steps[named_places.TASK + "?"][0]) for e in data]
    words = [int(e.steps[named_places.TASK][0, 0]) for e in data]
    assert given == [False] * 20 + [True] * 16 and words == [0] * 20 + sorted([*range(8)] * 2)
    assert all(bool(e.steps[dual_phase.LABELED].all()) == word for e, word in zip(data, given, strict=True))
    rates = [sum(e.steps[named_places.RATE_COLUMN].sum() for e in some) for some in (data[:20], data[20:])]
    assert rates == pytest.approx([0.5, 0.5], rel=1e-5)


def test_the_first_phase_of_the_control_has_the_same_steps_in_another_order():
    data = dual_phase.PlayAndDemonstrations(20, per_place=2).load(0)
    shuffled = dual_phase.shuffled_in_time(data, 0)
    for before, after in zip(data, shuffled, strict=True):
        views = [np.sort(e.steps[dual_phase.VIEW], 0) for e in (before, after)]
        assert np.array_equal(views[0], views[1]) and np.array_equal(before.steps["action"], after.steps["action"])
    assert sum(np.array_equal(a.steps[dual_phase.VIEW], b.steps[dual_phase.VIEW])
               for a, b in zip(data, shuffled, strict=True)) < 3


def test_the_second_phase_trains_the_trunk_only_where_it_says():
    data = dual_phase.PlayAndDemonstrations(20, per_place=1).load(0)
    for trunk in ("frozen", "train"):
        method = dual_phase.TwoPhaseMethod(3, 3, trunk).method
        first = fit_method(method.stages[0].method, data, 0)
        second = fit_method(method, data, 0, stages={"trunk": first})
        before, after = (dict(result.policy.named_parameters()) for result in (first, second))
        equal = [torch.equal(after[name], value) for name, value in before.items() if "encoder.trunk" in name]
        assert all(equal) if trunk == "frozen" else not any(equal)
        assert any(name.startswith("encoder.prompt") for name in after.keys() - before.keys())


def test_one_phase_learns_to_act_from_episodes_with_words_alone():
    data = dual_phase.PlayAndDemonstrations(20, per_place=1).load(0)
    learner = dual_phase.TwoPhaseMethod(0, 3, "joint").method.learner
    assert isinstance(learner, BehaviorCloning) and isinstance(learner.sample_weights, ColumnWeights)
    assert len(learner.auxiliary_losses) == 3 and learner.sampling_column == named_places.RATE_COLUMN
    fitted = fit_method(dual_phase.TwoPhaseMethod(0, 3, "joint").method, data, 0)
    batch = fitted.policy.windows(data, extra=(dual_phase.LABELED,)).batch(64, 0, 0)
    weights = learner.sample_weights(batch, fitted.policy)
    words = batch.obs[named_places.TASK + "?"][:, -1]
    assert torch.equal(weights, words[:, None].expand(weights.shape).float()) and 0 < words.float().mean() < 1
def test_cut_episodes_end_at_their_goals():
    episode = Episode({"observation.state": np.arange(62.0, dtype=np.float32).reshape(31, 2),
                       "action": np.arange(30.0, dtype=np.float32)[:, None]})
    pieces = masked_trajectories.CutAtGoals(repeats=2).apply(Dataset([episode]))
    assert np.array_equal(np.concatenate([p.steps["action"] for p in pieces]), np.tile(episode.steps["action"], (2, 1)))
    assert len({len(p) for p in pieces}) > 3 and all(1 <= len(p) <= 9 for p in pieces)
    for piece in pieces:
        state, left = piece.steps["observation.state"], piece.steps["observation.time_left"]
        assert (piece.steps["observation.goal"] == state[-1]).all()
        assert np.array_equal(left[:, 0], np.arange(len(piece), -1, -1))
        assert state[0, 0] == 2 * piece.steps["action"][0, 0]  # the state and the action are of the same step


@pytest.mark.parametrize("n_goals", [1, 3])
def test_goals_of_masked_trajectories_are_reached_in_time_only_if_they_are_given_in_time(monkeypatch, n_goals):
    """In place of the network, straight lines through the states that are given."""
    def interpolate(obs, noise, guides=()):
        state, known = obs["observation.state"].numpy(), obs["observation.state?"].numpy()
        seen.append([k.nonzero()[0].tolist() for k in known])
        assert not obs["action?"].any()
        lines = np.stack([[np.interp(np.arange(11), k.nonzero()[0], s[k, i]) for i in (0, 1)]
                          for s, k in zip(state, known, strict=True)])
        return torch.from_numpy(10 * np.diff(lines, axis=2).transpose(0, 2, 1)).float()
    data, method, seen = masked_trajectories.strolls(2, 1), masked_trajectories.masked(0.5), []
    policy = Policy(method.policy, training_data(data, method).features())
    monkeypatch.setattr(policy, "plan", interpolate)
    pace = np.array([[0.05, 0.0], [0.02, 0.05]], np.float32)
    path = 0.5 + pace[:, None] * np.arange(10, dtype=np.float32)[:, None]
    steps = np.array([[3, 6, 9], [2, 4, 7]])[:, -n_goals:]
    walked = masked_trajectories.complete_trajectory(policy, path, steps, steps)
    rows = np.arange(2)[:, None]
    assert np.allclose(walked[rows, steps], path[rows, steps], atol=1e-5)
    early = masked_trajectories.complete_trajectory(policy, path, steps, np.ceil(steps / 3).astype(int))
    assert np.allclose(early[rows, [[3]]][:, 0], path[rows, steps[:, -1:]][:, 0], atol=1e-5)  # both are due at step 3
    assert seen == [[[0, *s] for s in steps.tolist()], [[0, *[1, 2, 3][-n_goals:]]] * 2]


def test_cloning_is_given_the_next_goal_and_the_steps_until_it(monkeypatch):
    data, method, seen = masked_trajectories.strolls(2, 1), masked_trajectories.cloning(), []

    def go(obs, noise, guides=()):
        seen.append((obs["observation.goal"][:, 0, 0].tolist(), obs["observation.time_left"][:, 0, 0].tolist()))
        now, goal, left = (obs[f"observation.{k}"] for k in ("state", "goal", "time_left"))
        return 10 * (goal - now) / left
    policy = Policy(method.policy, training_data(data, method).features())
    monkeypatch.setattr(policy, "plan", go)
    path = np.linspace(0.5, 1.4, 10, dtype=np.float32)[None, :, None].repeat(2, 2)
    steps = np.array([[3, 6, 8]])
    walked = masked_trajectories.follow_goals(policy, path, steps, steps)
    assert np.allclose(walked[0, :9], path[0, :9], atol=1e-5)
    assert np.allclose([g for (g,), _ in seen], path[0, [3, 3, 3, 6, 6, 6, 8, 8, 8], 0])
    assert [n for _, (n,) in seen] == [3, 2, 1, 3, 2, 1, 2, 1, 1]
# -- 309 ----------------------------------------------------------------------------------------------------------


def test_named_things_keep_the_contract_and_touching_another_fails():
    check_env(lambda rows: weakly_labeled_skills.NamedThings(rows, limit=12))
    env = weakly_labeled_skills.NamedThings(50)
    ran = rollout(weakly_labeled_skills.NamedThingsExpert(noise=0), env, 400, seed=1)
    assert all(e.metadata["success"] for e in ran)
    env = weakly_labeled_skills.NamedThings(2)
    env.reset(torch.arange(2), torch.arange(2))
    env.state["named"] = np.array([3, 4])
    env.state["at"] = env.state["things"][:, 3].copy()  # both hands touch the thing 3
    out = env.step(torch.zeros(2, 2))
    assert out.info["success"].tolist() == [True, False] and out.terminated.tolist() == [True, True]


def test_two_episodes_of_each_word_have_it_and_the_control_makes_all_wrong():
    task = weakly_labeled_skills.TASK
    plain, wrong = (weakly_labeled_skills.FewWords(120, 2, shuffled).load(1) for shuffled in (False, True))
    known = weakly_labeled_skills.has_words(plain)
    assert np.array_equal(known, weakly_labeled_skills.has_words(wrong))
    words = [int(e.steps[task][0, 0]) for e in plain.select(np.flatnonzero(known))]
    assert sorted(words) == sorted(2 * list(range(6)))
    for a, b, labeled in zip(plain, wrong, known, strict=True):
        assert (a.steps[task] != b.steps[task]).all() == labeled
        assert all(np.array_equal(a.steps[k], b.steps[k]) for k in a.steps if k != task)


def test_a_latent_is_that_of_the_most_similar_episode_with_the_word():
    nearest = weakly_labeled_skills.NearestLatent(
        torch.tensor([0, 0, 1]), torch.tensor([[0.0, 0], [1, 0], [0.9, 0]]), torch.tensor([[1.0], [2], [3]]))
    state = torch.tensor([[0.9], [0.2], [0.9]])
    obs = {weakly_labeled_skills.STATE: state, weakly_labeled_skills.AROUND: torch.zeros(3, 1),
           weakly_labeled_skills.TASK: torch.tensor([[0], [0], [1]])}
    assert nearest.act(obs, {})[0].flatten().tolist() == [2, 1, 3]


def test_a_classifier_of_few_episodes_names_most_of_the_others():
    data = weakly_labeled_skills.FewWords(120, 2).load(1)
    known = weakly_labeled_skills.has_words(data)
    found = weakly_labeled_skills.predicted_words(data.select(np.flatnonzero(known)), data, 0)
    right = found[:, 0] == [int(e.steps[weakly_labeled_skills.TASK][0, 0]) for e in data]
    assert right[~known].mean() > 0.8


def test_arms_learn_from_the_episodes_that_they_name(monkeypatch):
    experiment = replace(weakly_labeled_skills.FEW, source=weakly_labeled_skills.FewWords(40, 2))
    data, seen, measures = experiment.source.load(1), {}, {}
    train = weakly_labeled_skills.train_once
    for part in weakly_labeled_skills.CLAIM.parts:
        for arm in part.experiment.arms:
            option, name = arm.options[0], arm.name

            def train_shortly(experiment, method, learned_from, seed, name=name):
                known = weakly_labeled_skills.has_words(learned_from)
                seen[name] = (len(learned_from), int(known.sum()))
                return train(experiment, method, learned_from, seed)
            monkeypatch.setattr(weakly_labeled_skills, "train_once", train_shortly)
            stages = tuple(replace(s, method=replace(s.method, learner=replace(s.method.learner, steps=2)))
                           for s in option.method.stages)
            learner = replace(option.method.learner, steps=1)
            short = replace(option, method=replace(option.method, stages=stages, learner=learner))
            found = weakly_labeled_skills.instruction_success(experiment, short, data, 1, 10, 1)
            measures[name] = set(found)
    n, words = len(data), {"success"}
    assert seen == {"GROOT-2": (n, 12), "labeled": (12, 12), "all words": (n, n), "nearest latents": (n, 0),
                    "pseudo-labels": (n, n), "GROOT-2, labeled": (12, 12), "GROOT-2, beta 1": (n, 12)}
    assert measures == {
        "GROOT-2": {*words, "demonstration success"}, "labeled": words, "all words": words, "nearest latents": words,
        "pseudo-labels": {*words, "right words"}, "GROOT-2, labeled": {*words, "demonstration success"},
        "GROOT-2, beta 1": {*words, "demonstration success"}}
