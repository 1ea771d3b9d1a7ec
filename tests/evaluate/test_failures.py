"""Groups of failures: planted, drifting, and drawn on a map."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.behaviors import episode

from understudy import rollout
from understudy.core import normal
from understudy.data.episode import Dataset
from understudy.envs.base import Renderable, StepResult
from understudy.envs.toys.fork import Fork
from understudy.evaluate.behavior.demo_distance import DemonstrationIndex
from understudy.evaluate.behavior.scaling import TrajectoryScaling
from understudy.evaluate.failures import failure_figures, group_failures
from understudy.execute.actor import NoisyActor


def planted(rng):
    """Twelve that succeed, seven that stop half-way at once, four that go off to the other side and run out of time."""
    out = []
    for kind, count in (("won", 12), ("short", 7), ("off", 4)):
        for _ in range(count):
            n = {"won": 20, "short": 8, "off": 40}[kind] + int(rng.integers(0, 2))
            end = {"won": (1.0, 0.0), "short": (0.4, 0.0), "off": (-1.0, 2.0)}[kind]
            way = np.linspace(0, 1, n + 1)[:, None] * end + 0.02 * rng.normal(size=(n + 1, 2))
            e = episode(way, np.zeros((n, 1)), kind == "won", len(out))
            e.steps["next.truncated"][-1] = kind == "off"
            out.append(e)
    order = rng.permutation(len(out))
    return Dataset([replace(out[i], metadata={**out[i].metadata, "number": j}) for j, i in enumerate(order)])


def test_planted_failures_are_found():
    data = planted(np.random.default_rng(0))
    groups = group_failures(data)
    assert [len(g) for g in groups] == [7, 4]
    lengths = {e.metadata["number"]: len(e) for e in data}
    assert all(lengths[n] < 10 for n in groups[0].episode_indices) and all(
        lengths[n] >= 40 for n in groups[1].episode_indices
    )
    assert [g.n_timeouts for g in groups] == [0, 4] and groups[1].steps[0] >= 40
    assert (
        groups[0].end_location.startswith("ends with state.0") and "below that of successes" in groups[0].end_location
    )
    assert groups[1].end_location.startswith("ends with state.") and "at the time limit" in groups[1].describe()
    assert "seed 0" in groups[0].remedy(0) and all(str(n) in groups[1].remedy(0) for n in groups[1].episode_indices)


def test_few_failures_and_none():
    data = planted(np.random.default_rng(1))
    won = [e for e in data if e.metadata["success"]]
    failures = [e for e in data if not e.metadata["success"]]
    assert group_failures(Dataset(won)) == () and group_failures(Dataset([episode(np.zeros((3, 1)))])) == ()
    (one,) = group_failures(Dataset([*won, failures[0]]))
    assert one.episode_indices == (failures[0].metadata["number"],) and one.steps[0] == one.steps[2] == len(failures[0])
    assert len(group_failures(Dataset(failures[:3]))) == 1 and sum(map(len, group_failures(Dataset(failures)))) == 11


def test_failures_that_begin_elsewhere_and_those_that_drift():
    rng = np.random.default_rng(0)

    def go(start, end, ok, i, n=20):
        way = np.linspace(0, 1, n + 1)[:, None] * (np.array(end) - start) + start
        return episode(way + 0.02 * rng.normal(size=way.shape), np.zeros((n, 1)), ok, i)
    demonstrations = Dataset([go((0, 0), (1, 0), True, i) for i in range(10)])
    won = [go((0, 0), (1, 0), True, i) for i in range(10)]
    distant = [go((0, 3), (1, 3), False, 10 + i) for i in range(5)]
    drift = [go((0, 0), (1, 1), False, 20 + i) for i in range(5)]
    index = DemonstrationIndex.from_data(demonstrations, TrajectoryScaling.from_data(demonstrations))
    (elsewhere,) = group_failures(Dataset([*won, *distant]), None, index)
    assert elsewhere.start_distance > 5 and "begin" in elsewhere.remedy(0) and "from starts like" in elsewhere.remedy(0)
    (drifts,) = group_failures(Dataset([*won, *drift]), None, index)
    for group, verb in ((drifts, "leave"), (elsewhere, "begin")):
        assert group.remedy(0).startswith(f"They {verb} ")
        assert replace(group, episode_indices=(20,)).remedy(0).startswith(f"It {verb}s ")
    assert (
        drifts.start_distance < 1.5
        and 1 <= drifts.divergence_step <= 8
        and f"step {drifts.divergence_step}" in drifts.remedy(0)
    )


def test_failures_on_a_map_say_where_and_are_drawn(shaky):
    env = Fork()
    groups = group_failures(shaky, env)
    assert sum(map(len, groups)) == sum(not e.metadata["success"] for e in shaky) > 0
    assert any("at the obstacle" in g.end_location for g in groups)
    drawn = failure_figures(groups, shaky, env)
    won = sum(e.metadata["success"] for e in shaky)
    at = {e.metadata["number"]: e for e in shaky}
    for g, pictures in zip(groups, drawn, strict=True):
        svg = pictures.trajectories.svg
        assert svg.count('class="cross"') == len(g) and svg.count('class="context"') == min(won, 50)
        assert [n for n, _ in pictures.strips] == list(g.episode_indices[:6])
        number, strip = pictures.success_strip
        assert at[number].metadata["success"] and strip.svg.count("<image") == 4
        # it is the success whose start is nearest to that of the most typical failure
        start = {n: e.steps["observation.state"][0] for n, e in at.items()}
        scale = np.concatenate([e.steps["observation.state"] for e in shaky]).std(0)
        distance_of = {n: np.linalg.norm((start[n] - start[g.episode_indices[0]]) / scale)
                       for n, e in at.items() if e.metadata["success"]}
        assert distance_of[number] == pytest.approx(min(distance_of.values()))
    assert failure_figures((), shaky, env) == []


class Dots(Renderable):
    """A dot at its key's place that moves by its action; nothing but a picture tells where. Never succeeds."""

    def __init__(self, rows=1):
        from understudy.core import Feature

        self.rows, self.at = rows, np.zeros(rows)
        self.features = {"observation.state": Feature("float32", (1,)), "action": Feature("float32", (1,))}
        self.metadata = {"env": "dots", "version": 1, "fps": None, "limit": 5, "success": "never"}
        self.clock = torch.zeros(rows, dtype=torch.int64)

    def reset(self, which, key):
        self.at[which.numpy()] = normal(key, torch.zeros_like(key), (1,)).numpy()[:, 0]
        self.clock[which] = 0
        return self._seen()

    def _seen(self):
        return {"observation.state": torch.from_numpy(self.at[:, None].astype(np.float32))}

    def step(self, action):
        self.at, self.clock = self.at + action.numpy()[:, 0], self.clock + 1
        none = torch.zeros(self.rows, dtype=torch.bool)
        return StepResult(self._seen(), torch.zeros(self.rows), none, self.clock >= 5, {"success": none})

    def frame(self, row):
        return np.full((8, 8, 3), int(np.clip(100 + 20 * self.at[row], 0, 255)), np.uint8)


@pytest.mark.parametrize("rows", [1, 4])
def test_what_cannot_be_restored_is_done_again(rows):
    env = Dots(rows)
    data = rollout(NoisyActor(None, 1, 1.0), env, 3, seed=0)
    groups = group_failures(data, env)
    assert len(groups) == 1
    from understudy.evaluate.failures import _rerender

    for e, rendered in zip(data, _rerender(list(data), env, 4), strict=True):
        assert [t for t, _ in rendered] == [0, 2, 3, 5]
        for t, frame in rendered:
            at = float(e.steps["observation.state"][t, 0])
            assert abs(int(frame[0, 0, 0]) - np.clip(100 + 20 * at, 0, 255)) <= 1
    pictures = failure_figures(groups, data, env)[0]
    assert [s.svg.count("<image") for _, s in pictures.strips] == [4] * min(len(data), 6)
    assert pictures.success_strip is None, "nothing succeeds there"
    assert pictures.trajectories.svg.count('class="cross"') == len(groups[0])  # of the one number there is, over time
    assert "state.0 of" in pictures.trajectories.alt_text
