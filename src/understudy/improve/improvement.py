"""Methods of `understudy improve`: what continues a trained run by collecting episodes with its policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..checkpoint import FromStage
from ..core import UserError, unknown_name
from ..data.episode import Dataset
from ..evaluate.failure_detection import FailureDetector
from ..hints import command_line
from ..learn.behavior_cloning import BehaviorCloning
from ..learn.method import Method, Stage, find_references, stage_folder
from ..learn.sample_weights import ColumnWeights
from ..learn.stages import continue_from
from ..policy import find_checkpoint
from .collection import CollectionRounds, DemonstrationsAsInterventions, RolloutCollector, SupervisorLabels
from .gates import INTERVENTION, DisagreementGate, DoubtGate, HumanGate
from .retention import SuccessfulEpisodes
from .updates import PerRound

SUPERVISOR = "supervisor"  # the stage of a policy that supervises
THRESHOLD = 0.5  # of a gate, in standard deviations of the demonstrated actions


@dataclass(frozen=True)
class Improvement:
    """How a trained policy is improved.

    Args:
        run: The run that is improved.
        data: The episodes that it was trained on.
        supervisor: "expert", "person", or the run of a policy. None for nobody.
        n_updates: Updates after each round. None for as many in all as the run had.
    """

    run: Path
    data: Dataset
    supervisor: str | Path | None = None
    n_rounds: int = 5
    n_episodes: int = 5
    n_updates: int | None = None
    trust: tuple[str, ...] = ()

    def build(self, name: str) -> tuple[Method, dict[str, Path]]:
        """Returns the method called `name`, and the runs of its stages.

        Raises:
            UserError: There is no such method, or it needs a supervisor and has none, or the reverse.
        """
        if name not in IMPROVEMENTS:
            raise unknown_name("method", name, list(IMPROVEMENTS), "--with")
        about = IMPROVEMENTS[name]
        self._check_supervisor(name, about)
        base = Method.load(self.run, self.trust)
        method, stages = continue_from(base, self.run, trust=self.trust), {"from": self.run}
        for stage in {reference.stage for reference in find_references(base)}:
            folder = find_checkpoint(self.run)
            stages[stage] = stage_folder(folder.parents[1] if folder.parent.name == "checkpoints" else folder, stage)
        if isinstance(self.supervisor, Path):
            stages[SUPERVISOR] = self.supervisor
            method = replace(method, stages=(*method.stages, Stage(SUPERVISOR, Method.load(
                self.supervisor, self.trust))))
        learner = base.learner
        if not isinstance(learner, BehaviorCloning):
            learner = BehaviorCloning(learner.steps, learner.batch_size)
        learner = replace(learner, optimizer=replace(learner.optimizer, lr_schedule="constant"))
        return about.build(self, replace(method, learner=learner)), stages

    def _check_supervisor(self, name: str, about: ImprovementMethod) -> None:
        if self.supervisor is None and about.is_supervised:
            raise UserError(f"{name} needs a supervisor: {about.summary}", where="--supervisor",
                            hint="name one: scripted (the expert of the environment), keyboard (you, in a terminal), "
                                 "or the run of another policy")
        if self.supervisor is not None and not about.is_supervised:
            supervised = ", ".join(n for n, m in IMPROVEMENTS.items() if m.is_supervised)
            raise UserError(f"{name} has no supervisor: {about.summary}", where="--supervisor",
                            hint=f"leave it out, or choose a method with one: {supervised}")
        if self.supervisor == "person" and name != "hg-dagger":
            raise UserError(f"a person at the keyboard takes over and gives back, and with {name} "
                            + ("says what to do at every step" if name == "dagger" else "a rule decides who acts"),
                            where="--supervisor keyboard", hint="use --with hg-dagger, or another supervisor")

    def rounds(self, method: Method, gate=None, **fields) -> CollectionRounds:
        supervisor = FromStage(SUPERVISOR) if isinstance(self.supervisor, Path) else self.supervisor
        n_updates = self.n_updates or max(method.learner.steps // self.n_rounds, 1)
        return CollectionRounds(self.n_rounds, RolloutCollector(self.n_episodes, supervisor=supervisor, gate=gate),
                                updates=PerRound(n_updates), compare_rounds=True, **fields)

    def gate(self, release: float = THRESHOLD, **fields) -> DisagreementGate:
        """A gate that compares actions in standard deviations of the demonstrated ones."""
        feature, scale = self.data.features()["action"], ()
        if feature.kind != "discrete":
            actions = np.concatenate([np.asarray(e.steps["action"][:len(e)], float).reshape(len(e), -1)
                                      for e in self.data])
            scale = tuple(np.maximum(actions.std(0), 1e-6).tolist())
        return DisagreementGate(THRESHOLD, release, scale, **fields)


@dataclass(frozen=True)
class ImprovementMethod:
    """A way to improve a policy.

    Args:
        summary: What it does, in a line.
        build: Returns the method, given the improvement and the method that continues the run.
    """

    summary: str
    is_supervised: bool
    build: Callable[[Improvement, Method], Method]


def _dagger(improvement: Improvement, method: Method) -> Method:
    return replace(method, collection=improvement.rounds(method, relabel=(SupervisorLabels(),)))


def _intervention_steps(improvement: Improvement, method: Method, gate) -> Method:
    """Learns the demonstrations, and the steps at which the supervisor acted."""
    assert isinstance(method.learner, BehaviorCloning)
    learner = replace(method.learner, sample_weights=ColumnWeights(INTERVENTION, 1.0, 0.0),
                      sampling_column=INTERVENTION)
    return replace(method, transforms=(*method.transforms, DemonstrationsAsInterventions()), learner=learner,
                   collection=improvement.rounds(method, gate))


def _hg_dagger(improvement: Improvement, method: Method) -> Method:
    person = improvement.supervisor == "person"
    gate = HumanGate() if person else improvement.gate(THRESHOLD / 2, delay=3, hold=5, slip=0.05)
    return _intervention_steps(improvement, method, gate)


def _safe(improvement: Improvement, method: Method) -> Method:
    return _intervention_steps(improvement, method, improvement.gate())


def _lazy(improvement: Improvement, method: Method) -> Method:
    return _intervention_steps(improvement, method, improvement.gate(THRESHOLD / 5))


def _doubt(improvement: Improvement, method: Method) -> Method:
    detector = FailureDetector.load(improvement.run, improvement.trust)
    if detector.method.error != "missed-failures":
        raise UserError("the failure detector states a rate of false alarms, and asking for help needs one of missed "
                        "failures", where=improvement.run,
                        hint=command_line("calibrate", improvement.run, detector.env, "--rate", detector.method.rate))
    return _intervention_steps(improvement, method, DoubtGate(detector.method.score, detector.threshold))


def _filtered(improvement: Improvement, method: Method) -> Method:
    return replace(method, collection=improvement.rounds(method, retention=SuccessfulEpisodes()))


IMPROVEMENTS = {
    "dagger": ImprovementMethod("the policy acts, and the supervisor labels every step", True, _dagger),
    "hg-dagger": ImprovementMethod("the supervisor watches, takes over and gives back, and the policy learns these "
                                   "steps", True, _hg_dagger),
    "safe": ImprovementMethod("the supervisor acts where its action and the policy's differ (SafeDAgger)", True, _safe),
    "lazy": ImprovementMethod("as safe, and gives back only once they agree closely (LazyDAgger)", True, _lazy),
    "doubt": ImprovementMethod("the policy asks where its failure detector raises an alarm, and the supervisor acts "
                               "from there", True, _doubt),
    "filtered": ImprovementMethod("the policy acts alone, and learns from its successes", False, _filtered),
}
