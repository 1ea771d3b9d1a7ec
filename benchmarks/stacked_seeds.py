"""Updates of five seeds as one graph, compiled and not, and one after the other: python benchmarks/stacked_seeds.py

Batches are of 256 transitions with 17 observed numbers and 6 actions, as in benchmarks/offline_rl.py, drawn for each
seed and update. All ways take turns in one process with one thread. The note has the processor time of the first
updates, which capture and compile, without what the cache of PyTorch has from before. The limits `MAX_WEIGHTS` and
`MIN_UPDATES` of `understudy.learn.stacked` come from this table.
"""

from __future__ import annotations

import measure

measure.one_thread()

import itertools  # noqa: E402
import os  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable  # noqa: E402

import offline_rl  # noqa: E402

SEEDS, UPDATES = range(5), 20
GOAL = 6.0  # for IQL at width 64, compiled


def ways(name: str, width: int) -> dict[str, Callable[[], object]]:
    """Makes updates of five seeds, by the ways to do so."""
    from understudy import Method, PolicyConfig
    from understudy.data.episode import Dataset, Episode
    from understudy.heads.likelihood.gaussian import Gaussian
    from understudy.heads.likelihood.regression import Regression
    from understudy.learn import stacked
    from understudy.learn.critic import CriticConfig
    from understudy.learn.critics.td3 import TD3
    from understudy.learn.stacked_updates import StackedUpdates
    from understudy.methods.offline_rl.iql import IQL
    from understudy.nets.encoders import ConcatEncoder
    from understudy.nets.feed_forward import FeedForward

    networks = (width, width)
    head, learner = {"IQL": (Gaussian(), IQL(critic=CriticConfig(networks))),
                     "TD3+BC": (Regression(), TD3(critic=CriticConfig(networks)))}[name]
    method = Method(PolicyConfig(head, FeedForward(networks), ConcatEncoder()), learner=learner)
    data = Dataset([Episode(columns) for columns in offline_rl.episodes()])

    def trainings() -> list:
        return [stacked.prepare_training(method, data, seed, {}) for seed in SEEDS]

    def together(compiled: bool) -> Callable[[], object]:
        prepared, number = trainings(), itertools.count()
        updates = StackedUpdates([training.learner for training in prepared], compiled=compiled)
        return lambda: [updates.update([training.batch(n) for training in prepared])
                        for n in itertools.islice(number, UPDATES)]

    def separately() -> Callable[[], object]:
        prepared, number = trainings(), itertools.count()
        return lambda: [training.learner.update(training.batch(n))
                        for n in itertools.islice(number, UPDATES) for training in prepared]
    return {"separate": separately(), "at once": together(False), "compiled": together(True)}


def main() -> None:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()
    lines = []
    for name, width in (("IQL", 64), ("IQL", 128), ("IQL", 256), ("TD3+BC", 64)):
        sides = ways(name, width)
        spent = {way: measure.cpu(sides[way]) for way in ("at once", "compiled")}
        seconds = measure.interleaved(sides, repeats=7)
        for way, words in (("compiled", "compiled, "), ("at once", "")):
            goal = GOAL if (name, width, way) == ("IQL", 64, "compiled") else None
            lines.append(measure.compared(
                f"{name}, width {width}, five seeds at once, {words}against one after the other", seconds, way,
                "separate", amount=UPDATES, unit="1/s", goal=goal,
                note=f"{'compilation' if words else 'capture'}: {spent[way]:.0f} s"))
            print(lines[-1], flush=True)
    measure.save("stacked_seeds", lines, packages=("torch", "numpy"))


if __name__ == "__main__":
    main()
