"""Claims about which demonstrations to learn from: a source marks every step for every arm, and an arm learns from what
is marked for it, with the same number of updates on batches of the same size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..data.episode import Dataset, Episode
from ..data.window import Window
from ..envs import make
from ..evaluate.judge import recording
from ..evaluate.rollout import rollout
from ..execute.actor import Actor, Plays
from ..execute.chunked import Receding
from ..execute.planners import Fixed
from ..heads.base import Head
from ..heads.regression import Regression
from ..learn.clone import Cloning
from ..learn.fit import fit
from ..learn.method import Method
from ..learn.optim import Optim
from ..nets.encoders import Flat
from ..nets.mlp import MLP
from ..policy import Policy, Recipe
from .base import Arm
from .measures import ROWS


@dataclass(frozen=True)
class Kept:
    """`method`, of which each step is drawn as often as its column "keep.`by`" says."""

    method: Method
    by: str


def cloning(rate: float, head: Head | None = None, window: Window | None = None, execute: int = 1, steps: int = 500
            ) -> Method:
    recipe = Recipe(head or Regression(), trunk=MLP(64, 1), encoder=Flat(), window=window or Window())
    return Method(recipe, Receding(execute), Cloning(steps=steps, optim=Optim(rate=rate)))


def arms(*by: str, options: Sequence[Method] = (cloning(3e-3), cloning(1e-3))) -> tuple[Arm, ...]:
    """One a way to keep, each with the same trials of tuning."""
    return tuple(Arm(b, tuple(Kept(o, b) for o in options)) for b in by)


def shown(actor: Actor, env: str, episodes: int, seed: int, part: int = 0, **options) -> Dataset:
    """Rollouts of `actor` that succeed, the first `episodes` of them; `part` keeps several draws of a seed apart."""
    made = make(env, rows=ROWS, **options)
    found: list[Episode] = []
    for more in range(20):
        ran = rollout(actor, made, max(episodes, 5), recording(seed), first=100_000 * part + 1000 * more)
        found += [e for e in ran if e.meta["success"]]
        if len(found) >= episodes:
            return Dataset(found[:episodes], ran.facts)
    raise RuntimeError(f"{env}: hardly any demonstration succeeds")


def marked(data: Sequence[Episode], marks: Mapping[str, Sequence[np.ndarray | float]], facts=None) -> Dataset:
    """With a column "keep.NAME" for each name, from one weight an episode or one a step."""
    out = [e.but({f"keep.{name}": np.broadcast_to(np.asarray(values[i], np.float32), (len(e),)).copy()
                  for name, values in marks.items()}) for i, e in enumerate(data)]
    return Dataset(out, facts if facts is not None else getattr(data, "facts", {}))


_loaded: dict = {}  # (source, seed) -> what it marked, of this process


def once(make_it: Callable[[object, int], Dataset]) -> Callable[[object, int], Dataset]:
    """Sources are asked for the same seed by every arm."""
    def load(self, seed):
        if (self, seed) not in _loaded:
            while len(_loaded) > 12:
                _loaded.pop(next(iter(_loaded)))
            _loaded[self, seed] = make_it(self, seed)
        return _loaded[self, seed]
    return load


def learned(method: Kept, data: Dataset, seed: int) -> Policy:
    """Trained on what is marked for it, its statistics of that alone."""
    column, inner = f"keep.{method.by}", method.method
    mine = data.where(lambda e: bool(np.any(e.steps[column] > 0)))
    torch.manual_seed(seed)
    policy = Policy(replace(inner.policy, inputs=("observation.state",)), mine.features()).fit(mine)
    learner = inner.learn.build(policy, seed, inner.learn.steps)
    windows = policy.windows(mine, draw=lambda e: e.steps[column])
    fit(learner, lambda n: windows.batch(inner.learn.batch, n, seed), inner.learn.steps)
    return learner.trained.eval()


def closed(experiment, method: Kept, data: Dataset, seed: int, episodes: int, starts: int) -> dict[str, list[float]]:
    """success, 0 or 1 for each start; and every fact "FIGURE.BY" of the data's that is of this arm, once a run."""
    policy = learned(method, data, seed)
    made = make(experiment.env, rows=min(ROWS, episodes), **dict(experiment.options))
    ran = rollout(Plays(Fixed(policy, ROWS), method.method.run), made, episodes, seed=starts)
    figures = {k.removesuffix(f".{method.by}"): [float(v)] for k, v in data.facts.get("figures", {}).items()
               if k.endswith(f".{method.by}")}
    return {"success": [float(e.meta["success"]) for e in ran], **figures}
