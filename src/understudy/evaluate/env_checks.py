"""Checks of an environment: whether episodes repeat, and whether a policy can decide them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

import numpy as np

from ..core import DataWarning
from ..data.episode import Episode
from ..envs.base import Env
from ..execute.actor import Actor
from .rollout import first_steps

N_STEPS = 5  # number of steps from a start, to compare their results


def warn_unless_repeatable(actor: Actor, env: Env, seed: int) -> None:
    """Warns if an environment is not repeatable: the first start of a seed, made twice, gives different steps.

    Results in such an environment depend on what ran before, and therefore on the number of rows and workers.
    """
    first, second = (first_steps(actor, env, N_STEPS, seed) for _ in range(2))
    for step, (one, other) in enumerate(zip(first, second, strict=False)):
        if (name := different_column(one, other, _compared_columns(env))) is not None:
            warnings.warn(
                f"{env.metadata['env']} does not repeat: the same start was made twice, and {name} differs "
                f"{'at the start' if not step and name.startswith('observation.') else f'in step {step}'}. Results "
                "depend on what ran before, also on --rows and --workers, and policies do not get the same starts. Let "
                "nothing but the seed of reset decide an episode: draw random numbers from self.np_random, and keep no "
                "running statistics, such as those of NormalizeObservation", DataWarning, stacklevel=2)
            return
        if different_column(one, other, ("action",)) is not None:
            return  # the actor does not repeat, so that what follows may differ


def different_column(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], names: Iterable[str]
                     ) -> str | None:
    """Returns the first column that both have, with different values."""
    return next((n for n in names if n in first and n in second
                 and not np.array_equal(first[n], second[n], equal_nan=first[n].dtype.kind == "f")), None)


def _compared_columns(env: Env) -> list[str]:
    """Returns the columns to compare: images only if nothing else is observed, as a GPU may draw them differently."""
    observed = {n: f.kind == "image" for n, f in env.features.items() if n.startswith("observation.")}
    names = [n for n, is_image in observed.items() if not is_image] or [*observed]
    return [*names, "next.reward", "next.terminated", "next.truncated", "next.success"]


def warn_of_early_ends(episodes: Iterable[Episode], env: Env) -> None:
    """Warns if episodes succeeded or ended in their first step, which hardly depends on the policy."""
    n = succeeded = ended = 0
    for episode in episodes:
        n += 1
        is_success = "next.success" in episode.steps and bool(np.asarray(episode.steps["next.success"])[0])
        succeeded += is_success
        ended += len(episode) == 1 and not is_success
    if (succeeded or ended) and env.metadata.get("limit") != 1:
        counts = [f"{count} of {n} episodes {what}" for count, what in (
            (succeeded, "succeeded in their first step"), (ended, "ended in their first step without a success"))
            if count]
        warnings.warn(f"{env.metadata['env']}: {', and '.join(counts)}. If that happens whatever the policy does, they "
                      "say nothing about it: check where episodes start, and what counts as success or as an end",
                      DataWarning, stacklevel=2)
