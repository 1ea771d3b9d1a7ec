"""The methods of `understudy improve`, which continue a trained run by collecting episodes with its policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from ..checkpoint import FromStage, find_checkpoint
from ..core import Unsupported, UserError, unknown_name
from ..data.episode import Dataset
from ..evaluate.failure_detection import FailureDetector
from ..hints import command_line
from ..learn.behavior_cloning import BehaviorCloning
from ..learn.method import Method, Stage, find_references, stage_folder
from ..learn.sample_weights import ColumnWeights
from ..learn.stages import continue_from
from .collection import CollectionRounds, DemonstrationsAsInterventions, RolloutCollector, SupervisorLabels
from .corrections import iwr, rlif, sirius, without_added_parts, without_unlearned_steps
from .doubt import EitherGate, EnsembleGate, RiskGate
from .earlier_rounds import LabelsAsInterventions
from .gates import INTERVENTION, DisagreementGate, DoubtGate, Gate, HumanGate
from .practice import BASE, Practice, check_numbers, dppo, dsrl, dsrl_na, porl, residual, residual_ppo, rlpd
from .rating import ScoreThreshold, check_rater
from .retention import SuccessfulEpisodes
from .step_rating import IS_GOOD, MARKED, MarkDemonstrations, MarkGoodSteps
from .supervisors import PolicySupervisor, acting_method
from .unlearned_steps import UNLEARNED
from .updates import PerRound

SUPERVISOR, RATER = "supervisor", "rater"  # the stages of a policy that supervises, and of a rater of episodes
THRESHOLD = 0.5  # of a gate, in standard deviations of the demonstrated actions
TAKEN_OVER = ("hg-dagger", "iwr", "sirius", "rlif")  # methods whose supervisor may be a person, who watches
ASKED = ("ensemble", "thrifty", "doubt")  # the same, but the policy asks for help, and nobody has to watch
HELPED = ("filtered", "residual", "rlpd")  # methods of practice in which a person may watch, judge and take over

# Methods that need episodes in which the learning policy itself acted.
LEARNS_FROM_ITSELF = ("rlif", "residual", "residual-ppo", "rlpd", "porl", "dsrl", "dsrl-na", "dppo")


@dataclass(frozen=True)
class Improvement:
    """The settings of an improvement: the run and its data, the supervisor, and how much is collected and trained.

    Args:
        supervisor: "expert", "person", or the run of a policy. None for nobody.
        n_updates: Updates after each round. None for as many in all as the run had.
        intervention_rate: Fraction of the policy's steps at which it asks for help, for methods in which it asks.
        collect_with: Whose policy acts in a round, "last" or "best": see `CollectionRounds`.
        rater: The run of an `episode_rater` or of a `step_rater`, which says in place of success what `filtered`
            learns.
    """

    run: Path
    data: Dataset
    supervisor: str | Path | None = None
    n_rounds: int = 5
    n_episodes: int = 5
    n_updates: int | None = None
    trust: tuple[str, ...] = ()
    intervention_rate: float = 0.1
    collect_with: Literal["last", "best"] = "last"
    rater: Path | None = None

    def build(self, name: str) -> tuple[Method, dict[str, Path]]:
        """Returns the method called `name`, and the runs of its stages.

        Raises:
            UserError: There is no such method, or it needs a supervisor and has none, or it has a supervisor that it
                cannot use.
        """
        if name not in IMPROVEMENTS:
            raise unknown_name("method", name, list(IMPROVEMENTS), "--with")
        about = IMPROVEMENTS[name]
        self._check_supervisor(name, about)
        if self.rater is not None and name != "filtered":
            raise UserError(f"a rater says what filtered learns, and not what {name} does", where="--rater",
                            hint="leave it out, or use --with filtered")
        if self.collect_with == "best" and name in LEARNS_FROM_ITSELF:
            raise UserError(f"{name} learns from what the policy that it trains does, and not from the best one",
                            where="--collect-with best", hint="leave it out")
        base = without_added_parts(Method.load(self.run, self.trust))
        if BASE in find_references(base):
            reason = ("within limits, and what a supervisor does may lie beyond them" if about.is_supervised else
                      f"and {name} would train it alone")
            raise Unsupported(f"its policy corrects or steers that of another run, {reason}", where=self.run,
                              hint="improve the run that it was made of" + (
                                  ", and practise again; or take over while it practises (--with residual --supervisor "
                                  "keyboard)" if about.is_supervised else ""))
        learner = base.learner
        if not isinstance(learner, BehaviorCloning):
            learner = BehaviorCloning(learner.steps, learner.batch_size)
        learner = replace(learner, optimizer=replace(learner.optimizer, lr_schedule="constant"))
        method, stages = continue_from(replace(base, learner=learner), self.run, trust=self.trust), {"from": self.run}
        for stage in {reference.stage for reference in find_references(base)}:
            folder = find_checkpoint(self.run)
            stages[stage] = stage_folder(folder.parents[1] if folder.parent.name == "checkpoints" else folder, stage)
        if self.rater is not None and not self.rates_steps:
            check_rater(Method.load(self.rater, self.trust).policy)
        for stage, run in ((SUPERVISOR, self.supervisor), (RATER, self.rater)):
            if isinstance(run, Path):
                stages[stage] = run
                method = replace(method, stages=(*method.stages, Stage(stage, Method.load(run, self.trust))))
        method = about.build(self, method)
        if self.supervisor == "person" and name in HELPED:
            method = _watched_practice(method)
        if self.supervisor == "person" or any(n in e.steps for e in self.data for n in UNLEARNED):  # by earlier rounds
            method = without_unlearned_steps(method)
        return method, stages

    def _check_supervisor(self, name: str, about: ImprovementMethod) -> None:
        if self.supervisor is None and about.is_supervised:
            raise UserError(f"{name} needs a supervisor: {about.summary}", where="--supervisor",
                            hint="name one: scripted (the expert of the environment), keyboard (you, in a terminal), "
                                 "or the run of another policy")
        if self.supervisor == "person" and name in HELPED:
            return
        if self.supervisor is not None and not about.is_supervised:
            supervised = (*TAKEN_OVER, *ASKED, *HELPED) if self.supervisor == "person" else [
                n for n, m in IMPROVEMENTS.items() if m.is_supervised]
            raise UserError(f"{name} has no supervisor: {about.summary}", where="--supervisor",
                            hint=f"leave it out, or choose a method with one: {', '.join(supervised)}")
        if self.supervisor == "person" and name not in (*TAKEN_OVER, *ASKED):
            raise UserError(f"{name} needs to know at every step what the supervisor would do while the policy acts, "
                            "and the hands of a person who watches do not say it", where="--supervisor",
                            hint="use --with hg-dagger, where you take over and give back, or ensemble, where the "
                                 f"policy asks you; also {', '.join((*TAKEN_OVER[1:], *ASKED[1:], *HELPED))}; or "
                                 "another supervisor")

    def rounds(self, method: Method, gate=None, **fields) -> CollectionRounds:
        supervisor = self.supervisor
        if isinstance(supervisor, Path):
            supervisor = PolicySupervisor(FromStage(SUPERVISOR), acting_method(Method.load(supervisor, self.trust)))
        n_updates = self.n_updates or max(method.learner.steps // self.n_rounds, 1)
        return CollectionRounds(self.n_rounds, RolloutCollector(self.n_episodes, supervisor=supervisor, gate=gate),
                                updates=PerRound(n_updates), compare_rounds=True, collect_with=self.collect_with,
                                **fields)

    @property
    def rates_steps(self) -> bool:
        """Whether the rater rates single steps (a `step_rater`)."""
        return self.rater is not None and Method.load(self.rater, self.trust).policy.target == IS_GOOD

    @property
    def has_interventions(self) -> bool:
        """Whether some of the episodes were collected with a supervisor."""
        return any(INTERVENTION in episode.steps for episode in self.data)

    def watched_rounds(self, method: Method) -> CollectionRounds:
        """Builds collection rounds in which a supervisor watches and may take over."""
        return self.rounds(method, self.takeover_gate())

    def takeover_gate(self) -> Gate:
        """Builds the gate of a supervisor that watches: a person's own decision, or a simulation of it."""
        if self.supervisor == "person":
            return HumanGate()
        return self.gate(THRESHOLD / 2, delay=3, hold=5, slip=0.05)

    def gate(self, release: float = THRESHOLD, **fields) -> DisagreementGate:
        """Builds a gate that compares actions of policy and supervisor, in standard deviations of demonstrated ones."""
        feature, scale = self.data.features()["action"], ()
        if feature.kind != "discrete":
            actions = np.concatenate([np.asarray(e.steps["action"][:len(e)], float).reshape(len(e), -1)
                                      for e in self.data])
            scale = tuple(np.maximum(actions.std(0), 1e-6).tolist())
        return DisagreementGate(THRESHOLD, release, scale=scale, **fields)


@dataclass(frozen=True)
class ImprovementMethod:
    """One of the methods of `understudy improve`.

    Args:
        build: Returns the method, given the improvement and the method that continues the run.
        starts_as_run: Whether the policy acts like the run's policy before it is trained. Otherwise it may act worse.
    """

    summary: str
    is_supervised: bool
    build: Callable[[Improvement, Method], Method]
    starts_as_run: bool = True


def _dagger(improvement: Improvement, method: Method) -> Method:
    if not improvement.has_interventions:
        return replace(method, collection=improvement.rounds(method, relabel=(SupervisorLabels(),)))
    return _intervention_steps(improvement, method, None, relabel=(SupervisorLabels(), LabelsAsInterventions()))


def _intervention_steps(improvement: Improvement, method: Method, gate: Gate | None, **fields) -> Method:
    """Builds a method that learns the demonstrations and the steps at which the supervisor acted."""
    assert isinstance(method.learner, BehaviorCloning)
    learner = replace(method.learner, sample_weights=ColumnWeights(INTERVENTION, 1.0, 0.0),
                      sampling_column=INTERVENTION)
    return replace(method, transforms=(*method.transforms, DemonstrationsAsInterventions()), learner=learner,
                   collection=improvement.rounds(method, gate, **fields))


def _thrifty(improvement: Improvement, method: Method) -> Method:
    half = improvement.intervention_rate / 2
    critic = replace(RiskGate().critic, steps=max(min(method.learner.steps, RiskGate().critic.steps), 1))
    gates = (_ensemble_gate("thrifty", improvement, half, method), RiskGate(half, critic=critic))
    return _intervention_steps(improvement, method, EitherGate(gates))


def _ensemble_gate(name: str, improvement: Improvement, rate: float, method: Method) -> EnsembleGate:
    """Builds a gate that hands over where an ensemble disagrees. The ensemble has no more updates than the policy."""
    check_numbers(improvement.data, name)
    return EnsembleGate(rate, steps=max(min(method.learner.steps, EnsembleGate.steps), 1))


def _doubt(improvement: Improvement, method: Method) -> Method:
    detector = FailureDetector.load(improvement.run, improvement.trust)
    if detector.method.error != "missed-failures":
        raise UserError("the failure detector states a rate of false alarms, and asking for help needs one of missed "
                        "failures", where=improvement.run,
                        hint=command_line("calibrate", improvement.run, detector.env, "--rate", detector.method.rate))
    return _intervention_steps(improvement, method, DoubtGate(detector.method.score, detector.threshold))


def _watched_practice(method: Method) -> Method:
    """Returns a method of practice with a person who watches, says what succeeds and may take over."""
    rounds = method.collection
    assert isinstance(rounds, CollectionRounds) and isinstance(rounds.collector, RolloutCollector)
    return replace(method, collection=replace(rounds, collector=replace(
        rounds.collector, supervisor="person", gate=HumanGate())))


def _marked_steps(improvement: Improvement, method: Method) -> Method:
    """Builds a method that learns the demonstrations and the collected steps that a rater calls good."""
    assert isinstance(method.learner, BehaviorCloning)
    learner = replace(method.learner, sample_weights=ColumnWeights(MARKED, 1.0, 0.0), sampling_column=MARKED)
    return replace(method, transforms=(*method.transforms, MarkDemonstrations()), learner=learner,
                   collection=improvement.rounds(method, relabel=(MarkGoodSteps(FromStage(RATER)),)))


def _filtered(improvement: Improvement, method: Method) -> Method:
    if improvement.rates_steps:
        return _marked_steps(improvement, method)
    retention = SuccessfulEpisodes() if improvement.rater is None else ScoreThreshold(FromStage(RATER))
    if not improvement.has_interventions:
        return replace(method, collection=improvement.rounds(method, retention=retention))
    return _intervention_steps(improvement, method, None, retention=retention)


def _alone(build: Callable[[Practice, Method], Method]) -> Callable[[Improvement, Method], Method]:
    return lambda improvement, method: build(Practice(
        improvement.data, improvement.n_rounds, improvement.n_episodes, improvement.n_updates), method)


IMPROVEMENTS = {
    "dagger": ImprovementMethod("the policy acts, and the supervisor labels every step", True, _dagger),
    "hg-dagger": ImprovementMethod("the supervisor watches, takes over and gives back, and the policy learns these "
                                   "steps", True, lambda improvement, method: _intervention_steps(
                                       improvement, method, improvement.takeover_gate())),
    "safe": ImprovementMethod("the supervisor acts where its action and the policy's differ (SafeDAgger)", True,
                              lambda improvement, method: _intervention_steps(improvement, method, improvement.gate())),
    "lazy": ImprovementMethod("as safe, and gives back only once they agree closely (LazyDAgger)", True,
                              lambda improvement, method: _intervention_steps(
                                  improvement, method, improvement.gate(THRESHOLD / 5))),
    "ensemble": ImprovementMethod("the policy asks where an ensemble disagrees, and the supervisor acts there "
                                  "(EnsembleDAgger)", True, lambda improvement, method: _intervention_steps(
                                      improvement, method, _ensemble_gate("ensemble", improvement,
                                                                          improvement.intervention_rate, method))),
    "thrifty": ImprovementMethod("the policy asks where an ensemble disagrees or a critic predicts failure "
                                 "(ThriftyDAgger)", True, _thrifty),
    "iwr": ImprovementMethod("as hg-dagger, and the policy learns all steps, half of them the supervisor's (IWR)", True,
                             lambda improvement, method: iwr(method, improvement.watched_rounds(method))),
    "sirius": ImprovementMethod("as hg-dagger, and the policy learns all steps but those before a takeover (Sirius)",
                                True, lambda improvement, method: sirius(method, improvement.watched_rounds(method))),
    "rlif": ImprovementMethod("as hg-dagger, and a takeover is a negative reward (RLIF)", True,
                              lambda improvement, method: rlif(method, improvement.watched_rounds(method),
                                                               improvement.data.features()["action"])),
    "doubt": ImprovementMethod("the policy asks where its failure detector raises an alarm, and the supervisor acts "
                               "from there", True, _doubt),
    "filtered": ImprovementMethod("the policy acts alone, and learns from its successes", False, _filtered),
    "residual": ImprovementMethod("the policy stays as it is, and TD3 learns corrections of its actions (ResFiT); "
                                  "round 1 trains the critic alone", False, _alone(residual)),
    "rlpd": ImprovementMethod("SAC learns a new policy, with demonstrations as half of each batch (RLPD)", False,
                              _alone(rlpd), starts_as_run=False),
    "porl": ImprovementMethod("TD3 trains the policy itself, from its own episodes alone (PORL); round 1 trains the "
                              "critic alone", False, _alone(porl)),
    "dsrl": ImprovementMethod("the policy stays as it is, and SAC chooses the noise that it samples from (DSRL)", False,
                              _alone(dsrl), starts_as_run=False),
    "dsrl-na": ImprovementMethod("as dsrl, with a critic of the chunks that the noise leads to, which learns from "
                                 "demonstrations too (DSRL-NA)", False, _alone(dsrl_na), starts_as_run=False),
    "dppo": ImprovementMethod("PPO trains the policy itself, whose actions are the steps from noise to a chunk (DPPO)",
                              False, _alone(dppo)),
    "residual-ppo": ImprovementMethod("the policy stays as it is, and PPO learns corrections of its actions (ResiP)",
                                      False, _alone(residual_ppo)),
}
