"""Demonstrations as conditions: what a policy is shown in training, and while it acts."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from understudy import make, rollout
from understudy.commands import evaluate
from understudy.commands.serve import ServeOptions, load_service
from understudy.core import ConfigError, DataError, DataWarning, Feature, UserError, keys
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import write_dataset
from understudy.data.shown_demonstration import ShowDemonstration
from understudy.execute.demonstrated import DemonstratedActor
from understudy.heads.likelihood.regression import Regression
from understudy.learn.fit_method import fit_method
from understudy.learn.train import train
from understudy.methods import find_method


def line(number, task, steps=9):
    """An episode whose state counts from 100 * its number."""
    at = 100 * number + np.arange(steps + 1, dtype=np.float32)[:, None]
    return Episode({"observation.state": at, "action": np.ones((steps, 1), np.float32)}, metadata={"task": task})


def lines(tasks):
    return Dataset([line(i, task) for i, task in enumerate(tasks)])


def shown(episode, i=0):
    """The number of the episode that each step is shown."""
    return np.asarray(episode.steps[f"observation.demonstration.{i}"])[:, 0] // 100


def test_frames_are_evenly_spaced_from_the_first_to_the_last_observation():
    show = ShowDemonstration(n_frames=4)
    np.testing.assert_array_equal(show.frames(line(2, "a", steps=9)), [[200], [203], [206], [209]])
    np.testing.assert_array_equal(show.frames(line(0, "a", steps=1)), [[0], [0], [1], [1]])  # shorter than the frames
    both = line(1, "a").replace({"observation.goal": np.full((10, 2, 2), 7.0)})
    frames = ShowDemonstration(("observation.goal", "observation.state"), n_frames=2).frames(both)
    np.testing.assert_array_equal(frames, [[7, 7, 7, 7, 100], [7, 7, 7, 7, 109]])


def test_each_step_is_shown_another_episode_of_its_task():
    tasks = ["a", "b", "a", "a", "b", "c", "a"]
    data = ShowDemonstration(n_frames=3).apply(lines(tasks))
    assert data.features()["observation.demonstration.2"] == Feature("float32", (1,))
    kept = [int(e.steps["observation.state"][0, 0]) // 100 for e in data]
    assert kept == [0, 1, 2, 3, 4, 6]  # the only one of its task is left out
    for number, episode in zip(kept, data, strict=True):
        demonstrated = {int(n) for n in shown(episode)}
        assert demonstrated <= {i for i, t in enumerate(tasks) if t == tasks[number]} - {number}
        np.testing.assert_array_equal(shown(episode, 0), shown(episode, 2))  # all frames of one episode
    assert {int(n) for n in shown(data[0])} == {2, 3, 6}  # all others within ten observations
    first, again, other = (ShowDemonstration(n_frames=1, seed=s).apply(lines(["a"] * 9)) for s in (0, 0, 1))
    assert any((shown(a) != shown(b)).any() for a, b in zip(first, other, strict=True))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(shown(a), shown(b))
    np.testing.assert_array_equal(shown(first.select([4])[0]), shown(first[4]))


def test_own_shows_each_step_the_episode_that_it_belongs_to():
    episodes = Dataset([line(0, "a", steps=3), line(1, "", steps=9), line(2, "b", steps=6)])
    show = ShowDemonstration(n_frames=2, own=True)
    changed = show.apply(episodes)
    assert len(changed) == 3 and changed.features()[show.into[1]] == Feature("float32", (1,))
    for number, (before, after) in enumerate(zip(episodes, changed, strict=True)):
        for i, row in enumerate((0, -1)):
            expected = np.full((len(before) + 1, 1), before.steps["observation.state"][row, 0])
            np.testing.assert_array_equal(after.steps[show.into[i]], expected)
        np.testing.assert_array_equal(changed.select([number])[0].steps[show.into[1]], after.steps[show.into[1]])


def test_data_that_cannot_be_shown_are_refused():
    with pytest.raises(DataError, match="episode 1: the episode has no task"):
        ShowDemonstration().apply(lines(["a", "", "a"]))
    broken = line(1, "a")
    broken = broken.replace({"observation.state": np.where(np.arange(10)[:, None] == 9, np.nan, 1.0)})
    with pytest.raises(DataError, match="episode 1, column 'observation.state': it is not a finite number at step 9"):
        ShowDemonstration().apply(Dataset([line(0, "a"), broken]))
    for columns in (("observation.stat",), ("action",), ()):
        with pytest.raises(DataError, match=r"ShowDemonstration.columns.*\n.*name some of observation.state"):
            ShowDemonstration(columns).apply(lines(["a", "a"]))
    with pytest.raises(UserError, match="n_frames"):
        ShowDemonstration(n_frames=0)


def test_tasks_of_one_episode_each_are_refused_before_the_training(tmp_path):
    data = lines("abcde")
    with pytest.raises(DataError, match="the 5 episodes show 5 tasks, and no two of them the same"):
        train(find_method("one-shot", data.features()), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    method = find_method("one-shot", data.features(), n_frames=1, horizon=1, width=16)
    method = replace(method, learner=replace(method.learner, steps=1))
    with pytest.warns(DataWarning, match="2 of 5 episodes are the only ones of their task. They are left out"):
        train(method, lines("abcaa"), tmp_path / "run", val_fraction=0)
    with pytest.warns(DataWarning, match="1 of 4 episodes are the only ones .* Held-out episodes do not count"):
        train(method, lines("aabba"), tmp_path / "held", val_fraction=[3])
    with pytest.raises(DataError, match="the 2 episodes that are trained on show 2 tasks, and no two"):
        train(method, lines("aabb"), tmp_path / "too-few", val_fraction=[1, 3])
    assert not (tmp_path / "too-few/checkpoints").exists()


def test_training_in_memory_also_says_which_episodes_are_alone():
    data = lines("abcaa")
    method = find_method("one-shot", data.features(), n_frames=1, horizon=1, width=16)
    method = replace(method, learner=replace(method.learner, steps=1))
    with pytest.warns(DataWarning, match="2 of 5 episodes are the only ones of their task"):
        fit_method(method, data, seed=0)
    with pytest.raises(DataError, match="the 3 episodes show 3 tasks, and no two of them the same"):
        fit_method(method, data[:3], seed=0)


def turns(n):
    """Episodes that go up or down from random places, as their task says. The first observation does not tell."""
    rng, episodes = np.random.default_rng(0), []
    for i in range(n):
        way = 1 if i % 2 else -1
        at = rng.uniform(-1, 1) + 0.3 * way * np.arange(11)[:, None]
        episodes.append(Episode({"observation.state": at.astype(np.float32),
                                 "action": np.full((10, 1), way, np.float32)}, metadata={"task": "ud"[i % 2]}))
    return Dataset(episodes)


def test_a_policy_does_what_it_is_shown():
    data = turns(40)
    method = find_method("one-shot", data.features(), n_frames=3, horizon=2, width=32)
    assert method.policy.inputs == ("observation.state", *(f"observation.demonstration.{i}" for i in range(3)))
    method = replace(method, policy=replace(method.policy, head=Regression()),
                     learner=replace(method.learner, steps=150, batch_size=64))
    actor = fit_method(method, data, seed=0).actor
    obs = {"observation.state": torch.zeros(8, 1)}
    for number, way in ((0, -1), (1, 1)):
        acting = DemonstratedActor(actor, data.select([number]), method.transforms[0])
        action, state = acting.act(obs, acting.start(obs, keys(0, range(8))))
        assert (action * way > 0.8).all()
        assert state["record"]["demonstration"].tolist() == [[0]] * 8
    acting = DemonstratedActor(actor, data, method.transforms[0])
    start = acting.start(obs, keys(0, range(8)))
    assert len(set(start["shown"].tolist())) > 2
    alone = acting.start({"observation.state": torch.zeros(2, 1)}, keys(0, range(3, 5)))
    assert alone["shown"].tolist() == start["shown"].tolist()[3:5]  # a draw belongs to its episode, not to its row


def test_the_task_of_the_environment_chooses_the_demonstration():
    env = make("tabletop", rows=20)
    demonstrations = rollout(env.expert(), env, 60, seed=1)
    show, frames = ShowDemonstration(n_frames=1), []

    class Watcher:
        def start(self, obs, key):
            return {}

        def act(self, obs, state):
            frames.append(obs["observation.demonstration.0"])
            return torch.zeros(len(frames[-1]), 3), {}

    episodes = rollout(DemonstratedActor(Watcher(), demonstrations, show), env, 20, seed=2)
    tasks = [bytes(e.steps["observation.task"][0]) for e in demonstrations]
    drawn = [set(e.steps["demonstration"].ravel().tolist()) for e in episodes]
    assert all(len(numbers) == 1 for numbers in drawn)  # the same one throughout an episode
    for episode, (number,) in zip(episodes, drawn, strict=True):
        assert tasks[number] == bytes(episode.steps["observation.task"][0])
    first = torch.from_numpy(np.stack([show.frames(demonstrations[n])[0] for (n,) in drawn]))
    torch.testing.assert_close(frames[0], first)
    assert len({n for (n,) in drawn}) > 5
    few = demonstrations.filter(lambda e: bytes(e.steps["observation.task"][0]) == tasks[0])
    with pytest.raises(DataError, match=r"no demonstration shows the task 'put .*; they show 'put"):
        rollout(DemonstratedActor(Watcher(), few, show), env, 20, seed=2)
    frames.clear()
    rollout(DemonstratedActor(Watcher(), few.select([0]), show), env, 20, seed=2)  # a single one for all
    torch.testing.assert_close(frames[0], torch.from_numpy(show.frames(few[0])).expand(20, -1))
    with pytest.raises(DataError, match="there is no demonstration"):
        rollout(DemonstratedActor(Watcher(), few.select([]), show), env, 1)


def test_a_demonstration_is_shown_on_the_command_line(tmp_path, capsys):
    env = make("particle", rows=10)
    data = rollout(env.expert(), env, 10, seed=1)
    data = Dataset([replace(e, metadata={**e.metadata, "task": "visit"}) for e in data], data.metadata)
    write_dataset(data, tmp_path / "demos")
    method = find_method("one-shot", data.features(), n_frames=2, horizon=2, width=16)
    train(replace(method, learner=replace(method.learner, steps=2)), data, tmp_path / "run", val_fraction=0)
    plain = find_method("bc", data.features())
    train(replace(plain, learner=replace(plain.learner, steps=2)), data, tmp_path / "plain", val_fraction=0)

    def run(*options, policy="run"):
        evaluate.main([str(tmp_path / policy), "particle", "--episodes", "2", "--json", *options])
        return json.loads(capsys.readouterr().out)

    with pytest.raises(ConfigError, match=r"and none is given\n.*demonstration=DATA"):
        run()
    for text in ("demos", "demos:9"):
        saved = tmp_path / f"saved-{text[-1]}"
        run("--condition", f"demonstration={tmp_path / text}", "--save", str(saved))
    with pytest.raises(UserError, match="there is no episode 10; the last one is 9"):
        run("--condition", f"demonstration={tmp_path / 'demos'}:10")
    for texts, words in ((["demonstration="], "and none is given"), (["demonstration=a", "demonstration=b"], "several"),
                         ([f"demonstration={tmp_path / 'demos'}:x"], "'x' is not the number of an episode"),
                         (["demonstration=a", "demonstration.0=1"], "names a frame of the demonstration")):
        with pytest.raises(ConfigError, match=words):
            run("--condition", *texts)
    other = make("fork", rows=2)
    write_dataset(rollout(other.expert(), other, 2), tmp_path / "fork")
    with pytest.raises(DataError, match=r"reads 'observation.state' of shape \(8,\) of a demonstration, and"):
        run("--condition", f"demonstration={tmp_path / 'fork'}")
    with pytest.raises(UserError, match="no policy does what a demonstration shows"):
        run("--condition", f"demonstration={tmp_path / 'demos'}", policy="plain")

    served = load_service(ServeOptions(run=tmp_path / "run", condition=(f"demonstration={tmp_path / 'demos'}:3",)))
    torch.testing.assert_close(served.served.defaults["observation.demonstration.1"],
                               torch.from_numpy(data[3].steps["observation.state"][-1]))
    with pytest.raises(ConfigError, match="there are 10 episodes, but a server shows one"):
        load_service(ServeOptions(run=tmp_path / "run", condition=(f"demonstration={tmp_path / 'demos'}",)))
    with pytest.raises(ConfigError, match="does not read a demonstration"):
        load_service(ServeOptions(run=tmp_path / "plain", condition=(f"demonstration={tmp_path / 'demos'}:3",)))
