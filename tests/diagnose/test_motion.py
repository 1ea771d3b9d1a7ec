"""Motion of a known linear arm, s' = s + 0.1 B a: what is changed is found, with the numbers of the change."""

import warnings

import numpy as np
import pytest

from understudy.audit.motion import fit_lags
from understudy.diagnose.effects import trimmed_least_squares
from understudy.diagnose.motion import check_motion, check_recorded_lag, motion_model, unit_of_ratio

B = np.array([[1.0, 0.2], [0.0, 0.5]])
NAMES, STATES = ["pan", "lift"], ["state[pan]", "state[lift]"]


def episodes(effect=lambda a, s: a, n=12, length=40, delay=0, seed=0, absolute=False):
    """Episodes with smooth random actions. `effect` says what is executed."""
    rng, out = np.random.default_rng(seed), []
    for _ in range(n):
        actions = rng.normal(size=(length, 2)).cumsum(0) * 0.2 + rng.normal(size=(length, 2))
        states = [rng.normal(size=2)]
        for t in range(length):
            executed = effect(actions[max(t - delay, 0)], states[-1])
            pull = executed - states[-1] if absolute else executed
            states.append(states[-1] + 0.1 * B @ pull + 1e-4 * rng.normal(size=2))
        out.append((np.array(states), actions))
    return out


def fit_motion(pairs):
    return motion_model(fit_lags(pairs))


def findings(**change):
    absolute = change.get("absolute", False)
    recorded = episodes(absolute=absolute)
    return list(check_motion(fit_motion(recorded), recorded, episodes(seed=1, n=6, **change), NAMES, STATES))


def test_many_episodes_that_are_shorter_than_the_largest_lag_have_fits_of_the_others():
    """A model without rows divided by zero, with a warning of NumPy."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fits = fit_lags(episodes(n=120, length=14))
    assert {-1, 0, 1} <= set(fits) and max(fits) < 14


@pytest.mark.parametrize("absolute", [False, True])
def test_the_same_arm_has_no_finding(absolute):
    model = fit_motion(episodes(absolute=absolute))
    assert model.lag == 0 and model.driven == {0: 0, 1: 1}
    np.testing.assert_allclose(model.weights_of_actions, 0.1 * B.T, atol=1e-3)
    assert not list(check_recorded_lag(fit_lags(episodes(absolute=absolute)), {})) and not findings(absolute=absolute)


def only(change, code):
    finding, = findings(**change)
    assert (finding.code, finding.level) == (code, "fault")
    return finding


def test_a_turned_sign():
    finding = only({"effect": lambda a, s: a * [1, -1]}, "sign-flip")
    assert finding.value == pytest.approx(-1, abs=0.05) and finding.where.feature == "lift"


def test_a_scaled_component():
    assert only({"effect": lambda a, s: a * [1, 0.3]}, "action-scale").value == pytest.approx(0.3, abs=0.02)


def test_an_action_that_moves_nothing_is_no_matter_of_units():
    finding = only({"effect": lambda a, s: a * [1, 0]}, "action-scale")
    assert "hardly moves what it moves in the data" in finding.message and "order of the data" in finding.remedy
    assert "longer delays are not tried" in finding.remedy


def test_an_action_that_moves_another_joint():
    finding = only({"effect": lambda a, s: a[..., ::-1]}, "component-order")
    assert finding.value == 2 and "action lift moves state[pan], pan moves state[lift]" in finding.message


def test_degrees_for_radians():
    finding = only({"effect": lambda a, s: a / 57.29578}, "action-units")
    assert finding.value == pytest.approx(1 / 57.3, rel=0.1) and "degrees" in finding.message


def test_an_offset_is_in_standard_deviations_of_the_action():
    finding = only({"effect": lambda a, s: a + [0.0, 0.9]}, "calibration-drift")
    spread = np.concatenate([a for _, a in episodes()]).std(0)[1]
    assert finding.value == pytest.approx(0.9 / spread, rel=0.05) and finding.where.feature == "lift"


def test_an_offset_behind_limits():
    finding = only({"effect": lambda a, s: np.clip(a + [0.0, 0.9], -1, 1)}, "calibration-drift")
    assert finding.value > 0.25


@pytest.mark.parametrize("gain", [1.8, 2.0, 4.0])
def test_a_larger_scale_behind_limits(gain):
    """Many steps are at a limit with each scale. These were taken for steps as in the data."""
    recorded, probes = ([(s, np.clip(a, -2, 2)) for s, a in part] for part in (
        episodes(lambda a, s: np.clip(a, -2, 2)),
        episodes(lambda a, s: np.clip(gain * np.clip(a, -2, 2), -2, 2), n=6, seed=1)))
    finding, = check_motion(fit_motion(recorded), recorded, probes, NAMES, STATES)
    assert (finding.code, finding.value) == ("action-scale", pytest.approx(gain, rel=0.1))


@pytest.mark.parametrize("convention", [1, -1])
def test_another_convention_behind_limits(convention):
    """Positions of small spread, which are added to velocities or subtracted, were called drift or another scale."""
    rng = np.random.default_rng(3)

    def walks(n, convention):
        out = []
        for _ in range(n):
            actions = np.clip(np.repeat(rng.normal(size=(20, 2)), 4, 0), -1, 1)
            states = [0.2 + 0.6 * rng.random(2)]
            for a in actions:
                states.append(np.clip(states[-1] + 0.02 * np.clip(a + convention * states[-1], -1, 1), 0, 1))
            out.append((np.array(states), actions))
        return out
    recorded = walks(40, 0)
    assert not list(check_motion(fit_motion(recorded), recorded, walks(10, 0), NAMES, STATES))
    finding, = check_motion(fit_motion(recorded), recorded, walks(10, convention), NAMES, STATES)
    assert (finding.code, finding.value) == ("action-convention", convention)


def test_positions_subtracted_from_targets():
    """The arm rests at half of its target, so that the actions were said to have half of their effect."""
    rng = np.random.default_rng(4)

    def follow(n, convention):
        out = []
        for _ in range(n):
            actions = 0.5 + 0.2 * rng.normal(size=2) + np.cumsum(0.03 * rng.normal(size=(60, 2)), axis=0)
            states = [actions[0] / (1 - convention) + 0.05 * rng.normal(size=2)]
            for a in actions:
                way = 0.3 * (a + convention * states[-1] - states[-1])
                states.append(states[-1] + np.clip(way, -0.03, 0.03))
            out.append((np.array(states), actions))
        return out
    recorded = follow(40, 0)
    assert not list(check_motion(fit_motion(recorded), recorded, follow(10, 0), NAMES, STATES))
    finding, = check_motion(fit_motion(recorded), recorded, follow(10, -1), NAMES, STATES)
    assert (finding.code, finding.value) == ("action-convention", -1)


@pytest.mark.parametrize(("value", "code"), [(0.5, "constant-sensor"), (1.0, "action-scale")])
def test_a_component_with_one_value(value, code):
    """Within its range a sensor hangs. At an end of it, a joint may be held there."""
    recorded, probes = at_walls(20), [(np.full_like(s, value), a) for s, a in at_walls(10, 1)]
    finding, = check_motion(fit_motion(recorded), recorded, probes, ["grip"], ["state[grip]"])
    assert (finding.code, finding.level) == (code, "fault")


@pytest.mark.parametrize("delay", [1, 2, 3])
def test_a_delay_is_counted_in_steps(delay):
    finding = only({"delay": delay}, "latency")
    assert finding.value == delay and f" {delay} step" in finding.message


def test_absolute_actions_taken_as_relative_ones():
    finding = only({"absolute": True, "effect": lambda a, s: a + s}, "action-convention")
    assert finding.value == pytest.approx(1, abs=0.05) and "as relative ones" in finding.message


def test_relative_actions_taken_as_absolute_ones():
    finding = only({"effect": lambda a, s: a - s}, "action-convention")
    assert finding.value == pytest.approx(-1, abs=0.05) and "as absolute ones" in finding.message


FOLLOWS = np.array([0.8, 0.5, 0.35, 0.6])  # fraction of the way to its target that a joint moves in a step
JOINTS = [f"j{i}" for i in range(4)]


def follower(seed, n, pieces, delay=0, effect=lambda a: a, order=(0, 1, 2, 3)):
    """Episodes of an arm with a speed limit whose actions are absolute targets.

    Args:
        pieces: Number of recordings, from different starts, whose targets follow each other in an episode.
    """
    rng, out = np.random.default_rng(seed), []
    for _ in range(n):
        aims = np.concatenate([0.5 * rng.normal(size=4) + 0.02 * rng.normal(size=(20, 4))
                               + np.cumsum(0.05 * rng.normal(size=4) + 0.02 * rng.normal(size=(20, 4)), axis=0)
                               for _ in range(pieces)])
        states = [aims[0] + 0.05 * rng.normal(size=4)]
        for t in range(len(aims)):
            way = FOLLOWS * (effect(aims[max(t - delay, 0)]) - states[-1])
            states.append(states[-1] + np.clip(way, -0.2, 0.2))
        out.append((np.array(states)[:, order] + 1e-3 * rng.normal(size=(len(states), 4)), aims))
    return out


def of_follower(seed, **change):
    recorded, probes = follower(seed, 40, 1), follower(seed + 100, 10, 4, **change)
    found = list(check_motion(fit_motion(recorded), recorded, probes, JOINTS, [f"state[{n}]" for n in JOINTS]))
    return [(f.code, f.value) for f in found], "".join(f.message for f in found)


@pytest.mark.parametrize("seed", range(4))
def test_targets_that_an_arm_follows_slowly(seed):
    assert of_follower(seed)[0] == []
    for delay in (1, 3, 5, 8, 14, 20):
        assert of_follower(seed, delay=delay)[0] == [("latency", delay)]
    assert "at least 20 steps later" in of_follower(seed, delay=20)[1]
    for effect, code in ((lambda a: a * [1, -1, 1, 1], "sign-flip"), (lambda a: a * [1, 1, 0.3, 1], "action-scale"),
                         (lambda a: a + [0, 0, 0, 0.6], "calibration-drift")):
        (found, _), = of_follower(seed, effect=effect)[0]
        assert found == code


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_targets_or_positions(seed):
    found, message = of_follower(seed, effect=lambda a: a[[1, 0, 2, 3]])
    assert found == [("component-order", 2)] and "action j1 moves state[j0], j0 moves state[j1] (" in message
    found, message = of_follower(seed, order=(2, 0, 1, 3))
    assert found == [("component-order", 3)] and "action j2 moves state[j0], j0 moves state[j1], j1" in message
    found, message = of_follower(seed, order=(3, 2, 1, 0))
    assert found == [("component-order", 4)]


def shifted(steps, **change):
    """Episodes whose actions are stored `steps` later, or earlier if it is negative."""
    return [(s, a[np.clip(np.arange(len(a)) - steps, 0, len(a) - 1)]) for s, a in episodes(n=20, **change)]


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 8, 13, 20])
def test_actions_that_are_stored_late(steps):
    finding, = check_recorded_lag(fit_lags(shifted(steps)), {})
    assert (finding.code, finding.level, finding.value) == ("action-shift", "fault", -steps)
    assert f"{steps} step{'s' * (steps > 1)} later" in finding.message and "stored late" in finding.message
    assert finding.command[3:5] == ("--shift", f"action={-steps}")  # to earlier rows


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_actions_that_are_stored_early_or_a_robot_that_reacts_late(steps):
    """The same data. Where the policy acts, the same actions tell."""
    early, at_once, late = (fit_lags(each) for each in (shifted(-steps), episodes(n=20, seed=1),
                                                        episodes(n=20, seed=1, delay=steps)))
    finding, = check_recorded_lag(early, at_once)
    assert (finding.code, finding.level, finding.value) == ("action-shift", "fault", steps)
    assert "here the motion follows after 0 steps" in finding.message
    assert not list(check_recorded_lag(early, late))
    finding, = check_recorded_lag(early, {})
    assert finding.level == ("note" if steps < 2 else "warning") and "or the robot reacts late" in finding.message


@pytest.mark.parametrize("later", [0, 2])
def test_a_delay_beyond_that_of_the_data(later):
    model = fit_motion(recorded := episodes(delay=2))
    assert model.lag == 2
    findings = check_motion(model, recorded, episodes(seed=1, delay=2 + later), NAMES, STATES)
    assert [(f.code, f.value) for f in findings] == [("latency", later)] * bool(later)


def test_too_few_steps_and_actions_without_effect_have_no_model():
    assert fit_motion(episodes(n=1, length=12)) is None
    assert fit_motion(episodes(effect=lambda a, s: 0 * a)) is None


def at_walls(n, seed=0):
    """Episodes of a joint that drives with full speed from one end of its range to the other, and rests there."""
    rng, out = np.random.default_rng(seed), []
    for _ in range(n):
        actions, states = np.repeat(rng.choice([-1.0, 1.0], (30, 1)), 5, 0), [rng.random(1)]
        for a in actions:
            states.append(np.clip(states[-1] + 0.6 * a, 0, 1))
        out.append((np.array(states), actions))
    return out


def test_walls_are_in_the_data_and_in_new_episodes():
    """The linear model has a smaller effect than the steps in which a joint moves, which was called another scale."""
    recorded = at_walls(20)
    model = fit_motion(recorded)
    assert 0.6 / model.weights_of_actions[0, 0] > 1.6
    assert not list(check_motion(model, recorded, at_walls(10, 1), ["grip"], ["state[grip]"]))


@pytest.mark.parametrize("noise", [0.02, 0.5])
def test_noise_of_a_sensor(noise):
    rng, recorded = np.random.default_rng(5), episodes()
    probes = [(s + noise * rng.normal(size=s.shape), a) for s, a in episodes(seed=1, n=6)]
    findings = [f.code for f in check_motion(fit_motion(recorded), recorded, probes, NAMES, STATES)]
    assert findings == ["observation-noise"] * (noise == 0.5)


def test_remedies_of_sign_order_and_scale_are_views_of_the_data():
    assert findings(effect=lambda a, s: a * [1, -1])[0].command[3:5] == ("--sign", "action[lift]")
    assert findings(effect=lambda a, s: a[..., ::-1])[0].command[3:5] == ("--swap", "action[pan,lift]")
    assert findings(effect=lambda a, s: a * [1, 0.25])[0].command[3:5] == ("--scale", "action[lift]=0.25")
    recorded, probes = follower(0, 40, 1), follower(100, 10, 4, effect=lambda a: a[[1, 2, 0, 3]])
    finding, = check_motion(fit_motion(recorded), recorded, probes, JOINTS, JOINTS)
    assert finding.command[3:5] == ("--reorder", "action=2,0,1,3")  # action 1 moves joint 0


def test_contacts_are_trimmed():
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(300), rng.normal(size=300)])
    y = x @ [0.5, 2.0]
    y[::15] += 30
    np.testing.assert_allclose(trimmed_least_squares(x, y)[0], [0.5, 2.0], atol=1e-9)


def test_units_by_their_ratio():
    assert unit_of_ratio(57.3) == unit_of_ratio(1 / 50) == "degrees and radians"
    assert unit_of_ratio(-1000) == "millimeters and meters" and unit_of_ratio(3) is None
