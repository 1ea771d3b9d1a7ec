"""Joins episodes into longer ones, so that a policy with memory learns from one trial to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Literal

import numpy as np

from ..core import AtLeast, Feature, UserError, part
from .episode import Dataset, Episode, LazyColumns
from .operations import Operation, Scalar, episode_values

ENDS = ("next.terminated", "next.truncated", "next.success")  # which say something of the whole episode
NEW_TRIAL = "observation.new_trial"  # 1 at the first step of each trial, also in `envs.episode_wrappers.MultiTrialEnv`


@part
class EpisodeConcat(Operation):
    """Joins several episodes into one that goes from the worst demonstrators to the best (a curriculum).

    Each joined episode has some episodes of every group, drawn at random without replacement. A policy with a history
    over several trials, which acts in a `MultiTrialEnv`, can then continue the improvement that it has seen.

    What the last step of an episode led to is left out, because the first observation of the next one takes its place.
    Only the last episode ends the joined one, and decides its success. The joined episode has the metadata of the last
    episode, and "joined": the numbers of all joined episodes.

    Args:
        field: Metadata field. Each of its values is a group, such as a proficiency of the demonstrator.
        groups: The values, worst first. Empty for all values in increasing order.
        per_group: Smallest and largest number of episodes of each group. A group with fewer gives all it has.
        order: ``"rising"`` has the groups in their order, ``"falling"`` in the opposite one. ``"shuffled"`` mixes the
            episodes of all groups, to compare with.
        into: Name of a new column, (T, 1), which is 1 at the first step of each episode, as `MultiTrialEnv` shows it.
            Empty for no such column.
        same: Metadata field in which all episodes of a joined one are equal, such as the number of a goal that is not
            observed, so that the later episodes can be understood from the earlier episodes. Each joined episode draws
            one of the values that every group has. Empty: any episodes are joined.

    References:
        Shi et al. (2023), Cross-Episodic Curriculum for Transformer Agents, arXiv:2310.08549. Their episodes of a group
        were recorded one after another.

    Example:
        >>> policy = PolicyConfig(Regression(), Transformer(64, 1, 1, "block_causal", encoder_depth=2),
        ...                       TokenEncoder(64), window=Window(60, 60, action_offset=-59, obs_pad_mask=True))
        >>> method = Method(policy, RecedingHorizon(1, skip=59), BehaviorCloning(),
        ...                 transforms=(EpisodeConcat("proficiency", n_episodes=500),))
    """

    field: str = "proficiency"
    groups: tuple[Scalar, ...] = ()
    n_episodes: Annotated[int, AtLeast(1)] = 1000
    per_group: tuple[int, ...] = (1, 4)
    order: Literal["rising", "falling", "shuffled"] = "rising"
    into: str = NEW_TRIAL
    seed: int = 0
    same: str = ""

    def __post_init__(self):
        super().__post_init__()
        if len(self.per_group) != 2 or not 1 <= self.per_group[0] <= self.per_group[1]:
            raise UserError(f"per_group is {self.per_group}", where="episodeconcat, per_group",
                            hint="give the smallest and the largest number, such as (1, 4)")

    def apply(self, data: Dataset) -> Dataset:
        members = self._members(episode_values(data, self.field))
        rng, schema = np.random.default_rng(self.seed), data.features()
        choices = self._split(members, data) if self.same else [members]
        joined = []
        for _ in range(self.n_episodes):
            groups, chosen = choices[int(rng.integers(len(choices))) if self.same else 0], []
            for group in groups:
                n = min(int(rng.integers(self.per_group[0], self.per_group[1] + 1)), len(group))
                chosen += rng.permutation(group)[:n].tolist()
            if self.order == "shuffled":
                rng.shuffle(chosen)
            joined.append(_join([data[i] for i in chosen], chosen, schema, self.into))
        return Dataset(joined, data.metadata)

    def _members(self, values: Sequence) -> list[list[int]]:
        """Returns the numbers of the episodes of each group, in the order of the curriculum."""
        if (missing := next((i for i, v in enumerate(values) if v is None), None)) is not None and not self.groups:
            raise UserError(f"the episode has no {self.field!r}", where=f"episode {missing}",
                            hint=f"label it (understudy.data.operations.Label({self.field!r}, VALUE, EPISODES)), or "
                            "name the groups to join")
        try:
            groups = self.groups or sorted(set(values))
        except TypeError:
            raise UserError("the values cannot be ordered", where=f"episodeconcat, {self.field}",
                            hint="name the groups in their order: groups=(...)") from None
        members_by_group = [[i for i, v in enumerate(values) if v == group] for group in groups]
        if empty := [group for group, members in zip(groups, members_by_group, strict=True) if not members]:
            existing_values = sorted({str(v) for v in values if v is not None})
            raise UserError(f"no episode has {self.field} {empty[0]!r}", where="episodeconcat, groups",
                            hint=f"there are {', '.join(existing_values) or 'none'}")
        return members_by_group[::-1] if self.order == "falling" else members_by_group

    def _split(self, members: list[list[int]], data: Dataset) -> list[list[list[int]]]:
        """Divides the episodes of every group by a value, such as the task, that all groups have."""
        values = episode_values(data, self.same)
        shared = set.intersection(*({values[i] for i in group} for group in members)) - {None}
        if not shared:
            raise UserError(f"the groups have no {self.same} in common", where="episodeconcat, same",
                            hint=f"every group of {self.field} needs episodes of the same {self.same}")
        return [[[i for i in group if values[i] == value] for group in members] for value in sorted(shared, key=str)]


def _join(parts: Sequence[Episode], numbers: list[int], schema: Mapping[str, Feature], into: str) -> Episode:
    schema = {**schema, into: Feature("float32", (1,))} if into else schema
    return Episode(LazyColumns(schema, partial(_join_column, parts, into)), {**parts[-1].metadata, "joined": numbers},
                   sum(map(len, parts)), schema)


def _join_column(parts: Sequence[Episode], into: str, name: str) -> np.ndarray:
    """Joins a column of several episodes, one after another."""
    if name == into:
        new = np.zeros((sum(map(len, parts)) + 1, 1), np.float32)  # one more, as in recorded observations
        new[np.cumsum([0, *(len(part) for part in parts[:-1])])] = 1
        return new
    *earlier, last = parts
    columns = [part.steps[name][:len(part)] for part in earlier]
    if name in ENDS:
        columns = [np.zeros_like(column) for column in columns]
    return np.concatenate([*columns, last.steps[name]])
