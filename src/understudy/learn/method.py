"""A whole experiment as one value, and the actor that comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from .. import config
from ..core import UserError
from ..data.relabel import Relabel
from ..execute.actor import PolicyActor
from ..execute.base import Executor
from ..execute.chunking import RecedingHorizon
from ..execute.planners import FixedBatch
from ..files import read_json
from ..policy import Policy, PolicyConfig, find_checkpoint, read_checkpoint_json
from .behavior_cloning import BehaviorCloning
from .fit import LearnerConfig


@dataclass(frozen=True)
class Method:
    """What the policy is, how it is run, how it learns, and what is done to the data first. Written to method.json
    in every checkpoint."""

    policy: PolicyConfig
    executor: Executor = field(default_factory=RecedingHorizon)
    learner: LearnerConfig = field(default_factory=BehaviorCloning)
    transforms: tuple[Relabel, ...] = ()

    @staticmethod
    def load(path: Path | str, trust: tuple[str, ...] = ()) -> Method:
        """From a method.json, a checkpoint's folder or a run's."""
        path = Path(path)
        folder = None if path.is_file() else find_checkpoint(path)
        found = read_json(path) if folder is None else read_checkpoint_json(folder, "method.json")
        path = path if folder is None else folder / "method.json"
        method = config.load(found, ("understudy", *trust), str(path))
        if not isinstance(method, Method):
            raise UserError(f"expected a Method, found {type(method).__name__}", where=path,
                            hint="give a method.json as training writes it")
        return method


def load_actor(run: Path | str, *, device: str | torch.device = "cpu", rows: int | None = None,
          trust: tuple[str, ...] = ()) -> PolicyActor:
    """What was trained, ready to act: `state = a.start(obs, key)`, then `action, state = a.act(obs, state)`.

    run: a run's folder (its last checkpoint; "RUN/best" for its best) or a checkpoint's.
    rows: let the network always see batches of so many rows, so that results do not depend on how many environments
        run side by side; None for one robot, where that would cost time.
    """
    policy = Policy.load(run, trust, device)
    return PolicyActor(
        policy if rows is None else FixedBatch(policy, rows), Method.load(run, trust).executor, policy.image_sizes
    )
