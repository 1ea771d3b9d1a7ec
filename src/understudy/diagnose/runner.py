"""Runs all checks of a diagnosis for which there are data, rollouts or a robot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from ..audit.base import component_names
from ..audit.motion import LAGGED_STEPS, Transitions, fit_lags, transitions
from ..core import Feature, Schema, Unsupported, role
from ..data.episode import Dataset, concat_columns
from ..data.formats.parts.column_names import format_list
from ..data.missing_actions import NoActions, has_action
from ..data.video import resize
from ..envs.base import Env
from ..evaluate.action_prediction import ActionPrediction, evaluate_action_prediction
from ..evaluate.evaluation import tuning_seed
from ..evaluate.rollout import rollout
from ..execute.actor import Actor, PolicyActor
from ..execute.chunking import RecedingHorizon
from ..execute.wrappers import ResidualWrapper
from ..learn.behavior_cloning import BehaviorCloning
from ..learn.method import TrainedRun, has_latent_actions, training_data, without_made_episodes
from ..learn.training_curves import TrainingCurves
from ..learn.validation import Validation
from ..policy import Planner, Policy, camera_sizes
from . import cameras, fit_checks, motion, observations, ways
from .base import Outcome, RunDiagnosis, RunFinding, sort_findings

EPISODES = 60  # trained episodes in which actions are predicted
STARTS = 400  # recorded episodes that are compared with new ones
PROBES = 10  # episodes that repeat recorded actions
REPEATED = 100  # recorded episodes from which these may take actions
CLIPPED = 0.8  # motion unexplained with clipped actions, as a fraction of the motion unexplained without clipping
WATCHED = (0.25, 0.5, 0.75, 1)  # fractions of an episode at which images are compared with the first one
THUMBNAIL = 24  # pixels a side of the images that are compared
SMALL = 12  # pixels a side of the images from which states are read
ACTING_CHECKS = ("columns", "cameras", "observations", "motion", "limits", "starts", "trials")
VIEWED, VIEWS = 80, 40  # recorded episodes from which images are read, and about how many of each


@dataclass(frozen=True)
class Recorded:
    """The recorded episodes of a run, before the transforms of its method.

    Args:
        held_out: Numbers of the episodes that were not trained on.
        trained: Numbers of the episodes that were trained on.
        camera_sizes: Height and width of the cameras in the recording, if their frames were scaled since.
        is_own: Whether the run was trained on these data. If not, `trained` are episodes to compare with.
    """

    data: Dataset
    held_out: Sequence[int]
    trained: Sequence[int]
    camera_sizes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    is_own: bool = True

    @property
    def sizes(self) -> dict[str, Sequence[int]]:
        """Height and width of each camera in the recording."""
        return {**camera_sizes(self.data.features()), **self.camera_sizes}


@dataclass(frozen=True)
class Observed:
    """The episodes or observations from where the policy acted: rollouts, or a connected robot.

    Args:
        metadata: "fps", and "low" and "high" where the actions are limited.
        episodes: Episodes of the policy, or single observations of a robot that does not move.
        probes: Episodes with recorded actions. None for none.
        moves: Whether anything moves. A robot that is only read rests anywhere.
        shorter: Trials in which fewer steps of each plan were executed.
        n_action_steps: Steps of a plan that the policy executes.
    """

    features: Schema
    metadata: Mapping[str, Any]
    episodes: Dataset
    probes: Dataset | None = None
    moves: bool = True
    shorter: Sequence[fit_checks.ChunkTrials] = ()
    n_action_steps: int = 1


def observe_environment(env: Env, actor: Actor | None, data: Dataset | None, episodes: int, seed: int = 0) -> Observed:
    """Rolls a policy out in the environment, and repeats recorded actions there from other starts.

    Args:
        actor: The policy. None if it cannot act there.
        data: The recorded episodes. None if there are none.
        seed: Seed of the starts. No evaluation uses these starts.
    """
    policy_episodes = Dataset([]) if actor is None else rollout(actor, env, episodes, tuning_seed(seed))
    probes, feature = None, env.features["action"]
    if data is not None and data.features()["action"].shape == feature.shape and feature.kind == "vector" and (
            whole := list(islice((i for i, e in enumerate(data) if has_action(e).all()), REPEATED))):
        probes = rollout(RecordedActions.of(data.select(whole)), env, PROBES, tuning_seed(seed), first=episodes)
    shorter, n_action_steps = [], 1
    if isinstance(actor, PolicyActor) and isinstance(actor.executor, RecedingHorizon):
        n_action_steps = actor.executor.n_action_steps
        if n_action_steps > 1 and sum(successes := _successes(policy_episodes)) < fit_checks.SUCCEEDS * len(successes):
            shorter = _try_shorter_plans(actor, actor.executor, env, successes, tuning_seed(seed))
    return Observed(env.features, env.metadata, policy_episodes, probes, True, shorter, n_action_steps)


def _try_shorter_plans(actor: PolicyActor, executor: RecedingHorizon, env: Env, successes: Sequence[bool], seed: int
                       ) -> list[fit_checks.ChunkTrials]:
    """Tries whether the policy succeeds more often if it executes one step, or a quarter, of each plan."""
    def succeeds(steps: int, starts: int, first: int = 0) -> list[bool]:
        changed = replace(actor, executor=replace(executor, n_action_steps=steps))
        return _successes(rollout(changed, env, starts, seed, first=first))
    lengths = sorted({1, max(1, executor.n_action_steps // 4)})
    trials = [fit_checks.ChunkTrials(steps, successes, succeeds(steps, len(successes))) for steps in lengths]
    best = min(trials, key=lambda trial: trial.chance)
    if best.gains > best.losses and len(trials) * best.chance >= fit_checks.CHANCE:
        first, more = len(successes), 2 * len(successes)
        own, shorter = (succeeds(steps, more, first) for steps in (executor.n_action_steps, best.n_action_steps))
        trials[trials.index(best)] = fit_checks.ChunkTrials(best.n_action_steps, [*successes, *own],
                                                            [*best.shorter, *shorter])
    return trials


@dataclass(frozen=True)
class RecordedActions(Actor):
    """Actor that repeats recorded actions, beginning at the first action of a randomly chosen episode.

    Args:
        actions: Actions of all episodes, joined in order, (N, A).
        starts: The row at which each episode begins, (E,).
    """

    actions: torch.Tensor
    starts: torch.Tensor

    @staticmethod
    def of(data: Dataset) -> RecordedActions:
        """Builds an actor that repeats the actions of all episodes of a data set."""
        columns = [np.asarray(e.steps["action"], np.float32)[:len(e)] for e in data]
        ends = np.cumsum([len(c) for c in columns])
        return RecordedActions(torch.from_numpy(np.concatenate(columns)), torch.from_numpy(np.r_[0, ends[:-1]]))

    def start(self, obs, key):
        return {"row": self.starts[key.remainder(len(self.starts))]}

    def act(self, obs, state):
        return self.actions[state["row"].remainder(len(self.actions))], {"row": state["row"] + 1}


def diagnose(trained: TrainedRun, curves: TrainingCurves, step: int | None, recorded: Recorded | None,
             observed: Observed | None = None) -> RunDiagnosis:
    """Finds reasons why a policy may fail.

    Args:
        trained: The run. Its transforms are needed too.
        step: Updates of the checkpoint. None if it is not one of the run's.
        recorded: The data of the run. None if they are not there.
        observed: Where the policy acts. None to check the run and the data alone.
    """
    findings, checked, unchecked = [], ["checkpoint"], []
    outcome = _outcome(curves, step, recorded, observed)
    if step is not None:
        findings += fit_checks.check_checkpoint(curves, step)
    if recorded is None:
        unchecked.append("fit, statistics and actions: there are no data to compare with")
    else:
        try:
            findings += _data_findings(trained, recorded, step, outcome)
            checked += ["fit", "statistics", "recorded actions", "deployed actor"]
        except (Unsupported, NoActions) as error:  # no recorded action is one of this policy
            unchecked.append(f"fit, statistics and actions: {error.problem}")
        findings += _lag_findings(recorded, observed)
    if observed is None:
        unchecked.append("cameras, units, latency, limits and starts: no --env and no --robot is named")
    else:
        is_shifted = any(f.code == "action-shift" for f in findings)
        findings += _observed_findings(trained.policy, recorded, observed, is_shifted)
        checked += [*ACTING_CHECKS, "novelty"]
    if outcome is not None:
        findings = fit_checks.judge_by_outcome(findings, outcome)
        if outcome.place is None and not any(f.level == "fault" for f in findings):
            assert observed is not None
            findings += fit_checks.check_success(_successes(observed.episodes), curves.evaluations, step)
    return RunDiagnosis(sort_findings(findings), tuple(checked), tuple(unchecked), outcome)


def diagnose_planner(planner: Planner, recorded: Recorded | None, observed: Observed) -> RunDiagnosis:
    """Finds reasons why a policy may fail whose training is not known, by where it acts.

    Args:
        recorded: Demonstrations to compare with, as `trained` episodes. None if there are none.
        observed: Where the policy acts.
    """
    findings: list[RunFinding] = [] if recorded is None else [*_lag_findings(recorded, observed)]
    is_shifted = any(f.code == "action-shift" for f in findings)
    findings += _observed_findings(planner, recorded, observed, is_shifted)
    unchecked = ["checkpoint, fit, statistics and novelty: they need to know how and on what the policy was trained"]
    if recorded is None:
        unchecked.append("cameras, units, latency, limits and starts: there are no data to compare with (name them: "
                         "--data DATA)")
    own = _successes(observed.episodes)
    demonstrated = [] if recorded is None else _successes(recorded.data)
    outcome = Outcome(sum(own), len(own), None, (sum(demonstrated), len(demonstrated)) if demonstrated else None
                      ) if own else None
    if outcome is not None:
        findings = list(fit_checks.judge_by_outcome(findings, outcome))
    checked = ("columns", "trials") if recorded is None else ("recorded actions", *ACTING_CHECKS)
    return RunDiagnosis(sort_findings(findings), checked, tuple(unchecked), outcome)


def _outcome(curves: TrainingCurves, step: int | None, recorded: Recorded | None, observed: Observed | None
             ) -> Outcome | None:
    """Returns how often the policy succeeds: in its rollouts, or in an evaluation of its checkpoint."""
    own = [] if observed is None else _successes(observed.episodes)
    evaluation = fit_checks.best_evaluation(curves.evaluations, step)
    of_data = [] if recorded is None else _successes(recorded.data)
    demonstrated = (sum(of_data), len(of_data)) if of_data else None
    if own:
        return Outcome(sum(own), len(own), None, demonstrated)
    if evaluation is None or observed is not None:
        return None
    return Outcome(evaluation["successes"], evaluation["episodes"], evaluation.get("env", evaluation["where"]),
                   demonstrated)


# -- the run and its data ---------------------------------------------------------------------------------------------


def _data_findings(trained: TrainedRun, recorded: Recorded, step: int | None, outcome: Outcome | None
                   ) -> Iterator[RunFinding]:
    policy, method, data = trained.policy, trained.method, recorded.data
    acting, held_out_acting = (
        [i for i in numbers if role(policy.config.target) != "action" or has_action(data[i]).all()]
        for numbers in (recorded.trained, recorded.held_out))  # not what stands in for actions
    if not acting:
        raise NoActions("no episode has all of its actions", hint="record some episodes with actions")
    sampled = acting[::max(1, len(acting) // EPISODES)]
    recording = without_made_episodes(method)
    learned = training_data(data.select(sampled), recording)
    held_out = training_data(data.select(held_out_acting), recording) if held_out_acting else None
    errors = [_prediction(trained, part) for part in (learned, held_out) if part is not None and len(part)]
    training = training_data(data.select(recorded.trained), method)
    batch_size = getattr(method.learner, "batch_size", None)
    passes = step * batch_size / max(len(policy.windows(training)), 1) if step and batch_size else np.inf
    if errors and not isinstance(method.wrapper, ResidualWrapper):  # the base leaves little to correct, or nothing
        is_cloning = isinstance(method.learner, BehaviorCloning)
        yield from fit_checks.check_fit(_fit_errors(errors), is_cloning, recorded.is_own, passes, outcome)
    yield from fit_checks.check_statistics(policy, training)
    yield from fit_checks.check_constants(policy, training)
    if isinstance(method.learner, BehaviorCloning) and not method.wrapper and len(learned) and passes >= 1:
        yield from ways.check_averaged_ways(policy, learned)
    read = {n: f for n, f in data.features().items() if n in policy.inputs}
    yield from cameras.check_still(_changes(data.select(sampled), read), {})
    if not (has_latent_actions(method) or method.wrapper or method.transforms or policy.config.window.goals):
        actor = trained.actor(features=data.features())
        yield from fit_checks.check_serving(policy, actor, data.select(sampled))


def _prediction(trained: TrainedRun, data: Dataset) -> ActionPrediction:
    return evaluate_action_prediction(trained.policy, data, executor=trained.method.executor,
                                      validation=Validation(n_windows=256, n_samples=8), n_examples=0)


def _fit_errors(errors: Sequence[ActionPrediction]) -> fit_checks.FitErrors:
    def fraction(prediction: ActionPrediction) -> float:
        return prediction.energy_score.estimate / max(prediction.baseline_error, 1e-9)
    last = errors[-1].prediction_error
    return fit_checks.FitErrors(
        fraction(errors[0]), fraction(errors[1]) if len(errors) > 1 else None,
        None if last is None else last[0].last_action, None if last is None else last[0].policy)


# -- where it acts ----------------------------------------------------------------------------------------------------


def _successes(episodes: Dataset) -> list[bool]:
    """Returns whether each episode succeeded, for the episodes that record it."""
    return [bool(np.any(e.steps["next.success"])) if "next.success" in e.steps else bool(e.metadata["success"])
            for e in episodes if "next.success" in e.steps or "success" in e.metadata]


def _observed_findings(planner: Planner, recorded: Recorded | None, observed: Observed, is_shifted: bool
                       ) -> Iterator[RunFinding]:
    read = {n: f for n, f in planner.features.items() if n in planner.inputs and not n.endswith("?")}
    if recorded is not None:  # what transforms compute is not shown
        read = {n: f for n, f in read.items() if n in recorded.data.features()}
    yield from observations.check_columns(read, observed.features, {} if recorded is None else recorded.sizes)
    if successes := _successes(observed.episodes):
        yield from fit_checks.check_trials(successes)
        yield from fit_checks.check_chunks(observed.shorter, observed.n_action_steps)
    if recorded is None:
        return
    if recorded.data.fps and observed.metadata.get("fps") and abs(
            ratio := observed.metadata["fps"] / recorded.data.fps - 1) > 0.1:
        yield RunFinding(
            "rate-differs", "fault", f"the policy acts {observed.metadata['fps']:g} times a second, and the data were "
            f"recorded with {recorded.data.fps:g} steps a second", ratio + 1, (0.9, 1.1),
            "act at the rate of the data, or train on a view of the data at the other rate",
            ("view", "make", "DATA", "--fps", f"{observed.metadata['fps']:g}", "--out", "VIEW"))
    yield from fit_checks.check_starts_decide(recorded.data, observed.episodes, observed.probes)
    episodes = [*observed.episodes, *(observed.probes or ())]
    if episodes:
        yield from _compare(planner, recorded, observed, episodes, is_shifted)


def _compare(planner: Planner, recorded: Recorded, observed: Observed, episodes: Sequence, is_shifted: bool
             ) -> Iterator[RunFinding]:
    """Compares the observations and the motion with the recorded observations and motion."""
    data, features = recorded.data, observed.features
    sample = data.select(np.linspace(0, len(data) - 1, min(len(data), STARTS)).astype(int).tolist())
    names = [n for n in _numeric(data.features()) if n in features and features[n].shape == data.features()[n].shape
             and all(n in e.steps for e in episodes)]
    findings = []
    for name in names:
        parts = component_names(data.features()[name])
        findings += observations.check_starts(name, parts, _columns(sample, name), _columns(episodes, name))
    findings += _camera_findings(sample, episodes, observed.moves, names)
    read = {n: data.features()[n] for n in (*names, "action") if n in data.features()}
    model, bounds = _motion_model(data, observed, read)
    limits = list(_limits(recorded, observed))
    findings += [f for f in limits if f.code == "action-units"]  # limits cut such actions off, whatever they do
    stronger = ("observation-units", "action-units", "constant-sensor", "sign-flip")
    if not any(f.code in stronger and f.level == "fault" for f in findings):
        moved = []
        if not is_shifted and model is not None and observed.probes is not None:
            parts = [f"{n.removeprefix('observation.')}[{part}]" for n in names for part in component_names(read[n])]
            pairs = (_transitions(part, read, bounds) for part in (data, observed.probes))
            moved = list(motion.check_motion(model, *pairs, component_names(read["action"]), parts))
        if moved:  # a component at an end of its range is held there by them
            findings = [f for f in findings if f.code != "constant-sensor"]
        findings = [replace(f, level="fault") if f.code == "constant-sensor" else f for f in findings] + moved
        findings += fit_checks.check_tiny_spread(planner, observed.episodes) if isinstance(
            planner, Policy) and len(observed.episodes) else ()
        findings += _novelty(planner, recorded, observed) if observed.moves else ()
    if not observed.moves:
        findings = [replace(f, level="note") if f.code == "start-states" else f for f in findings]
    for f in (f for f in limits if f.code != "action-units"):
        alike = bounds is not None and f.level == "fault"  # as in the data
        findings.append(replace(f, level="note") if alike else f)
    yield from _merged(findings)


def _camera_findings(sample: Dataset, episodes: Sequence, moves: bool, names: Sequence[str]) -> list[RunFinding]:
    """Compares the images with recorded images, the simplest reasons first."""
    features = sample.features()
    still = list(cameras.check_still(_changes(sample, features), _changes(episodes, features) if moves else {}))
    judged = {n: f for n, f in features.items() if n not in {s.where.feature for s in still}}
    recorded, begins = _images(sample, judged, (0, 0.5, 1)), _images(episodes, judged, (0,))
    findings = [*(s for s in still if s.level == "fault"), *cameras.check_cameras(recorded, begins)]
    if not findings and moves and names:
        few = sample.select(np.linspace(0, len(sample) - 1, min(len(sample), VIEWED)).astype(int).tolist())
        for name in (n for n in _cameras(judged) if n in begins):
            findings += cameras.check_views(name, [(images, states[rows]) for images, rows, states in _views(
                few, name, names)], _views(episodes, name, names))
    if not findings and moves:
        findings += cameras.check_first_images(recorded, begins)
    return findings


def _views(episodes: Iterable, name: str, states: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Returns, for each episode, a few small images of a camera, their rows, and the states of all rows."""
    views = []
    for e in episodes:
        rows = np.arange(0, len(e), max(1, len(e) // VIEWS))
        images = np.stack([resize(np.asarray(e.steps[name][t])[None], (SMALL, SMALL))[0] / 255 for t in rows])
        views.append((images, rows, concat_columns(e, states)[:len(e)]))
    return views


def _merged(findings: Iterable[RunFinding]) -> list[RunFinding]:
    """Merges findings with the same code into the strongest finding, which then names the components of all of them."""
    groups: dict[str, list[RunFinding]] = {}
    for finding in findings:
        groups.setdefault(finding.code, []).append(finding)
    merged = []
    for group in groups.values():
        first, *others = sorted(group, key=lambda f: -abs(np.log(abs(f.value) + 1e-9)))
        names = format_list(f.where for f in others)
        merged.append(replace(first, message=f"{first.message} (also {names})") if others else first)
    return merged


def _motion_model(data: Dataset, observed: Observed, features: Schema
                  ) -> tuple[motion.MotionModel | None, tuple[np.ndarray, np.ndarray] | None]:
    """Fits the model of the motion in the data, and returns it with the limits that it clips actions to.

    If clipped actions explain the data better, the environment or robot clipped the recorded actions to its limits.
    """
    if "action" not in features:
        return None, None
    plain = motion.motion_model(fit_lags(_transitions(data, features)))
    if (bounds := _bounds(observed, features["action"])) is None:
        return plain, None
    model = motion.motion_model(fit_lags(_transitions(data, features, bounds)))
    if model is None or plain is not None and model.unexplained > CLIPPED * plain.unexplained:
        return plain, None
    return model, bounds


def _lag_findings(recorded: Recorded, observed: Observed | None) -> Iterator[RunFinding]:
    features = recorded.data.features()
    if observed is not None:
        features = {n: f for n, f in features.items() if n in observed.features}
    if "action" not in features:
        return
    probes = None if observed is None else observed.probes
    yield from motion.check_recorded_lag(fit_lags(_transitions(recorded.data, features)),
                                         {} if probes is None else fit_lags(_transitions(probes, features)))


def _bounds(observed: Observed, feature: Feature) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the lowest and the highest action of the environment or robot, (A,) each."""
    low, high = observed.metadata.get("low"), observed.metadata.get("high")
    if low is None or high is None or feature.kind != "vector" or feature.shape != observed.features["action"].shape:
        return None
    return (np.broadcast_to(np.asarray(low, np.float64), (feature.size,)),
            np.broadcast_to(np.asarray(high, np.float64), (feature.size,)))


def _limits(recorded: Recorded, observed: Observed) -> Iterator[RunFinding]:
    feature = recorded.data.features()["action"]
    if (bounds := _bounds(observed, feature)) is None:
        return
    actions = [np.concatenate(_columns(part, "action") or [np.zeros((0, feature.size))])
               for part in (recorded.data, observed.episodes if observed.moves else ())]
    yield from observations.check_limits(*actions, *bounds, component_names(feature))


def _novelty(planner: Planner, recorded: Recorded, observed: Observed) -> Iterator[RunFinding]:
    data = recorded.data
    names = [n for n in _numeric(data.features()) if n in planner.inputs and n in observed.features]
    if not names or not recorded.held_out or not len(observed.episodes):
        return

    def points(episodes):
        return [concat_columns(e, names)[:len(e)] for e in episodes]
    yield from observations.check_novelty(points(data.select(recorded.trained)), points(data.select(recorded.held_out)),
                                          points(observed.episodes))


def _transitions(data: Dataset, features: Schema, bounds: tuple[np.ndarray, np.ndarray] | None = None
                 ) -> list[Transitions]:
    """Returns the states and actions of each episode, with the actions clipped to `bounds`."""
    actions = ["action"] if features["action"].kind == "vector" else []
    pairs = transitions(data, _numeric(features), actions, most=LAGGED_STEPS)
    return [(s, a if bounds is None else np.clip(a, *bounds)) for _, s, a in pairs]


def _numeric(features: Schema) -> list[str]:
    return [n for n, f in features.items() if role(n) == "observation" and f.kind == "vector" and f.dtype != "bool"
            and f.size and len(f.shape) < 2]


def _columns(episodes: Iterable, name: str) -> list[np.ndarray]:
    return [np.asarray(e.steps[name], np.float64).reshape(len(e.steps[name]), -1) for e in episodes]


def _cameras(features: Schema) -> list[str]:
    return [n for n, f in features.items() if f.kind == "image" and f.shape[-1] == 3]


def _changes(episodes: Iterable, features: Schema) -> dict[str, list[bool]]:
    """Returns, by camera, whether any of a few images differs from the first image, for each longer episode."""
    several = [e for e in episodes if len(e) > len(WATCHED)]
    return {n: [any(not np.array_equal(e.steps[n][round(part * (len(e) - 1))], e.steps[n][0]) for part in WATCHED)
                for e in several if n in e.steps] for n in _cameras(features)}


def _images(episodes: Iterable, features: Schema, at: Sequence[float]) -> dict[str, np.ndarray]:
    """Returns small images of each camera, with values from 0 to 1, at these fractions of each episode."""
    frames = {n: [np.asarray(e.steps[n][round(part * (len(e.steps[n]) - 1))]) for e in episodes if n in e.steps
                  for part in at] for n in _cameras(features)}
    return {n: np.stack([resize(f[None], (THUMBNAIL, THUMBNAIL))[0] / 255 for f in images])
            for n, images in frames.items() if images}
