"""Is this the simulator that a policy was trained for, or that data were recorded in?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..envs import home
from ..envs.base import Env


def otherwise(known: Mapping[str, Sequence[str]], env: Env, what: str) -> str | None:
    """A warning with both versions, if `env` is simulated by another version, or with other physics, than `known` says
    of it (environment -> simulators, as `simulators` of data and the provenance of a policy have them); None if it is
    the same, and where one of them does not say. what: "the data were recorded in" and the like."""
    now, name = env.facts.get("simulator"), _stem(str(env.facts["env"]))
    then = sorted({s for k, found in known.items() if _stem(k) == name for s in found})
    if now is None or not then or then == [now]:
        return None
    return f"{what} {' and '.join(then)}, and {name} is {now} here: the same actions may do something else"


def _stem(name: str) -> str:
    """Without what follows the name of one of ours: its dimension, its task."""
    return name.partition(":")[0] if home(name) is not None else name
