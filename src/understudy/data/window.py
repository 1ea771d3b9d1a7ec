"""Windows: the rows of an episode that a policy reads, and the rows it predicts, and batches of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, cast

import numpy as np
import torch
from torch import Tensor

from ..core import AtLeast, AtMost, Batch, Below, DataError, UserError, part
from .batch_sampler import BatchSampler
from .episode import Dataset, Episode
from .packed_columns import PackedColumns

TERMINATED = "next.terminated"
TABLE_MIN_EPISODES = 1000  # with at least as many episodes, a table says in which episode a window lies

SamplingWeights = Callable[[Episode], np.ndarray]  # (T,) non-negative: relative frequency of windows at each step


@dataclass(frozen=True)
class ColumnSamplingWeights:
    """Sampling weights of windows that are a column of the data.

    Args:
        column: A column with one number per step.
    """

    column: str

    def __call__(self, episode: Episode) -> np.ndarray:
        if self.column not in episode.steps:
            raise UserError(f"the episodes have no column {self.column!r} with the sampling weight of each step",
                            where="ColumnSamplingWeights", hint="add it, for example with the operation Retrieve")
        return np.asarray(episode.steps[self.column][: len(episode)], float).reshape(len(episode))


@part
class Goal:
    """A goal column: for each window, a row that is reached later is drawn (hindsight relabeling).

    By default the goal is a later row of the same episode ("future" of HER). The last row of an episode has no later
    row, and the first no earlier one: these windows get their own row. Goals are not stored, so image goals do not
    double the dataset, and each batch draws new goals.

    Two columns of `Batch.extra` describe the goal. ``"<into>.steps"`` (B, 1) float is the number of rows from the
    current row to the goal: negative for a goal in the past, infinite for a goal in another episode.
    ``"<into>.reached"`` (B, 1) bool is ``steps == 0``, the reward of goal-conditioned value functions.

    An actor and a critic that need different goals use two of these. A goal that is not among the inputs of the window
    is in `Batch.extra` too, (B, 1, ...), under its name.

    Args:
        column: The observation. Its rows are the goals.
        p_curgoal: Fraction of windows that have the current row as goal.
        p_randomgoal: Fraction of windows that have another row of any episode as goal, drawn uniformly. `max_steps`
            does not apply to them.
        discount: The distance of later and earlier goals is geometric with this discount (0.99, for example). The last
            row in reach stands for all rows beyond it. None draws distances uniformly.
        p_pastgoal: Fraction of windows that have an earlier row of the same episode as goal.
        max_steps: Largest distance of later and earlier goals, in rows. None for no limit.

    References:
        Andrychowicz et al. (2017), Hindsight Experience Replay, arXiv:1707.01495.
        Park et al. (2025), OGBench: Benchmarking Offline Goal-Conditioned RL, arXiv:2410.20092.
    """

    column: str
    into: str = "observation.goal"
    p_curgoal: Annotated[float, AtLeast(0), AtMost(1)] = 0.0
    p_randomgoal: Annotated[float, AtLeast(0), AtMost(1)] = 0.0
    discount: Annotated[float | None, AtLeast(0), Below(1)] = None
    p_pastgoal: Annotated[float, AtLeast(0), AtMost(1)] = 0.0
    max_steps: Annotated[int | None, AtLeast(1)] = None

    def __post_init__(self):
        fractions = {name: getattr(self, name) for name in ("p_curgoal", "p_randomgoal", "p_pastgoal")}
        if sum(fractions.values()) > 1 + 1e-9:
            raise UserError(f"{', '.join(f'{n}={p}' for n, p in fractions.items())} add up to more than 1.",
                            where="Goal", hint="The rest, up to 1, is the fraction of future goals.")

    def sample_rows(self, episode: np.ndarray, t: np.ndarray, lengths: np.ndarray, rng: np.random.Generator,
                    drawn: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Draws the goals of a batch: episode and row of each.

        Args:
            episode: Episode of each window, (B,).
            t: Current row of each window, (B,).
            lengths: Number of steps of each episode, (E,).
            drawn: Episodes and rows of the goals before this one in the window, by the names of their columns. A
                `Subgoal` reads them.

        Returns:
            Episode and row of each goal, (B,) each.
        """
        row = t + self._distances(lengths[episode] - 1 - t, rng)
        draw = rng.random(t.shape)
        ends = np.cumsum(lengths)
        starts = ends - lengths
        current = starts[episode] + t
        other = rng.integers(0, max(1, ends[-1] - 1), t.shape)
        other = np.minimum(other + (other >= current), ends[-1] - 1)  # any row but the current one
        other_episode = np.searchsorted(ends, other, side="right")
        if self.p_pastgoal:
            row = np.where(draw < self.p_randomgoal + self.p_pastgoal, t - self._distances(t, rng), row)
        row = np.where(draw < self.p_randomgoal, other - starts[other_episode], row)
        row = np.where(draw >= 1 - self.p_curgoal, t, row)
        return np.where(draw < self.p_randomgoal, other_episode, episode), row

    def _distances(self, available: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draws how many rows away each goal is, where `available` (B,) rows are in one direction."""
        limit = available if self.max_steps is None else np.minimum(available, self.max_steps)
        if self.discount is None:
            return rng.integers(np.minimum(1, limit), limit + 1)
        return np.minimum(rng.geometric(1 - self.discount, limit.shape), limit)


@part
class Subgoal:
    """A goal column with the observation `n_steps` later, or the last one if the episode ends before.

    Args:
        column: The observation. Its rows are the subgoals.
        toward: Column of a goal that stands before this one in `Window.goals`. If it is a later row of the same
            episode, the subgoal is not a row beyond it.

    References:
        Park et al. (2023), HIQL: Offline Goal-Conditioned RL with Latent States as Actions, arXiv:2307.11949.
    """

    column: str
    into: str = "observation.subgoal"
    n_steps: Annotated[int, AtLeast(1)] = 25
    toward: str | None = None

    def sample_rows(self, episode, t, lengths, rng, drawn):
        """The rows of a batch: see `Goal.sample_rows`."""
        row = np.minimum(t + self.n_steps, lengths[episode] - 1)
        if self.toward is not None:
            goal_episode, goal_row = drawn[self.toward]
            row = np.where((goal_episode == episode) & (goal_row > t), np.minimum(row, goal_row), row)
        return episode, row


@part
class Window:
    """The rows around step t that a policy reads and predicts.

    The observation rows are the `n_obs_steps` rows that end at ``t + obs_offset``. The target rows are the `horizon`
    rows that begin at ``t + action_offset``. Observation rows before the start of an episode repeat its first row, and
    rows after its end its last. Target rows outside the episode are masked.

    | model | window |
    |---|---|
    | behavior cloning with chunks of 8 | ``Window(horizon=8)`` |
    | Diffusion Policy (chunks begin in the past) | ``Window(n_obs_steps=2, horizon=16, action_offset=-1)`` |
    | a loss at every row of a history of K | ``Window(n_obs_steps=K, horizon=K, action_offset=1 - K)`` |
    | inverse dynamics | ``Window(n_obs_steps=2, obs_offset=1)`` |
    | world model (the target is an observation) | ``Window(action_offset=1)`` |
    | masked trajectories of K steps | ``Window(n_obs_steps=K, horizon=K, obs_offset=K - 1, obs_pad_mask=True)`` |

    Args:
        obs_pad_mask: Mark the observation rows outside an episode, before its start or after its end: ``"name?"`` is
            False there, for every input `name`, in training and when acting. Encoders then treat these rows as absent.
    """

    n_obs_steps: Annotated[int, AtLeast(1)] = 1
    horizon: Annotated[int, AtLeast(1)] = 1
    action_offset: int = 0
    obs_offset: int = 0
    goals: tuple[Goal | Subgoal, ...] = ()
    obs_pad_mask: bool = False

    @property
    def action_start(self) -> int:
        """The observation step (0 is the oldest row of the window) at which target row 0 happens."""
        return self.n_obs_steps - 1 - self.obs_offset + self.action_offset

    def pad_masks(self, inputs: tuple[str, ...]) -> tuple[str, ...]:
        """Returns the names of the presence masks that `obs_pad_mask` adds to observation windows of `inputs`."""
        if not self.obs_pad_mask:
            return ()
        return tuple(f"{k}?" for k in inputs if not k.endswith("?") and f"{k}?" not in inputs)

    def windows(self, data: Dataset, inputs: tuple[str, ...], target: str | None = None, *,
                extra: tuple[str, ...] = (), next_obs: bool = False, sampling_weights: SamplingWeights | None = None,
                lookahead: int = 0, goals: tuple[Goal | Subgoal, ...] = ()) -> Windows:
        """Returns all windows of a dataset.

        Columns stay where they are (in a memory map, for example) until a batch gathers them.

        Args:
            target: The column to predict. None for data without actions: the actions of a batch have no components,
                (B, H, 0), and its mask has the steps of the episode.
            extra: Further columns, given over the rows of the target as `Batch.extra`.
            next_obs: Whether batches have the observation window after the horizon as `Batch.next`. The last step of an
                episode then does not count if no observation follows it, unless `extra` has `next.terminated` and it is
                true there. Such a step is masked, and no window that is drawn begins at it.
            sampling_weights: Function from an episode to the relative frequency of windows at each of its steps, (T,),
                not negative. None draws all steps equally often.
            lookahead: Number of rows that `extra` covers, from t + action_offset on, and after which `Batch.next` is
                taken, not negative. `extra["lookahead_mask"]` (B, lookahead) is then False where a row is not in the
                episode. 0 means the horizon.
            goals: Further goals, which become observations as well. A goal of the window that `inputs` does not name
                can be among them.
        """
        inputs = tuple(dict.fromkeys((*inputs, *(g.into for g in goals))))
        window = replace(self, goals=tuple({g.into: g for g in (*self.goals, *goals)}.values()))
        return Windows(window, data, inputs, target, extra, next_obs, sampling_weights, lookahead)


class Windows(BatchSampler):
    """All windows of a dataset, from which batches are drawn: see `Window.windows`.

    A batch is a function of (seed, step), so there is no position to save or resume.
    """

    def __init__(self, window: Window, data: Dataset, inputs, target, extra, next_obs, sampling_weights, lookahead=0):
        if lookahead < 0:
            raise UserError(f"the lookahead is {lookahead}, but a number of rows is at least 0", where="Window",
                            hint="use 0 for the horizon")
        self.window, self.inputs, self.target, self.extra, self.next_obs = window, inputs, target, extra, next_obs
        self.lookahead = lookahead
        drawn = {g.into for g in window.goals}
        self.stored_inputs = tuple(k for k in inputs if k not in drawn)
        targets = () if target is None else (target,)
        self.packed = PackedColumns.from_episodes(
            data, (*self.stored_inputs, *(g.column for g in window.goals), *targets, *extra))
        layouts: dict[tuple, int] = {}  # columns with the same layout have the same number
        self.layout_ids = {name: layouts.setdefault((id(c.starts), id(c.lengths), c.constant), len(layouts))
                           for name, c in self.packed.columns.items()}
        # Window number at which each episode begins, and after which the last ends.
        self.episode_bounds = np.concatenate([[0], np.cumsum(self.packed.lengths)])
        self.episode_ends = self.episode_bounds[1:]
        self.table_stride, self.episode_table = _episode_table(self.episode_ends)
        self.unknown_ends = self._unknown_ends()
        weights = None
        if sampling_weights is not None:
            weights = np.concatenate([sampling_weights(e) for e in data]).astype(float)
        if weights is not None and weights.shape != (len(self),):
            raise UserError(f"the weights have shape {weights.shape}, but the data have {len(self)} steps",
                            where="sampling_weights",
                            hint="give one number for each step of the episode: (len(episode),)")
        if weights is not None and not (weights.sum() > 0 and np.isfinite(weights).all() and (weights >= 0).all()):
            raise UserError("the weights must be finite and not negative, and at least one must be positive",
                            where="sampling_weights", hint="give each step a weight: 0 means that it is never drawn")
        if self.unknown_ends.any() and window.action_offset >= 0:
            weights = np.ones(len(self)) if weights is None else weights.copy()
            weights[self.episode_ends[self.unknown_ends > 0] - 1] = 0
        self.cumulative_weights = None if weights is None else np.cumsum(weights) / max(weights.sum(), 1e-300)
        # Of the observation rows, relative to t.
        self.obs_offsets = np.arange(window.obs_offset + 1 - window.n_obs_steps, window.obs_offset + 1)
        self.starts_before_episode = bool(self.obs_offsets[0] < 0)
        self.action_offsets = np.arange(window.action_offset, window.action_offset + window.horizon)
        self.same_offsets = np.array_equal(self.obs_offsets, self.action_offsets)
        # Of the current row of `next`, relative to t.
        self.next_offset = window.action_offset + (lookahead or window.horizon)

    def _unknown_ends(self) -> np.ndarray:
        """Returns 1 for each episode that continues after its last step but lacks the observation there, (E,)."""
        columns, lengths = self.packed.columns, self.packed.lengths
        rows = [columns[name].lengths for name in self.stored_inputs if not columns[name].constant]
        if not self.next_obs or not rows:
            return np.zeros_like(lengths)
        unknown = np.max(rows, 0) <= lengths
        if TERMINATED in self.extra:
            ends = columns[TERMINATED].gather(np.arange(len(lengths)), lengths[:, None] - 1)
            unknown &= ~ends.reshape(len(lengths), -1).any(1)
        return unknown.astype(lengths.dtype)

    def __len__(self) -> int:
        """Number of windows: one for each step of each episode."""
        return int(self.episode_ends[-1])

    def batch(self, size: int, step: int, seed: int = 0, rows: slice = slice(None)) -> Batch:
        """Draws a batch of windows: see `BatchSampler.batch`. It does not depend on the batches before."""
        if self.cumulative_weights is not None and not self.cumulative_weights[-1]:
            raise DataError("no observation follows any of the steps, and what follows them counts", where="data set",
                            hint="store the observation after the last action of each episode, or next.terminated as "
                                 "True where the episode really ended")
        rng = _rng(seed, step)
        indices = rng.integers(0, len(self), size) if self.cumulative_weights is None else np.searchsorted(
            self.cumulative_weights, rng.random(size), side="right").clip(max=len(self) - 1)
        if self.window.goals:  # goals are drawn for all rows, so that they do not depend on `rows`
            return self.gather(indices, rng).select_rows(rows)
        return self.gather(indices[rows], rng)

    def scan(self, size: int = 1024) -> Iterator[Batch]:
        """Yields every window once, in order, in batches of `size`."""
        for i in range(0, len(self), size):
            yield self.gather(np.arange(i, min(i + size, len(self))), np.random.default_rng(i))

    def gather(self, indices: np.ndarray, rng: np.random.Generator | None = None) -> Batch:
        """Gathers windows by their numbers.

        Args:
            indices: Numbers of the windows, (B,). They count the steps of all episodes in order.
            rng: Source of randomness for goals. Not needed without goals.
        """
        batch = self._gather_rows(indices, rng)
        return self._mark_padding(batch, indices) if self.window.obs_pad_mask else batch

    def _episode_of(self, indices: np.ndarray) -> np.ndarray:
        """Returns the episode of each window, (B,)."""
        if self.episode_table is None:
            return self.episode_ends.searchsorted(indices, side="right")
        candidate = self.episode_table[indices // self.table_stride]
        return candidate + (self.episode_ends[candidate] <= indices)

    def _gather_rows(self, indices: np.ndarray, rng: np.random.Generator | None) -> Batch:
        w = self.window
        episode = self._episode_of(indices)
        t = indices - self.episode_bounds[episode]
        draw = cast(np.random.Generator, rng)  # given wherever there are goals
        goals: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # episode and row of each goal
        for g in w.goals:
            goals[g.into] = g.sample_rows(episode, t, self.packed.lengths, draw, goals)
        row, indices_by_layout = t[:, None] + self.obs_offsets, {}
        obs = self._observations(episode, row, self.starts_before_episode, w.obs_offset > 0, indices_by_layout, goals)
        if not self.same_offsets:
            row, indices_by_layout = t[:, None] + self.action_offsets, {}
        action, mask, extra = self._targets(episode, t, row, indices_by_layout)
        next_row = (t + self.next_offset)[:, None] + self.obs_offsets
        clip_start = self.starts_before_episode or self.next_offset < 0
        return Batch(
            obs=obs, action=action, mask=mask,
            extra={**extra, "index": torch.from_numpy(indices[:, None]), **self._goal_columns(episode, t, goals)},
            next=self._observations(episode, next_row, clip_start, True, {}, goals) if self.next_obs else None)

    def _gather_columns(self, names, episode, row, clip_start, clip_end, indices_by_layout) -> dict[str, Tensor]:
        """Gathers columns by their names. `indices_by_layout` keeps row positions, so that they are computed once."""
        tensors = {}
        for name in names:
            column, layout = self.packed.columns[name], self.layout_ids[name]
            if layout not in indices_by_layout:
                indices_by_layout[layout] = column.flat_indices(episode, row, clip_start, clip_end)
            tensors[name] = _to_tensor(column.take(indices_by_layout[layout]))
        return tensors

    def _observations(self, episode, row, clip_start, clip_end, indices_by_layout, goals) -> dict[str, Tensor]:
        tensors = self._gather_columns(self.stored_inputs, episode, row, clip_start, clip_end, indices_by_layout)
        for g in self.window.goals:  # the same goal for all rows of a window
            goal_episode, goal_row = goals[g.into]
            rows = np.repeat(goal_row[:, None], self.window.n_obs_steps, 1)
            tensors[g.into] = _to_tensor(self.packed.columns[g.column].gather(goal_episode, rows))
        return {k: tensors[k] for k in self.inputs}

    def _targets(self, episode, t, row, indices_by_layout) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Returns actions, (B, H, A), their mask, (B, H), and the extra columns."""
        w, columns, lengths = self.window, self.packed.columns, self.packed.lengths
        ends = lengths if self.target is None else columns[self.target].lengths
        inside = row < (ends - self.unknown_ends)[episode][:, None]
        if w.action_offset < 0:
            inside &= row >= 0
        early, targets = w.action_offset < 0, () if self.target is None else (self.target,)
        if self.lookahead:
            target_columns = self._gather_columns(targets, episode, row, early, True, indices_by_layout)
            row = t[:, None] + w.action_offset + np.arange(self.lookahead)
            extra = self._gather_columns(self.extra, episode, row, early, True, {})
            ahead = row < (lengths - self.unknown_ends)[episode][:, None]
            extra["lookahead_mask"] = torch.from_numpy((row >= 0) & ahead)
        else:
            names = (*targets, *self.extra)
            target_columns = self._gather_columns(names, episode, row, early, True, indices_by_layout)
            extra = {k: target_columns[k] for k in self.extra}
        action = torch.zeros(*inside.shape, 0) if self.target is None else target_columns[self.target]
        action = action if action.ndim == 3 else action.reshape(*action.shape[:2], -1)
        return action, torch.from_numpy(inside), extra

    def _goal_columns(self, episode, t, goals) -> dict[str, Tensor]:
        """Returns the steps to each goal, whether it is reached, and goals that are not inputs."""
        extra = {}
        for g in self.window.goals:
            goal_episode, goal_row = goals[g.into]
            steps = np.where(goal_episode == episode, goal_row - t, np.inf).astype(np.float32)
            extra[f"{g.into}.steps"] = torch.from_numpy(steps[:, None])
            extra[f"{g.into}.reached"] = extra[f"{g.into}.steps"] == 0
            if g.into not in self.inputs:
                extra[g.into] = _to_tensor(self.packed.columns[g.column].gather(goal_episode, goal_row[:, None]))
        return extra

    def _mark_padding(self, batch: Batch, indices: np.ndarray) -> Batch:
        """Sets the mask `name?` to False in rows of `obs` outside the episode."""
        episode = self._episode_of(indices)
        row = (indices - self.episode_bounds[episode])[:, None] + self.obs_offsets

        def marked(obs, offset):
            started = row + offset >= 0
            marks = {}
            for k in obs:
                if k.endswith("?"):
                    continue
                inside = started
                if offset == 0 and self.window.obs_offset > 0 and k in self.stored_inputs:
                    inside = started & (row < self.packed.columns[k].lengths[episode][:, None])
                mark = torch.from_numpy(inside).to(batch.action.device)
                marks[k + "?"] = obs[k + "?"] & mark if k + "?" in obs else mark
            return {**obs, **marks}
        return replace(batch, obs=marked(batch.obs, 0),
                       next=None if batch.next is None else marked(batch.next, self.next_offset))


def _episode_table(ends: np.ndarray) -> tuple[int, np.ndarray | None]:
    """Builds a table for looking up the episode of a window. Returns 0 and None if it is of no use."""
    shortest = int(np.diff(ends, prepend=0).min())
    if len(ends) < TABLE_MIN_EPISODES or not shortest or 4 * shortest * len(ends) < ends[-1]:
        return 0, None
    return shortest, ends.searchsorted(np.arange(0, ends[-1], shortest), side="right")


class _ThreadRng(threading.local):
    """Holds one random generator per thread, because creating one takes longer than a draw."""

    def __init__(self):
        self.philox = np.random.Philox(0)
        self.initial_state, self.rng = self.philox.state, np.random.Generator(self.philox)


_thread_rng = _ThreadRng()


def _rng(seed: int, step: int) -> np.random.Generator:
    """Returns the generator np.random.Philox(key=(seed, step)), until this thread asks for another."""
    _thread_rng.philox.state = {**_thread_rng.initial_state, "state": {
        "counter": _thread_rng.initial_state["state"]["counter"],
        "key": np.array([seed % 2**64, step], np.uint64)}}
    return _thread_rng.rng


def _to_tensor(a: np.ndarray) -> Tensor:
    # Networks compute in float32. Bytes and classes stay as they are until an encoder reads them.
    return torch.from_numpy(a.astype(np.float32) if a.dtype == np.float64 else np.ascontiguousarray(a))
