"""What recorded actions do where a policy acts."""

from dataclasses import replace

import numpy as np
import pytest

from understudy.audit.base import component_names
from understudy.audit.motion import fit_lags
from understudy.core import role
from understudy.data.episode import Dataset, Episode
from understudy.diagnose import motion
from understudy.diagnose.fit_checks import check_chunks
from understudy.diagnose.runner import (
    PROBES,
    Recorded,
    RecordedActions,
    _compare,
    _transitions,
    _try_shorter_plans,
    observe_environment,
)
from understudy.envs import make
from understudy.envs.toys.planar_arms import PlanarArms
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RecedingHorizon


class SwappedArm(PlanarArms):
    def step(self, action, *others):
        return super().step(action[:, [1, 0]], *others)


@pytest.mark.parametrize(("arm", "found"), [(PlanarArms, []), (SwappedArm, [("component-order", 2)])])
@pytest.mark.parametrize("task", ["reach", "track"])
def test_exchanged_joints_are_no_other_scale(task, arm, found):
    """Of an arm with two links that clips its actions, each joint was said to move 0.001 times as far."""
    data = rollout(PlanarArms(16, task=task, arm="two").expert(), PlanarArms(16, task=task, arm="two"), 40, seed=1)
    features = {n: f for n, f in data.features().items() if role(n) in ("observation", "action")}
    probes = rollout(RecordedActions.of(data), arm(16, task=task, arm="two"), PROBES, -3)
    model = motion.motion_model(fit_lags(_transitions(data, features)))
    states = [f"{n}[{part}]" for n, f in features.items() if n != "action" for part in component_names(f)]
    findings = list(motion.check_motion(model, _transitions(data, features), _transitions(probes, features),
                                        component_names(features["action"]), states))
    assert [(f.code, f.value) for f in findings] == found
    assert all("action joint.1 moves observation.state[joint.0], joint.0 moves" in f.message for f in findings)


def test_actions_in_another_unit_that_limits_cut_off_are_judged_by_their_size():
    """What they do is that of the limits: of degrees it was said that they have -0.003 times their effect."""
    env = make("planar_arms", 16)
    data = rollout(env.expert(), env, 40, seed=1)
    degrees = data.map(lambda e: e.replace({"action": np.float32(57.29578) * np.asarray(e.steps["action"])}))
    observed = replace(observe_environment(env, None, degrees, 0), episodes=degrees.select([]))
    recorded = Recorded(degrees, [], range(len(degrees)))
    findings = list(_compare(None, recorded, observed, [*observed.probes], False))
    assert [(f.code, f.value) for f in findings] == [("action-units", pytest.approx(57.3))]


def test_shorter_plans_are_tried_where_the_policy_fails(monkeypatch):
    """They help from every third start. That is not sure after 12 starts, and after 36 it is."""
    episodes = []

    def rolled_out(actor, env, n, seed, first=0):
        episodes.append((actor.executor.n_action_steps, first, n))
        succeeds = [actor.executor.n_action_steps == 2 and i % 3 == 0 for i in range(first, first + n)]
        return Dataset([Episode({"action": np.zeros((1, 1))}, {"success": s}) for s in succeeds])
    monkeypatch.setattr("understudy.diagnose.runner.rollout", rolled_out)
    executor = RecedingHorizon(8)
    trials = _try_shorter_plans(PolicyActor(None, executor), executor, None, [False] * 12, -3)
    assert episodes == [(1, 0, 12), (2, 0, 12), (8, 12, 24), (2, 12, 24)]
    assert [(t.n_action_steps, t.gains, t.losses, len(t.successes)) for t in trials] == [(1, 0, 0, 12), (2, 12, 0, 36)]
    finding, = check_chunks(trials, 8)
    assert finding.level == "fault" and finding.healthy == (1, 2)


def test_actions_that_were_not_recorded_are_not_repeated():
    """They ended the diagnosis with an error that called the policy diverged."""
    env = make("fork", 4)
    data = rollout(env.expert(), env, 3, seed=1)
    hidden = [e.replace({"action": np.full_like(np.asarray(e.steps["action"]), np.nan)}) for e in data]
    probes = observe_environment(env, None, type(data)([*hidden[:2], data[2]], data.metadata), 0).probes
    assert probes is not None and len(probes) == PROBES
    np.testing.assert_array_equal(probes[0].steps["action"][:5], np.asarray(data[2].steps["action"])[:5])
    assert observe_environment(env, None, type(data)(hidden, data.metadata), 0).probes is None
