"""Rollouts that were written as one episode, and rotations that change their sign."""

from __future__ import annotations

import re
import shlex

import numpy as np
import pytest

from understudy.audit import audit
from understudy.audit.continuity import check_resets, check_rotations, find_resets
from understudy.cli import main
from understudy.core import Feature
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset, write_dataset

STATE, ACTION = "observation.state", "action"


def rollout(start, n):
    t = np.arange(n) / 10
    state = np.stack([np.sin(3 * t + start), np.cos(2 * t + start), 0.5 * np.sin(t + 0.3 * start)], 1)
    return state.astype(np.float32)


def joined(lengths, actions="changes", seed=0, noise=0.0) -> Episode:
    """An episode of rollouts of sines, each with another phase."""
    rng = np.random.default_rng(0)
    states = [rollout(1.7 * k + seed, n) + noise * rng.normal(size=(n, 3)).astype(np.float32)
              for k, n in enumerate(lengths)]
    targets = [np.concatenate([s[1:], s[-1:]]) for s in states]
    columns = {STATE: np.concatenate(states)}
    if actions != "none":
        columns[ACTION] = np.concatenate(targets) - (np.concatenate(states) if actions == "changes" else 0)
    return Episode(columns, {}, sum(lengths), {k: Feature.from_array(v) for k, v in columns.items()})


@pytest.mark.parametrize("actions, noise", [("changes", 0), ("changes", 0.02), ("targets", 0), ("targets", 0.02)])
@pytest.mark.parametrize("lengths", [[8] * 40, [12] * 30, [57] * 20, [120] * 8, [400] * 4, [200, 200, 7],
                                     [30, 80, 41, 57, 10, 33, 70] * 4])
def test_resets_are_found_at_any_length(lengths, actions, noise):
    data = Dataset([joined(lengths, actions, noise=noise)])
    assert find_resets(data) == {0: np.cumsum(lengths)[:-1].tolist()}


@pytest.mark.parametrize("n, length", [(20, 57), (8, 120), (4, 400)])
def test_resets_are_found_without_actions(n, length):
    data = Dataset([joined([length] * n, "none")])
    assert find_resets(data) == {0: list(range(length, n * length, length))}


def test_no_reset_is_found_in_single_rollouts():
    for actions in ("changes", "targets", "none"):
        assert not find_resets(Dataset([joined([60], actions, seed) for seed in range(8)]))
    rng = np.random.default_rng(0)
    moves = rng.normal(size=(8, 100, 2)).astype(np.float32)
    flags = (np.arange(100) // 25 % 2).astype(np.float32)  # a gripper that opens and closes is no reset
    walks = [Episode({STATE: np.concatenate([np.cumsum(m, 0), flags[:, None]], 1), ACTION: m}, {}, 100) for m in moves]
    assert not find_resets(Dataset(walks))


def test_an_event_of_the_task_is_no_reset():
    """All components jump once in each episode, far from where episodes start."""
    def episode(k):
        e = joined([60], seed=0.01 * k)
        return e.replace({STATE: e.steps[STATE] + 5 * (np.arange(60) >= 20 + k)[:, None]})
    assert not find_resets(Dataset([episode(k) for k in range(8)]))
    assert len(find_resets(Dataset([joined([20 + k, 60], seed=k) for k in range(8)]))) == 8


def test_episodes_of_a_single_step_have_no_reset():
    for lengths in ([60, 1, 60], [1, 1, 20], [12, 2]):
        assert not find_resets(Dataset([joined([n], "targets", 5 * i) for i, n in enumerate(lengths)]))


def test_ends_inside_an_episode_are_resets():
    episode = joined([60])
    ends = np.isin(np.arange(60), (19, 44, 59))
    assert find_resets(Dataset([episode.replace({"next.terminated": ends})])) == {0: [20, 45]}


@pytest.mark.parametrize("episodes, option", [
    ([[57] * 20], ["--cut", "every=57"]), ([[40] * 3, [40] * 2 + [25]], ["--cut", "every=40"]),
    ([[30, 50, 41], [44], [60, 33]], ["--cut", "0=30,80", "--cut", "2=60"]), ([[30, 41] * 15], ["--cut", "resets"])])
def test_the_proposed_command_cuts_the_rollouts_apart(episodes, option, tmp_path, capsys):
    write_dataset(Dataset([joined(lengths, seed=7 * e) for e, lengths in enumerate(episodes)], {"fps": 10.0}),
                  tmp_path / "joined")
    data = open_dataset(tmp_path / "joined")
    finding, = check_resets(data)
    assert list(finding.correction) == option
    command = re.search(r"understudy (view make .*) VIEW", finding.remedy)[1]
    assert main([*shlex.split(command), str(tmp_path / "v.json")]) == 0
    cut = open_dataset(tmp_path / "v.json")
    assert [len(e) for e in cut] == [n for lengths in episodes for n in lengths]
    starts = [7 * e + 1.7 * k for e, lengths in enumerate(episodes) for k in range(len(lengths))]
    for piece, start in zip(cut, starts, strict=True):
        assert np.array_equal(piece.steps[STATE], rollout(start, len(piece)))
    assert not find_resets(cut)
    assert main(["view", "make", str(tmp_path / "v.json"), "--cut", "resets", "--out", str(tmp_path / "w.json")]) == 2
    assert "the audit finds no row at which another rollout begins" in capsys.readouterr().err


def turning(name, names, values, unit=None) -> Dataset:
    feature = Feature("float32", (len(values[0]),), names=names, unit=unit)
    values = np.array(values, np.float32)
    return Dataset([Episode({name: values, "observation.other": values[:, :1]}, {}, len(values), {name: feature})] * 2)


def quaternions(n=30, flips=(10, 20)):
    half = np.arange(n) * 0.05
    q = np.stack([np.sin(half), 0 * half, 0 * half, np.cos(half)], 1)
    q[slice(*flips)] *= -1
    return q


def test_a_quaternion_that_changes_its_sign_is_named():
    q = quaternions()
    position = np.arange(30)[:, None] * np.ones(3)
    for name, names, values in (
            (STATE, ("qx", "qy", "qz", "qw"), q), (ACTION, None, np.concatenate([position, q], 1)),
            (STATE, ("x", "left_quat.x", "left_quat.w"), q[:, [1, 0, 3]])):
        finding, = [f for f in check_rotations(turning(name, names, values)) if f.where.feature == name]
        assert finding.severity == "warning" and "changes its sign at 4 steps" in finding.message
        assert (finding.where.episode, finding.where.step, finding.episodes) == (0, 10, (0, 1))
    assert not list(check_rotations(turning(STATE, None, quaternions(flips=(0, 30)))))


def test_an_angle_that_jumps_by_a_full_turn_is_named():
    turn = (np.arange(40) * 0.4 + np.pi) % (2 * np.pi) - np.pi
    for unit, values in ((None, turn), ("deg", np.rad2deg(turn))):
        finding, = check_rotations(turning(ACTION, ("yaw",), values[:, None], unit))
        assert finding.severity == "warning" and "the angle yaw jumps by a full turn" in finding.message
        finding, = check_rotations(turning(STATE, ("yaw",), values[:, None], unit))
        assert finding.severity == "note"
    assert not list(check_rotations(turning(ACTION, ("speed",), turn[:, None])))


def test_the_remedy_of_late_actions_shifts_them_back(tmp_path):
    """Actions that are stored three steps late: what audit proposes restores those that were recorded."""
    rng = np.random.default_rng(0)

    def walk(late):
        episodes = []
        for moves in rng.spawn(10):
            a = moves.normal(size=(60, 2)).astype(np.float32)
            s = np.concatenate([np.zeros((1, 2)), np.cumsum(a, 0)])[:60].astype(np.float32)
            a = np.concatenate([np.zeros((late, 2), np.float32), a])[:60]
            episodes.append(Episode({STATE: s, ACTION: a}, {}, 60))
        return Dataset(episodes, {"fps": 10.0})
    write_dataset(walk(3), tmp_path / "late")
    finding, = [f for f in audit(tmp_path / "late").findings if f.code == "action-lag"]
    assert finding.correction == ("--shift", "action=-3")
    command = re.search(r"understudy (view make .*) VIEW", finding.remedy)[1]
    assert main([*shlex.split(command), str(tmp_path / "v.json")]) == 0
    for e in open_dataset(tmp_path / "v.json"):
        assert len(e) == 57 and np.allclose(np.diff(e.steps[STATE], axis=0), e.steps[ACTION][:-1], atol=1e-5)
