"""Is this the simulator that a policy was trained for, or that data were recorded in?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..envs import entry_point
from ..envs.base import Env


def version_warning(recorded: Mapping[str, Sequence[str]], env: Env, what: str) -> str | None:
    """A warning with both versions, if `env` is simulated by another version, or with other physics, than `known` says
    of it (environment -> simulators, as `simulators` of data and the provenance of a policy have them); None if it is
    the same, and where one of them does not say. what: "the data were recorded in" and the like."""
    now, name = env.metadata.get("simulator"), _base_name(str(env.metadata["env"]))
    then = sorted({s for k, found in recorded.items() if _base_name(k) == name for s in found})
    if now is None or not then or then == [now]:
        return None
    return f"{what} {' and '.join(then)}, and {name} is {now} here: the same actions may do something else"


def _base_name(name: str) -> str:
    """Without what follows the name of one of ours: its dimension, its task."""
    return name.partition(":")[0] if entry_point(name) is not None else name
