"""Errors in the user's own files name these files and lines, and are no defects of understudy."""

from __future__ import annotations

import pickle
import sys
import textwrap

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from understudy import make
from understudy.cli import main
from understudy.core import ConfigError, DataError, Unsupported, UserCodeError, UserError
from understudy.envs.base import Env, StepResult
from understudy.envs.gymnasium_adapter import CheckedEnv
from understudy.envs.toys.fork import Fork, ForkExpert
from understudy.evaluate.rollout import rollout
from understudy.user_code import locate_user_error

ENV = '''
import gymnasium
import numpy as np
from gymnasium import spaces


class Arm(gymnasium.Env):
    observation_space = spaces.Box(-9, 9, (2,))
    action_space = spaces.Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(2, np.float32), 0.0, False, self.steps >= 8, {}
'''


def files(*, reset: str = "", step: str = "", head: str = "", tail: str = "") -> str:
    """The environment above with a line more in one place."""
    text = head + ENV
    text = text.replace("        self.steps = 0\n", f"        self.steps = 0\n{textwrap.indent(reset, ' ' * 8)}")
    return text.replace("        self.steps += 1\n",
                        f"        self.steps += 1\n{textwrap.indent(step, ' ' * 8)}") + tail


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """call(text, *args): writes mine.py, runs a command beside it, and returns (status, out, err)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(text, *args):
        (tmp_path / "mine.py").write_text(text)
        sys.modules.pop("mine", None)
        capsys.readouterr()
        status = main([str(a) for a in args])
        return status, *capsys.readouterr()
    return run


RECORD = ("record", "mine:Arm", "--actor", "random", "--episodes", "2", "--out", "demos", "--trust", "mine")


def line_of(text: str, part: str) -> int:
    return 1 + text[:text.index(part)].count("\n")


@pytest.mark.parametrize("text, part, words", [
    (files(step="raise ValueError('the arm is stuck')\n"), "raise Val", ["ValueError: the arm is stuck", "in step"]),
    (files(step="if self.steps == 3: 1 / 0\n"), "if self.steps", ["ZeroDivisionError", "in step"]),
    (files(reset="open('no such file')\n"), "open(", ["FileNotFoundError", "in reset"]),
    (files(step="np.zeros(3) + np.zeros(4)\n"), "np.zeros(3)", ["ValueError: operands", "in step"]),
    (files(head="import no_such_thing\n"), "import no_such", ["ModuleNotFoundError", "install what is missing"]),
    (files(head="from numpy import no_such_thing\n"), "from numpy", ["ImportError", "install what is missing"]),
    (files(head="def f(:\n"), "def f", ["SyntaxError", "correct the line"]),
    (files(head="raise RuntimeError('not now')\n"), "raise Run", ["RuntimeError: not now"]),
    (files(tail="\n    def __init__(self):\n        self.size = self.no_such_size\n"), "self.no_such", [
        "AttributeError", "in __init__"])])
def test_an_error_in_an_environment_names_its_file_and_line(call, text, part, words):
    status, out, err = call(text, *RECORD)
    assert status == 2 and "Traceback" not in err and "defect" not in err, err
    assert f"mine.py, line {line_of(text, part)}" in err and "\n  -> " in err
    assert all(word in err for word in words), err


def test_debug_shows_the_traceback_of_the_users_code(call):
    status, _, err = call(files(step="raise ValueError('stuck')\n"), *RECORD, "--debug")
    assert status == 2 and "Traceback" in err and 'mine.py", line' in err


@pytest.mark.parametrize("change, words", [
    ({"np.zeros(2, np.float32), 0.0": "np.zeros(3, np.float32), 0.0"}, [
        "the observation has shape (3,)", "(2,)", "in step"]),
    ({"np.zeros(2, np.float32), {}": "np.zeros((1, 2), np.float32), {}"}, ["has shape (1, 2)", "in reset"]),
    ({"np.zeros(2, np.float32), 0.0": "np.zeros(2, np.float32), None"}, ["the reward is None", "in step"]),
    ({"spaces.Box(-9, 9, (2,))": "spaces.Dict(a=spaces.Box(-9, 9, (2,)))",
      "np.zeros(2, np.float32), {}": "{'b': np.zeros(2)}, {}"}, ["the observation has no 'a'", "in reset"]),
    ({"spaces.Box(-9, 9, (2,))": "spaces.Discrete(3)", "np.zeros(2, np.float32), {}": "0, {}",
      "np.zeros(2, np.float32), 0.0": "3, 0.0"}, ["the observation is 3", "not in Discrete(3)", "in step"]),
    ({"spaces.Box(-9, 9, (2,))": "spaces.Box(0, 255, (8, 8, 3), np.uint8)", "np.zeros(2, np.float32), {}":
      "np.zeros((8, 8, 3)), {}"}, ["the observation holds float64 and its space uint8", "in reset"])])
def test_an_observation_outside_its_space_names_the_method(call, change, words):
    text = ENV
    for old, new in change.items():
        text = text.replace(old, new)
    status, out, err = call(text, *RECORD)
    assert status == 2 and "Traceback" not in err and "defect" not in err, err
    assert "mine.py, line" in err and all(word in err for word in words), err


@pytest.mark.parametrize("space, good, bad", [
    (spaces.Box(-1, 1, (2,)), [[0, 0], np.array([5.0, 5.0]), np.zeros(2, bool)], [[0], [[0, 0]], ["a", "b"], None]),
    (spaces.Box(0, 9, (2,), np.int64), [[1, 2], np.array([1.0, 2.0])], [[1]]),
    (spaces.Discrete(3, start=1), [1, np.int64(3)], [0, 4, 1.5, [1]]),
    (spaces.MultiDiscrete([2, 3]), [[1, 2]], [[2, 0], [0]]),
    (spaces.Text(9), ["go"], [3]),
    (spaces.Dict(a=spaces.Tuple([spaces.Discrete(2)])), [{"a": (1,), "b": 0}], [{"a": (2,)}, {"a": ()}, {"a": 0}, 0])])
def test_what_fits_a_space(space, good, bad):
    class One(gymnasium.Env):
        observation_space, action_space = space, spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return options["value"], {}
    env = CheckedEnv(One())
    for value in good:
        env.reset(options={"value": value})
    for value in bad:
        with pytest.raises(UserCodeError, match=r"test_user_code.py, line \d+, in reset: the observation"):
            env.reset(options={"value": value})


class Square(Env):
    """An environment of the library's own interface that breaks its word."""

    rows, features, metadata = 2, Fork(1).features, {"env": "square"}

    def __init__(self, first, later):
        self.first, self.later = first, later

    def reset(self, which, key):
        return self.first

    def step(self, action):
        no = torch.zeros(2, dtype=torch.bool)
        return StepResult(self.later, torch.zeros(2), no, no, {})


def test_columns_that_an_env_does_not_declare_are_refused():
    good = {"observation.state": torch.zeros(2, 2)}
    for first, later, words in (
            ({"observation.state": torch.zeros(2, 3)}, good, r"in reset: returns observation.state of shape \(2, 3\)"),
            (good, {}, "in step: returns no column observation.state"),
            (good, {**good, "extra": torch.zeros(2)}, r"in step: returns extra of shape \(2,\)\n  -> its features")):
        with pytest.raises(UserCodeError, match=words):
            rollout(ForkExpert(), Square(first, later), 2)


METHOD = '''
from understudy import Method, PolicyConfig
from understudy.heads.likelihood.regression import Regression


def method(features=None):
    return Method(PolicyConfig(Regression(widths=3)))
'''


def test_errors_in_methods_and_scores_name_their_file_and_line(call):
    assert main(["record", "fork", "--out", "demos", "--episodes", "4"]) == 0
    status, _, err = call(METHOD, "train", "mine:method", "demos", "--out", "run", "--trust", "mine")
    assert status == 2 and f"mine.py, line {line_of(METHOD, 'return')}, in method: TypeError" in err, err
    score = "def score(data):\n    return data.no_such_thing\n"
    status, _, err = call(score, "curate", "demos", "--score", "mine:score", "--keep", "0.5", "--out", "v.json",
                          "--trust", "mine")
    assert status == 2 and "mine.py, line 2, in score: AttributeError" in err, err
    for command in (("train", "mine:method", "demos", "--out", "run"),
                    ("curate", "demos", "--score", "mine:score", "--keep", "1", "--out", "v.json")):
        status, _, err = call("import nothing_here\n", *command, "--trust", "mine")
        assert status == 2 and "mine.py, line 1: ModuleNotFoundError" in err, err


@pytest.mark.slow
@pytest.mark.timeout(400)  # two processes import PyTorch
def test_workers_tell_where_the_users_code_failed(call):
    text = files(step="if self.steps == 5: raise ValueError('stuck')\n")
    status, _, err = call(text, *RECORD, "--workers", "2")
    assert status == 2 and f"mine.py, line {line_of(text, 'if self.steps')}, in step: ValueError: stuck" in err, err
    assert "Traceback" not in err and "defect" not in err


def test_an_error_of_understudy_is_no_users_error(call):
    with pytest.raises(TypeError) as caught:
        make("fork", 2).advance("right")
    error = caught.value
    inner = error.__traceback__.tb_next  # without the frame of this file
    assert locate_user_error(error) is not None and locate_user_error(error.with_traceback(inner)) is None


def test_installed_packages_count_when_they_are_trusted():
    try:
        spaces.Discrete(-1)
    except ValueError as error:
        inner = error.with_traceback(error.__traceback__.tb_next)
        assert locate_user_error(inner) is None
        assert "discrete.py, line" in str(locate_user_error(inner, ("gymnasium",)))


def test_errors_keep_their_kind_on_the_way_from_a_worker():
    for kind in (UserError, DataError, ConfigError, Unsupported, UserCodeError):
        error = pickle.loads(pickle.dumps(kind("no", where="here", hint="do that")))
        assert type(error) is kind and str(error) == "here: no\n  -> do that"
        assert (error.problem, error.where, error.hint) == ("no", "here", "do that")


def test_a_misspelt_factory_is_told_what_there_is(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "spelled_env.py").write_text(files(tail="\n\ndef make():\n    return Arm()\n"))
    with pytest.raises(UserError, match="spelled_env has no function 'mkae'.*\n.*did you mean 'make'?"):
        make("spelled_env:mkae", trust=("spelled_env",))
    with pytest.raises(UserError, match="'zzz'; it has Arm, make\n.*module:factory"):
        make("spelled_env:zzz", trust=("spelled_env",))
