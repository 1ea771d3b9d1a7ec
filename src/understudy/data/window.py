"""From episodes to batches: which rows a model sees and which it must produce."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..core import Batch, UserError
from .episode import Dataset, Episode
from .packed_columns import PackedColumns

TABLE_MIN_EPISODES = 1000  # from so many episodes on a table says where they are

SamplingWeights = Callable[[Episode], np.ndarray]  # (T,) non-negative: how often each step starts a window


@dataclass(frozen=True)
class Goal:
    """A column drawn anew for every window, as hindsight has it: a later row of the same episode ("future" of
    Andrychowicz et al. 2017, HER; for an episode's last row itself), or any other row of the data, all as likely (of
    data of one row itself). The present row is drawn for the share `now` alone.

    Written out by relabeling instead, image goals would double the dataset and never vary.
    `extra["<into>.reached"]` (B, 1) says where the goal is the present row: the reward of goal-conditioned values.
    An actor and a critic that want other goals name two of these.
    """

    column: str
    into: str = "observation.goal"
    p_curgoal: float = 0.0  # share of windows whose goal is the present row
    p_randomgoal: float = 0.0  # share whose goal is any other row of any episode
    discount: float | None = None  # later rows geometrically near (0.99, say), the last one for all beyond; None: alike

    def sample_rows(self, episode, t, length, rng):
        """(episode, row) of the goal of each window."""
        left = length[episode] - 1 - t
        if self.discount is None:
            later = rng.integers(np.minimum(1, left), left + 1)
        else:
            later = np.minimum(rng.geometric(1 - self.discount, t.shape), left)
        share = rng.random(t.shape)
        ends = np.cumsum(length)
        first = ends - length
        present = first[episode] + t
        any_row = rng.integers(0, max(1, ends[-1] - 1), t.shape)
        any_row = np.minimum(any_row + (any_row >= present), ends[-1] - 1)
        far = np.searchsorted(ends, any_row, side="right")
        row = np.where(share < self.p_randomgoal, any_row - first[far], t + later)
        return np.where(share < self.p_randomgoal, far, episode), np.where(share >= 1 - self.p_curgoal, t, row)


@dataclass(frozen=True)
class Window:
    """At step t: `obs` rows ending at t+look, and `horizon` target rows starting at t+ahead.

    look=1 gives inverse dynamics, ahead=1 on an observation column a world model, ahead=-1 the alignment of
    diffusion policy. One rule for all; no dataset class per method.
    """

    n_obs_steps: int = 1
    horizon: int = 1
    action_offset: int = 0
    obs_offset: int = 0
    goals: tuple[Goal, ...] = ()

    def windows(self, data: Dataset, inputs: tuple[str, ...], target: str, *, extra: tuple[str, ...] = (),
             next_obs: bool = False, sampling_weights: SamplingWeights | None = None) -> Windows:
        """All windows of `data`. Columns stay where they are (memory-mapped, say) until a batch gathers them."""
        return Windows(self, data, inputs, target, extra, next_obs, sampling_weights)


class Windows:
    """Windows over data, drawn in whole batches. A batch is a function of (seed, step): nothing to resume."""

    def __init__(self, window: Window, data: Dataset, inputs, target, extra, next_obs, sampling_weights):
        self.window, self.inputs, self.target, self.extra, self.next_obs = window, inputs, target, extra, next_obs
        drawn = {g.into for g in window.goals}
        self.stored_inputs = tuple(k for k in inputs if k not in drawn)
        self.packed = PackedColumns.from_episodes(
            data, (*self.stored_inputs, *(g.column for g in window.goals), target, *extra)
        )
        lies: dict[tuple, int] = {}  # columns that lie alike have the same number
        self.layout_ids = {name: lies.setdefault((id(c.starts), id(c.lengths), c.constant), len(lies))
                     for name, c in self.packed.columns.items()}
        # where each episode begins, and the last ends
        self.episode_bounds = np.concatenate([[0], np.cumsum(self.packed.lengths)])
        self.episode_ends = self.episode_bounds[1:]
        self.table_stride, self.episode_table = _episode_table(self.episode_ends)
        odds = None if sampling_weights is None else np.concatenate([sampling_weights(e) for e in data]).astype(float)
        if odds is not None and odds.shape != (len(self),):
            raise UserError(f"expected how often each of {len(self)} steps is drawn, found {odds.shape}",
                            where="sampling_weights",
                            hint="give one number for each step of the episode: (len(episode),)")
        if odds is not None and not (odds.sum() > 0 and np.isfinite(odds).all() and (odds >= 0).all()):
            raise UserError("expected numbers that are finite, not negative and somewhere positive, found others",
                            where="sampling_weights", hint="give how often each step is drawn: 0 for never")
        self.cumulative_weights = None if odds is None else np.cumsum(odds) / odds.sum()
        # rows from t, of what is seen
        self.obs_offsets = np.arange(window.obs_offset + 1 - window.n_obs_steps, window.obs_offset + 1)
        self.starts_before_episode = bool(self.obs_offsets[0] < 0)
        # and of what is to be done
        self.action_offsets = np.arange(window.action_offset, window.action_offset + window.horizon)
        self.same_offsets = np.array_equal(self.obs_offsets, self.action_offsets)

    def __len__(self) -> int:
        """The number of windows: one for each step of each episode."""
        return int(self.episode_ends[-1])

    def batch(self, size: int, step: int, seed: int = 0, rows: slice = slice(None)) -> Batch:
        """`size` random windows: batch number `step` of `seed`, whatever was drawn before. `rows`: only these of
        them, the share of one process."""
        rng = _rng(seed, step)
        at = rng.integers(0, len(self), size) if self.cumulative_weights is None else np.searchsorted(
            self.cumulative_weights, rng.random(size), side="right").clip(max=len(self) - 1)
        if self.window.goals:  # drawn for all rows in turn
            return self.gather(at, rng).select_rows(rows)
        return self.gather(at[rows], rng)

    def scan(self, size: int = 1024) -> Iterator[Batch]:
        """Every window once, in order."""
        for i in range(0, len(self), size):
            yield self.gather(np.arange(i, min(i + size, len(self))), np.random.default_rng(i))

    def _episode_of(self, indices: np.ndarray) -> np.ndarray:
        """(B,) that each of these windows lies in."""
        if self.episode_table is None:
            return self.episode_ends.searchsorted(indices, side="right")
        early = self.episode_table[indices // self.table_stride]
        return early + (self.episode_ends[early] <= indices)

    def gather(self, indices: np.ndarray, rng: np.random.Generator | None = None) -> Batch:
        """The windows of these numbers (B,); a window's number counts the steps of all episodes in order."""
        w, columns, length = self.window, self.packed.columns, self.packed.lengths
        episode = self._episode_of(indices)
        t = indices - self.episode_bounds[episode]
        goals = {g.into: (columns[g.column], *g.sample_rows(episode, t, length, rng)) for g in w.goals}

        def gather(names, row, early, late, known):
            """Columns that lie alike are looked for once; `known` is where."""
            found = {}
            for name in names:
                column, lies = columns[name], self.layout_ids[name]
                if lies not in known:
                    known[lies] = column.flat_indices(episode, row, early, late)
                found[name] = _to_tensor(column.take(known[lies]))
            return found

        def past(row, early, late, known):
            found = gather(self.stored_inputs, row, early, late, known)
            for name, (column, whose, when) in goals.items():  # one goal per window, the same for what follows
                found[name] = _to_tensor(column.gather(whose, np.repeat(when[:, None], w.n_obs_steps, 1)))
            return {k: found[k] for k in self.inputs}

        row, known = t[:, None] + self.obs_offsets, {}
        obs = past(row, self.starts_before_episode, w.obs_offset > 0, known)
        if not self.same_offsets:
            row, known = t[:, None] + self.action_offsets, {}
        inside = row < columns[self.target].lengths[episode][:, None]
        if w.action_offset < 0:
            inside &= row >= 0
        done = gather((self.target, *self.extra), row, w.action_offset < 0, True, known)
        action, after = done[self.target], w.action_offset + w.horizon
        reached = {f"{k}.reached": torch.from_numpy((whose == episode) & (when == t)).unsqueeze(1)
                   for k, (_, whose, when) in goals.items()}
        return Batch(
            obs=obs,
            action=action if action.ndim == 3 else action.reshape(*action.shape[:2], -1),
            mask=torch.from_numpy(inside),
            extra={**{k: done[k] for k in self.extra}, "index": torch.from_numpy(indices[:, None]), **reached},
            next=past((t + after)[:, None] + self.obs_offsets, self.starts_before_episode or after < 0, True, {})
            if self.next_obs
            else None,
        )


def _episode_table(ends: np.ndarray) -> tuple[int, np.ndarray | None]:
    """(stride, the episode of each stride-th window), by which an episode is found in two looks: no episode is shorter
    than a stride, so that it is this one or the next. A search waits for memory at every turn; it is left to data of
    few episodes, which stay in the cache, and to those with some much shorter than the mean."""
    shortest = int(np.diff(ends, prepend=0).min())
    if len(ends) < TABLE_MIN_EPISODES or not shortest or 4 * shortest * len(ends) < ends[-1]:
        return 0, None
    return shortest, ends.searchsorted(np.arange(0, ends[-1], shortest), side="right")


class _ThreadRng(threading.local):
    """A generator for each thread: a new one would ask the system for noise first, which takes longer than a draw."""

    def __init__(self):
        self.philox = np.random.Philox(0)
        self.initial_state, self.rng = self.philox.state, np.random.Generator(self.philox)


_thread_rng = _ThreadRng()


def _rng(seed: int, step: int) -> np.random.Generator:
    """As np.random.Philox(key=(seed, step)) begins; good until this thread asks for the next."""
    _thread_rng.philox.state = {
        **_thread_rng.initial_state,
        "state": {
            "counter": _thread_rng.initial_state["state"]["counter"],
            "key": np.array([seed % 2**64, step], np.uint64),
        },
    }
    return _thread_rng.rng


def _to_tensor(a: np.ndarray) -> Tensor:
    # Networks compute in float32; bytes and choices stay as they are until their encoder reads them.
    return torch.from_numpy(a.astype(np.float32) if a.dtype == np.float64 else np.ascontiguousarray(a))
