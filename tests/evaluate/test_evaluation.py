"""Rollouts, evaluations and comparisons, on the fork and on a clockwork whose every number is known."""

import json
import math
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from understudy.core import Feature, NonFiniteAction, UserError, keys, uniform
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset
from understudy.data.window import Window
from understudy.envs import make
from understudy.envs.base import Env, StepResult
from understudy.envs.toys.fork import Fork
from understudy.evaluate.evaluation import (
    aggregate_seeds,
    compare,
    evaluate,
    evaluation_of,
    recording_seed,
    tuning_seed,
    validation_seed,
    verdict,
)
from understudy.evaluate.rollout import rollout
from understudy.evaluate.stats import bootstrap_mean
from understudy.execute.actor import Actor, NoisyActor, PolicyActor
from understudy.execute.chunking import RealTimeChunking, RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.execute.streaming import StreamingExecutor
from understudy.execute.temporal_ensemble import TemporalEnsemble
from understudy.heads.base import RampTimes
from understudy.heads.denoising.diffusion import Diffusion
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.regression import Regression
from understudy.nets.mlp import MLP
from understudy.nets.transformer import Transformer
from understudy.policy import Policy, PolicyConfig
from understudy.testing import random_dataset


class Clockwork(Env):
    """Row's length and outcome are read off its key: length 1 + key % 5, terminated if even, else truncated.
    Shows (its key's last digits, steps made); the reward is the action."""

    features = {"observation.state": Feature("float32", (2,)), "action": Feature("float32", (1,))}

    def __init__(self, rows, success=True):
        self.rows, self.success = rows, success
        self.metadata = {"env": "clockwork", "fps": 10, "version": 1}
        self.key = torch.zeros(rows, dtype=torch.int64)
        self.clock = torch.zeros(rows, dtype=torch.int64)
        self.resets = []

    def _seen(self):
        return {"observation.state": torch.stack([self.key % 1000, self.clock], 1).float()}

    def reset(self, which, key):
        self.resets.append((which.tolist(), key.tolist()))
        self.key[which], self.clock[which] = key, 0
        return self._seen()

    def step(self, action):
        self.clock = self.clock + 1
        over = self.clock >= length(self.key)
        ends = over & (self.key % 2 == 0)
        middle = self.clock == (length(self.key) + 1) // 2  # success may pass again
        info = {"success": middle & (self.key % 3 == 0)} if self.success else {}
        return StepResult(self._seen(), action[:, 0], ends, over, info)  # over is both: rollout must tell them apart


def length(key):
    return 1 + key % 5


@dataclass(frozen=True)
class Counting(Actor):
    """Acts its own step count, and writes it down."""

    def start(self, obs, key):
        return {"count": torch.zeros_like(key)}

    def act(self, obs, state):
        return state["count"].float().unsqueeze(1), {"count": state["count"] + 1,
                                                     "record": {"said": 10 * state["count"]}}


@pytest.mark.parametrize("rows", [1, 3, 50])
def test_exactly_the_numbered_episodes_whole_and_in_order(rows):
    env, numbers = Clockwork(rows), []
    data = rollout(Counting(), env, 20, seed=4, first=7, watch=lambda n, e: numbers.append(n))
    key = keys(4, range(7, 27))
    assert [e.metadata["number"] for e in data] == list(range(7, 27))
    assert sorted(numbers) == list(range(7, 27))
    for e, k in zip(data, key.tolist(), strict=True):
        n = 1 + k % 5
        assert len(e) == n
        # One row more of what was seen: the state after the last action, before any reset.
        np.testing.assert_array_equal(e.steps["observation.state"], [[k % 1000, t] for t in range(n + 1)])
        np.testing.assert_array_equal(e.steps["action"][:, 0], np.arange(n))  # the actor began anew with its row
        np.testing.assert_array_equal(e.steps["said"], 10 * np.arange(n))
        np.testing.assert_array_equal(e.steps["next.reward"], np.arange(n))
        last = np.arange(n) == n - 1
        np.testing.assert_array_equal(e.steps["next.terminated"], last & (k % 2 == 0))
        np.testing.assert_array_equal(e.steps["next.truncated"], last & (k % 2 == 1))
        assert e.metadata["success"] is (k % 3 == 0)  # at any step, although the last info said no
        assert e.metadata["seed"] == 4 and e.metadata["env"] == "clockwork"
    assert data.metadata["fps"] == 10


def test_no_row_starts_an_episode_that_was_not_asked_for():
    env = Clockwork(3)
    rollout(Counting(), env, 8, seed=0)
    asked = keys(0, range(8)).tolist()
    later = [k for which, key in env.resets[1:] for k in key]
    assert env.resets[0][1] + later == asked


class Endless(Clockwork):
    def step(self, action):
        out = super().step(action)
        return StepResult(out.obs, out.reward, torch.zeros_like(out.terminated), torch.zeros_like(out.truncated))


def test_an_episode_without_end_is_an_error(monkeypatch):
    monkeypatch.setattr(sys.modules["understudy.evaluate.rollout"], "MAX_EPISODE_STEPS", 50)
    with pytest.raises(UserError, match="did not end within 50 steps"):
        rollout(Counting(), Endless(2), 3)


@dataclass(frozen=True)
class Breaks(Actor):
    """No number from step 2 on, in rows of odd keys."""

    def start(self, obs, key):
        return {"key": key, "count": torch.zeros_like(key)}

    def act(self, obs, state):
        bad = (state["count"] >= 2) & (state["key"] % 2 == 1)
        action = torch.where(bad, math.nan, 0.0).unsqueeze(1)
        return action, {**state, "count": state["count"] + 1}


def test_an_action_that_is_no_number_is_an_error_that_says_where():
    number = next(n for n, k in enumerate(keys(0, range(50)).tolist()) if k % 2 == 1 and length(k) > 2)
    with pytest.raises(NonFiniteAction, match=rf"clockwork, episode {number}, step 2.*\n.*checkpoint"):
        rollout(Breaks(), Clockwork(1), 50, seed=0)
    assert issubclass(NonFiniteAction, UserError)


def test_a_row_that_waits_may_do_what_it_likes():
    # A row whose last episode is over goes on being stepped; here it acts NaN, and nobody reads it.
    n = next(n for n in range(100) if (k := keys(0, [n, n + 1]).tolist())[0] % 2 and length(k[0]) <= 2
             and k[1] % 2 == 0 and length(k[1]) > 3)
    assert len(rollout(Breaks(), Clockwork(2), 2, seed=0, first=n)) == 2


class Wild(Clockwork):
    """Shows what is no number once an episode is over, and, at `step`, within one."""

    def __init__(self, rows, step=99):
        super().__init__(rows)
        self.at = step

    def _seen(self):
        state = super()._seen()["observation.state"]
        wild = (self.clock >= length(self.key)) & (self.clock > 0) | (self.clock == self.at)
        return {"observation.state": torch.where(wild[:, None], math.inf, state)}


@pytest.fixture(scope="module")
def clockwork_policy():
    features = Clockwork.features
    torch.manual_seed(0)
    return (
        Policy(PolicyConfig(Regression(), trunk=MLP(8, 1), window=Window(1, 1)), features)
        .fit_statistics(random_dataset(features))
        .eval()
    )


def test_an_observation_that_is_no_number_says_in_which_episode(clockwork_policy):
    number = next(n for n, k in enumerate(keys(0, range(50)).tolist()) if length(k) > 3)
    with pytest.raises(NonFiniteAction, match=rf"episode {number}, step 3, observation 'observation.state': .*inf"):
        rollout(PolicyActor(clockwork_policy), Wild(1, 3), 50, seed=0)


def test_a_row_that_waits_may_see_what_it_likes(clockwork_policy):
    actor = PolicyActor(clockwork_policy)
    wild, tame = rollout(actor, Wild(7), 7, seed=0), rollout(actor, Clockwork(7), 7, seed=0)
    assert len({len(e) for e in wild}) > 1  # so that some wait for the others
    for x, y in zip(wild, tame, strict=True):
        np.testing.assert_array_equal(x.steps["action"], y.steps["action"])


def test_what_does_not_fit_the_environment_says_so(clockwork_policy):
    with pytest.raises(UserError, match=r"numbers of shape \(rows, 2\), but this is .*\(4, 8\)"):
        evaluate(PolicyActor(clockwork_policy), make("push", 4), 4)
    with pytest.raises(UserError, match=r"fork: the actions have shape \(4, 1\), .* takes \(4, 2\)\n  -> use the env"):
        evaluate(PolicyActor(clockwork_policy), Fork(4), 4)
    with pytest.raises(UserError, match=r"Policy is not an actor\n  -> PolicyActor"):
        evaluate(clockwork_policy, Fork(4), 4)


@pytest.fixture(scope="module")
def fork_data():
    env = Fork(16)
    return rollout(env.expert(), env, 16, recording_seed(0))


def untrained(data, head=None, obs=2, trunk=None):
    torch.manual_seed(0)
    recipe = PolicyConfig(head or Regression(), trunk=trunk or MLP(), window=Window(obs, 8))
    return Policy(recipe, data.features()).fit_statistics(data).eval()


SMALL = MLP(32, 1)


@pytest.mark.parametrize(
    "head, trunk, executor",
    [
        (Regression(), SMALL, RecedingHorizon(3)),
        (Regression(), SMALL, TemporalEnsemble(0.3)),
        (Flow(n_steps=3), SMALL, RecedingHorizon(3)),
        (Flow(n_steps=3), SMALL, RealTimeChunking(3, 1)),
        (Flow(n_steps=3, times=RampTimes()), SMALL, StreamingExecutor()),
        (Diffusion(n_steps=2), Transformer(32, 1, 2), RecedingHorizon(3)),
    ],
    ids=lambda v: type(v).__name__,
)
def test_results_are_the_same_bits_for_any_number_of_rows(fork_data, head, trunk, executor):
    actor = PolicyActor(FixedBatch(untrained(fork_data, head, trunk=trunk), rows=8), executor)
    noisy = NoisyActor(actor, 2, 0.3)  # so that episodes end at different times
    prints = {rows: rollout(noisy, Fork(rows, limit=20, gust=0.2), 11, seed=5).fingerprint() for rows in (1, 3, 11, 16)}
    assert len(set(prints.values())) == 1, prints


def test_a_part_of_the_episodes_is_that_part_of_all(fork_data):
    actor = NoisyActor(PolicyActor(FixedBatch(untrained(fork_data), rows=4), RecedingHorizon(3)), 2, 0.3)
    whole = rollout(actor, Fork(5), 12, seed=3)
    assert rollout(actor, Fork(5), 5, seed=3, first=7).fingerprint() == whole[7:].fingerprint()


def test_seeds_of_different_purposes_never_meet():
    seeds = [f(s) for f in (validation_seed, recording_seed, tuning_seed) for s in range(100)]
    assert len(set(seeds)) == 300 and max(seeds) < 0
    with pytest.raises(UserError):
        validation_seed(-1)


def test_what_an_inner_actor_writes_down_is_written_down():
    plain, wrapped = (rollout(a, Clockwork(3), 9, seed=1) for a in (Counting(), NoisyActor(Counting(), 1, 0.0)))
    for x, y in zip(plain, wrapped, strict=True):
        np.testing.assert_array_equal(x.steps["said"], y.steps["said"])


class Tells(Clockwork):
    """Puts further values into its infos."""

    def __init__(self, rows, **info):
        super().__init__(rows)
        self.info = {name: torch.full((rows,), value) for name, value in info.items()}

    def step(self, action):
        result = super().step(action)
        return replace(result, info={**result.info, **self.info})


def test_infos_neither_rename_an_episode_nor_tell_degrees_of_success():
    """Info "seed" took the place of the seed of the start, and a success of 0.5 counted as one."""
    for episode, other in zip(rollout(Counting(), Tells(2, seed=7, number=8), 3, 1), range(3), strict=True):
        assert (episode.metadata["seed"], episode.metadata["number"]) == (1, other)
    assert len(rollout(Counting(), Tells(2, success=1.0), 2)) == 2
    with pytest.raises(UserError, match="in step: reports success as 0.5, which is not one True or False"):
        rollout(Counting(), Tells(2, success=0.5), 2)


# -- evaluation ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lucky(Actor):
    """The expert in a share of episodes chosen by key, else it drives into the pillar."""

    share: float
    stream: int = 9

    def start(self, obs, key):
        good = uniform(key, torch.zeros_like(key), (1,), self.stream)[:, 0] < self.share
        return {"good": good, "expert": Fork().expert().start(obs, key)}

    def act(self, obs, state):
        action, expert = Fork().expert().act(obs, state["expert"])
        straight = torch.tensor([1.0, 0.0]).expand_as(action)
        return torch.where(state["good"].unsqueeze(1), action, straight), {**state, "expert": expert}


def test_an_evaluation_counts_what_happened():
    e = evaluate(Lucky(0.6), Fork(10), 50, seed=1)
    good = (uniform(keys(1, range(50)), torch.zeros(50, dtype=torch.int64), (1,), 9)[:, 0] < 0.6).numpy()
    np.testing.assert_array_equal(e.successes, good)
    np.testing.assert_array_equal(e.episode_returns, np.where(good, 1.0, -1.0))
    assert e.success.estimate == good.mean() and e.returns.estimate == pytest.approx(2 * good.mean() - 1)
    assert e.success.low < good.mean() < e.success.high and e.seconds > 0 and e.env == "fork"


def test_the_json_is_the_published_document():
    a, b = evaluate(Lucky(0.9), Fork(10), 40, seed=1), evaluate(Lucky(0.3), Fork(10), 40, seed=1)
    doc = json.loads(json.dumps(a.to_json(b, "runs/other"), allow_nan=False))
    assert list(doc) == ["env", "episodes", "successes", "success", "return", "seconds", "paired", "trials",
                         "trial_gain"]
    assert list(doc["success"]) == ["estimate", "low", "high", "level"]
    assert list(doc["return"]) == ["mean", "low", "high", "level"]
    assert list(doc["paired"]) == ["against", "difference", "low", "high", "p"]
    assert doc["env"] == "fork" and doc["episodes"] == 40 and doc["paired"]["against"] == "runs/other"
    assert doc["successes"] == a.successes.sum() and doc["success"]["estimate"] == doc["successes"] / 40
    assert doc["paired"]["difference"] == pytest.approx((doc["successes"] - b.successes.sum()) / 40)
    assert a.to_json()["paired"] is None


def test_where_no_success_is_defined_it_is_null_and_returns_are_compared():
    a = evaluate(Counting(), Clockwork(4, success=False), 30, seed=0)
    b = evaluate(NoisyActor(Counting(), 1, 0.0), Clockwork(4, success=False), 30, seed=0)
    assert a.success is None and a.to_json()["success"] is None and a.to_json()["successes"] is None
    p = compare(a, b)
    assert (p.metric, p.difference, p.low, p.high, p.p_value) == ("return", 0.0, 0.0, 0.0, 1.0)
    with pytest.raises(UserError, match="no success"):
        compare(a, b, metric="success")


def test_numbers_that_are_not_finite_are_null():
    e = evaluate(Counting(), Clockwork(1), 1, seed=0)  # one episode has no spread
    doc = json.loads(json.dumps(e.to_json(), allow_nan=False))
    assert doc["return"]["low"] is None and doc["return"]["mean"] is not None
    assert doc["success"]["low"] is not None
    returns = evaluate(Counting(), Clockwork(2, success=False), 2, seed=0)
    mean = f"{returns.returns.estimate:.4g}"
    assert f"This checkpoint has a mean return of {mean} in" in verdict(returns) and verdict(returns).count(mean) == 1
    unequal = replace(returns, returns=bootstrap_mean([1.0, 2.0]))
    assert "no interval: that takes at least 6 episodes" in verdict(unequal) and "nan" not in verdict(unequal)


def test_episodes_judged_from_disk_are_judged_alike():
    e = evaluate(Lucky(0.5), Fork(10), 30, seed=2)
    again = evaluation_of(Dataset(list(e.episodes), e.episodes.metadata))
    assert (again.success, again.returns, again.seed, again.env) == (e.success, e.returns, e.seed, e.env)


# -- comparison ----------------------------------------------------------------------------------------------------


def test_unequal_starts_are_refused():
    a = evaluate(Lucky(1.0), Fork(10), 20, seed=1)
    for b in (evaluate(Lucky(1.0), Fork(10), 20, seed=2), evaluate(Lucky(1.0), Fork(10), 19, seed=1),
              evaluate(Counting(), Clockwork(4), 20, seed=1)):
        with pytest.raises(UserError, match="the (environments or )?starts differ"):
            compare(a, b)
    moved = a.episodes.map(lambda e: e.replace({"observation.state": e.steps["observation.state"] + 1e-6}))
    with pytest.raises(UserError, match="does not repeat"):
        compare(a, evaluation_of(moved))


def test_a_perfect_tie_is_not_certainty():
    a = evaluate(Fork().expert(), Fork(10), 20, seed=1)
    p = compare(a, a)
    assert a.successes.all() and p.difference == 0 and p.p_value == 1.0
    assert p.low == pytest.approx(-0.1611, abs=1e-4) and p.high == pytest.approx(0.1611, abs=1e-4)
    assert p.better is None
    many = aggregate_seeds([a, a, a, a, a])
    assert many.success.low < 1 and many.success.high == 1
    p = compare([a] * 5, [a] * 5)
    assert p.low < 0 < p.high and p.n_seeds == 5


def test_which_is_better_is_said_in_plain_words():
    good, bad = evaluate(Lucky(0.95), Fork(10), 60, seed=1), evaluate(Lucky(0.2), Fork(10), 60, seed=1)
    text = verdict(good, bad, ("flow", "bc"))
    assert text.startswith("flow succeeds more often than bc") and "this checkpoint" in text
    assert f"{good.successes.sum()} of 60 against {bad.successes.sum()} of 60" in text
    p = compare(good, bad)
    assert f"{100 * p.difference:+.1f} points" in text and f"{100 * p.low:+.1f} points" in text
    turned = verdict(bad, good, ("bc", "flow"))
    assert turned.startswith("flow succeeds more often than bc") and "bc minus flow: -" in turned
    assert f"{good.successes.sum()} of 60 against {bad.successes.sum()} of 60" in turned
    close = evaluate(Lucky(0.9), Fork(10), 60, seed=1)
    assert verdict(good, close, ("flow", "mip")).startswith("Cannot tell whether flow or mip is better")
    words = verdict(good, bad, ("flow matching", "mean regression"))
    assert words.startswith("Flow matching succeeds more often than mean regression")
    assert "Flow matching minus mean regression: +" in words
    assert "runs/my own minus bc: " in verdict(good, bad, ("runs/my own", "bc"))
    alone = verdict(good, names=("flow", ""))
    assert "this checkpoint" in alone and f"{good.successes.sum()} of 60" in alone
    methods = verdict([good] * 3, [bad] * 3, ("flow", "bc"))
    assert "this checkpoint" not in methods and "3 training seeds" in methods


def outcomes(*well):
    """An evaluation whose episodes ended like that."""
    return evaluation_of(
        Dataset(
            [
                Episode(
                    {
                        "observation.state": np.zeros((2, 1), np.float32),
                        "action": np.zeros((1, 1)),
                        "next.reward": np.array([float(w)], np.float32),
                    },
                    {"number": i, "seed": 0, "env": "toy", "success": w},
                )
                for i, w in enumerate(well)
            ]
        )
    )


def test_where_interval_and_test_say_two_things_the_verdict_says_both_and_which_decides():
    """5 episodes of 20 that only one of two policies solves: Tango's interval is 0.049 to 0.469, McNemar's p 2/32."""
    p = compare(more := outcomes(*[True] * 10, *[False] * 10), fewer := outcomes(*[True] * 5, *[False] * 15))
    assert p.low == pytest.approx(0.049, abs=1e-3) and p.p_value == pytest.approx(2 / 32) and p.better is None
    text = verdict(more, fewer, ("flow", "bc"))
    assert text.startswith("Cannot tell whether flow or bc is better") and "+4.9 points to +46.9 points" in text
    assert "p = 0.062. The interval leaves out 0, but the test does not rule out chance: neither is called" in text
    assert "The interval leaves out 0" in verdict(fewer, more, ("bc", "flow"))
    for a, b in ((more, more), (outcomes(*[True] * 20), outcomes(*[False] * 20))):  # where they agree, nothing is said
        assert "unless both say so" not in verdict(a, b, ("flow", "bc"))


def test_a_real_difference_between_methods_is_found_and_chance_is_not():
    def group(share, streams):
        return [evaluate(Lucky(share, s), Fork(50), 50, seed=1) for s in streams]
    strong, weak = group(0.9, range(10, 15)), group(0.5, range(20, 25))
    p = compare(strong, weak)
    assert p.better == "first" and compare(weak, strong).better == "second"
    assert p.difference == pytest.approx(np.mean([s.successes.mean() for s in strong])
                                         - np.mean([s.successes.mean() for s in weak]))
    assert compare(strong, group(0.9, range(30, 35))).better is None
    with pytest.raises(UserError, match="the same number of training seeds"):
        compare(strong, weak[:4])
    q = compare(strong, weak, metric="return")
    assert q.metric == "return" and q.difference == pytest.approx(2 * p.difference) and q.better == "first"


def test_the_sign_flip_test_is_exact():
    a = evaluate(Lucky(0.5), Fork(10), 8, seed=3)
    b = evaluate(Lucky(0.5, 77), Fork(10), 8, seed=3)
    d = a.episode_returns - b.episode_returns
    flips = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1).T
    means = np.abs((flips * d).sum(1))
    assert compare(a, b, metric="return").p_value == pytest.approx((means >= abs(d.sum()) - 1e-12).mean())
    n = int(np.flatnonzero(d)[0])
    one = compare(evaluation_of(a.episodes[n:n + 1]), evaluation_of(b.episodes[n:n + 1]), metric="return")
    assert one.p_value == 1.0 and one.better is None  # with either sign it is as large


def test_saved_episodes_have_the_rate_of_the_environment_or_else_of_the_training_data(tmp_path, monkeypatch, capsys):
    """An environment of Gymnasium without render_fps does not say its rate; LeRobot's files must name one."""
    import json

    from understudy import cli
    from understudy.data.formats import lerobot

    (tmp_path / "slow.py").write_text(
        "import gymnasium, numpy as np\n"
        "class Arm(gymnasium.Env):\n"
        "    observation_space = gymnasium.spaces.Box(-9, 9, (2,), np.float32)\n"
        "    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        super().reset(seed=seed)\n"
        "        self.t = 0\n"
        "        return np.zeros(2, np.float32), {}\n"
        "    def step(self, action):\n"
        "        self.t += 1\n"
        "        return np.full(2, self.t, np.float32), 0.0, False, self.t == 5, {}\n"
        "class Fast(Arm):\n"
        "    metadata = {'render_modes': [], 'render_fps': 50}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    rng = np.random.default_rng(0)
    lerobot.write(Dataset([Episode({"observation.state": rng.normal(size=(9, 2)).astype(np.float32),
                                    "action": rng.normal(size=(9, 1)).astype(np.float32)}) for _ in range(5)],
                          {"fps": 20}), tmp_path / "demos")
    assert cli.main(["train", "bc", "demos", "--out", "run", "--steps", "2"]) == 0
    for name, rate in (("Arm", 20), ("Fast", 50)):
        assert cli.main(["eval", "run", f"slow:{name}", "--trust", "slow", "--episodes", "2", "--save", name]) == 0
        assert json.loads((tmp_path / name / "meta/info.json").read_text())["fps"] == rate
        assert open_dataset(tmp_path / name).fps == rate
