"""Worlds and arms of the claims on evaluation and deployment are as they say."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from claims.evaluation import functional_manipulation as fmb
from claims.evaluation import imitation_promise, pretrained_behavior
from claims.interactive_deployment import preemptive_restart
from fixtures.claim_worlds import directions

from evidence.memo import empty_memos
from understudy.data.episode import Dataset, Episode
from understudy.evaluate.rollout import rollout
from understudy.testing import check_env

# -- 025 ----------------------------------------------------------------------------------------------------------


def test_assembly_keeps_the_contract_and_its_expert_always_does_it():
    check_env(lambda rows: fmb.Assembly(rows, limit=30))
    episodes = rollout(fmb.AssemblyExpert(noise=0.0), fmb.Assembly(50, sizes=fmb.SEEN_SIZES + fmb.UNSEEN_SIZES), 100,
                       seed=2)
    assert all(e.metadata["success"] for e in episodes)
    for e in episodes:  # all four skills, in their order
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
    episodes = rollout(fmb.AssemblyExpert(), fmb.Assembly(20), 20, seed=3)
    states = np.concatenate([e.steps["observation.state"] for e in episodes])
    upright, is_held = states[:, 5] == 1, states[:, 2] == 1
    assert np.array_equal(np.concatenate([e.steps["observation.skill"] for e in episodes]).argmax(1),
                          2 * upright + is_held)


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
        return sum(p.numel() for p in fmb.fit_method(method, data, 1).policy.parameters())
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
        directions_of = {s: directions([e for e in data if e.metadata["set"] == s])
                         for s in ("base", "broader", "imitation",
                                                                                              "held")}
        assert [len(v) for v in directions_of.values()] == [6, 24, 24, 4]
        inside = {s: (np.cos(np.radians(v)) > 0).all() for s, v in directions_of.items()}
        assert inside["held"] and inside["imitation"] == (not wide) and not inside["broader"]


def test_pretraining_never_sees_the_new_task_and_its_twin_sees_other_actions(monkeypatch):
    claim, trainings = pretrained_behavior, []
    def fit(method, data, seed, policy=None):
        trainings.append((data, policy))
        return SimpleNamespace(policy=len(trainings))
    monkeypatch.setattr(claim, "fit_method", fit)
    monkeypatch.setattr(claim, "rollout_policy", lambda policy, *rest: [])
    data = claim.MultiTaskDemonstrations(12, 6).load(1)
    with empty_memos():
        for method in (claim.TransferMethod(2, False), claim.TransferMethod(2, True),
                       claim.TransferMethod(2, True, shuffle_pretraining=True)):
            claim.new_task_success(None, method, data, 1, 5, 0)
    (scratch, none), (before, _), (after, began), (mixed, _), _ = trainings
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
