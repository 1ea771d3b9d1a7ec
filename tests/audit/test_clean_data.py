"""The audit is silent on clean demonstrations of many kinds, and still finds defects in data of these kinds."""

from __future__ import annotations

import numpy as np
import pytest
from clean_data import ACTION, CAMERA, KINDS, STATE, fine_end, position_arm, slow_images, velocity_arm

from understudy.audit import action_motion as motion_checks
from understudy.audit import checks, find_problems
from understudy.data.episode import Dataset
from understudy.data.formats import open_dataset

RECORDED = ("hand_dapg/adroit_door_human", "imitation/pendulum_expert", "imitation/cartpole_expert")


def alarms(data) -> list[tuple[str, str]]:
    return [(f.code, f.message) for f in find_problems(data, frames=True) if f.severity != "note"]


def test_the_clean_sets_are_many():
    assert sum(seeds for _, seeds in KINDS.values()) >= 30
    assert len(KINDS) >= 12


@pytest.mark.parametrize("kind", KINDS)
def test_clean_data_raise_no_alarm(kind):
    build, seeds = KINDS[kind]
    assert {seed: alarms(build(seed)) for seed in range(seeds)} == {seed: [] for seed in range(seeds)}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_data_raise_no_alarm(name, shared):
    file = shared / "data" / f"{name}.npz"
    if not file.exists():
        pytest.skip(f"{file.name} is not here")
    data = open_dataset(file)
    few = [e.replace({n: None for n in e.steps if n.startswith("next.")}) for e in data[:20]]
    assert alarms(Dataset(few, data.metadata)) == []


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("few", [2, 7])
def test_mixed_conventions_are_found_where_the_state_has_velocities(seed, few):
    """Of the velocities that were commanded, `few` episodes have the joint positions to be reached instead."""
    data = velocity_arm(seed)
    joints = data[0].steps[ACTION].shape[1]
    spoilt = [
        e.replace({ACTION: np.asarray(e.steps[STATE])[1:, :joints]}) if i < few else e for i, e in enumerate(data)
    ]
    findings = [f for f in motion_checks.check_action_convention(Dataset(spoilt, data.metadata))]
    assert [(f.code, f.severity, f.where.episode) for f in findings] == [("convention-mixed", "warning", 0)]
    assert f"look like positions in {few} episodes" in findings[0].message
    assert "explains" in findings[0].message  # how sure it is


@pytest.mark.parametrize("seed", [0, 2])
def test_mixed_conventions_are_found_where_positions_are_commanded(seed):
    data = position_arm(seed)
    spoilt = [e.replace({ACTION: e.steps[ACTION] - np.asarray(e.steps[STATE])[:-1]}) if i in (3, 8) else e
              for i, e in enumerate(data)]
    findings = [f for f in motion_checks.check_action_convention(Dataset(spoilt, data.metadata))]
    assert [(f.code, f.where.episode) for f in findings] == [("convention-mixed", 3)]


def changed(data: Dataset, episodes, change) -> Dataset:
    """The data, with other actions in some episodes."""
    return Dataset([e.replace({ACTION: change(np.array(e.steps[ACTION]))}) if i in episodes else e
                    for i, e in enumerate(data)], data.metadata)


def turned(action: np.ndarray) -> np.ndarray:
    return action * np.where(np.arange(action.shape[1]) == 1, -1, 1).astype(action.dtype)


def exchanged(action: np.ndarray) -> np.ndarray:
    return action[:, [1, 0, *range(2, action.shape[1])]]


@pytest.mark.parametrize("build", [velocity_arm, position_arm])
@pytest.mark.parametrize(("change", "code", "text"), [
    (turned, "sign-differs", "[1] has the other sign"), (exchanged, "components-swapped", "[1] are exchanged")])
def test_one_joint_that_differs_in_a_few_episodes_is_named(build, change, code, text):
    few = (3, 8)
    findings = [f for f in motion_checks.check_component_pairs(changed(build(0), few, change)) if f.code == code]
    assert [(f.severity, f.episodes) for f in findings] == [("warning", few)]
    assert text in findings[0].message and "3, 8" in findings[0].message


def test_a_joint_that_was_turned_around_after_half_of_the_episodes_is_named():
    data = position_arm(0)
    findings = [*motion_checks.check_component_pairs(changed(data, range(len(data) // 2), turned))]
    assert [f.code for f in findings] == ["sign-differs"]
    assert findings[0].episodes in (tuple(range(len(data) // 2)), tuple(range(len(data) // 2, len(data))))


@pytest.mark.slow
def test_most_turned_and_many_exchanged_components_are_found():
    """The figures of docs/audit.md."""
    found = dict.fromkeys(("turned", "half turned", "exchanged"), 0)
    tried = dict(found)
    for build, seeds in KINDS.values():
        for data in map(build, range(min(seeds, 2))):
            action = data[0].steps.get(ACTION, np.zeros(1))
            if action.dtype.kind != "f" or action.ndim != 2:
                continue
            half = tuple(range(0, len(data), 2))
            for name, few, change in (("turned", (3, 8), lambda a: a * np.array([-1.0, *[1.0] * (a.shape[1] - 1)])),
                                      ("half turned", half, lambda a: a * np.array([-1.0, *[1.0] * (a.shape[1] - 1)])),
                                      ("exchanged", (3, 8), exchanged)):
                if name == "exchanged" and action.shape[1] < 2:
                    continue
                code = "components-swapped" if name == "exchanged" else "sign-differs"
                groups = (few, tuple(e for e in range(len(data)) if e not in few)) if few == half else (few,)
                findings = [*motion_checks.check_component_pairs(changed(data, few, change))]
                assert all(any({*f.episodes} <= {*group} for group in groups) for f in findings if f.code == code)
                found[name] += any(f.code == code for f in findings)
                tried[name] += 1
    assert tried == {"turned": 34, "half turned": 34, "exchanged": 30}
    assert found == {"turned": 28, "half turned": 27, "exchanged": 16}


def test_a_camera_that_hangs_is_found_in_slow_small_pictures():
    """For 40 steps, in which the disc moves by several pixels."""
    for build in (slow_images, fine_end):
        data = build(1)
        e = 5
        frames = np.array(data[e].steps[CAMERA])
        frames[:40] = frames[0]
        spoilt = Dataset([x.replace({CAMERA: frames}) if i == e else x for i, x in enumerate(data)], data.metadata)
        findings = [f for f in checks.check_images(spoilt) if f.code == "image-frozen"]
        assert [(f.severity, f.where.episode, f.where.step, f.where.feature) for f in findings] == [
            ("warning", e, 0, CAMERA)], build.__name__
        assert "%" in findings[0].message


def test_walls_that_stand_in_few_episodes_are_of_no_other_magnitude():
    """A component that is 0 throughout an episode has no magnitude; one that is 300 times larger has."""
    rng = np.random.default_rng(0)
    data = velocity_arm(0)
    flag = "observation.environment_state"

    def with_flags(high):
        return Dataset([e.replace({flag: np.full((len(e) + 1, 3), [1, i % 4 == 0, rng.random() + 0.5], np.float32)
                                   * (high if i == 2 else 1)}) for i, e in enumerate(data)], data.metadata)
    assert [f for f in motion_checks.check_units(with_flags(1)) if f.where.feature == flag] == []
    assert [f.where.episode for f in motion_checks.check_units(with_flags(300)) if f.where.feature == flag] == [2]
