from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated

import numpy as np

from ...core import AtLeast, DataError, part, role
from ...data.episode import Dataset, Episode
from ...data.operations import Operation
from ...heads.likelihood.regression import Regression
from ...hints import command_line, pluralize
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...learn.rewards.preference_reward import BETTER, PREFERENCE, SEGMENT, PreferenceLearning, PreferenceReward
from ...nets.feed_forward import FeedForward
from ...policy import PolicyConfig
from ..needs import NUMBERS, TRACES
from ..registry import method

TRACE = "trace"  # metadata field: "up" if the feature rises from its lowest to its highest value, "down" if it falls


@part
class TracePairs(Operation):
    """Converts feature traces to comparisons of single steps, for `PreferenceLearning`.

    A trace is a motion along which a feature rises from its lowest to its highest value (metadata `trace`: "up") or
    falls ("down"). Of two steps of a trace, the one towards the highest value is better. The lowest steps of two traces
    are equally good, and so are the highest ones. Every trace has as many pairs, however long it is. Pairs are copies
    in memory.

    Args:
        n_pairs: Number of random pairs of steps of each trace.
        n_ends: Number of other traces, drawn with replacement, with which both ends of a trace are compared.

    References:
        Bobu et al. (2022), Inducing Structure in Reward Learning by Learning Features, arXiv:2201.07082.
    """

    n_pairs: Annotated[int, AtLeast(1)] = 100
    n_ends: Annotated[int, AtLeast(0)] = 20
    seed: int = 0

    def apply(self, data: Dataset) -> Dataset:
        rng, schema = np.random.default_rng(self.seed), data.features()
        columns = {name: feature for name, feature in schema.items() if role(name) in ("observation", "action")}
        traces = [_rising(episode, columns, str(data.metadata.get("path", "DATA")), number)
                  for number, episode in enumerate(data)]
        pairs = []
        for number, trace in enumerate(traces):
            n = len(trace["action"])
            first = rng.integers(n, size=self.n_pairs)
            steps = np.sort([first, (first + rng.integers(1, n, size=self.n_pairs)) % n], 0)
            pairs += [_comparison(trace, low, trace, high, BETTER) for low, high in steps.T]
            others = rng.integers(1, max(len(traces), 2), size=self.n_ends * (len(traces) > 1))
            pairs += [_comparison(trace, end, traces[(number + other) % len(traces)], end, BETTER // 2)
                      for other in others for end in (0, -1)]
        return Dataset([Episode(steps, schema=columns) for steps in pairs], data.metadata)


def _rising(episode: Episode, columns: Iterable[str], path: str, number: int) -> dict[str, np.ndarray]:
    """Returns the columns of a trace, ordered from the lowest to the highest value of its feature."""
    if (way := episode.metadata.get(TRACE)) not in ("up", "down") or len(episode) < 2:
        raise DataError(f"a trace needs two steps and the metadata field {TRACE!r}, which is \"up\" or \"down\": here "
                        f"are {pluralize(len(episode), 'step')} and {way!r}", where=f"{path}, episode {number}",
                        hint="record motions along which one feature rises all the way, and label them: "
                             + command_line("view", "make", path, "--out", "TRACES", "--label", f"{TRACE}=up"))
    return {name: np.asarray(episode.steps[name])[:len(episode)][::1 if way == "up" else -1] for name in columns}


def _comparison(first: Mapping[str, np.ndarray], low: int, second: Mapping[str, np.ndarray], high: int,
                preference: int) -> dict[str, np.ndarray]:
    """Builds the columns of a comparison of a step of one trace with a step of another."""
    steps = {name: np.stack([first[name][low], second[name][high]]) for name in first}
    return {**steps, SEGMENT: np.array([[0], [1]]), PREFERENCE: np.array([[BETTER - preference], [preference]])}


@method("Bobu et al. 2022 (FERL), arXiv 2201.07082, without the selection of inputs", rows=("217",),
        needs=(NUMBERS, TRACES),
        when="if you can show motions along which something that matters grows, and not write it down; then train "
             "`iql` or `sac` with `--reward`.")
def ferl(n_pairs: int = 100) -> Method:
    """Learns a reward from feature traces: motions along which something that matters rises to its highest value.

    The policy clones the traces, above all near the highest value. Use `--reward-scale -1` where less is better.

    Args:
        n_pairs: Number of pairs of steps of each trace that are compared.
    """
    optimizer = OptimizerConfig(lr=1e-3, weight_decay=1e-3)
    reward = PreferenceReward((128, 128, 128), "relu", inputs="state")
    return Method(PolicyConfig(Regression(), FeedForward()), transforms=(TracePairs(n_pairs),),
                  learner=PreferenceLearning(1500, 128, reward, reward_optimizer=optimizer))
