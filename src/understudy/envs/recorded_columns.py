"""Checks whether an environment has the columns of recorded data."""

from __future__ import annotations

from ..core import Feature, Schema, UserError, is_read_by_default, role
from .base import Env


def check_recorded_columns(features: Schema, env: Env) -> None:
    """Checks that actions and observations of an environment have the shapes and kinds of the recorded ones.

    Sizes of images may differ, because policies resize them. A column that only the environment or only the recording
    has is not an error, because a method may not read it. It is an error if they have no observation in common.
    """
    problems = [f"{name} is {_describe(features[name])} in the data and {_describe(feature)} there"
                for name, feature in env.features.items()
                if name in features and role(name) in ("observation", "action")
                and _describe(features[name]) != _describe(feature)]
    observed = [name for name, feature in features.items() if is_read_by_default(name, feature)]
    if observed and not set(observed) & env.features.keys():
        others = ", ".join(name for name in env.features if role(name) == "observation") or "nothing"
        problems.append(f"the data have {', '.join(observed)}, and there is {others} there")
    if problems:
        raise UserError("; ".join(problems), where=f"--env {env.metadata['env']}",
                        hint="name the environment in which the data were recorded")


def _describe(feature: Feature) -> str:
    if feature.kind == "image":
        return f"an image of {feature.shape[-1]} channels"
    return f"{feature.kind} of shape {feature.shape or (1,)}"
