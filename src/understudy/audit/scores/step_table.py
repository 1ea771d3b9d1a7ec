"""The steps of all episodes as one table of numbers, which most scores read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...core import Feature, UserError, role
from ...data.episode import Dataset
from ...data.packed_columns import PackedColumns
from ...evaluate.behavior.scaling import component_scale

MAX_COMPONENTS = 12  # points with more components are reduced to this many: nearest neighbors mean little in more


@dataclass(frozen=True)
class StepTable:
    """A table of the numbers of N steps of E episodes, which scores read.

    Every component is in units of its standard deviation about its mean. Constant components are 0. All values of a
    step with a NaN are 0, and `is_complete` is False there.
    """

    state: np.ndarray  # (N, S) float32
    action: np.ndarray  # (N, A) float32
    next_state: np.ndarray  # (N, S) float32, the next state, or the same state where it is unknown
    has_next: np.ndarray  # (N,) bool, whether the next state is known
    is_complete: np.ndarray  # (N,) bool
    episode: np.ndarray  # (N,) int64
    length: np.ndarray  # (E,) int64
    scales: tuple[np.ndarray, ...]  # means and standard deviations of state and action
    inputs: tuple[str, ...]

    @staticmethod
    def from_data(data: Dataset, inputs: tuple[str, ...] = (), like: StepTable | None = None) -> StepTable:
        """Builds the table from a data set.

        Args:
            inputs: The columns that are the state. By default all numeric "observation." columns.
            like: Another table. Its columns and scales are used.
        """
        features = data.features()
        if like is not None:
            inputs = like.inputs
        inputs = inputs or state_columns(features)
        place = str(data.metadata.get("path", "data set"))
        for name in inputs:
            if name not in features or features[name].kind not in ("vector", "discrete"):
                raise UserError(f"there is no numeric column {name!r} among {', '.join(sorted(features))}",
                                where=place, hint="name the columns that the score reads (inputs=...)")
        if not inputs:
            raise UserError(f"there is no numeric observation among {', '.join(sorted(features))}", where=place,
                            hint="scores read numbers, not images: add a column, such as the features of a network")
        actions = action_columns(features, place)
        pack = PackedColumns.from_episodes(data, (*inputs, *actions))
        length = pack.lengths
        episode, step = episode_and_step(length)
        state = np.concatenate([_numbers(pack, k, episode, step) for k in inputs], 1)
        after = np.concatenate([_numbers(pack, k, episode, step + 1) for k in inputs], 1)
        action = action_numbers(pack, actions, features)
        followed = step + 1 < np.min([pack.columns[k].lengths for k in inputs], 0)[episode]
        whole = np.all(np.isfinite(state), 1) & np.all(np.isfinite(action), 1) & np.all(np.isfinite(after), 1)
        units = like.scales if like is not None else (*_mean_and_std(state[whole]), *_mean_and_std(action[whole]))
        if like is not None and (state.shape[1] != len(units[0]) or action.shape[1] != len(units[2])):
            raise UserError(f"states have {state.shape[1]} numbers and actions {action.shape[1]}, but those to compare "
                            f"with have {len(units[0])} and {len(units[2])}", where=place,
                            hint="compare data of one robot")

        def scaled(x, centre, spread):
            return np.where(whole[:, None], (x - centre) / spread, 0.0).astype(np.float32)

        return StepTable(
            scaled(state, *units[:2]),
            scaled(action, *units[2:]),
            scaled(after, *units[:2]),
            followed & whole,
            whole,
            episode,
            length,
            units,
            inputs,
        )

    def __len__(self) -> int:
        return len(self.episode)

    @property
    def state_action(self) -> np.ndarray:
        """States and actions side by side, (N, S + A)."""
        return np.concatenate([self.state, self.action], 1)

    def split(self, values: np.ndarray) -> Sequence[np.ndarray]:
        """Divides values of steps among episodes: (N,) -> (T,) for each episode. NaN at steps that are not complete."""
        complete_values = np.where(self.is_complete, np.asarray(values, float), np.nan)
        return np.split(complete_values, np.cumsum(self.length)[:-1])


def state_columns(features: Mapping[str, Feature]) -> tuple[str, ...]:
    """Returns the names of all numeric observation columns."""
    return tuple(sorted(k for k, f in features.items() if role(k) == "observation"
                        and f.kind in ("vector", "discrete") and f.size))


def action_columns(features: Mapping[str, Feature], where: str) -> tuple[str, ...]:
    """Returns the columns of the action: "action", or else every numeric column "action.NAME"."""
    names = ("action",) if "action" in features else tuple(sorted(k for k in features if role(k) == "action"))
    if names := tuple(k for k in names if features[k].kind in ("vector", "discrete") and features[k].size):
        return names
    raise UserError(f"there is no numeric action among {', '.join(sorted(features))}", where=where,
                    hint="understudy view make DATA --out VIEW --rename OLD=action names a column so")


def episode_and_step(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the episode number, and the number within the episode, of every step, from episode lengths (E,)."""
    episode = np.repeat(np.arange(len(lengths)), lengths)
    return episode, np.arange(len(episode)) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def action_numbers(pack: PackedColumns, names: Sequence[str], features: Mapping[str, Feature]) -> np.ndarray:
    """The actions of all steps (see `action_columns`) as numbers, (N, A) float64. Choices are one-hot: classes have no
    distance."""
    at = episode_and_step(pack.lengths)
    return np.concatenate([_one_hot(_numbers(pack, k, *at)) if features[k].kind == "discrete"
                           else _numbers(pack, k, *at) for k in names], 1)


def _numbers(pack: PackedColumns, name: str, episode: np.ndarray, step: np.ndarray) -> np.ndarray:
    rows = pack.columns[name].gather(episode, step[:, None])[:, 0]
    return rows.reshape(len(rows), -1).astype(np.float64)


def _one_hot(classes: np.ndarray) -> np.ndarray:
    """Encodes classes as one-hot vectors, (N, D) -> (N, sum of the numbers of classes)."""
    return np.concatenate([np.eye(int(c.max(initial=0)) + 1)[c] for c in classes.astype(int).T], 1)


def standardized(x: np.ndarray) -> np.ndarray:
    """Standardizes points (N, D): zero mean and unit standard deviation. Constant components become 0."""
    mean, std = _mean_and_std(x)
    return (x - mean) / std


def _mean_and_std(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation (infinite if constant) of each component, (D,), of points, (N, D)."""
    if not len(x):
        return np.zeros(x.shape[1]), np.ones(x.shape[1])
    return x.mean(0), component_scale(x)


def principal_components(points: np.ndarray, n_components: int = MAX_COMPONENTS) -> np.ndarray:
    """Projects points on their first principal components, (N, D) -> (N, n_components), unless they have fewer."""
    if points.shape[1] <= n_components:
        return points
    centred = points - points.mean(0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    return centred @ axes[:, ::-1][:, :n_components]
