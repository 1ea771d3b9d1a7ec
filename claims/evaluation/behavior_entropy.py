"""Row 004: does behavior entropy follow the diversity of the demonstrations where the success rate does not?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from claims.worlds.curation import CuratedMethod, cached_load, successful_rollouts, train_curated, with_keep_columns
from claims.worlds.fork import N_REPEATS, N_SIDES, ROWS, measure_modes
from understudy.claims.base import (
    SCORE,
    AllOf,
    Arm,
    Claim,
    ClaimPart,
    DemonstrationSource,
    EquivalentTo,
    Experiment,
    GreaterThan,
    NegativeControl,
)
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.envs import make
from understudy.envs.toys.fork import ForkExpert
from understudy.evaluate.behavior.modes import rollout_repeated_starts
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.heads.base import Head
from understudy.heads.denoising.diffusion import Diffusion
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig

SETS = ("even", "uneven", "even again")


@dataclass(frozen=True)
class SidedDemonstrations(DemonstrationSource):
    """Three sets of demonstrations that have none in common. All have the same size.

    Half of "even" and of "even again" pass the pillar on the left. Of "uneven", `share` pass on one side: the left for
    even seeds, the right for odd ones.

    Args:
        episodes: Size of each set.
        share: Fraction of the more frequent side in "uneven".
    """

    episodes: int
    share: float = 0.9
    probe_sizes = {"episodes": 10}

    @cached_load
    def load(self, seed):
        half, most = self.episodes // 2, round(self.share * self.episodes)
        sets: dict[str, list[Episode]] = {name: [] for name in SETS}
        for i, way in enumerate((1, -1) if seed % 2 == 0 else (-1, 1)):
            counts = (half, (most, self.episodes - most)[i], half)
            demonstrations = successful_rollouts(ForkExpert(side=way), "fork", sum(counts), seed, split=i)
            begin = 0
            for name, count in zip(SETS, counts, strict=True):
                sets[name] += demonstrations[begin : begin + count]
                begin += count
        owner = [name for name in SETS for _ in sets[name]]
        return with_keep_columns(
            [e for some in sets.values() for e in some], {name: [float(o == name) for o in owner] for name in SETS}
        )


def success_and_entropy(
    experiment, method: CuratedMethod, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """Rolls each start out `N_REPEATS` times.

    Returns:
        What `measure_modes` returns. The mode is the side on which the pillar is passed (Jia et al. 2024, section 4).
    """
    env: Any = make(experiment.env, rows=min(ROWS, episodes))
    actor = PolicyActor(FixedBatch(train_curated(method, data, seed), ROWS), method.method.executor)
    rollouts = rollout_repeated_starts(actor, env, max(1, episodes // N_REPEATS), N_REPEATS, seed=starts)
    return measure_modes(rollouts, side_of_pillar, N_SIDES)


def side_of_pillar(episode) -> str:
    """The side on which an episode passes the pillar."""
    return "left" if episode.steps["observation.state"][:, 1].mean() > 0 else "right"


def mlp_method(head: Head, demonstrations: str) -> CuratedMethod:
    """One action per observation, as the MLP policies of the paper."""
    method = Method(
        PolicyConfig(head, trunk=MLP(64, 1), encoder=ConcatEncoder(), window=Window()),
        RecedingHorizon(1),
        BehaviorCloning(steps=1000, optimizer=OptimizerConfig(lr=3e-3)),
    )
    return CuratedMethod(method, demonstrations)


def named_arms(options: dict[str, Any]) -> tuple[Arm, ...]:
    return tuple(Arm(name, (option,)) for name, option in options.items())


def with_even_odds(experiment: Experiment) -> Experiment:
    """Other demonstrations at even odds in place of those at uneven odds, as many."""
    return experiment.replace_arms(Arm("uneven", (mlp_method(DIFFUSION, "even again"),)))


DIFFUSION = Diffusion(n_steps=5, n_train_steps=50)
FORK = Experiment(
    SidedDemonstrations(60),
    "fork",
    named_arms({"even": mlp_method(DIFFUSION, "even"), "uneven": mlp_method(DIFFUSION, "uneven")}),
    success_and_entropy,
    seeds=tuple(range(220, 240)),
    episodes=400,
    measures=(("entropy", SCORE),),
    starts_seed=112,
    sanity=(("even", "success", 0.5), ("uneven", "success", 0.5)),
)
EQUAL_SUCCESS = EquivalentTo("success", "even", "uneven", 0.15)
MORE_DIVERSE = GreaterThan("entropy", "even", "uneven")

CLAIM = Claim(
    name="behavior-entropy",
    rows=("004",),
    parts=(ClaimPart("fork", FORK, AllOf((EQUAL_SUCCESS, MORE_DIVERSE))),),
    negative_control=NegativeControl(with_even_odds, "fork", removes=(MORE_DIVERSE,)),
)
