from __future__ import annotations

import warnings
from typing import Annotated

import numpy as np

from ...core import AtLeast, AtMost, DataError, DataWarning, Schema, part
from ...data.column_changes import Progress
from ...data.episode import Dataset, Episode
from ...data.missing_actions import PlaceholderActions
from ...data.mixture import expert_episodes
from ...data.shown_demonstration import ShowDemonstration, numeric_observations
from ...execute.demonstrated import DemonstratedActor
from ...heads.likelihood.regression import Regression
from ...improve.collection import CollectionRounds, GaussianExploration, RolloutCollector
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...policy import PolicyConfig
from ..needs import OBSERVED_NUMBERS, PRACTICE, SOME_NUMBERS
from ..registry import method


@part
class SteeredCollector(RolloutCollector):
    """Collector of episodes of a policy that is shown demonstrations, or earlier collected episodes.

    Args:
        show: How a demonstration becomes columns. It is a transform of the policy's method.
        steering: Fraction of the episodes that are shown a demonstration. The remaining episodes are shown an earlier
            episode of the policy or of the practice.
        length: Number of steps of an episode. The policy reads which fraction of them has passed. None if it does not.

    References:
        Leibovich et al. (2023), Learning Control by Iterative Inversion, arXiv:2211.01724.
    """

    show: ShowDemonstration = ShowDemonstration(own=True)
    steering: Annotated[float, AtLeast(0), AtMost(1)] = 1.0
    length: Annotated[int | None, AtLeast(1)] = None

    def check(self, env, person):
        super().check(env, person)
        limit = None if env is None else env.metadata.get("limit")
        if None not in (limit, self.length) and limit != self.length:
            warnings.warn(f"{env.metadata['env']} ends an episode after {limit} steps, and the policy reads how much "
                          f"of {self.length} steps has passed. Give their number (--length {limit})",
                          DataWarning, stacklevel=2)

    def initial_data(self, data, n_rounds):
        if (n_desired := len(expert_episodes(data))) in (0, len(data)):
            raise DataError(f"{n_desired} of {len(data)} episodes are demonstrations, and the others are practice",
                            where=data.metadata.get("path", "data set"), hint="train on both: understudy record ENV "
                            "--actor random --out PRACTICE; understudy train METHOD DATA --prior PRACTICE")
        return data

    def collect(self, actor, number, training):
        return super().collect(DemonstratedActor(actor, self.commands(number, training), self.show), number, training)

    def commands(self, number: int, training) -> Dataset:
        """Returns the episodes of which each rollout is shown a random one."""
        desired = training.data.select(expert_episodes(training.data))
        own = training.stored.select(sorted(set(range(len(training.stored))) - set(expert_episodes(training.stored))))
        if not self.steering:
            return own
        n_own = round(len(desired) * (1 / self.steering - 1))
        drawn = np.random.default_rng((training.seed % 2**64, number)).integers(len(own), size=n_own)
        return Dataset([*desired, *own.select(drawn.tolist())])


def own_steps(episode: Episode) -> np.ndarray:
    """Sampling weights of an episode, (T,): 0 for demonstrations, and 1 for all other episodes."""
    return np.full(len(episode), 0.0 if expert_episodes(Dataset([episode])) else 1.0)


@method("Leibovich et al. 2023, arXiv 2211.01724, with frames of numbers in place of an embedding of a video, and a "
        "feed-forward network in place of a transformer", rows=("211",),
        needs=(SOME_NUMBERS, OBSERVED_NUMBERS, PRACTICE, "an environment", "while acting: a demonstration"),
        when="if demonstrations without actions show different things to do.")
def iterative_inversion(length: int = 100, n_frames: int = 8, n_rounds: int = 20, n_episodes: int = 20,
                        noise: float = 0.5, inputs: tuple[str, ...] = (), features: Schema | None = None) -> Method:
    """Hindsight: own rollouts, shown demonstrations without actions, tell which actions lead along which trajectory.

    Args:
        length: Number of steps of an episode while acting.
        n_rounds: Number of rounds of rollouts.
        noise: Standard deviation of the noise of actions in these rollouts, in units of the action.
        inputs: Observed columns of numbers that are read, also of demonstrations. Empty for all that the data have.
    """
    inputs = inputs or numeric_observations(features or {}) or ("observation.state",)
    show, progress = ShowDemonstration(inputs, n_frames, own=True), Progress(length=length)
    collector = SteeredCollector(n_episodes, GaussianExploration(noise), show=show, length=length)
    rounds = CollectionRounds(n_rounds, collector, initial_updates=1000, sampling_weights=own_steps)
    return Method(PolicyConfig(Regression(), inputs=(*inputs, *show.into, progress.into)),
                  learner=BehaviorCloning(optimizer=OptimizerConfig(lr=1e-3, lr_schedule="constant")),
                  transforms=(PlaceholderActions(), show, progress), collection=rounds)
