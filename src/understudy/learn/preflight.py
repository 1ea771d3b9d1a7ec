"""What to know about data before a policy is trained on them, asked in one place."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from ..core import DataWarning
from ..data.episode import Dataset
from ..data.formats.describe import component_ranges
from ..data.running_statistics import unlearned_components
from ..policy import Policy


def warn_of_few_steps(data: Dataset) -> None:
    """Warns if there is one episode to learn from, or if no episode has a second step."""
    if len(data) == 1:
        warnings.warn("There is one episode to learn from: a policy sees one start, and no error on other episodes can "
                      "be measured. Record more episodes, or check how the data are divided into episodes.",
                      DataWarning, stacklevel=3)
    elif len(data) and max(data.lengths) == 1:
        warnings.warn("No episode has more than one step, so that nothing is learned of what follows an action. Check "
                      "how the data are divided into episodes.", DataWarning, stacklevel=3)


@dataclass(frozen=True)
class ConstantComponent:
    """A component that changes in the data, and that the codec of a policy treats as constant.

    Attributes:
        column: Name of the column.
        index: Number of the component in the flattened column.
        name: Name of the component, or its number.
        low: Smallest value in the data.
        high: Largest value in the data.
    """

    column: str
    index: int
    name: str
    low: float
    high: float


def constant_components(policy: Policy, data: Dataset) -> tuple[ConstantComponent, ...]:
    """Returns the components that change in the data, and that a policy neither reads nor predicts as they change.

    The statistics of the policy count: a policy of an earlier version may treat more components as constant than one
    that is trained now. A component that only changes by the rounding of float32 is left out. So are the targets of
    policies that predict displacements, and components that change for a part of the groups of `Normalizer.group_by`.

    Args:
        policy: A policy with statistics.
        data: Episodes as the policy is trained on them, after the transforms of its method (`method.training_data`).
    """
    goals = {goal.into: goal.column for goal in policy.window.goals}
    statistics = {goals.get(name, name): policy.codec.obs_statistics(name) for name in policy.inputs}
    if policy.config.target:
        statistics[policy.config.target] = policy.codec.target_statistics() or statistics.get(policy.config.target)
    hidden = []
    for column, values in statistics.items():
        if values is None:
            continue
        low, high = component_ranges(data, column)
        is_constant = (values[1].cpu().reshape(-1, low.size) == 0).all(0).numpy()  # a row for each group
        names = data.features()[column].names or range(low.size)
        hidden += [ConstantComponent(column, int(i), str(names[i]), float(low[i]), float(high[i]))
                   for i in unlearned_components(low, high, is_constant)]
    return tuple(hidden)
