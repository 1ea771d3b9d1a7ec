"""What a cell of an experiment measures: trains one method with one seed, and looks at what comes of it."""

from __future__ import annotations

import json

import numpy as np
import torch

from .. import config
from ..data.episode import Dataset, Episode
from ..envs import make
from ..evaluate.rollout import rollout
from ..execute.actor import Plays
from ..execute.planners import Fixed
from ..learn.fit import fit
from ..learn.method import Method
from ..policy import Policy

ROWS = 25  # environments side by side; results do not depend on it


def trained(experiment, method: Method, data: Dataset, seed: int, watch=()) -> Policy:
    """As `understudy train` does, on all of the data and without a folder. Arms that differ only in how they run
    share the training of each seed."""
    key = json.dumps(config.dump({"recipe": method.policy, "learn": method.learn, "relabel": method.data,
                                  "source": experiment.source, "seed": seed}))
    if key in _trained and not watch:
        return _trained[key]
    for change in method.data:
        data = data.map(change)
    torch.manual_seed(seed)
    policy = Policy(method.policy, data.features()).fit(data)
    learner = method.learn.build(policy, seed, method.learn.steps)
    windows = policy.windows(data, extra=method.learn.extra)
    fit(learner, lambda n: windows.batch(method.learn.batch, n, seed), method.learn.steps, watch=watch)
    done = learner.trained.fit(data, codec=False).eval()
    _trained[key] = done
    while len(_trained) > 20:
        _trained.pop(next(iter(_trained)))
    return done


_trained: dict[str, Policy] = {}  # the newest few of this process


def _ran(experiment, policy: Policy, method: Method, episodes: int, starts: int) -> Dataset:
    made = make(experiment.env, rows=min(ROWS, episodes), **dict(experiment.options))
    try:
        return rollout(Plays(Fixed(policy, ROWS), method.run), made, episodes, seed=starts)
    finally:
        made.close()


def closed_loop(experiment, method: Method, data: Dataset, seed: int, episodes: int,
                starts: int) -> dict[str, list[float]]:
    """success (0 or 1) where the environment defines it, return, log_jerk, and every flag of the environment's."""
    ran = _ran(experiment, trained(experiment, method, data, seed), method, episodes, starts)
    measures = {"return": [float(e.steps["next.reward"].sum()) for e in ran],
                "log_jerk": [log_jerk(e) for e in ran]}
    for flag in (k for k, v in ran[0].meta.items() if isinstance(v, bool)):
        measures[flag] = [float(e.meta[flag]) for e in ran]
    return measures


def log_jerk(episode: Episode) -> float:
    """Log of the mean squared third difference of the actions (their second, where actions are velocities, differs
    by a derivative only: arms are compared on the same task)."""
    jerk = np.diff(np.asarray(episode.steps["action"], float), n=3, axis=0)
    return float(np.log(np.mean(jerk**2) + 1e-12)) if len(jerk) else float(np.log(1e-12))


def oscillation(experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int, *,
                last: int = 20, every: int = 200) -> dict[str, list[float]]:
    """Rolls out the last `last` checkpoints, one each `every` updates, on the same starts.

    mean: of their returns. log_sd: log of the standard deviation between checkpoints of the mean return, less what
    episodes alone would give. log_cv_over_loss: log of that deviation relative to the mean, less the log of the same
    of the training loss, averaged between checkpoints: above 0 where behaviour swings more than the loss.
    """
    steps, returns, losses, recent = method.learn.steps, [], [], []

    def look(step, learner, seen):
        recent.append(seen["loss"])
        if step > steps - last * every and step % every == 0:
            ran = _ran(experiment, learner.trained, method, episodes, starts)
            returns.append([float(e.steps["next.reward"].sum()) for e in ran])
            losses.append(float(np.mean(recent[-every:])))

    trained(experiment, method, data, seed, watch=(look,))
    means = np.mean(returns, 1)
    # Starts are the same for every checkpoint: what is left between checkpoints beside their own change is the
    # interaction of start and checkpoint, estimated from the residuals.
    table = np.asarray(returns)
    rest = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    within = (rest**2).sum() / ((table.shape[0] - 1) * (table.shape[1] - 1)) / table.shape[1]
    between = max(float(means.var(ddof=1) - within), 1e-3 * float(means.var(ddof=1)) + 1e-12)
    sd, mean = between**0.5, float(means.mean())
    loss = np.std(losses, ddof=1) / np.mean(losses)
    return {"mean": [mean], "log_sd": [float(np.log(sd))], "loss": [float(np.mean(losses))],
            "log_cv_over_loss": [float(np.log(sd / max(abs(mean), 1e-9)) - np.log(loss))]}
