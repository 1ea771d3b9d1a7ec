"""Names of environments, trust, and many copies."""

import time

import gymnasium
import pytest
import torch

from understudy import envs
from understudy.config import UntrustedCode
from understudy.core import UserError, keys


def test_unknown_names_and_options_say_what_there_is():
    with pytest.raises(UserError, match="did you mean 'fork'"):
        envs.make("frok")
    with pytest.raises(UserError, match="CartPole-v1"):
        envs.make("cartpole-v1")
    with pytest.raises(UserError, match="(?s)is not the name of an environment.*module:factory"):
        envs.make(gymnasium.make("CartPole-v1"))
    with pytest.raises(UserError, match="limt") as error:
        envs.make("fork", limt=3)
    assert error.value.hint.startswith("it is made by Fork(rows: 'int' = 1, limit: 'int' = ")
    assert envs.names() == ("fork", "particle", "push", "push-images", "blocks", "memory", "maze", "arms", "drive",
                            "words", "tabular", "four_rooms", "gridworld_tasks", "peg_insertion", "planar_arms",
                            "tabletop", "lane_driving")


def test_a_factory_outside_needs_trust(tmp_path, monkeypatch):
    (tmp_path / "stranger_envs.py").write_text(
        "from understudy.envs.toys.fork import Fork\n"
        "import gymnasium\n"
        "def fork(rows, limit=7): return Fork(rows, limit=limit)\n"
        "def pole(rows): return gymnasium.make('CartPole-v1')\n"
        "def poles(rows): return gymnasium.make_vec('CartPole-v1', rows, vectorization_mode='sync')\n"
        "def wrong(rows): return 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UntrustedCode, match="--trust stranger_envs"):
        envs.make("stranger_envs:fork")
    trust = ("stranger_envs",)
    assert envs.make("stranger_envs:fork", 3, trust, limit=9).metadata["limit"] == 9
    for factory in ("pole", "poles"):
        env = envs.make(f"stranger_envs:{factory}", 3, trust)
        assert env.rows == 3 and env.features["action"].num_classes == (2,)
    for name, words in (("stranger_envs:wrong", "returned int"), ("stranger_envs:none", "has no function 'none'"),
                        ("stranger_envs.sub:f", "there is no module")):
        with pytest.raises(UserError, match=words):
            envs.make(name, 1, trust)


def test_columns_that_restoring_needs_are_named():
    env = envs.make("push-images", 2)
    with pytest.raises(UserError, match="simulator.state"):
        env.restore(torch.tensor([0]), {"observation.state": torch.zeros(1, 2)})
    with pytest.raises(UserError, match="the shape must be"):
        envs.make("fork").restore(torch.tensor([0]), {"observation.state": torch.zeros(1, 3)})
    with pytest.raises(UserError, match=r"have shape \(2, 3\), but must have shape \(2, 2\)"):
        envs.make("fork", 2).step(torch.zeros(2, 3))


def test_a_thousand_copies_step_as_one():
    """Vectorised means that a thousand rows cost far less than a thousand times one."""
    for name in ("fork", "particle", "push"):
        took = {}
        for rows in (1, 1000):
            env = envs.make(name, rows, limit=10**6)
            env.reset(torch.arange(rows), keys(0, range(rows)))
            action = torch.zeros(rows, 2)
            began = time.process_time()
            for _ in range(30):
                env.step(action)
            took[rows] = time.process_time() - began
        assert took[1000] < 100 * took[1]


@pytest.mark.parametrize(("missing", "hint"), [
    ('Box2D is not installed: pip install "gymnasium[box2d]"', "install what is named there"),
    ('MuJoCo is not installed, run pip install "gymnasium[mujoco]"', "understudy[sim]")])
def test_the_hint_for_a_missing_simulator_brings_it(missing, hint, monkeypatch):
    def build(name):
        raise gymnasium.error.DependencyNotInstalled(missing)
    monkeypatch.setattr("understudy.envs.gymnasium_adapter.build", build)
    with pytest.raises(UserError, match="its simulator is not installed") as error:
        envs.make("LunarLander-v3")
    assert hint in error.value.hint
