"""The policies of a studio on a robot, loaded and judged as the commands do it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...studio.browser.robot_trials import PreparedTrials
from .common import acting_rate, parse
from .eval_options import EvalOptions
from .groups import ActingOptions
from .interactive import describe_trials
from .policies import load_actor, weights_digest, weights_path
from .sequential import build_test

if TYPE_CHECKING:
    from ...envs.base import Env
    from ...execute.actor import Actor

ROUNDS = 100  # of blind trials, at most: the default of `understudy eval --interactive`


class CommandPolicies:
    """Loads policies as `understudy improve --robot` does, and blind trials as `understudy eval --interactive`.

    Args:
        trust: Packages whose code policies may use.
    """

    def __init__(self, trust: tuple[str, ...] = ()):
        self.trust = trust

    def rate(self, *runs: Path) -> float:
        """The steps per second at which policies act: that of their data.

        Raises:
            ConfigError: They were trained at different rates.
        """
        return acting_rate(None, *runs)

    def load(self, run: Path, env: Env) -> Actor:
        """Loads the actor of a run.

        Raises:
            UserError: It does not fit the robot, or acts only when it is told something.
        """
        return load_actor(run, env, ActingOptions(trust=self.trust), None)[0]

    def trials(self, words: list[str], folder: Path, env: Env) -> PreparedTrials:
        """Loads both policies of blind trials.

        Args:
            words: Those of the command after "understudy eval", in `folder`.
        """
        from ...evaluate.interactive import TrialDesign

        o = replace(parse(EvalOptions, "eval", words), episodes=ROUNDS, trust=self.trust)
        assert o.against is not None
        names, runs = (str(o.run), str(o.against)), (folder / o.run, folder / o.against)
        design = TrialDesign(names, build_test(o), o.labels, o.seed)
        weights = [weights_digest(weights_path(run)) for run in runs]
        return PreparedTrials(design, describe_trials(o, design, weights, f"--robot {o.robot}"),
                              [load_actor(run, env, o, rows=None)[0] for run in runs])
