"""Environment wrappers, restored states and fully observed toys."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from understudy import envs
from understudy.core import UserError, keys
from understudy.data.episode import Dataset, Episode
from understudy.envs.episode_wrappers import NEW_TRIAL, DemoStateReset, FixedHorizonEnv, MultiTrialEnv
from understudy.envs.observation_wrappers import HiddenObs, NoiseColumns, NoisySensor, RandomFeatureObs, RotatedFrame
from understudy.envs.registry import base_name, make
from understudy.envs.toys.drive import DECISIVE, HIDDEN, Drive
from understudy.envs.toys.fork import Fork, ForkExpert
from understudy.envs.toys.memory import MemoryCorridor
from understudy.envs.toys.particle import Particle
from understudy.evaluate.evaluation import evaluation_of
from understudy.evaluate.report import write_report
from understudy.evaluate.rollout import rollout
from understudy.evaluate.stats import clopper_pearson
from understudy.execute.actor import Actor
from understudy.testing import ContractViolation, check_env

STATE = "observation.state"


@dataclass(frozen=True)
class Replayed(Actor):
    """The recorded actions of the episodes of a seed, by their keys."""

    episodes: dict

    def start(self, obs, key):
        return {"key": key, "t": torch.zeros_like(key)}

    def act(self, obs, state):
        rows = zip(state["key"].tolist(), state["t"].tolist(), strict=True)
        actions = [self.episodes[k][min(t, len(self.episodes[k]) - 1)] for k, t in rows]
        return torch.from_numpy(np.stack(actions)), {**state, "t": state["t"] + 1}


def replayed(data: Dataset, seed: int) -> Replayed:
    return Replayed({int(keys(seed, [e.metadata["number"]])): np.asarray(e.steps["action"]) for e in data})


@dataclass(frozen=True)
class Always(Actor):
    action: tuple[float, ...]

    def start(self, obs, key):
        return {"key": key}

    def act(self, obs, state):
        return torch.tensor([self.action]).expand(len(state["key"]), -1), state


@pytest.fixture(scope="module")
def demos() -> Dataset:
    return rollout(ForkExpert(), Fork(6), 6, seed=0)


# -- restoring --------------------------------------------------------------------------------------------------------


def test_restored_rows_draw_with_their_own_keys():
    """Gusts of wind are random. Two rows that are restored to one state meet the gusts of their keys."""
    env, steps = Fork(3, gust=1.0), {STATE: torch.zeros(3, 2)}
    env.reset(torch.arange(3), keys(0, range(3)))
    env.restore(torch.arange(3), steps, torch.tensor([5, 5, 6]))
    states = env.step(torch.zeros(3, 2)).obs[STATE]
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])
    env.restore(torch.tensor([2]), {STATE: torch.zeros(1, 2)}, torch.tensor([5]))
    assert torch.equal(env.step(torch.zeros(3, 2)).obs[STATE][2], states[0])
    env.restore(torch.arange(3), steps)  # without keys, the same happens in all rows
    states = env.step(torch.zeros(3, 2)).obs[STATE]
    assert torch.equal(states[0], states[2])


def test_an_environment_that_ignores_the_keys_of_restored_rows_is_found():
    class Ignores(Fork):
        def restore(self, which, steps, key=None):
            return super().restore(which, steps, which.clone())  # by the number of the row instead
    with pytest.raises(ContractViolation, match="must depend on its key alone"):
        check_env(lambda rows: Ignores(rows, limit=12, gust=0.5))


# -- demonstrated states ----------------------------------------------------------------------------------------------


def test_episodes_start_from_demonstrated_states(demos):
    states = np.concatenate([e.steps[STATE][: len(e)] for e in demos])
    demonstrated = {row.tobytes() for row in states}
    env = DemoStateReset(Fork(64), demos, fraction=0.5)
    first = env.reset(torch.arange(64), keys(3, range(64)))[STATE].numpy()
    from_demos = np.array([row.tobytes() in demonstrated for row in first])
    assert 20 <= from_demos.sum() <= 44
    plain = Fork(64).reset(torch.arange(64), keys(3, range(64)))[STATE].numpy()
    assert np.array_equal(first[~from_demos], plain[~from_demos]), "the others start as ever"
    assert len({row.tobytes() for row in first[from_demos]}) > 15, "from many steps"
    everywhere = DemoStateReset(Fork(400), demos)
    first = everywhere.reset(torch.arange(400), keys(4, range(400)))[STATE].numpy()
    assert all(row.tobytes() in demonstrated for row in first)
    # Every step is equally likely: the mean over starts is that of the steps.
    error = np.abs(first.mean(0) - states.mean(0))
    assert (error < 4 * states.std(0) / 20).all()
    none = DemoStateReset(Fork(8), demos, fraction=0.0)
    start = Fork(8).reset(torch.arange(8), keys(3, range(8)))
    assert torch.equal(none.reset(torch.arange(8), keys(3, range(8)))[STATE], start[STATE])


def test_starts_from_demonstrations_keep_the_contract(demos):
    check_env(lambda rows: DemoStateReset(Fork(rows, limit=12, gust=0.5), demos, 0.7))
    hidden = rollout(Particle(3).expert(), Particle(3), 3, seed=0)
    env = DemoStateReset(Particle(50), hidden)  # the state is in two columns
    obs = env.reset(torch.arange(50), keys(0, range(50)))
    pairs = {(a.tobytes(), b.tobytes()) for e in hidden for a, b in zip(e.steps[STATE], e.steps["simulator.state"],
                                                                        strict=True)}
    assert all((a.numpy().tobytes(), b.numpy().tobytes()) in pairs
               for a, b in zip(obs[STATE], obs["simulator.state"], strict=True))
    assert obs["simulator.state"].any()


def test_what_demonstrated_states_need_is_said(demos):
    with pytest.raises(UserError, match="cannot be put into a recorded state"):
        DemoStateReset(FixedHorizonEnv(Fork(1)), demos)
    with pytest.raises(UserError, match="not between 0 and 1"):
        DemoStateReset(Fork(1), demos, 1.5)
    with pytest.raises(UserError, match="no steps to start from"):
        DemoStateReset(Fork(1), Dataset([]))
    with pytest.raises(UserError, match="observation.state"):
        other = Dataset([Episode({"observation.other": np.zeros((3, 2), np.float32), "action": np.zeros((3, 2))})])
        DemoStateReset(Fork(1), other).reset(torch.arange(1), keys(0, [0]))


# -- fixed horizon ----------------------------------------------------------------------------------------------------


def test_episodes_last_until_the_limit(demos):
    plain = rollout(replayed(demos, 0), Fork(4), 6, seed=0)
    fixed = rollout(replayed(demos, 0), FixedHorizonEnv(Fork(4), 25), 6, seed=0)
    assert len({len(e) for e in plain}) > 1
    for a, b in zip(plain, fixed, strict=True):
        n = min(len(a), 25)
        assert len(b) == 25 and not b.steps["next.terminated"].any()
        assert b.steps["next.truncated"].nonzero()[0].tolist() == [24]
        np.testing.assert_array_equal(b.steps[STATE][: n + 1], a.steps[STATE][: n + 1])
        assert (b.steps[STATE][n:] == b.steps[STATE][n]).all(), "the last observation stays"
        np.testing.assert_array_equal(b.steps["next.reward"][:n], a.steps["next.reward"][:n])
        assert not b.steps["next.reward"][n:].any()
        assert b.metadata["success"] == a.metadata["success"]


def test_the_fixed_horizon_keeps_the_contract():
    check_env(lambda rows: FixedHorizonEnv(Fork(rows, limit=12), 20))
    assert FixedHorizonEnv(Fork(1)).metadata["limit"] == 40

    class Endless(Fork):
        def __init__(self):
            super().__init__(1)
            self.metadata = {**self.metadata, "limit": None}
    with pytest.raises(UserError, match="has no time limit"):
        FixedHorizonEnv(Endless())


# -- several trials ---------------------------------------------------------------------------------------------------


def test_an_episode_is_several_trials():
    env = MultiTrialEnv(Fork(3, limit=5), 3)
    episodes = rollout(Always((0.1, 0.0)), env, 4, seed=1)  # too slow to reach anything: each trial takes 5 steps
    assert env.metadata["limit"] == 15 and env.metadata["success"].endswith("in the last trial")
    single = [rollout(Always((0.1, 0.0)), Fork(1, limit=5), 1, seed=1, first=n)[0] for n in range(4)]
    for e, first in zip(episodes, single, strict=True):
        assert len(e) == 15 and e.steps[NEW_TRIAL][:, 0].nonzero()[0].tolist() == [0, 5, 10]
        assert e.steps["next.truncated"].nonzero()[0].tolist() == [14] and not e.steps["next.terminated"].any()
        np.testing.assert_array_equal(e.steps[STATE][:5], first.steps[STATE][:5])
        starts = e.steps[STATE][[0, 5, 10]]
        assert len(np.unique(starts, axis=0)) == 3, "each trial is drawn anew"
    same = rollout(Always((0.1, 0.0)), MultiTrialEnv(Fork(3, limit=5), 3, redraw=False), 2, seed=1)
    assert len(np.unique(same[0].steps[STATE][[0, 5, 10]], axis=0)) == 1


def test_success_is_that_of_the_last_trial(tmp_path):
    expert = rollout(ForkExpert(noise=0.0), MultiTrialEnv(Fork(2), 2), 4, seed=0)
    assert all(e.metadata["success"] and e.metadata["successful_trials"] == 2 for e in expert)
    assert all(e.steps["next.success"].sum() == 1 and e.steps["next.success"][-1] for e in expert)
    assert all(e.steps["next.reward"].sum() == 2 for e in expert)

    @dataclass(frozen=True)
    class OnlyFirst(Actor):
        """Succeeds in the first trial and runs into the pillar in the second."""

        def start(self, obs, key):
            return {"expert": ForkExpert(noise=0.0).start(obs, key), "trial": torch.zeros_like(key)}

        def act(self, obs, state):
            trial = state["trial"] + obs[NEW_TRIAL][:, 0].long()
            action, expert = ForkExpert(noise=0.0).act(obs, state["expert"])
            return torch.where(trial[:, None] > 1, torch.tensor([1.0, 0.0]), action), {"expert": expert, "trial": trial}
    episodes = rollout(OnlyFirst(), MultiTrialEnv(Fork(2), 2), 4, seed=0)
    assert not any(e.metadata["success"] for e in episodes)
    assert {e.metadata["successful_trials"] for e in episodes} == {1}
    assert all((e.metadata["trial_1_success"], e.metadata["trial_2_success"]) == (True, False) for e in episodes)
    evaluation = evaluation_of(episodes)
    assert evaluation.trial_successes.tolist() == [[True, False]] * 4
    assert [r.estimate for r in evaluation.trials] == [1, 0]
    assert (evaluation.trial_gain.difference, evaluation.trial_gain.p_value) == (-1, 2 * 0.5**4)
    assert evaluation.trials[0] == clopper_pearson(4, 4) and evaluation.trial_gain.high < 0
    page = write_report(tmp_path / "report.html", runs={"a": evaluation}).read_text()
    assert "The last trial minus the first: \u2212100.0 points" in page and "<th>trial</th>" in page
    assert evaluation_of(rollout(ForkExpert(), Fork(2), 2)).trials is None


class SucceedsOnTheWay(Fork):
    """Success is reported at the second step alone, and every episode goes on until its limit."""

    def step(self, action):
        out = super().step(action)
        return replace(out, info={**out.info, "success": self.clock == 2}, terminated=torch.zeros_like(out.terminated))


def test_success_at_any_step_of_a_trial_counts():
    episodes = rollout(Always((0.0, 0.0)), MultiTrialEnv(SucceedsOnTheWay(2, limit=4), 3), 2, seed=0)
    assert all(e.metadata["successful_trials"] == 3 and e.metadata["success"] for e in episodes)


def test_trials_keep_the_contract():
    check_env(lambda rows: MultiTrialEnv(MemoryCorridor(rows, limit=8), 2))
    check_env(lambda rows: MultiTrialEnv(Fork(rows, limit=6), 3, redraw=False))
    with pytest.raises(UserError, match="at least 1 trial"):
        MultiTrialEnv(Fork(1), 0)


@pytest.mark.parametrize(("name", "trials", "redraw"), [("fork@trials=3", 3, True), ("fork@trials=2,same", 2, False),
                                                       ("particle:3@trials=2", 2, True)])
def test_several_trials_by_name(name, trials, redraw):
    env, single = make(name, 2, limit=5), make(name.partition("@")[0], 2, limit=5)
    assert isinstance(env, MultiTrialEnv) and (env.n_trials, env.redraw, env.rows) == (trials, redraw, 2)
    assert env.metadata["limit"] == 5 * trials and env.metadata["env"] == name
    assert env.metadata["simulator"] == single.metadata["simulator"] and base_name(name) == single.metadata["env"]
    assert len(rollout(Always((0.1, 0.0, 0.0)[:env.features["action"].size]), env, 2, seed=1)[0]) == 5 * trials


def test_several_trials_with_images_by_name():
    name = "fork@images=16@trials=2"
    assert {NEW_TRIAL, "observation.images.camera"} <= set(make(name).features) and base_name(name) == "fork"


@pytest.mark.parametrize(("name", "said"), [
    ("fork@trials", "@trials is not understood.*\n.*such as fork@trials=5"), ("fork@trials=x", "not understood"),
    ("fork@trials=3,other", "not understood"), ("fork@trials=2@images", "not understood"),
    ("fork@trials=0", "at least 1 trial"), ("frok@trials=2", "did you mean")])
def test_names_of_trials_that_mean_nothing(name, said):
    with pytest.raises(UserError, match=said):
        make(name)


# -- observations -----------------------------------------------------------------------------------------------------


def rotated(rows: int = 4, angle: float = math.pi / 2, **options) -> RotatedFrame:
    return RotatedFrame(Fork(rows, **options), angle, {STATE: [(0, 1)]}, {"action": [(0, 1)]}, center=(1.0, 0.0))


TRANSFORMS = {
    "random": lambda rows: RandomFeatureObs(Fork(rows, limit=12), 16),
    "rotated": lambda rows: rotated(rows, 0.7, limit=12),
    "hidden": lambda rows: HiddenObs(Particle(rows, limit=12), {STATE: ("speed.x", 3), "simulator.state": None}),
}


@pytest.mark.parametrize("build", TRANSFORMS.values(), ids=TRANSFORMS)
def test_changed_observations_keep_the_contract(build):
    check_env(build)


@pytest.mark.parametrize("build", TRANSFORMS.values(), ids=TRANSFORMS)
def test_recorded_episodes_are_changed_alike(build):
    """Demonstrations of an expert of the environment are demonstrations in the wrapped one."""
    env = build(3)
    data = rollout(env.env.expert(), env.env, 4, seed=2)
    changed = Dataset([env.transform_episode(e) for e in data])
    episodes = rollout(replayed(changed, 2), build(3), 4, seed=2)
    for a, b in zip(changed, episodes, strict=True):
        assert set(a.steps) == set(b.steps) and a.features() == b.features()
        for name in a.steps:
            np.testing.assert_allclose(a.steps[name], b.steps[name], atol=1e-5)


def test_a_quarter_turn_in_closed_form():
    env, plain = rotated(), Fork(4)
    key = keys(0, range(4))
    x, y = plain.reset(torch.arange(4), key)[STATE].T
    states = env.reset(torch.arange(4), key)[STATE]  # (x, y) is turned around (1, 0): to (1 - y, x - 1)
    torch.testing.assert_close(states, torch.stack([1 - y, x - 1], 1))
    before = env.env.state["at"].copy()
    env.step(torch.tensor([[0.0, 0.5]] * 4))  # "up" in the rotated frame is "right" in the environment
    np.testing.assert_allclose(env.env.state["at"] - before, [[0.05, 0.0]] * 4, atol=1e-6)
    assert "low" not in env.metadata and "low" in Fork(1).metadata
    with pytest.raises(UserError, match="has no components 0 and 2"):
        RotatedFrame(Fork(1), 1.0, {STATE: [(0, 2)]})


def test_random_features_are_fixed_and_tell_states_apart():
    obs = {STATE: torch.randn(50, 2, generator=torch.Generator().manual_seed(0))}
    env = RandomFeatureObs(Fork(1), 16, seed=3)
    features = env.transform_obs(obs)[STATE]
    assert features.shape == (50, 16)
    assert torch.equal(features, RandomFeatureObs(Fork(1), 16, seed=3).transform_obs(obs)[STATE])
    assert not torch.equal(features, RandomFeatureObs(Fork(1), 16, seed=4).transform_obs(obs)[STATE])
    w0, w1 = env.weights  # one component, computed by hand
    hidden = [math.tanh(sum(float(w0[h, i]) * float(obs[STATE][7, i]) for i in range(2)) + float(env.bias[h]))
              for h in range(16)]
    assert float(features[7, 5]) == pytest.approx(math.tanh(sum(float(w1[5, h]) * hidden[h] for h in range(16))),
                                                  abs=1e-6)
    distance = torch.cdist(features, features) + 9 * torch.eye(50)
    assert distance.min() > 1e-4
    linear = torch.linalg.lstsq(torch.cat([obs[STATE], torch.ones(50, 1)], 1), features).solution
    assert (torch.cat([obs[STATE], torch.ones(50, 1)], 1) @ linear - features).abs().max() > 0.05, "not a linear map"
    with pytest.raises(UserError, match="kind 'image'"):
        RandomFeatureObs(envs.make("push-images"), column="observation.images.top")


def test_hidden_components_are_gone():
    env = HiddenObs(Particle(2), {STATE: ("speed.x", "speed.y", 4)})
    names = Particle(1).features[STATE].names
    kept = tuple(n for i, n in enumerate(names) if n not in ("speed.x", "speed.y") and i != 4)
    assert env.features[STATE].names == kept and env.features[STATE].shape == (5,)
    whole = Particle(2).reset(torch.arange(2), keys(0, range(2)))[STATE]
    states = env.reset(torch.arange(2), keys(0, range(2)))[STATE]
    assert torch.equal(states, whole[:, [names.index(n) for n in kept]])
    with pytest.raises(UserError, match="(?s)no component 'speed.q'.*speed.x"):
        HiddenObs(Particle(2), {STATE: ("speed.q",)})
    with pytest.raises(UserError, match="no observation 'observation.other'"):
        HiddenObs(Particle(2), {"observation.other": None})


# -- noise ------------------------------------------------------------------------------------------------------------


def test_noise_columns_are_correlated_in_time_and_with_nothing_else():
    check_env(lambda rows: NoiseColumns(Particle(rows, limit=15), 3))
    env = NoiseColumns(Particle(300, limit=50), 2, 0.8)
    noise = [env.reset(torch.arange(300), keys(0, range(300)))["observation.noise"]]
    noise += [env.step(torch.zeros(300, 2)).obs["observation.noise"] for _ in range(40)]
    values = torch.stack(noise).flatten(1).T.numpy()  # (600, 41)
    assert values[:, 0].std() == pytest.approx(1, rel=0.1) and values[:, -1].std() == pytest.approx(1, rel=0.1)
    assert np.corrcoef(values[:, 20], values[:, 21])[0, 1] == pytest.approx(0.8, abs=0.05)
    assert abs(np.corrcoef(noise[5][:, 0], noise[5][:, 1])[0, 1]) < 0.2


def test_a_noisy_sensor_shows_a_projection_and_its_noise_is_its_own():
    check_env(lambda rows: NoisySensor(Particle(rows, limit=15), (0, 1), 3))
    clean, noisy, other = (NoisySensor(Particle(400, limit=9), (0, 1), 5, 0.5, n, into=into)
                           for n, into in ((0.0, "observation.a"), (2.0, "observation.a"), (2.0, "observation.b")))
    which, key = torch.arange(400), keys(0, range(400))
    blurred, second = (env.reset(which, key)[env.into] for env in (noisy, other))
    obs = clean.reset(which, key)
    shown, state = obs[clean.into], obs[STATE]
    assert torch.linalg.matrix_rank(shown) == 2 and torch.allclose(
        shown, (state[:, [0, 1]].double() @ clean.weights.T).float(), atol=1e-6)
    assert (blurred - shown).std().item() == pytest.approx(2.0, rel=0.05)
    assert abs(np.corrcoef((blurred - shown)[:, 0], (second - shown)[:, 0])[0, 1]) < 0.15
    plain = NoisySensor(Particle(2), (1,), 2, 3.0, 0.0, seed=None)
    obs = plain.reset(torch.arange(2), key[:2])
    assert torch.allclose(obs[plain.into], 3 * obs[STATE][:, [1]])


# -- fully observed toys ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["particle", "drive"])
def test_fully_observed_toys_differ_in_what_they_show_alone(name):
    plain, full = (envs.make(name, 20, fully_observed=f) for f in (False, True))
    a, b = (rollout(replace(env.expert(), noise=0.0), env, 20, seed=1) for env in (plain, full))
    width = plain.features[STATE].size
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one.steps[STATE], other.steps[STATE][:, :width])
        np.testing.assert_array_equal(one.steps["action"], other.steps["action"])
        assert one.metadata["success"] and other.metadata["success"]
    hidden_part = np.concatenate([e.steps[STATE][:, width:] for e in b])
    hidden = np.concatenate([e.steps["simulator.state"] for e in b])
    np.testing.assert_array_equal(hidden_part, hidden[:, : hidden_part.shape[1]])
    assert full.features[STATE].names[width:] == plain.features["simulator.state"].names[: hidden_part.shape[1]]
    check_env(lambda rows: envs.make(name, rows, limit=15, fully_observed=True))


def test_the_rest_of_the_state_of_drive_changes_only_the_picture():
    """Two cars in the same observed state, with other hidden components, get the same rewards and the same ends."""
    env = Drive(2, fully_observed=True)
    hidden = torch.tensor([[12.0, 8.0, 0.0, 11.0, 5.0, 3.0, 17.0, 2.0], [12.0, 8.0, 0.0, 11.0, 5.0, 9.0, 99.0, 40.0]])
    states = torch.zeros(2, env.features[STATE].size)
    states[:, -DECISIVE:] = hidden[:, :DECISIVE]
    env.restore(torch.arange(2), {STATE: states, "simulator.state": hidden})
    pictures = []
    for _ in range(12):
        out = env.step(torch.full((2, 1), 0.1))
        state = out.obs[STATE]
        assert torch.equal(state[0, -DECISIVE:], state[1, -DECISIVE:]) and out.reward[0] == out.reward[1]
        assert out.terminated[0] == out.terminated[1]
        pictures.append(not torch.equal(state[0], state[1]))
    assert any(pictures) and len(HIDDEN) > DECISIVE
