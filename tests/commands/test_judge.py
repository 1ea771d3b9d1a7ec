"""The command judge: which of two segments is better, by a column of rewards or by a person at a terminal."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from fixtures.cli import refused
from fixtures.terminals import Terminal
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.checkpoint import FromStage
from understudy.cli import main
from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset, write_dataset
from understudy.envs import make
from understudy.envs.base import EnvWrapper, Renderable
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.improve.preferences import (
    PreferenceKeys,
    PreferenceScreen,
    Segment,
    comparison,
    count_agreements,
    draw_pair,
    predicted_difference,
    prefer_by_reward,
    segment_frames,
)
from understudy.learn.method import Method, load_modules
from understudy.learn.rewards.learned_reward import LearnedReward
from understudy.learn.training_episodes import validation_episodes

STATE = "observation.state"
SHORT = ["--steps", "10", "--device", "cpu"]


def walks(lengths=(30, 40, 12, 35)) -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset([Episode({STATE: rng.normal(size=(n, 3)).astype(np.float32),
                             "action": rng.normal(size=(n, 2)).astype(np.float32),
                             "next.reward": rng.normal(size=n).astype(np.float32)}, {"number": i})
                    for i, n in enumerate(lengths)], {"fps": 10})


@pytest.fixture
def data(tmp_path):
    write_dataset(walks(), tmp_path / "walks.npz", "npz")
    return tmp_path / "walks.npz"


@pytest.fixture
def judge(capsys, data, tmp_path):
    def call(*args, out="answers"):
        capsys.readouterr()
        status = main(["judge", str(data), "--out", str(tmp_path / out), "--judge", "reward", "--length", "10",
                       *map(str, args)])
        return status, *capsys.readouterr()
    return call


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=8).filter(lambda x: sum(n >= 10 for n in x) >= 2),
       st.integers(0, 10**6), st.integers(0, 1000))
def test_a_pair_has_two_episodes_and_whole_segments(lengths, seed, number):
    data = walks(lengths)
    first, second = draw_pair(data, 10, seed, number)
    assert first.episode != second.episode
    assert all(0 <= s.start <= lengths[s.episode] - 10 for s in (first, second))
    assert draw_pair(data, 10, seed, number) == (first, second)


def test_answers_are_stored_and_continued(judge, tmp_path):
    status, text, _ = judge("--pairs", 5, "--json")
    assert status == 0 and json.loads(text)["new"] == 5
    status, text, _ = judge("--pairs", 8)
    assert status == 0 and "8 comparisons are in" in text and "3 of them new" in text
    assert "understudy train preference-reward" in text
    at_once, walked = tmp_path / "at-once", walks()
    assert judge("--pairs", 8, out="at-once")[0] == 0
    answers = open_dataset(tmp_path / "answers")
    for number, (episode, other) in enumerate(zip(answers, open_dataset(at_once), strict=True)):
        pair = draw_pair(walked, 10, 0, number)
        assert [episode.metadata["first"], episode.metadata["second"]] == [[s.episode, s.start] for s in pair]
        expected = comparison(walked, pair, 10, prefer_by_reward(walked, pair, 10))
        for name, column in expected.steps.items():
            assert np.array_equal(np.reshape(episode.steps[name], -1), np.reshape(column, -1)), name
            assert np.array_equal(episode.steps[name], other.steps[name])
        sums = np.reshape(episode.steps["next.reward"], (2, 10)).astype(float).sum(1)
        assert episode.steps["preference"][[0, 10], 0].tolist() == ([2, 0] if sums[0] > sums[1] else [0, 2])


def test_a_reward_is_trained_and_asked_about_new_pairs(judge, tmp_path, capsys):
    assert judge("--pairs", 12)[0] == 0
    run, rewarded = tmp_path / "reward", tmp_path / "iql"
    assert main(["train", "preference-reward", str(tmp_path / "answers"), "--out", str(run), *SHORT]) == 0
    assert f" --reward {run} --out practiced" in capsys.readouterr().out
    status, text, _ = judge("--seed", 1, "--pairs", 6, "--reward", run, "--json", out="new")
    counts = json.loads(text)
    assert status == 0 and counts["clear"] == 6 and 0 <= counts["agreed"] <= 6
    text = judge("--seed", 1, "--pairs", 6, "--reward", run, out="new")[1]
    assert f"understudy merge {tmp_path / 'answers'} {tmp_path / 'new'} --out comparisons.json" in text
    assert "understudy train preference-reward comparisons.json" in text
    others = Dataset([e.replace({STATE: np.asarray(e.steps[STATE])[:, :2]}) for e in walks()], {"fps": 10})
    write_dataset(others, tmp_path / "others.npz", "npz")
    capsys.readouterr()
    args = ["--out", str(tmp_path / "more"), "--judge", "reward", "--length", "10", "--reward", str(run)]
    refused((main(["judge", str(tmp_path / "others.npz"), *args]), *capsys.readouterr()), "of shape (3,)", "has (2,)")
    steps = walks()
    write_dataset(Dataset([e.replace({"next.terminated": np.zeros(len(e), bool)}) for e in steps], steps.metadata),
                  tmp_path / "ends.npz", "npz")
    assert main(["train", "iql", str(tmp_path / "ends.npz"), "--reward", str(run), "--out", str(rewarded), *SHORT]) == 0
    assert Method.load(rewarded).transforms[0] == LearnedReward(FromStage("learned-reward", "reward"))
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "answers")]) == 0
    assert "understudy train preference-reward" in capsys.readouterr().out


def test_answers_without_a_preference_are_said(judge, data, tmp_path, capsys):
    data.unlink()
    same = walks()
    write_dataset(Dataset([e.replace({"next.reward": np.zeros(len(e), np.float32)}) for e in same], same.metadata),
                  data, "npz")
    status, text, _ = judge("--pairs", 4)
    assert status == 0 and "None of the new ones prefers a segment" in text and "understudy train" not in text
    refused((main(["train", "preference-reward", str(tmp_path / "answers"), "--out", str(tmp_path / "run"), *SHORT]),
             *capsys.readouterr()), "comparisons prefers a segment", "compare other episodes")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("args", "words"), [
    (["--length", "60"], ["0 of 4 episodes have 60 steps", "smaller --length"]),
    (["--length", "38"], ["1 of 4 episodes have 38 steps"]),
    (["--pairs", "0"], ["--pairs: must be at least 1"]),
    (["--judge", "keyboard"], ["no terminal to read keys from", "--judge reward"]),
    (["--reward", "nowhere"], ["nowhere"])])
def test_bad_input(args, words, judge, tmp_path):
    refused(judge(*args), *words)
    assert not (tmp_path / "answers").exists()


def test_other_options_and_other_folders_are_refused(judge, data, tmp_path):
    assert judge("--pairs", 2)[0] == 0
    refused(judge("--pairs", 3, "--seed", 1), "has seed 0, and this call 1", "choose another folder")
    refused(judge("--pairs", 3, "--length", 9), "has length 10, and this call 9")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    refused(judge(out="other"), "the folder has no comparisons")
    refused(judge(out="other/file"), "the file has no comparisons")
    assert len(open_dataset(tmp_path / "answers")) == 2


def test_other_episodes_and_comparisons_of_comparisons_are_refused(judge, data, tmp_path, capsys):
    assert judge("--pairs", 2)[0] == 0
    other = walks().map(lambda e: e.replace({"action": e.steps["action"] + 1}))
    data.unlink()
    write_dataset(other, data, "npz")  # as many episodes and steps
    refused(judge("--pairs", 3), "has the data 4 episodes, 117 steps, digest ", "and this call 4 episodes, 117 steps")
    refused((main(["judge", str(tmp_path / "answers"), "--out", str(tmp_path / "new"), "--judge", "reward"]),
             *capsys.readouterr()), "are comparisons themselves")
    write_dataset(walks(), tmp_path / "walks", "lerobot")
    refused(judge(out="walks"), "the episode is not a comparison")
    assert main(["judge", str(data), "--out", str(tmp_path / "once"), "--judge", "reward", "--length", "10", "--pairs",
                 "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["agreed"] is None  # nothing was asked


def test_comparisons_keep_names_and_environment_and_a_reward_of_another_one_is_warned_of(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("particle", "push"):  # both have 8 observations and 2 actions
        env = make(name, 2)
        write_dataset(rollout(env.expert(), env, 5, recording_seed(0)).map(lambda e: e.replace(
            {"next.reward": e.steps["action"][:, 0]})), tmp_path / f"{name}.npz", "npz")
    judge = ["--judge", "reward", "--length", "5", "--pairs", "10"]
    assert main(["judge", "particle.npz", "--out", "answers", *judge]) == 0
    answers = open_dataset(tmp_path / "answers")
    assert answers.features()[STATE].names == open_dataset(tmp_path / "particle.npz").features()[STATE].names != ()
    assert answers[0].metadata["env"] == "particle"
    capsys.readouterr()
    assert main(["inspect", "answers"]) == 0
    said = capsys.readouterr().out
    assert "understudy train preference-reward answers --out run\n" in said and "understudy replay" not in said
    assert main(["train", "preference-reward", "answers", "--out", "reward", *SHORT]) == 0
    assert "understudy eval" not in capsys.readouterr().out
    for words in (["judge", "push.npz", "--out", "new", *judge], ["train", "iql", "push.npz", "--out", "iql", *SHORT]):
        assert main([*words, "--reward", "reward"]) == 0
        assert "reward, was trained on data of particle, and these are of push" in capsys.readouterr().err
    assert main(["train", "iql", "particle.npz", "--out", "own", "--reward", "reward", *SHORT]) == 0
    message = capsys.readouterr().err
    assert "was trained on data of" not in message and "a constant, which counts where episodes end" in message
    for words in (["compare", "reward", "own", "--env", "particle", "--episodes", "2"],
                  ["eval", "reward", "particle", "--episodes", "2"], ["eval", "reward", "particle.npz"]):
        status, said = main(words), capsys.readouterr()
        assert status == 0, said.err
        assert said.err.count("note: reward learns a reward. What acts is its policy, which clones the better seg") == 1
        assert ("a clone of the better segments acts, and not the learned" in said.out) == (words[0] == "compare")


def test_the_agreement_with_held_out_comparisons(judge, tmp_path, capsys):
    assert judge("--pairs", 40)[0] == 0
    assert main(["train", "preference-reward", str(tmp_path / "answers"), "--out", str(tmp_path / "run"), "--device",
                 "cpu", "--val-fraction", "0.5", "--steps", "1"]) == 0
    said = capsys.readouterr().out
    model, answers = load_modules(tmp_path / "run")["reward"], open_dataset(tmp_path / "answers")
    held_out = answers.select(validation_episodes(40, 0.5))
    counted = sum((predicted_difference(model, e) > 0) == (e.steps["preference"][0, 0] == 2) for e in held_out)
    assert f"The reward agrees with {counted} of 20 held-out comparisons" in said
    turned = held_out.map(lambda e: e.replace({n: c[::-1] for n, c in e.steps.items()}))  # the second segment first
    assert count_agreements(model, turned) == count_agreements(model, held_out) == (counted, 20)


def test_segments_are_shown_as_the_environment_renders_their_states():
    env = make("fork", 1)
    data = rollout(env.expert(), env, 2, recording_seed(0))
    frames, other = (segment_frames(data, Segment(1, start), 4, env) for start in (3, 4))
    assert len(frames) == 4 and all(np.array_equal(a, b) for a, b in zip(frames[1:], other, strict=False))
    assert not np.array_equal(frames[0], frames[3])


class Unrestorable(EnvWrapper, Renderable):
    """The same toy, which cannot be put into a state: actions are repeated from the start."""

    def __init__(self, env):
        super().__init__(env)
        self.metadata = env.metadata

    def frame(self, row):
        return self.env.frame(row)


def test_an_environment_without_states_repeats_the_actions():
    env = make("fork", 1)
    data = rollout(env.expert(), env, 2, recording_seed(0))
    segment = Segment(1, 5)
    shown = segment_frames(data, segment, 4, Unrestorable(env))
    assert all(np.array_equal(a, b) for a, b in zip(shown, segment_frames(data, segment, 4, env), strict=True))
    with pytest.raises(UserError, match="no environment that can draw them"):
        segment_frames(data, segment, 4, None)


def test_the_screen_shows_both_until_an_answer():
    shown, waits = [], []
    keys = PreferenceKeys()
    keys.commands = lambda: ["first"] if len(shown) == 5 else []
    screen = PreferenceScreen(keys, shown.append, 0.1, 8, 20, waits.append)
    frames = [np.full((16, 16, 3), i, np.uint8) for i in range(3)]
    assert screen.ask(frames, frames[::-1], "comparison 1") == "first" and len(shown) == 5
    assert waits == pytest.approx([0.1, 0.1, 0.1, 0.4, 0.1, 0.1]) and "2: the right is better" in shown[0]
    pictures = [line for line in shown[0].splitlines() if "\u2580" in line]
    assert 2 <= len(pictures) <= 8 and all(line.count("\u2580") <= 20 for line in pictures)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a person at a terminal")
def test_a_person_answers_at_a_terminal(tmp_path):
    env = make("fork", 1)
    write_dataset(rollout(env.expert(), env, 3, recording_seed(0)), tmp_path / "fork.npz", "npz")
    person = Terminal("judge", "fork.npz", "--out", "answers", "--pairs", "5", "--length", "5", cwd=tmp_path)
    for number, key in ((1, "1"), (2, "s"), (2, "2"), (3, "3"), (4, "q")):
        person.until(f"comparison {number} of 5")
        person.type(key)
    status, text = person.end()
    assert status == 0 and "3 comparisons are in answers" in text, text
    answers = open_dataset(tmp_path / "answers")
    assert [e.steps["preference"][0, 0] for e in answers] == [2, 0, 1]
    assert [e.metadata["pair"] for e in answers] == [0, 2, 3]
