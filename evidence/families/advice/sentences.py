"""The two worlds of each sentence of advice: `NAME_HERE`, where it was found, and `NAME_THERE`, which was drawn.

Pilots with seeds below 100 ran the plainest rival alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from evidence.experiment import Experiment
from evidence.measures import StackedSeeds
from understudy.data.operations import Filter
from understudy.data.window import Window
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.base import Head
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.ema import ConstantDecay
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig

from .recordings import SLIPPED, FirstSteps, Slipped, Slipping
from .worlds import (
    LIMIT,
    STATE,
    TASKS,
    ClosedLoop,
    Demonstrations,
    Demonstrator,
    Options,
    Parts,
    drawn,
)

CALM: Options = (("spread", 0.01),)  # starts of the fork are alike, so that pauses are at the same place
LOOSE: Options = (("tolerance", 0.03),)  # m, of the peg
N_SEEDS, TOY_STARTS, STARTS = 10, 200, 25


def clone(head: Head, horizon: int = 1, execute: int = 1, n_obs: int = 1, updates: int = 2000, batch: int = 128,
          inputs: tuple[str, ...] = (STATE,), transforms: tuple[Any, ...] = (), **options) -> Method:
    """Behavior cloning with a network of one block of width 128."""
    precision = options.pop("precision", "fp32")
    policy = PolicyConfig(head, MLP(128, 1), ConcatEncoder(), window=Window(n_obs, horizon), inputs=inputs)
    learner = BehaviorCloning(updates, batch, OptimizerConfig(lr=3e-3, precision=precision), **options)
    return Method(policy, RecedingHorizon(execute), learner, transforms)


def here(env: str, episodes: int, first_seed: int, arms: dict[str, Any], *, options: Options = (), push: float = 0.0,
         starts: int = 0, failures: bool = False, wrong_share: float = 0.0, **habits: Any) -> Experiment:
    """A toy, with 200 starts of each seed."""
    source = Demonstrations(env, episodes, Demonstrator(env, **habits), options, starts, failures, wrong_share)
    return Experiment(source, arms, first_seed, StackedSeeds(ClosedLoop(push)), n_seeds=N_SEEDS, episodes=TOY_STARTS,
                      env_options=options)


def there(task: str, episodes: int, first_seed: int, arms: dict[str, Any], **options: Any) -> Experiment:
    """A task of Meta-World, with 25 starts of each seed."""
    experiment = here(f"metaworld/{task}", episodes, first_seed, arms, options=LIMIT, **options)
    return replace(experiment, episodes=STARTS)


# -- several ways: flow rather than regression ------------------------------------------------------------------------

WAYS = {"regression": clone(Regression(), 8, 4), "flow": clone(Flow(), 8, 4)}
WAYS_HERE = here("fork", 100, 7000, WAYS)
WAYS_THERE = there(drawn(TASKS, 0)[0], 10, 7000, WAYS, detour=1.0)  # reach-v3

# -- demonstrators pause: chunks rather than single actions -----------------------------------------------------------

CHUNKS = {"one action": clone(Regression()), "eight actions": clone(Regression(), 8, 8)}
CHUNKS_HERE = here("fork", 50, 7020, CHUNKS, pause=8, options=CALM)
CHUNKS_THERE = there(drawn(TASKS, 1)[0], 20, 7020, CHUNKS, pause=8)  # push-v3

# -- the world changes: execute one step ------------------------------------------------------------------------------

PUSHED = {"execute 8": clone(Flow(), 8, 8), "execute 1": clone(Flow(), 8, 1)}
PUSHED_HERE = here("fork", 100, 7060, PUSHED, push=0.3)
PUSHED_THERE = there(drawn(TASKS, 3)[0], 20, 7060, PUSHED, push=0.5)  # window-open-v3

# -- wrong actions: the absolute error --------------------------------------------------------------------------------

WRONG = {"squared error": clone(Regression("l2")),
         "absolute error": clone(Regression("l1"))}
WRONG_HERE = here("particle", 100, 7080, WRONG, wrong_share=0.05, options=(("fully_observed", True),))
WRONG_THERE = there(drawn(TASKS, 4)[0], 20, 7080, WRONG, wrong_share=0.1)  # coffee-button-v3

# -- many starts rather than repeats ----------------------------------------------------------------------------------



def of_part(name: str, **options: Any) -> Method:
    """Cloning of one part of the demonstrations."""
    return clone(Regression(), transforms=(Filter("part", equals=(name,)),), **options)


def parts(experiment: Experiment, **changes: dict[str, Any]) -> Experiment:
    """The same experiment with parts of demonstrations, each of which changes some fields of the source."""
    source = experiment.source
    assert isinstance(source, Demonstrations)
    return replace(experiment, source=Parts(experiment.env, tuple(
        (name, replace(source, **values)) for name, values in changes.items())))


STARTED = {name: of_part(name, inputs=()) for name in ("few", "many")}
STARTED_HERE = parts(here("maze", 256, 7100, STARTED, noise=0.1, options=(("cells", 3),)), few={"starts": 64}, many={})
STARTED_THERE = parts(there(drawn(TASKS, 5)[0], 24, 7100, STARTED, noise=0.3), few={"starts": 8}, many={})  # reach-v3

# -- lost episodes: clone the successes -------------------------------------------------------------------------------

SUCCESSES = (Filter("success", equals=(True,)),)
LOST = {"everything": clone(Regression()), "successes": clone(Regression(), transforms=SUCCESSES)}
LOST_HERE = here("fork", 40, 7120, LOST, failures=True, lost_share=0.5, options=(("spread", 0.25),))
LOST_THERE = there(drawn(TASKS, 6)[0], 20, 7120, LOST, failures=True, lost_share=0.5)  # sweep-into-v3

# -- average the weights where batches are small ----------------------------------------------------------------------

AVERAGE = {"last weights": clone(Regression(), batch=8, inputs=(), ema=ConstantDecay(0.0)),
           "averaged": clone(Regression(), batch=8, inputs=())}
AVERAGE_HERE = here("peg_insertion", 100, 7220, AVERAGE, options=LOOSE)
# The last weights suffice in door-close-v3 (1.0), which was drawn first.
AVERAGE_THERE = there(drawn(TASKS, 11)[1], 10, 7220, AVERAGE)  # sweep-into-v3

# -- keep episodes in which something goes wrong and is put right -----------------------------------------------------


def slipping(experiment: Experiment, n_steps: int) -> Experiment:
    """The robot slips in half of the recorded episodes, and of those that judge. Each arm has this number of steps."""
    source = experiment.source
    assert isinstance(source, Demonstrations)
    kinds = {"smooth episodes": ("smooth",), "all episodes": ("smooth", SLIPPED)}
    arms = {name: clone(Regression(), transforms=(FirstSteps(n_steps, parts),)) for name, parts in kinds.items()}
    return replace(experiment, source=Slipped(source.env, source.episodes, source.options), arms=arms,
                   measure=StackedSeeds(Slipping()))


SLIPS_HERE = slipping(here("fork", 60, 7280, {}), 200)
SLIPS_THERE = slipping(there(drawn(TASKS, 14)[0], 20, 7280, {}), 300)  # reach-v3
