"""Checks whether a simulator is the simulator that a policy was trained in, or that data were recorded in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..envs.base import Env
from ..envs.registry import base_name, entry_point


def version_warning(recorded: Mapping[str, Sequence[str]], env: Env, what: str) -> str | None:
    """A warning with both versions, if `env` has another simulator version or other physics than recorded. Otherwise
    None.

    Args:
        recorded: Simulators by environment, as in the metadata of data and in the provenance of a policy.
        what: Start of the warning, such as "the data were recorded in".
    """
    now, name = env.metadata.get("simulator"), _base_name(str(env.metadata["env"]))
    then = sorted({s for k, versions in recorded.items() if _base_name(k) == name for s in versions})
    if now is None or not then or then == [now]:
        return None
    return f"{what} {' and '.join(then)}, and {name} is {now} here: the same actions may do something else"


def environment_warning(recorded: Mapping[str, Sequence[str]], env: Env, what: str) -> str | None:
    """Returns a warning if nothing was recorded in this environment, or else the warning of `version_warning`."""
    name = str(env.metadata["env"])
    if recorded and _base_name(name) not in map(_base_name, recorded):
        return f"{what} {', '.join(recorded)}, and {name} is another environment"
    return version_warning(recorded, env, what)


def other_environments(recorded: Mapping[str, Sequence[str]], here: Mapping[str, Sequence[str]]) -> str | None:
    """Returns the end of a warning if two data sets have no environment in common, and otherwise None.

    Args:
        recorded: Simulators by environment, as in the metadata of data. Empty if unknown.
        here: Simulators by environment of the second data set.
    """
    if not recorded or not here or set(map(_base_name, recorded)) & set(map(_base_name, here)):
        return None
    return f"{', '.join(recorded)}, and these are of {', '.join(here)}"


def _base_name(name: str) -> str:
    """Returns the name of a built-in environment without its dimension or task, and without images."""
    name = base_name(name)
    return name.partition(":")[0] if entry_point(name) is not None else name
