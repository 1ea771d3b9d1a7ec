"""What recorded actions do where a policy acts."""

import numpy as np
import pytest

from understudy.audit.base import component_names
from understudy.audit.motion import fit_lags
from understudy.core import role
from understudy.diagnose import motion
from understudy.diagnose.runner import PROBES, RecordedActions, _transitions, observe_environment
from understudy.envs import make
from understudy.envs.toys.planar_arms import PlanarArms
from understudy.evaluate.rollout import rollout


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


def test_actions_that_were_not_recorded_are_not_repeated():
    """They ended the diagnosis with an error that called the policy diverged."""
    env = make("fork", 4)
    data = rollout(env.expert(), env, 3, seed=1)
    hidden = [e.replace({"action": np.full_like(np.asarray(e.steps["action"]), np.nan)}) for e in data]
    probes = observe_environment(env, None, type(data)([*hidden[:2], data[2]], data.metadata), 0).probes
    assert probes is not None and len(probes) == PROBES
    np.testing.assert_array_equal(probes[0].steps["action"][:5], np.asarray(data[2].steps["action"])[:5])
    assert observe_environment(env, None, type(data)(hidden, data.metadata), 0).probes is None
