"""Policies that are told a desired return: the column in training, its counterpart while acting, the command line."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from understudy import make
from understudy.cli import main
from understudy.core import DataWarning, UserError
from understudy.data.column_changes import ReturnToGo, TimeLeft
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset, write_dataset
from understudy.envs.toys.tabular import Tabular, TabularExpert
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor, ObservationWrapper
from understudy.learn.fit_method import fit_method
from understudy.learn.method import training_data
from understudy.learn.preflight import tell
from understudy.learn.targets import return_findings
from understudy.learn.train import train
from understudy.methods import find_method
from understudy.nets.encoders import TokenEncoder

RETURN, TIME = "observation.return_to_go", "observation.time_left"
LENGTH = 6


def rope(rows: int = 50) -> Tabular:
    """Each of six steps has one right action, with reward 1. Nothing else depends on the actions."""
    return Tabular(rows, LENGTH, "tightrope", length=LENGTH, recoverable=True)


def random_episodes(count: int, env: Tabular | None = None) -> Dataset:
    env = rope() if env is None else env
    return rollout(TabularExpert(env.expert().best, noise=1.0), env, count, seed=1)


# -- the column -------------------------------------------------------------------------------------------------------


def test_return_to_go_of_ragged_episodes_ends_where_each_episode_ends():
    def episode(rewards, truncated):
        n = len(rewards)
        ends = np.arange(n) == n - 1
        return Episode({"observation.state": np.zeros((n + 1, 1), np.float32), "action": np.zeros((n, 1), np.float32),
                        "next.reward": np.array(rewards, np.float32), "next.terminated": ends & (not truncated),
                        "next.truncated": ends & truncated})
    data = Dataset([episode([1, 2, 4], False), episode([8], False), episode([16, 32, 64, 128], True)])
    returns = [e.steps[RETURN].ravel().tolist() for e in data.map(ReturnToGo())]
    assert returns == [[7, 6, 4, 0], [8, 0], [240, 224, 192, 128, 0]], "a timeout ends the sum as the end does"
    windows = find_method("udrl").policy.window.windows(data.map(ReturnToGo()), (RETURN,), "action")
    assert windows.gather(np.arange(8)).obs[RETURN].ravel().tolist() == [7, 6, 4, 8, 240, 224, 192, 128]


def test_without_rewards_the_error_says_what_is_missing():
    data = Dataset([e.replace({"next.reward": None}) for e in random_episodes(2)])
    with pytest.raises(UserError, match="(?s)no column 'next.reward'.*a return to go needs rewards.*such as bc"):
        training_data(data, find_method("udrl", data.features()))[0].steps[RETURN]


@pytest.mark.parametrize("name", ["udrl", "decision-transformer", "dichotomy-of-control"])
def test_returns_that_are_all_zero_are_refused(name, tmp_path, capsys):
    data = Dataset([e.replace({"next.reward": np.zeros(len(e), np.float32)}) for e in random_episodes(4)])
    write_dataset(data, tmp_path / "data")
    assert main(["train", name, str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--steps", "2"]) == 2
    assert "all rewards are 0, so that the returns of all episodes are equal" in capsys.readouterr().err


def test_equal_returns_are_told(tmp_path):
    data = Dataset([e.replace({"next.reward": np.eye(len(e), dtype=np.float32)[-1]}) for e in random_episodes(3)])
    with pytest.warns(DataWarning, match="the return of all 3 episodes is 1, so that the policy does not learn"):
        train(find_method("udrl", data.features()), data, tmp_path / "run", steps=1, progress=False)


def test_a_target_in_another_unit_is_told():
    data = Dataset([e.replace({"next.reward": np.full(len(e), i, "f")}) for i, e in enumerate(random_episodes(3))])
    largest = max(float(e.steps["next.reward"].sum()) for e in data)
    tell(return_findings(data, "next.reward", 10 * largest))
    for target in (10.1 * largest, -10.1 * largest):
        with pytest.warns(DataWarning, match=f"the target return is {target:g}, and the returns of the episodes are"):
            tell(return_findings(data, "next.reward", target))


# -- acting -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Watched(Actor):
    """Records the commands."""

    actor: Actor

    def start(self, obs, key):
        return self.actor.start(obs, key)

    def act(self, obs, state):
        action, state = self.actor.act(obs, state)
        return action, {**state, "record": {f"seen.{k}": obs[k].clone() for k in (RETURN, TIME)}}


@pytest.fixture(scope="module")
def trained():
    data = random_episodes(300)
    method = find_method("udrl", data.features())
    return fit_method(replace(method, learner=replace(method.learner, steps=400)), data, 0)


def asked(actor, value: float, length: int = LENGTH) -> ObservationWrapper:
    return ObservationWrapper(actor, {RETURN: torch.tensor([value]), TIME: torch.tensor([float(length)])})


def test_commands_count_down_by_what_was_received(trained):
    """A wrapper gives the same target at every step, but only the first is read."""
    inner = trained.actor
    episodes = rollout(asked(replace(inner, actor=Watched(inner.actor)), 4.0), rope(3), 5, seed=3)
    for e in episodes:
        assert {0, 1} == set(e.steps["next.reward"].tolist())
        received = np.cumsum(np.append(0, e.steps["next.reward"]))[:-1]
        assert e.steps[f"seen.{RETURN}"].ravel().tolist() == (4 - received).tolist()
        assert e.steps[f"seen.{TIME}"].ravel().tolist() == [6, 5, 4, 3, 2, 1]


def test_udrl_gets_the_return_that_it_is_asked_for(trained):
    """Of random episodes, a fraction R / L of those with return R take the right action when L steps are left."""
    returns = [rollout(asked(trained.actor, value), rope(), 50, seed=2) for value in (1.0, 3.0, 5.0)]
    means = [np.mean([e.steps["next.reward"].sum() for e in episodes]) for episodes in returns]
    assert np.allclose(means, [1, 3, 5], atol=0.5), means


@pytest.mark.slow
def test_the_decision_transformer_gets_more_if_it_is_asked_for_more():
    data = random_episodes(300)
    method = find_method("decision-transformer", data.features(), n_obs_steps=3)
    optimizer = replace(method.learner.optimizer, lr=3e-3, warmup_steps=20, grad_clip_norm=1.0)
    faster = replace(method.learner, steps=300, batch_size=32, optimizer=optimizer)
    trunk = replace(method.policy.trunk, width=32, dropout=0.0)
    small = replace(method, policy=replace(method.policy, trunk=trunk, encoder=TokenEncoder(32)), learner=faster)
    actor = fit_method(small, data, 0).actor
    means = [np.mean([e.steps["next.reward"].sum() for e in rollout(
        ObservationWrapper(actor, {RETURN: torch.tensor([value])}), rope(), 50, seed=2)]) for value in (1.0, 5.0)]
    assert means[0] < 2 and means[1] > 4, means


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("udrl")
    write_dataset(random_episodes(20, Tabular(20, task="tightrope")), folder / "data")
    assert main(["train", "udrl", str(folder / "data"), "--out", str(folder / "run"), "--steps", "2"]) == 0
    return folder / "run"


def evaluate(run, *options) -> int:
    return main(["eval", str(run), "tabular:tightrope", "--episodes", "3", *options])


def test_eval_is_told_the_condition(run, tmp_path, capsys):
    saved = ("--save", str(tmp_path / "saved"))
    assert evaluate(run, "--condition", "return_to_go=4", "time_left=6", *saved) == 0, capsys.readouterr()
    assert open_dataset(tmp_path / "saved").features()["action"].kind == "discrete", "choices are saved as such"
    output = capsys.readouterr().out
    assert "--condition return_to_go=4 time_left=6" in output, "the next command repeats it"
    (document,) = (run / "eval").glob("*.jsonl")
    assert '"condition": ["return_to_go=4", "time_left=6"]' in document.read_text()


@pytest.mark.parametrize("options, message", [
    ((), "reads 'observation.return_to_go' and 'observation.time_left', which tabular:tightrope does not show "
         "-> give it: --condition return_to_go=NUMBER time_left=NUMBER"),
    (("--condition", "return_to_go=-8", "time_left=-15"), "the number of steps of the episode is -15, below 0"),
    (("--condition", "return_to_go=4"), "--condition time_left=NUMBER"),
    (("--condition", "return_to_go=4", "goal=1"), "no policy reads 'observation.goal'"),
    (("--condition", "return_to_go=a"), "is not of the form NAME=NUMBER"),
    (("--condition", "return_to_go=4", "observation.return_to_go=5"), "is given twice"),
    (("--condition", "state=4"), "the environment shows 'observation.state' itself"),
    (("--condition", "return_to_go=4,5", "time_left=6"), "is one number, but"),
])
def test_wrong_conditions_are_refused(run, capsys, options, message):
    assert evaluate(run, *options) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_window_that_fits_no_history_names_the_option_that_changes_all_parts(tmp_path, capsys):
    write_dataset(random_episodes(3, Tabular(3, task="tightrope")), tmp_path / "data")
    arguments = ["train", "decision-transformer", str(tmp_path / "data"), "--out", str(tmp_path / "run"),
                 "--steps", "1"]
    assert main([*arguments, "--policy.window.n-obs-steps", "4"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "--n-obs-steps 4, this changes the window and the executor together" in message
    assert "TokenEncoder" not in message, "it has one"
    assert main([*arguments, "--n-obs-steps", "4"]) == 0


def test_training_suggests_what_the_best_episode_had(tmp_path, capsys):
    data = random_episodes(10, Tabular(10, task="tightrope"))
    write_dataset(data, tmp_path / "data")
    arguments = ["train", "udrl", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--steps", "2"]
    assert main([*arguments, "--eval", "tabular:tightrope"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "must be told 'return_to_go' and 'time_left'" in message
    assert "(--target-return 100 --target-length 50, for example)" in message
    assert main([*arguments, "--eval", "tabular:tightrope", "--target-return", "6"]) == 2
    assert "tell the method (--target-length 50, for example)" in " ".join(capsys.readouterr().err.split())
    assert main(arguments) == 0
    best = max(float(e.steps["next.reward"].sum()) for e in data)
    assert f"--condition return_to_go={best:g} time_left={best + 1:g}" in " ".join(capsys.readouterr().out.split())
    with_target = [*arguments[:4], str(tmp_path / "told"), *arguments[5:], "--target-return", "6",
                   "--target-length", "6", "--eval", "tabular:tightrope", "--rollouts", "2"]
    assert main(with_target) == 0, capsys.readouterr()
    assert "--condition" not in capsys.readouterr().out
    assert TimeLeft(length=6).open_condition is None and ReturnToGo().open_condition == RETURN


def test_a_goal_that_the_environment_does_not_show_is_asked_for(tmp_path, capsys):
    env = make("fork", 2)
    write_dataset(rollout(env.expert(), env, 2, seed=1), tmp_path / "data")
    run = str(tmp_path / "run")
    assert main(["train", "gcbc", str(tmp_path / "data"), "--out", run, "--steps", "1"]) == 0
    assert main(["eval", run, "fork", "--episodes", "1"]) == 2
    assert "give it: --condition goal=x,y" in " ".join(capsys.readouterr().err.split())
    assert main(["eval", run, "fork", "--episodes", "1", "--condition", "goal=1,0"]) == 0, capsys.readouterr()
