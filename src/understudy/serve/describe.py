"""Describes a served policy: the metadata that every client gets first, and the schema of the handshake."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from .. import config
from ..core import Feature, Unsupported
from ..execute.actor import Actor, PolicyActor
from ..execute.chunking import ChunkedExecutor
from .policy_service import ServedPolicy
from .schema import PROTOCOL

NORMALIZATION = "none"  # of values in messages: they are in the units of the data, and the policy normalizes itself


def policy_schema(served: ServedPolicy, *, fps: float | None = None,
                  action_convention: str | None = None) -> dict[str, object]:
    """Returns the columns that clients must send and the actions that they will get.

    Args:
        fps: Steps per second of the training data, if known.
        action_convention: What the actions mean, in the words of the person who serves the policy, such as "absolute".
    """
    features = served.planner.features
    actions = [features[n] for n in features if n == "action"]
    observations = {name: _column(features[name]) for name in served.columns if name not in served.texts}
    return {"observations": observations,
            "action": _column(actions[0]) if actions else {"shape": [served.planner.action_dim]},
            "fps": fps, "normalization": NORMALIZATION, "action_convention": action_convention}


def policy_metadata(served: ServedPolicy, schema: Mapping[str, object], *, name: str,
                    **about: object) -> dict[str, object]:
    """Returns the metadata of a policy, the first message to every client.

    Args:
        schema: What clients must send and will get.
        **about: Further entries of "understudy", such as the fallback.
    """
    planner, executor = served.planner, _executor(served.actor)
    window = planner.window
    steps = {"n_action_steps": executor.n_action_steps, "skip": executor.skip} if isinstance(
        executor, ChunkedExecutor) else {"n_action_steps": 1, "skip": 0}
    try:
        scale = planner.action_scale.cpu().numpy()
    except Unsupported:
        scale = None
    return {"action_horizon": window.horizon - steps["skip"], "name": name, "understudy": {
        "protocol": PROTOCOL, "schema": dict(schema), "checkpoint": served.checkpoint, "horizon": window.horizon,
        "n_obs_steps": window.n_obs_steps, **steps, "chunks": served.policy_actor is not None,
        "texts": list(served.texts), "action_scale": scale,
        # for clients with PyTorch, which plan with RemotePlanner
        "inputs": list(planner.inputs), "defaults": [n for n in served.defaults if n not in served.texts],
        "features": {k: asdict(f) for k, f in planner.features.items()},
        "action_dim": planner.action_dim, "is_discrete": planner.is_discrete,
        "is_deterministic": planner.is_deterministic, "window": config.dump(window),
        "executor": None if executor is None else config.dump(executor), **about}}


def same_interface(one: Mapping, other: Mapping) -> list[str]:
    """Returns the entries in which two policies differ, so that one cannot replace the other in a server."""
    own_interface, other_interface = one["understudy"], other["understudy"]
    names = ("schema", "inputs", "features", "action_dim", "window", "executor", "chunks", "texts")
    return [name for name in names if own_interface[name] != other_interface[name]]


def _executor(actor: Actor):
    while not isinstance(actor, PolicyActor):
        inner = getattr(actor, "actor", None)
        if not isinstance(inner, Actor):
            return None
        actor = inner
    return actor.executor


def _column(feature: Feature) -> dict[str, object]:
    return {"dtype": feature.dtype, "shape": list(feature.shape), "kind": feature.kind,
            "names": None if feature.names is None else list(feature.names), "unit": feature.unit}
