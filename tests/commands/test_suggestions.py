"""Each command that "next:" suggests is one that is accepted."""

from __future__ import annotations

import errno
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from understudy import cli, demo
from understudy.cli import main
from understudy.commands.parts.conditions import example_evaluation, example_options, is_judged
from understudy.core import Feature
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset, write_dataset
from understudy.methods import find_method

SMALL = {"train": ("--steps", "6", "--save-freq", "6", "--device", "cpu"), "eval": ("--episodes", "2", "--rows", "2"),
         "compare": ("--episodes", "2",), "robustness": ("--episodes", "2", "--levels", "noise=0.1")}


def small(line: str, names: dict[str, str]) -> list[str]:
    """The command's arguments with real names for placeholders, and with the smallest budget."""
    words = [names.get(word, word) for word in shlex.split(line.partition(" > ")[0])[1:]]
    if "--sequential" in words:  # its design needs more than a few episodes
        words[words.index("--episodes") + 1] = "20"
        return words
    if words[0] == "eval" and "--episodes" not in words:  # of recorded episodes
        return words
    budget = dict(zip(SMALL.get(words[0], ())[::2], SMALL.get(words[0], ())[1::2], strict=True))
    for option, value in budget.items():
        if option in words and option == "--levels":
            end = words.index(option) + 1
            while end < len(words) and not words[end].startswith("--"):
                words.pop(end)
            words.insert(end, value)
        elif option in words:
            words[words.index(option) + 1] = value
        else:
            words += [option, value]
    return words


def suggestions(out: str) -> list[str]:
    return [line.strip() for line in out.partition("\nnext:\n")[2].splitlines() if line.startswith("  understudy ")]


@pytest.fixture
def follow(tmp_path, monkeypatch, capsys):
    """follow(*args, depth=, **names): runs a command and what it suggests, and what that suggests, to a depth. Returns
    the kinds of commands (a command and its options) that were run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(*args, depth: int = 1, **names):
        visited, queue = set(), [([str(a) for a in args], 0, "")]
        while queue:
            words, at, file = queue.pop(0)
            kind = (words[0], *sorted(w for w in words if w.startswith("--")))
            if at and kind in visited:
                continue
            visited.add(kind)
            capsys.readouterr()
            status = main(words)
            out, err = capsys.readouterr()
            assert status == 0, f"understudy {shlex.join(words)}: {err}"
            if file:
                Path(file).write_text(out)
            if at < depth:
                queue += [(small(line, names), at + 1, line.partition(" > ")[2]) for line in suggestions(out)]
        return visited
    return run


TINY = ("--steps", "6", "--save-freq", "6", "--device", "cpu", "--policy.trunk.width", "16", "--policy.trunk.depth",
        "1")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_from_a_recording_to_a_comparison(follow):
    suggested = follow("record", "fork", "--out", "demos", "--episodes", "6")
    assert {kind[0] for kind in suggested} == {"record", "inspect", "train", "replay"}
    suggested = follow("train", "bc", "demos", "--out", "a", "--eval", "fork", "--rollouts", "2", *TINY, depth=2)
    assert ("eval", "--episodes", "--rows") in suggested and ("eval", "--against", "--episodes", "--rows") in suggested
    assert ("eval", "--episodes", "--html", "--rows") in suggested and Path("report.html").exists()
    assert follow("eval", "a", "fork", "--episodes", "2")  # report.html exists, so another name is suggested
    follow("eval", "a", "demos")
    follow("compare", "a", "a-seed1", "--env", "fork", "--episodes", "2")
    follow("robustness", "a", "fork", "--episodes", "2", "--shifts", "noise", "--levels", "noise=0.1")
    follow("export", "a", "--out", "a.onnx", ENV="fork")
    follow("methods", NAME="bc", DATA="demos", RUN="b")
    follow("plan", "0.5", "0.9", RUN="a", ENV="fork")
    suggested = follow("choose", "demos", "--methods", "knn", "vinn", "--budget", "9s", "--episodes", "2")
    assert ("choose", "--budget", "--env", "--episodes", "--methods", "--out") in suggested
    assert ("eval", "--episodes", "--rows") in follow("plot", "a")
    assert ("compare", "--env", "--episodes") in follow("plot", "a", "a-seed1")
    # With 20 episodes and no success, a rate of 0.1 is neither refuted nor likely to be.
    suggested = follow("eval", "a", "fork", "--sequential", "--threshold", "0.1", "--episodes", "20")
    assert ("eval", "--episodes", "--sequential", "--threshold") in suggested


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_goes_on(follow, monkeypatch):
    short = {name: replace(m, learner=replace(m.learner, steps=4)) for name, m in demo.METHODS.items()}
    for name, value in {"METHODS": short, "STEPS": 4, "DEMONSTRATIONS": 5, "EPISODES": 3}.items():
        monkeypatch.setattr(demo, name, value)
    suggested = follow("demo", "--out", "shown")
    assert {kind[0] for kind in suggested} == {"demo", "inspect", "eval", "train"}


@pytest.mark.slow
def test_bags_are_read_by_the_proposed_mapping(follow, shared):
    shutil.copytree(shared / "fixtures/rosbag/ros1", "bags")
    suggested = follow("inspect", "bags")
    assert suggested >= {("inspect", "--json"), ("convert", "--map")} and ("train", "--device", "--map", "--out",
                                                                           "--save-freq", "--steps") in suggested
    assert len(open_dataset("demonstrations")) == len(open_dataset("bags", mapping="map.json"))


@pytest.mark.slow
@pytest.mark.parametrize("name, told", [
    ("gcbc", ("--condition",)), ("maskdp", ("--condition",)), ("udrl", ("--condition",)), ("mdt", ("--task",))])
def test_what_a_policy_must_be_told_is_part_of_what_is_suggested(name, told, follow):
    follow("record", "fork", "--out", "recorded", "--episodes", "6", depth=0)
    told_episodes = [replace(e, metadata={**e.metadata, "task": "pass the pillar"}) for e in open_dataset("recorded")]
    write_dataset(Dataset(told_episodes, {"fps": 10}), "demos")
    small = ("--policy.trunk.width", "16") if name in ("maskdp", "mdt") else ("--policy.trunk.widths", "16")
    suggested = follow("train", name, "demos", "--out", "run", *TINY[:6], *small)
    assert ("eval", *sorted((*told, "--episodes", "--rows"))) in suggested
    assert ("eval", *sorted((*told, "--episodes", "--rows"))) in follow("eval", "run", "demos")
    follow("plot", "run")


def test_no_evaluation_is_suggested_without_an_example_of_what_it_needs():
    """A goal that is an image cannot be written on a command line."""
    frame = np.zeros((4, 8, 8, 3), np.uint8)
    data = Dataset([Episode({"observation.images.top": frame, "observation.state": np.ones((4, 2), np.float32),
                             "action": np.zeros((4, 2), np.float32)})])
    assert example_options(data, find_method("gcbc", column="observation.images.top"), data.features()) is None
    method = find_method("gcbc")
    assert example_options(data, method, data.features()) == ["--condition", "goal=1,1"]
    assert example_options(data, method, {"observation.goal": data.features()["observation.state"]}) == []
    assert example_options(data, find_method("groot-2"), data.features()) is None
    assert example_options(data, find_method("bc"), data.features()) == []
    with_task = Dataset([replace(data[0], metadata={"task": "go home"})])
    assert example_options(with_task, find_method("groot-2"), with_task.features()) == ["--task", "go home"]
    shows = {**with_task.features(), "observation.task": Feature("uint8", (8,))}  # each episode has its own
    assert example_options(with_task, find_method("groot-2"), shows) is None


PLAY = ("--stages.0.method.learner.steps", "4", "--stages.0.method.learner.batch-size", "4", "--period", "4")


@pytest.mark.slow
@pytest.mark.parametrize("name, options", [("play-lmp", PLAY), ("gcbc", ("--policy.trunk.widths", "16"))])
def test_a_goal_is_judged_where_the_environment_shows_goals(name, options, follow, capsys):
    follow("record", "four_rooms:play", "--out", "play", "--episodes", "6", depth=0)
    assert main(["train", name, "play", "--out", "run", *TINY[:6], *options]) == 0
    assert suggestions(capsys.readouterr().out)[0] == "understudy eval run four_rooms --episodes 100"
    assert main(["eval", "run", "play"]) == 0
    assert suggestions(capsys.readouterr().out)[0] == "understudy eval run four_rooms --episodes 100"
    assert main(["eval", "run", "four_rooms", "--episodes", "2", "--rows", "2"]) == 0


def test_no_comparison_is_suggested_of_runs_of_different_environments(follow, capsys):
    for env in ("fork", "particle"):
        follow("record", env, "--out", f"of-{env}", "--episodes", "6", depth=0)
        follow("train", "bc", f"of-{env}", "--out", f"run-{env}", *TINY, depth=0)
    capsys.readouterr()
    assert main(["plot", "run-fork", "run-particle"]) == 0
    assert suggestions(capsys.readouterr().out) == []


def test_no_evaluation_is_suggested_where_nothing_is_judged(follow, capsys):
    follow("record", "four_rooms:play", "--out", "play", "--episodes", "6", depth=0)
    data = open_dataset("play")
    assert not is_judged(data) and example_evaluation(data, find_method("bc")) is None
    assert example_evaluation(data, find_method("gcbc")) == ("four_rooms", [])
    assert example_evaluation(data, find_method("bc"), "four_rooms") == ("four_rooms", [])
    pictured = data.map(lambda e: replace(e, metadata={**e.metadata, "env": "four_rooms:play@images=16"}))
    assert example_evaluation(pictured, find_method("gcbc"))[0] == "four_rooms@images=16"
    rewarded = data.map(lambda e: e.replace({"next.reward": np.ones(len(e), np.float32)}))
    assert is_judged(rewarded) and example_evaluation(rewarded, find_method("bc")) == ("four_rooms:play", [])
    assert is_judged(data.map(lambda e: e.replace({"next.reward": None})))
    capsys.readouterr()
    assert main(["inspect", "play"]) == 0
    assert "--eval" not in capsys.readouterr().out
    assert main(["train", "bc", "play", "--out", "run", *TINY]) == 0
    assert [line.split()[1:4] for line in suggestions(capsys.readouterr().out)] == [
        ["eval", "run", "play"], ["plot", "run"]]
    assert main(["plot", "run"]) == 0
    assert suggestions(capsys.readouterr().out) == ["understudy eval run/best ENV --episodes 100"]


def test_no_evaluation_is_suggested_where_the_columns_have_other_names(follow, capsys):
    follow("record", "particle@images=16", "--out", "demos", "--episodes", "5", depth=0)
    follow("view", "make", "demos", "--rename", "observation.images.camera=observation.images.front", "--out", "v.json",
           depth=0)
    assert main(["inspect", "demos"]) == 0 and "--eval particle@images=16" in capsys.readouterr().out
    assert main(["inspect", "v.json"]) == 0
    assert suggestions(capsys.readouterr().out) == [
        "understudy train bc-gmm v.json --out run", "understudy replay v.json particle@images=16"]
    assert main(["train", "bc", "v.json", "--out", "run", *TINY]) == 0
    assert [line.split()[1:4] for line in suggestions(capsys.readouterr().out)] == [
        ["eval", "run", "v.json"], ["plot", "run"]]
    for words in (["eval", "run", "particle@images=16", "--episodes", "2"],
                  ["train", "bc", "v.json", "--out", "other", "--eval", "particle@images=16", *TINY]):
        assert main(words) == 2 and "their columns have been renamed since" in capsys.readouterr().err


def test_what_is_done_to_data_can_be_inspected(follow):
    follow("record", "fork", "--out", "demos", "--episodes", "6", depth=0)
    for line in ("view make demos --out v.json --sample 3", "curate demos --score brevity --keep 0.5 --out c.json",
                 "split demos --by episode --out parts", "merge demos v.json --out m.json", "convert demos d.hdf5",
                 "repair demos --out saved", "audit demos"):
        assert len(follow(*shlex.split(line))) > 1 or line.startswith("audit"), line


@pytest.mark.parametrize("name, opens", [
    ("lerobot_totals", True), ("lerobot_nan_action", True), ("lerobot_episode_gap", False), ("rlds_crc", False),
    ("lerobot_truncated_mp4", True),     ("act_short_qpos.hdf5", False)])
def test_an_audit_suggests_to_inspect_what_can_be_opened(name, opens, shared, capsys):
    path = shared / "fixtures/broken" / name
    assert main(["audit", str(path)]) == 3
    out = capsys.readouterr().out
    assert suggestions(out) == ([f"understudy inspect {path}"] if opens else [])
    assert ("cannot be opened" in out) == (not opens)
    assert main(["inspect", str(path)]) == (0 if opens else 2)


def broken(path: Path, *episodes: int) -> None:
    """Six episodes of a random walk. The third action of the given ones is NaN."""
    rng, recordings = np.random.default_rng(0), []
    for e in range(6):
        action = rng.normal(size=(9, 2)).astype(np.float32)
        action[2] = np.nan if e in episodes else action[2]
        recordings.append(Episode({"observation.state": rng.normal(size=(9, 2)).astype(np.float32), "action": action}))
    write_dataset(Dataset(recordings, {"fps": 10}), path)


def test_training_on_nan_suggests_what_works(follow, tmp_path, capsys):
    broken(tmp_path / "demos", 1, 4)
    for ignore in ((), ("--ignore", "not-finite")):
        assert main(["train", "bc", "demos", "--out", "run", *TINY, *ignore]) == 2
        err = capsys.readouterr().err
        assert "--ignore" not in err and "view make demos --out finite.json --delete 1 4" in err
    status = main(shlex.split(err.partition("understudy view")[2].splitlines()[0].join(["view", ""])))
    assert status == 0 and len(open_dataset("finite.json")) == 4
    follow("train", "bc", "finite.json", "--out", "run", *TINY)
    assert main(["inspect", "demos"]) == 0
    assert "--delete 1 4" in capsys.readouterr().out
    assert main(["convert", "demos", "copy"]) == 2
    assert "--ignore not-finite" in capsys.readouterr().err
    assert main(["convert", "demos", "copy", "--ignore", "not-finite"]) == 0
    broken(tmp_path / "all", *range(6))
    assert main(["train", "bc", "all", "--out", "run2", *TINY]) == 2
    assert "every episode has some" in capsys.readouterr().err
    data = open_dataset(tmp_path / "all")
    write_dataset(data.map(lambda e: e.replace({"action": np.full_like(e.steps["action"], np.nan)})), tmp_path / "no")
    assert main(["train", "bc", "no", "--out", "run3", *TINY]) == 2
    err = capsys.readouterr().err
    assert "vpt" not in err and "view make no --out VIEW --drop action) and train bco" in err


@pytest.mark.slow
def test_a_file_that_cannot_act_is_not_written(follow, capsys):
    follow("record", "fork", "--out", "demos", "--episodes", "6", depth=0)
    follow("train", "streaming-flow-policy", "demos", "--out", "run", "--steps", "2", "--device", "cpu", depth=0)
    assert main(["export", "run", "--out", "run.onnx"]) == 2
    err = capsys.readouterr().err
    assert "StreamingFlowExecutor cannot run an exported policy" in err and "from its checkpoint" in err
    assert not Path("run.onnx").exists()


MINE = '''
from dataclasses import dataclass

from understudy.envs.toys.fork import Fork
from understudy.execute.chunking import RecedingHorizon
from understudy.methods.behavior_cloning.bc import bc


@dataclass(frozen=True)
class Careful(RecedingHorizon):
    """An executor of one's own."""


def fork(rows):
    return Fork(rows)


def method(features=None):
    from dataclasses import replace
    return replace(bc(features=features), executor=Careful(1))


def short(features=None, steps=4):
    from dataclasses import replace
    m = method(features)
    return replace(m, learner=replace(m.learner, steps=steps))


def shorter(features=None):
    return short(features, 3)
'''


@pytest.mark.slow
def test_trust_is_part_of_what_is_suggested(follow, tmp_path):
    (tmp_path / "suggested_code.py").write_text(MINE)
    trust = ("--trust", "suggested_code")
    follow("record", "suggested_code:fork", "--out", "demos", "--episodes", "6", *trust)
    suggested = follow("train", "suggested_code:method", "demos", "--out", "mine", *TINY, *trust, depth=2)
    assert ("eval", "--episodes", "--rows", "--trust") in suggested
    suggested = follow("export", "mine", "--out", "mine.onnx", *trust, ENV="fork")
    assert ("eval", "--episodes", "--rows", "--trust") in suggested
    follow("eval", "mine.onnx", "suggested_code:fork", "--episodes", "2", *trust)
    sys.modules.pop("suggested_code", None)


@pytest.mark.slow
def test_a_choice_suggests_what_the_policy_must_be_told(follow, tmp_path):
    (tmp_path / "goal_methods.py").write_text(
        "from dataclasses import replace\nfrom understudy.methods.behavior_cloning.gcbc import gcbc\n\n\n"
        "def short(features=None, steps=20):\n"
        "    method = gcbc()\n    return replace(method, learner=replace(method.learner, steps=steps))\n\n\n"
        "def shorter(features=None):\n    return short(features, 10)\n")
    follow("record", "fork", "--out", "demos", "--episodes", "6", depth=0)
    suggested = follow("choose", "demos", "--methods", "goal_methods:short", "goal_methods:shorter", "--budget", "20s",
                       "--out", "found", "--trust", "goal_methods")
    assert ("eval", "--condition", "--episodes", "--rows") in suggested
    sys.modules.pop("goal_methods", None)


def test_an_evaluation_that_lacks_a_goal_is_refused_before_training(tmp_path, capsys):
    assert main(["record", "fork", "--out", str(tmp_path / "demos"), "--episodes", "6"]) == 0
    train = ["train", "gcbc", str(tmp_path / "demos"), "--out", str(tmp_path / "run"), "--eval", "fork"]
    assert main(train) == 2 and not (tmp_path / "run").exists()
    message = " ".join(capsys.readouterr().err.split())
    assert "must be told 'goal'" in message and "--condition goal=NUMBERS" in message


@pytest.mark.slow
def test_trust_is_part_of_what_a_choice_suggests(follow, tmp_path):
    (tmp_path / "suggested_code.py").write_text(MINE)
    trust = ("--trust", "suggested_code")
    follow("record", "suggested_code:fork", "--out", "demos", "--episodes", "6", *trust, depth=0)
    for methods, needs in ((("suggested_code:short", "suggested_code:shorter"), ("--trust",)), (("knn", "vinn"), ())):
        suggested = follow("choose", "demos", "--methods", *methods, "--budget", "20s", "--episodes", "2", "--ignore",
                           "nan-in-action", "--out", f"found-{methods[0][:3]}", *trust)
        assert {kind for kind in suggested if kind[0] in ("train", "eval", "choose")} == {
            ("train", "--device", "--ignore", "--out", "--save-freq", "--steps", *needs),
            ("eval", "--episodes", "--rows", *needs),
            ("choose", "--budget", "--episodes", "--ignore", "--methods", "--out", "--trust"),
            ("choose", "--budget", "--env", "--episodes", "--ignore", "--methods", "--out", "--trust"),
            ("choose", "--budget", "--episodes", "--html", "--ignore", "--methods", "--out", "--trust")}
    sys.modules.pop("suggested_code", None)


def test_the_recorded_environment_is_suggested_with_its_trust(follow, tmp_path):
    (tmp_path / "my_hill.py").write_text("import gymnasium\n\n\ndef steep():\n    return gymnasium.make("
                                         "'MountainCarContinuous-v0', max_episode_steps=8)\n")
    follow("record", "my_hill:steep", "--out", "demos", "--episodes", "6", "--actor", "random", "--trust", "my_hill",
           depth=0)
    suggested = follow("inspect", "demos")  # needs no trust itself
    assert {(kind[0], "--trust" in kind) for kind in suggested} == {("inspect", False), ("train", True),
                                                                    ("replay", True)}
    suggested = follow("train", "bc", "demos", "--out", "plain", *TINY)
    assert ("eval", "--episodes", "--rows", "--trust") in suggested
    assert ("eval", "--episodes", "--rows", "--trust") in follow("eval", "plain", "demos")
    sys.modules.pop("my_hill", None)


def test_actions_below_class_zero_are_refused_before_training_is_suggested(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    actions = np.random.default_rng(0).integers(-1, 2, (30, 2))
    np.savez("signs.npz", observations=np.random.default_rng(1).normal(size=(30, 2)), actions=actions,
             episode_ends=[10, 20, 30])
    assert main(["inspect", "signs.npz"]) == 0
    out = capsys.readouterr().out
    assert "action has integers from -1 on" in out and "save them as float32" in out and "understudy train" not in out
    assert main(["train", "bc", "signs.npz", "--out", "run", *TINY]) == 2
    assert "signs.npz: action has integers from -1 on" in capsys.readouterr().err
    assert not Path("run", "checkpoints").exists()


@pytest.mark.parametrize("name, command", [("inspct", "inspect x"), ("evaluate", "eval x"), ("xyzzy", "--help")])
def test_a_misspelt_command_is_told_the_one_that_is_meant(name, command, capsys):
    assert main([name, "x"]) == 2
    assert capsys.readouterr().err.endswith(f"  -> understudy {command}\n")


def test_a_place_that_refuses_is_named_as_it_was_given():
    named = cli._user_error_message(OSError(errno.EROFS, "Read-only file system", "/media/.demos.a1b2_c3d.part"), [])
    assert named is not None and named.startswith("/media/demos: read-only file system\n")
    assert cli._target_path("runs/.hidden") == "runs/.hidden" and cli._target_path("runs/.a.b1_c.new") == "runs/a"
