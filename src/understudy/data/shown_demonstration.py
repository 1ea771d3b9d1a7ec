"""Adds to each step frames of another episode of the same task, as a description of what to do."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from ..core import AtLeast, DataError, Feature, Schema, keys, part, role
from .episode import Dataset, Episode, LabeledEpisodes
from .operations import Operation
from .tasks import task_texts

DEMONSTRATION = "observation.demonstration"


@part
class ShowDemonstration(Operation):
    """Adds frames of another episode of the same task, which a policy reads as a description of the task.

    The frames are evenly spaced from the first to the last observation. Frame i is the column
    ``observation.demonstration.<i>``, so that it has its own statistics and weights. Each step is shown another
    episode, drawn at random, because a policy that always saw the same one with an episode could remember the pair. Let
    the policy read one observation, because a history would show several demonstrations.

    `task_texts` reads the task of an episode: its column or metadata "task", or the text that the environment showed.
    Tasks are the same if their words are equal. An episode is left out if no other episode has its task.

    While acting, `execute.demonstrated.DemonstratedActor` adds the same columns.

    Args:
        columns: Observed columns of numbers that a frame has, in this order.
        own: Show each step the episode that it belongs to, of any task (hindsight). No episode is left out.

    References:
        Duan et al. (2017), One-Shot Imitation Learning, arXiv:1703.07326. Its network reads the whole demonstration.
    """

    columns: tuple[str, ...] = ("observation.state",)
    n_frames: Annotated[int, AtLeast(1)] = 8
    seed: int = 0
    own: bool = False

    @property
    def into(self) -> tuple[str, ...]:
        """Names of the columns that are added, one for each frame."""
        return tuple(f"{DEMONSTRATION}.{i}" for i in range(self.n_frames))

    def feature(self, features: Schema) -> Feature:
        """Returns the feature of a frame. The columns must be observed and numeric."""
        field_name, observed = "ShowDemonstration.columns", numeric_observations(features)
        hint = f"name some of {', '.join(observed)}" if observed else "no observation of the data is numeric"
        for name in self.columns:
            if role(name) == "observation" and name in features and name not in observed:
                raise DataError(f"the column {name!r} is of kind {features[name].kind!r}, but a frame is numeric",
                                where=field_name, hint=hint)
            if name not in observed:
                raise DataError(f"there is no observed column {name!r}", where=field_name, hint=hint)
        if not self.columns:
            raise DataError("a frame has no columns", where=field_name, hint=hint)
        return Feature("float32", (sum(features[name].size for name in self.columns),))

    def frames(self, episode: Episode) -> np.ndarray:
        """Returns the frames of an episode, (n_frames, D) float32."""
        self.feature(episode.features())
        rows = [np.asarray(episode.steps[name]) for name in self.columns]
        at = np.linspace(0, len(rows[0]) - 1, self.n_frames).round().astype(int)
        for name, column in zip(self.columns, rows, strict=True):
            if not (ok := np.isfinite(column[at].reshape(self.n_frames, -1)).all(1)).all():
                raise DataError(f"it is not a finite number at step {at[ok.argmin()]}", where=f"column {name!r}",
                                hint="leave the episode out: understudy view make DATA --delete")
        return np.concatenate([column[at].reshape(self.n_frames, -1) for column in rows], 1).astype(np.float32)

    def all_frames(self, data: Dataset) -> tuple[np.ndarray, list[str]]:
        """Returns the frames of all episodes, (N, n_frames, D) float32, and their tasks. Each episode is read once."""
        frames, tasks = [], []
        for number, episode in enumerate(data.iterate_once()):
            try:
                frames.append(self.frames(episode))
            except DataError as error:
                raise DataError(error.problem, where=f"{data.metadata.get('path', 'demonstrations')}, episode {number}"
                                f", {error.where}", hint=error.hint) from None
            tasks.append(task_of(episode))
        return np.stack(frames), tasks

    def apply(self, data: Dataset) -> Dataset:
        feature = self.feature(data.features())
        frames, tasks = self.all_frames(data)
        steps = data.lengths
        if self.own:
            columns = LabeledEpisodes(data, dict.fromkeys(self.into, feature), lambda number: {
                name: np.repeat(frames[number, i:i + 1], steps[number] + 1, 0) for i, name in enumerate(self.into)})
            return Dataset(columns, data.metadata)
        if "" in tasks:
            raise DataError("the episode has no task, so there is no telling which others show the same one",
                            where=f"episode {tasks.index('')}",
                            hint="name it, as the metadata or the column 'task' (--columns task=NAME for one with "
                                 "another name)")
        names, task = np.unique(tasks, return_inverse=True)
        same = [np.flatnonzero(task == n) for n in range(len(names))]  # the episodes of each task
        kept = [i for i, n in enumerate(task) if len(same[n]) > 1]
        drawn = []  # for each episode, which one its steps are shown, (T+1,)
        for i, key in zip(kept, keys(self.seed, range(len(kept))).tolist(), strict=True):
            others = np.delete(same[task[i]], np.searchsorted(same[task[i]], i))
            drawn.append(others[keys(key, range(steps[i] + 1)).numpy() % len(others)])
        columns = LabeledEpisodes(data.select(kept), dict.fromkeys(self.into, feature), lambda number: {
            name: frames[drawn[number], i] for i, name in enumerate(self.into)})
        return Dataset(columns, data.metadata)


def numeric_observations(features: Schema) -> tuple[str, ...]:
    """Returns the names of the observed columns of numbers."""
    return tuple(name for name, f in features.items() if role(name) == "observation" and f.kind == "vector")


def task_of(episode: Episode) -> str:
    """Returns the task of an episode, or the first of its tasks. Empty if it has none."""
    return str(task_texts(episode)[0]).strip()
