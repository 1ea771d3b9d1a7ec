"""Gymnasium's environments: every space, every way of resetting, the same episodes."""

import importlib
import subprocess
import sys
from dataclasses import dataclass
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from understudy import envs
from understudy.core import UserCodeError, UserError, keys
from understudy.data.formats import open_dataset
from understudy.envs.gymnasium_adapter import vectorize, wrap_vector
from understudy.envs.image_obs import with_images
from understudy.evaluate.evaluation import evaluate
from understudy.evaluate.recording import UniformRandomActor, record_episodes
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor
from understudy.testing import check_env


class Many(gymnasium.Env):
    """Shows one of everything; ends after 3 to 6 steps, as drawn at reset; success at the last but one step only."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 12}

    def __init__(self, action=None, render_mode=None):
        self.render_mode = render_mode
        self.observation_space = spaces.Dict({
            "eye": spaces.Box(0, 255, (8, 6, 3), np.uint8), "grey": spaces.Box(0, 255, (8, 6), np.uint8),
            "first": spaces.Box(0, 255, (3, 8, 6), np.uint8), "arm": spaces.Box(-np.inf, np.inf, (2, 2)),
            "mode": spaces.Discrete(4, start=-1), "keys": spaces.MultiDiscrete([2, 5]), "on": spaces.MultiBinary(3),
            "said": spaces.Text(6), "inner": spaces.Dict({"one": spaces.Box(-9, 9, (), np.float64)})})
        self.action_space = action or spaces.Box(np.float64([-1, 0]), np.float64([1, 4]), dtype=np.float64)
        self.taken = []

    def _seen(self):
        r = self.np_random
        return {"eye": r.integers(0, 256, (8, 6, 3), np.uint8), "grey": r.integers(0, 256, (8, 6), np.uint8),
                "first": np.full((3, 8, 6), np.arange(3).reshape(3, 1, 1), np.uint8),
                "arm": np.full((2, 2), self.clock, np.float32), "mode": r.integers(-1, 3),
                "keys": r.integers(0, [2, 5]), "on": r.integers(0, 2, 3, np.int8), "said": "ab" * (self.clock % 3),
                "inner": {"one": np.float64(self.clock)}}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.clock, self.length = 0, int(self.np_random.integers(3, 7))
        return self._seen(), {"started": True}

    def step(self, action):
        self.taken.append(action)
        self.clock += 1
        over = self.clock >= self.length
        return (self._seen(), float(self.clock), over and self.length % 2 == 0, over and self.length % 2 == 1,
                {"is_success": self.clock == self.length - 1, "odd": "text"})

    def render(self):
        return np.full((4, 5, 3), self.clock, np.uint8)


def many(mode, cls=SyncVectorEnv, rows=3, **options):
    return wrap_vector(cls([Many] * rows, autoreset_mode=mode, **options), {"env": "many", "version": None, "fps": 12,
                                                                            "limit": None})


MODES = [(cls, mode) for cls in (SyncVectorEnv, AsyncVectorEnv) for mode in AutoresetMode]


@pytest.mark.parametrize(("cls", "mode"), MODES, ids=lambda v: getattr(v, "__name__", None) or v.value)
def test_all_ways_of_resetting_give_the_same_episodes(cls, mode):
    """Seven episodes over three rows, last observations and success before the last step included."""
    plain = []
    for number in range(7):  # by hand, one environment at a time
        env, seed = Many(), int(keys(5, [number])[0]) % 2 ** 31
        observations, over = [env.reset(seed=seed)[0]], False
        while not over:
            obs, _, terminated, truncated, _ = env.step(None)
            observations.append(obs)
            over = terminated or truncated
        plain.append((observations, terminated))
    env = many(mode, cls)
    episodes = rollout(UniformRandomActor(env), env, 7, seed=5)
    env.close()
    for (observations, terminated), episode in zip(plain, episodes, strict=True):
        assert len(episode) == len(observations) - 1
        np.testing.assert_array_equal(episode.steps["observation.images.eye"], [s["eye"] for s in observations])
        np.testing.assert_array_equal(episode.steps["observation.inner.one"][:, 0],
                                      [s["inner"]["one"] for s in observations])
        np.testing.assert_array_equal(episode.steps["observation.mode"][:, 0], [s["mode"] + 1 for s in observations])
        assert episode.steps["next.terminated"][-1] == terminated != episode.steps["next.truncated"][-1]
        np.testing.assert_array_equal(episode.steps["next.success"],
                                      [i == len(observations) - 3 for i in range(len(observations) - 1)])
        assert episode.metadata["success"] is True


@pytest.mark.parametrize("cls", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize("mode", AutoresetMode)
def test_the_last_image_of_an_episode_is_its_own(cls, mode):
    env = wrap_vector(cls([partial(Many, render_mode="rgb_array")] * 2, autoreset_mode=mode), {"env": "many"})
    try:
        if mode is AutoresetMode.SAME_STEP:  # the next episode has started when the last image could be drawn
            with pytest.raises(UserError, match="SAME_STEP the last image of an episode cannot be rendered"):
                rollout(UniformRandomActor(env), with_images(env, 8), 3, seed=5)
            return
        for episode in rollout(UniformRandomActor(env), with_images(env, 8), 3, seed=5):
            images = episode.steps["observation.images.camera"]
            assert images[:, 0, 0, 0].tolist() == list(range(len(episode) + 1))
    finally:
        env.close()


class Reused(Many):
    """Overwrites the array that it returned before."""

    def _seen(self):
        if not hasattr(self, "arm"):
            self.arm = np.zeros((2, 2), np.float32)
        self.arm[:] = self.clock
        return {**super()._seen(), "arm": self.arm}


def test_a_last_observation_that_the_reset_overwrites_is_refused():
    def ran(cls, mode):
        env = wrap_vector(cls([Reused] * 2, autoreset_mode=mode), {"env": "reused"})
        try:
            return rollout(UniformRandomActor(env), env, 3, seed=5)
        finally:
            env.close()
    for cls, mode in ((SyncVectorEnv, AutoresetMode.DISABLED), (AsyncVectorEnv, AutoresetMode.DISABLED)):
        for episode in ran(cls, mode):
            assert episode.steps["observation.arm"][:, 0].tolist() == list(range(len(episode) + 1))
    with pytest.raises(UserError, match="reset and step return the same array as observation.arm"):
        ran(SyncVectorEnv, AutoresetMode.SAME_STEP)


def test_every_space_has_its_column():
    env = many(AutoresetMode.DISABLED)
    obs = env.reset(torch.arange(3), keys(0, range(3)))
    kinds = {k.removeprefix("observation."): (f.kind, f.shape, f.num_classes) for k, f in env.features.items()}
    assert kinds == {
        "images.eye": ("image", (8, 6, 3), None), "images.grey": ("image", (8, 6, 1), None),
        "images.first": ("image", (8, 6, 3), None), "arm": ("vector", (4,), None), "mode": ("discrete", (1,), (4,)),
        "keys": ("discrete", (2,), (2, 5)), "on": ("discrete", (3,), (2, 2, 2)), "said": ("text", (6,), None),
        "inner.one": ("vector", (1,), None), "action": ("vector", (2,), None)}
    assert obs["observation.images.first"][0, 0, 0].tolist() == [0, 1, 2]
    env.step(torch.zeros(3, 2))
    text_column = env.step(torch.zeros(3, 2)).obs["observation.said"]
    assert bytes(text_column[0].tolist()).rstrip(b"\0") == b"abab"
    assert env.metadata["success"] == "info['is_success'] at any step"  # known beforehand
    plain = wrap_vector(vectorize(lambda: gymnasium.make("CartPole-v1"), 1), {"env": "pole"})
    assert plain.metadata["success"] is None and set(plain.features) == {"observation.state", "action"}


class Told(gymnasium.Env):
    """Shows a sentence."""

    action_space = spaces.Discrete(2)

    def __init__(self, text, space):
        self.text, self.observation_space = text, spaces.Dict({"task": space})

    def reset(self, *, seed=None, options=None):
        return {"task": self.text}, {}

    def step(self, action):
        return {"task": self.text}, 0.0, False, False, {}


def test_text_is_never_cut():
    words = "öffne die Tür"

    def shown(space):
        env = wrap_vector(vectorize(lambda: Told(words, space), 1), {"env": "told"})
        return bytes(env.reset(torch.arange(1), keys(0, [0]))["observation.task"][0].tolist()).rstrip(b"\0").decode()
    assert shown(spaces.Text(13, charset=frozenset(words))) == words  # 15 bytes
    with pytest.raises(UserError, match=r"observation.task does not fit.*has 15 bytes, and its longest text 13"):
        shown(spaces.Text(13))
    assert shown(spaces.Text(20)) == words


def test_actions_are_clipped_and_cast():
    env = many(AutoresetMode.DISABLED, rows=1)
    env.reset(torch.arange(1), keys(0, [0]))
    env.step(torch.tensor([[-3.0, 9.0]]))
    taken = env.vec.envs[0].taken[-1]
    assert taken.dtype == np.float64 and taken.tolist() == [-1, 4]
    assert env.metadata["low"] == [-1, 0] and env.metadata["high"] == [1, 4]
    for space, action, expected in ((spaces.Discrete(3, start=5), [[2]], 7),
                                    (spaces.MultiDiscrete([3, 2]), [[2, 1]], [2, 1]),
                                    (spaces.MultiBinary(2), [[0, 1]], [0, 1])):
        env = wrap_vector(vectorize(lambda space=space: Many(space), 1), {"env": "many"})
        env.reset(torch.arange(1), keys(0, [0]))
        env.step(torch.tensor(action))
        assert np.array_equal(env.vec.envs[0].taken[-1], expected)
        assert env.vec.envs[0].action_space.contains(env.vec.envs[0].taken[-1])
        with pytest.raises(UserError, match="the numbers of choices"):
            env.step(torch.full_like(torch.tensor(action), 9))
    env = wrap_vector(vectorize(lambda: Many(spaces.Box(-3, 9, (3,), np.int64)), 1), {"env": "many"})
    env.reset(torch.arange(1), keys(0, [0]))
    env.step(torch.tensor([[4.9, -1.7, 12.0]]))  # a policy predicts 5 as 4.9
    assert env.vec.envs[0].taken[-1].tolist() == [5, -2, 9]


def test_what_has_no_meaning_is_refused():
    with pytest.raises(UserError, match="wrap the environment"):
        wrap_vector(vectorize(lambda: Many(spaces.Dict({"a": spaces.Discrete(2)})), 1), {"env": "many"})
    with pytest.raises(UserError, match="shared_memory=False"):
        forked = AsyncVectorEnv([Many], autoreset_mode=AutoresetMode.NEXT_STEP, shared_memory=False)
        try:
            wrap_vector(forked, {"env": "many"})
        finally:
            forked.close()

    for parts in (spaces.Tuple([spaces.Discrete(2), spaces.Box(-1, 1)]), spaces.Dict({"a": spaces.Box(-1, 1)})):
        with pytest.raises(UserError, match="many: actions of several parts are not supported"):
            wrap_vector(vectorize(lambda parts=parts: Many(parts), 1), {"env": "many"})

    class Own(VectorEnv):
        metadata, num_envs = {"autoreset_mode": AutoresetMode.NEXT_STEP}, 1
    with pytest.raises(UserError, match="cannot be reset one by one"):
        wrap_vector(Own(), {"env": "own"})


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1", "MountainCarContinuous-v0"])
def test_gymnasiums_own_keep_the_contract(name):
    check_env(lambda rows: envs.make(name, rows, max_episode_steps=20))


def test_the_first_observation_is_that_of_the_seed():
    env, plain = envs.make("CartPole-v1", 2), gymnasium.make("CartPole-v1")
    key = keys(3, [4, 5])
    obs = env.reset(torch.arange(2), key)["observation.state"]
    for row, k in zip(obs, key.tolist(), strict=True):
        np.testing.assert_array_equal(row.numpy(), plain.reset(seed=k % 2 ** 31)[0])
    assert env.metadata["version"] == f"gymnasium {gymnasium.__version__}" and env.metadata["limit"] == 500


def test_balancing_a_pole():
    """The known closed-form controller, through our columns."""
    @dataclass(frozen=True)
    class Balance(Actor):
        def start(self, obs, key):
            return {}

        def act(self, obs, state):
            state_vector = obs["observation.state"]
            return (state_vector @ torch.tensor([0.1, 0.3, 1.0, 1.0]) > 0).long().unsqueeze(1), state
    episodes = rollout(Balance(), envs.make("CartPole-v1", 5), 5, seed=0)
    assert [len(e) for e in episodes] == [500] * 5 and all(e.steps["next.truncated"][-1] for e in episodes)
    assert episodes[0].steps["action"].dtype == np.int64 and episodes[0].steps["action"].shape == (500, 1)


def test_pictures_come_from_the_row(monkeypatch):
    # What MuJoCo failed to draw in this process does not matter to others.
    monkeypatch.setattr("understudy.envs.gymnasium_adapter._render_error", [UserError("no OpenGL")])
    env = wrap_vector(vectorize(lambda: Many(render_mode="rgb_array"), 2), {"env": "many"})
    env.reset(torch.arange(2), keys(0, range(2)))
    env.step(torch.zeros(2, 2))
    env.reset(torch.tensor([1]), keys(0, [2]))
    assert env.frame(0).mean() == 1 and env.frame(1).mean() == 0


THEIRS = """
import gymnasium
import numpy as np
from gymnasium import spaces

class Theirs(gymnasium.Env):
    observation_space, action_space = spaces.Box(-9, 9, (2,)), spaces.Box(-1, 1, (1,))

    def __init__(self, length=4, tells=(), render_mode=None):
        self.length, self.tells = length, tells

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.clock, self.lucky = 0, self.np_random.random() < 0.5
        return self._seen(), {}

    def step(self, action):
        self.clock += 1
        over = self.clock >= self.length
        told = {"success": True} if self.clock in self.tells and self.lucky else {}
        return self._seen(), 0.0, over, False, told

    def _seen(self):
        return np.float32([self.clock, self.lucky])

class OldReset(Theirs):
    def reset(self):
        return super().reset()[0]

class OldStep(Theirs):
    def step(self, action):
        seen, reward, over, _, info = super().step(action)
        return seen, reward, over, info

class AlmostOld(Theirs):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0]

def none(): return Theirs()
def lone(rows, **options): return Theirs(**options)
def beside(): return gymnasium.vector.SyncVectorEnv([Theirs] * 3)
def needs(size): return Theirs()
def number(): return 3
instance = Theirs()
def again(): return instance

gymnasium.register("Theirs-v0", Theirs, max_episode_steps=3)
gymnasium.register("OldStep-v0", OldStep)
"""


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """Trusts a module of somebody else's, not yet imported."""
    (tmp_path / "theirs_envs.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(tmp_path)
    yield ("theirs_envs",)
    for name in ("Theirs-v0", "OldStep-v0"):
        gymnasium.registry.pop(name, None)


@pytest.mark.parametrize(("name", "length"), [
    ("theirs_envs:none", 4), ("theirs_envs:Theirs", 4), ("theirs_envs:lone", 4), ("theirs_envs:beside", 4),
    ("Theirs-v0", 3), ("theirs_envs:Theirs-v0", 3)])
def test_whatever_makes_an_environment_of_theirs_is_taken(theirs, name, length):
    env = envs.make(name, 3, theirs)
    episodes = rollout(UniformRandomActor(env), env, 7, seed=0)
    assert env.rows == 3 and [len(e) for e in episodes] == [length] * 7 and env.metadata["env"] == name
    for number, episode in enumerate(episodes):  # every row is one of its own
        plain = gymnasium.utils.seeding.np_random(int(keys(0, [number])[0]) % 2 ** 31)[0].random() < 0.5
        assert episode.steps["observation.state"].tolist() == [[t, plain] for t in range(length + 1)]


def test_options_of_theirs_arrive(theirs):
    env = envs.make("theirs_envs:Theirs", 2, theirs, length=6)
    assert [len(e) for e in rollout(UniformRandomActor(env), env, 2)] == [6, 6]


@pytest.mark.parametrize(("name", "found"), [
    ("theirs_envs:needs", r"needs\(size\) needs more than rows\n  -> .*'size'"),
    ("theirs_envs:number", "the factory returned int, not an Env"),
    ("theirs_envs:instance", "'instance' in theirs_envs is not a function or class, but Theirs"),
    ("theirs_envs:nothing", "theirs_envs has no function 'nothing'"),
    ("theirs_envs:again", "returned the same one again"),
    ("theirs_envs:OldReset", r"it has reset\(\), not reset\(\*, seed, options\)"),
    ("theirs_envs:AlmostOld", r"reset must return \(observation, info\)"),
    ("theirs_envs:OldStep", "step must return 5 values, but returned 4"),
    ("OldStep-v0", "step must return 5 values, but returned 4")])
def test_what_makes_none_is_told_plainly(theirs, name, found):
    with pytest.raises(UserError, match=f"^{name}: .*{found}"):
        envs.make(name, 2, theirs)


def test_a_package_that_is_trusted_has_to_be_there():
    with pytest.raises(UserError, match="--trust no_such_package: there is no module"):
        envs.make("Nowhere-v0", trust=("no_such_package",))


def test_an_unknown_id_is_all_that_is_said():
    """Simulators that are asked for it greet; nobody wants to know."""
    code = "from understudy import envs\ntry: envs.make('Nowhere-v0')\nexcept ValueError: print('asked')"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (process.stdout, process.stderr) == ("asked\n", "")


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("tells", [(4,), (2,)])
def test_success_counts_from_whenever_it_is_told(theirs, mode, tells, tmp_path):
    """An environment that says so at the moment of success, and nothing before."""
    module = importlib.import_module(theirs[0])
    build = partial(module.Theirs, tells=tells)
    env = wrap_vector(SyncVectorEnv([build] * 2, autoreset_mode=mode), {"env": "theirs"})
    assert env.metadata["success"] is None
    episodes = rollout(UniformRandomActor(env), env, 9, seed=0)
    lucky = [bool(e.steps["observation.state"][0, 1]) for e in episodes]
    assert 0 < sum(lucky) < 9
    assert [e.metadata["success"] for e in episodes] == lucky
    assert env.metadata["success"] == "info['success'] at any step"
    for e, yes in zip(episodes, lucky, strict=True):
        assert e.steps["next.success"].tolist() == [yes and t + 1 in tells for t in range(4)]
    judged = evaluate(
        UniformRandomActor(env), wrap_vector(SyncVectorEnv([build] * 2, autoreset_mode=mode), {"env": "theirs"}), 9)
    assert judged.successes.tolist() == lucky


def test_a_degree_of_success_is_refused(theirs):
    class Part(importlib.import_module(theirs[0]).Theirs):
        def step(self, action):
            return (*super().step(action)[:4], {"success": 0.3})

    env = wrap_vector(SyncVectorEnv([Part] * 2), {"env": "part"})
    with pytest.raises(UserError, match="part: reports success as 0.3, which is not one True or False"):
        rollout(UniformRandomActor(env), env, 2)


def test_an_environment_that_never_tells_has_no_success(theirs):
    judged = evaluate(UniformRandomActor(env := envs.make("theirs_envs:none", 2, theirs)), env, 5)
    assert judged.success is None and env.metadata["success"] is None and judged.to_json()["success"] is None
    assert not any("success" in e.metadata or "next.success" in e.steps for e in judged.episodes)


def test_a_recording_goes_on_whatever_has_been_told_by_then(theirs, tmp_path):
    """Each call has an environment that has told of nothing yet."""
    def on(episodes, tells, out):
        env = envs.make("theirs_envs:Theirs", 3, theirs, tells=tells)  # groups of 12
        return record_episodes(env, UniformRandomActor(env), episodes, tmp_path / out, 0, actor_name="random")
    lucky = [bool(e.steps["observation.state"][0, 1]) for e in on(20, (), "plain")]
    assert "next.success" not in open_dataset(tmp_path / "plain").features()
    on(1 + lucky.index(True), (4,), "told")
    continued = on(20, (4,), "told")
    assert [e.metadata["success"] for e in continued] == [bool(e.steps["next.success"].any())
                                                          for e in continued] == lucky
    on(2, (), "late")
    late = on(20, (4,), "late")
    assert [e.metadata["success"] for e in late] == [False, False, *lucky[2:]]


class Fails(gymnasium.Env):
    """Raises an error, or returns another shape, in a step or reset."""

    observation_space = spaces.Dict({"state": spaces.Box(-9, 9, (3,), np.float32)})
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, when="step", at=3):
        self.when, self.at, self.calls = when, at, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self.when == "reset":
            raise LookupError("no bus")
        return {"state": np.zeros(3, np.float32)}, {}

    def step(self, action):
        self.calls += 1
        if self.when == "step" and self.calls > self.at:  # the first call looks for a flag of success
            raise RuntimeError("the arm is off")
        size = 2 if self.when == "shape" and self.calls > self.at else 3
        return {"state": np.zeros(size, np.float32)}, 0.0, False, self.calls > 20, {}


@pytest.mark.parametrize("when, problem, cause", [
    ("step", "RuntimeError: the arm is off", RuntimeError), ("shape", "ValueError: ", ValueError),
    ("reset", "LookupError: no bus", LookupError)])
def test_errors_of_an_environment_name_it_and_the_step(when, problem, cause):
    with pytest.raises(UserCodeError) as caught:
        env = wrap_vector(vectorize(partial(Fails, when), 2), {"env": "theirs/Fails-v0"})
        rollout(UniformRandomActor(env), env, 2)
    error = caught.value
    assert error.problem.startswith(problem) and isinstance(error.__cause__, cause)
    place = "reset" if when == "reset" else "step 3"
    assert str(error.where).startswith(f"theirs/Fails-v0, {place}")
    if when != "shape":
        assert "test_gymnasium_adapter.py, line " in str(error.where) and str(error.where).endswith(f"in {when}")


def test_a_full_memory_is_no_error_of_the_environment():
    class Full(Fails):
        def step(self, action):
            raise MemoryError
    with pytest.raises(MemoryError):
        wrap_vector(vectorize(Full, 1), {"env": "theirs/Full-v0"})


def test_rows_without_an_episode_are_not_stepped():
    vec = vectorize(Many, 3)
    env = wrap_vector(vec, {"env": "many"})
    before = [len(single.taken) for single in vec.envs]
    data = rollout(UniformRandomActor(env), env, 4, 5)
    again = rollout(UniformRandomActor(env), env, 1, 5, first=3)
    assert data.select([3]).fingerprint() == again.fingerprint()
    taken = [len(single.taken) - n for single, n in zip(vec.envs, before, strict=True)]
    assert sum(taken) == data.steps + again.steps
