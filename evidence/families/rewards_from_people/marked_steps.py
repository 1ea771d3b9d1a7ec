"""Row 332: somebody marks the good steps of some windows, and a model learns to mark. Clone what it marks?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from evidence.experiment import Experiment
from evidence.families.rewards_from_people.rated_episodes import (
    AROUND,
    FAST,
    ORDER,
    STATE,
    JudgedTasks,
    MixedQuality,
    cloning,
    demonstrations,
    roll_out,
)
from evidence.measures import flags, train_once
from understudy.core import Feature
from understudy.data.episode import Dataset, Episode
from understudy.data.relabel import NextObservation
from understudy.envs.toys.gridworld_tasks import WALL, GridworldTasksExpert
from understudy.evaluate.evaluation import recording_seed
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.likelihood.categorical import Categorical
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import FitResult, fit_method
from understudy.learn.method import Method
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.policy import Policy, PolicyConfig

TASK, ACTED, AFTER = "observation.task", "observation.action", "observation.after"
GOOD, WEIGHT, PRECISION, RECALL = "good", "weight", "precision of marks", "recall of marks"
WINDOW, FLIPPED = 20, 0.1  # steps of a window; fraction of the marks that are wrong
SHOWN, PRACTICED = 400_000, 500_000  # numbers of the first episodes that the judge sees, and that the model marks


def steps_to_go(episode: Episode) -> np.ndarray:
    """Length of the expert's way to the end without slips, uses included, at each row (T+1,)."""
    at, done = np.split(np.asarray(episode.steps[STATE], int), [2], 1)
    around, order = (np.asarray(episode.steps[name], int) for name in (AROUND, ORDER))
    door = around[:, 6]
    places = np.stack([around[:, :2], np.stack([0 * door + WALL - 1, door], 1), around[:, 2:4], around[:, 4:6]], 1)
    total = np.zeros(len(at), int)
    for stage in order.T:
        place, waits = places[np.arange(len(at)), stage], done[np.arange(len(at)), stage] == 0
        ways = [np.abs(x[:, 0] - WALL) + np.abs(x[:, 1] - door) for x in (at, place)]
        same = np.sign(at[:, 0] - WALL) == np.sign(place[:, 0] - WALL)
        way = np.where(same, np.abs(at - place).sum(1), sum(ways))
        total += np.where(waits, way + 1, 0)
        at = np.where(waits[:, None], place, at)
    return total


def progress(episode: Episode) -> np.ndarray:
    """Which steps come nearer to the end, (T,) bool."""
    return np.diff(steps_to_go(episode)) < 0


def with_feedback_columns(episode: Episode, marks: np.ndarray, weight: np.ndarray) -> Episode:
    """The episode with what a model of feedback reads and learns: the action, the next state, marks and weights."""
    action = np.asarray(episode.steps["action"])
    episode = NextObservation(STATE, AFTER)(episode.replace({
        GOOD: marks.astype(np.int64)[:, None], WEIGHT: weight, ACTED: np.concatenate([action, action[-1:]])}))
    good = Feature("int64", (1,), "discrete", num_classes=(2,))
    return replace(episode, schema={**episode.schema, GOOD: good, ACTED: episode.schema["action"]})


def drawn_windows(episodes: Dataset, n: int, rng: np.random.Generator) -> list[tuple[int, slice]]:
    """Windows of 20 steps, half of them of episodes that succeed: numbers of the episodes, and steps."""
    windows = {good: [(i, slice(a, a + WINDOW)) for i, e in enumerate(episodes) if e.metadata["success"] == good
                      for a in range(0, len(e), WINDOW)] for good in (True, False)}
    return [group[i] for group in windows.values() for i in rng.choice(len(group), min(n // 2, len(group)), False)]


def judged_steps(episodes: Dataset, n: int, permuted: bool, rng: np.random.Generator) -> Dataset:
    """Episodes with the marks of a judge who sees `n` windows. Other steps have no weight.

    A tenth of the marks is wrong. If more than half are bad, those count less, so that they are half of a batch.
    """
    marks = [progress(e) != (rng.random(len(e)) < FLIPPED) for e in episodes]
    is_judged = [np.zeros(len(e), bool) for e in episodes]
    for i, steps in drawn_windows(episodes, n, rng):
        is_judged[i][steps] = True
        if permuted:
            marks[i][steps] = rng.permutation(marks[i][steps])
    is_good = np.concatenate(marks)[np.concatenate(is_judged)]
    bad = min(1.0, is_good.sum() / max((~is_good).sum(), 1))
    return Dataset([with_feedback_columns(e, m, j * np.where(m, 1.0, bad))
                    for e, m, j in zip(episodes, marks, is_judged, strict=True)], episodes.metadata)


def feedback_model(updates: int) -> Method:
    """A model of whether a step is good, from what was seen before it, its action, and the state after it."""
    policy = PolicyConfig(Categorical(), FeedForward((128, 128)), ConcatEncoder(), target=GOOD,
                          inputs=(ORDER, STATE, AROUND, ACTED, AFTER))
    return Method(policy, RecedingHorizon(), BehaviorCloning(updates, 64, FAST, sampling_column=WEIGHT))


@torch.no_grad()
def predicted_marks(model: Policy, episodes: Dataset) -> list[np.ndarray]:
    """Which steps of each episode the model marks, (T,) bool each."""
    none = torch.zeros(1, dtype=torch.int64)
    episodes = Dataset([with_feedback_columns(e, progress(e), np.ones(len(e))) for e in episodes])
    good = torch.cat([model.plan(batch.obs, model.noise(none, none).expand(len(batch), -1, -1))[:, 0, 0]
                      for batch in model.windows(episodes).scan()]).numpy() > 0
    return np.split(good, np.cumsum(episodes.lengths)[:-1])


def expert_actions(episode: Episode) -> np.ndarray:
    """What the expert would have done at each step, (T, 1)."""
    obs = {name: torch.as_tensor(np.array(episode.steps[name][:len(episode)])) for name in (TASK, STATE, AROUND)}
    key = torch.zeros(len(episode), dtype=torch.int64)
    expert = GridworldTasksExpert(noise=0.0)
    return expert.act(obs, expert.start(obs, key))[0].numpy()


@dataclass(frozen=True)
class Feedback:
    """What a new policy clones in addition to the first data.

    Args:
        keeps: Steps of 300 new episodes: none, all, those that a model marks, or all that come nearer to the end. With
            "expert", the expert's actions in the windows that the judge sees; with "demonstrations", further
            episodes of the expert, with as many steps as the judge sees.
        permuted: Whether the marks are permuted within each window.
    """

    keeps: Literal["none", "all", "model", "progress", "expert", "demonstrations"]
    permuted: bool = False
    updates: int = 2000
    model_updates: int = 1000
    n_episodes: int = 300
    n_windows: int = 100

    def kept_steps(self, base: FitResult, seed: int) -> tuple[Dataset, list[np.ndarray]]:
        """Episodes of the base, and the steps that are cloned, (T,) bool each."""
        if self.keeps == "demonstrations":
            further = Dataset(demonstrations(WINDOW * self.n_windows, seed))
            return further, [np.ones(len(e), bool) for e in further]
        rng = np.random.default_rng([seed, 3])
        if self.keeps in ("model", "expert"):
            watched = roll_out(base, self.n_episodes // 2, recording_seed(seed), SHOWN)
            judged = judged_steps(watched, self.n_windows, self.permuted, rng)
            if self.keeps == "expert":
                corrected = watched.map(lambda e: e.replace({"action": expert_actions(e)}))
                return corrected, [e.steps[WEIGHT] > 0 for e in judged]
            model = fit_method(feedback_model(self.model_updates), judged, seed).policy
        own = roll_out(base, self.n_episodes, recording_seed(seed), PRACTICED)
        return own, (predicted_marks(model, own) if self.keeps == "model" else
                     [progress(e) if self.keeps == "progress" else np.ones(len(e), bool) for e in own])


def improved(experiment, option: Feedback, data: Dataset, seed: int, episodes: int, starts: int):
    """Trains a clone, then another on what is kept of its episodes, and measures success and the precision of marks."""
    result, values = train_once(experiment, cloning(option.updates), data, seed), {}
    if option.keeps != "none":
        own, kept = option.kept_steps(result, seed)
        if option.keeps == "model":
            is_good, marked = (np.concatenate(x) for x in ([progress(e) for e in own], kept))
            values = {PRECISION: [float(is_good[marked].mean())], RECALL: [float(marked[is_good].mean())]}
        weights = [*(np.ones(len(e)) for e in data), *(steps.astype(float) for steps in kept)]
        union = Dataset([e.replace({WEIGHT: w}) for e, w in zip([*data, *own], weights, strict=True)], data.metadata)
        method = cloning(option.updates)
        result = fit_method(replace(method, learner=replace(method.learner, sampling_column=WEIGHT)), union, seed)
    return {**flags(roll_out(result, episodes, starts)), **values}


TABLE = Experiment(
    MixedQuality(), env=f"{JudgedTasks.__module__}:JudgedTasks", measure=improved, first_seed=1850, episodes=300,
    levels={"cloning": 0.3}, arms={
    "cloning": Feedback("none"),
    "all steps": Feedback("all"),
    "marked steps": Feedback("model"),
    "good steps": Feedback("progress"),
    "expert's actions": Feedback("expert"),
    "more demonstrations": Feedback("demonstrations"),
    "permuted marks": Feedback("model", permuted=True)})
