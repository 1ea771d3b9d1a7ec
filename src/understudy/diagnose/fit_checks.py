"""Checks that need only a run and its data: checkpoint, fit, statistics, and the deployed actor."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy
import torch

from ..audit.base import Location
from ..core import keys, role
from ..data.codec import CodecModule, Normalizer
from ..data.episode import Dataset, Episode
from ..evaluate.stats import clopper_pearson
from ..execute.actor import LAST_REWARD, Actor
from ..execute.wrappers import act_along
from ..learn.preflight import constant_components
from ..learn.training_curves import HELD_OUT_ERROR, SCORE, TrainingCurves
from ..policy import Policy
from .base import Level, Outcome, RunFinding

WORSE = 1.5  # held-out error of the checkpoint, as a multiple of the least one
SLIGHTLY_WORSE = 1.05  # held-out error, as a multiple of the least one, from which there is a note
UNDERFIT = 0.6  # error on trained episodes, as a fraction of the error of always predicting the average action
BARELY = 0.3  # the same fraction, for a policy that has not been shown all windows
GENERALIZES = 0.75  # the same fraction on held-out episodes, worth a note; from 1 on the average is as good
GAP = 2.0  # error on held-out episodes, as a multiple of the error on trained episodes
SCALES = (1 / 3, 3.0)  # scale of a component in the run, as a multiple of its scale in the data
OFFSET = 1.0  # difference of the offsets, in units of the scale in the data
SKEW = 2.0  # error of the deployed actor, as a multiple of the error of the plans
TINY = 1e-3  # scale of a component, as a fraction of the median scale in its column
LARGE, HUGE = 10.0, 100.0  # coded observations: worth a note, and beyond what networks bear
DECIDED = 0.25  # how much larger the fraction of decided episodes is than in the data
CHANCE, LIKELY = 0.005, 0.05  # p-values of the sign test of plans of which fewer steps are executed
SUCCEEDS = 0.8  # success rate from which a policy needs no better fit, and no shorter plans
WIDE = 0.3  # width of an interval of the success rate that still says something


@dataclass(frozen=True)
class FitErrors:
    """Errors of predicted actions, as fractions of the error of always predicting the average action.

    Attributes:
        trained: Error on episodes that the policy was trained on.
        held_out: Error on held-out episodes. None if there are none.
        last_action: Error of repeating the last action on these episodes, in the same unit. None if it is not defined.
        prediction: Error of the predicted action, comparable to `last_action`.
    """

    trained: float
    held_out: float | None
    last_action: float | None = None
    prediction: float | None = None


def check_fit(errors: FitErrors, is_cloning: bool, is_own: bool = True, passes: float = np.inf,
              outcome: Outcome | None = None) -> Iterator[RunFinding]:
    """Finds a policy that fits its data too little, or too closely.

    Args:
        is_cloning: Whether the method imitates the actions. Other methods have reasons to act otherwise.
        passes: How many times it was shown each recorded window in training.
        outcome: In how many episodes it succeeds. Where nothing was held out, this alone says whether it generalizes.
    """
    level = "fault" if is_cloning else "note"
    if errors.trained > UNDERFIT:
        which, remedy = (("on episodes that it was trained on", "train for more updates, or with a larger network")
                         if is_own else ("on these data, which it was not trained on",
                                         "look for what differs from its own data: signs, units and order of actions "
                                         "and observations. If nothing does, train on these data too"))
        yield RunFinding(
            "underfit", level, f"{which}, the error of the policy is {errors.trained:.0%} of that of always predicting "
            "the average action", errors.trained, (0, UNDERFIT), remedy, ("plot", "RUN"), Location(feature="action"))
    elif is_own and passes < 1 and errors.trained > BARELY:
        yield RunFinding(
            "underfit", "warning" if is_cloning else "note", f"training has shown it {passes:.0%} of the recorded "
            f"windows, and its error is {errors.trained:.0%} of that of always predicting the average action", passes,
            (1, None), "train for more updates", ("plot", "RUN"), Location(feature="action"))
    elif errors.held_out is not None and errors.held_out > max(GENERALIZES, GAP * errors.trained):
        yield RunFinding(
            "overfit", level if errors.held_out >= 1 else "note", f"the error of the policy is {errors.trained:.0%} of "
            "that of the average action on episodes that it was trained on, and "
            f"{errors.held_out:.0%} on held-out ones: it knows them by heart",
            errors.held_out, (0, 1), "record more demonstrations, or take an earlier checkpoint",
            ("plot", "RUN"), Location(feature="action"))
    elif (is_own and is_cloning and errors.held_out is None and errors.trained < BARELY and outcome is not None
          and outcome.is_low):
        yield RunFinding(
            "overfit", "warning", f"the error of the policy is {errors.trained:.0%} of that of the average action on "
            f"episodes that it was trained on, no episode was held out, and {outcome}: it may know the demonstrations "
            "by heart", outcome.successes / outcome.episodes, (0.5, None),
            "record more demonstrations, and hold some of them out in the next training (--val-fraction 0.1)",
            ("record", "ENV", "--out", "more", "--episodes", "50"), Location(feature="action"))
    elif errors.prediction is not None and errors.last_action is not None and errors.prediction > errors.last_action:
        yield RunFinding(
            "last-action", "note", "on held-out episodes, repeating the last action is nearer to the recorded ones "
            "than the policy. This is usual for slow motion at a high rate", errors.prediction / errors.last_action,
            (0, 1), "compare with a longer training", ("plot", "RUN"), Location(feature="action"))


def check_checkpoint(curves: TrainingCurves, step: int) -> Iterator[RunFinding]:
    """Finds that another checkpoint has a much smaller held-out error.

    Args:
        step: Updates of the checkpoint that is diagnosed.
    """
    held_out = curves.curves.get(HELD_OUT_ERROR)
    if held_out is None:
        if SCORE in curves.curves:  # rollouts say it
            return
        yield RunFinding("no-held-out", "note", "the run has no validation: nothing says whether it generalizes", 0,
                         (1, None), "hold episodes out in the next training (--val-fraction 0.1)", ("plot", "RUN"))
        return
    least = min(held_out.values)
    best = held_out.steps[held_out.values.index(least)]
    place = "best" if curves.best == best else "last" if curves.last == best else f"checkpoints/{best:06d}"
    is_kept = place in ("best", "last") or (curves.folder / place).exists()
    take = (("take the checkpoint with the least error", ("eval", f"RUN/{place}", "ENV")) if is_kept else
            ("that checkpoint was not kept: look at the curves, and train again for fewer updates", ("plot", "RUN")))
    if step < held_out.steps[0]:
        yield RunFinding("wrong-checkpoint", "fault", f"the checkpoint after {step} updates is from before the first "
                         f"validation, and the error on held-out episodes is least after {best}", step,
                         (held_out.steps[0], None), *take)
        return
    own = held_out.at(step)
    ratio = 1.0 if own is None else own / max(least, 1e-12)
    if ratio > SLIGHTLY_WORSE:
        yield RunFinding("wrong-checkpoint", "fault" if ratio > WORSE else "note", f"after {step} updates the error on "
                         f"held-out episodes is {ratio:.2f} times that after {best}", ratio, (1, SLIGHTLY_WORSE), *take)


def check_statistics(policy: Policy, training: Dataset) -> Iterator[RunFinding]:
    """Compares the statistics in a run with statistics that are computed again from its training data.

    Args:
        training: The data that it was trained on, after the transforms of the method.
    """
    config = policy.config.codec
    if type(config) is not Normalizer or config.group_by is not None:  # a subclass may extend its statistics
        return
    fresh = _fitted_codec(policy, config, training)
    for name, scale, offset in _statistics_changes(policy.codec, fresh):
        if name == "action" and config.relative is not None and not _is_near(scale, offset):
            absolute = _fitted_codec(policy, replace(config, relative=None), training)
            if _is_near(*next(c[1:] for c in _statistics_changes(policy.codec, absolute) if c[0] == "action")):
                yield RunFinding(
                    "relative-statistics", "fault", "the actions are learned relative to the position, and scaled by "
                    f"the statistics of absolute ones: by {scale.min():.3g} to {scale.max():.3g} times the scale of "
                    "the relative ones", float(scale[np.abs(np.log(scale)).argmax()]), (0.9, 1.1),
                    "train again, with statistics of relative actions", ("train", "METHOD", "DATA", "--out", "RUN-2"),
                    Location(feature="action"))
                continue
        outside = ~((scale >= SCALES[0]) & (scale <= SCALES[1])) | (np.abs(offset) > OFFSET)
        if not outside.any():
            continue
        d = int(np.argmax(np.maximum(np.abs(np.log(np.maximum(scale, 1e-9))), np.abs(offset)) * outside))
        yield RunFinding(
            "wrong-statistics", "fault", f"{name}[{d}] is normalized with {scale[d]:.3g} times the scale of the data, "
            f"and an offset {offset[d]:.3g} scales away: these are statistics of other data", float(scale[d]), SCALES,
            "train again, or load only the weights and not the codec (--load encoder net)",
            ("train", "METHOD", "DATA", "--out", "RUN-2"), Location(feature=name))


def check_constants(policy: Policy, training: Dataset) -> Iterator[RunFinding]:
    """Finds components that change in the data, and that the policy treats as constant.

    Args:
        training: The data that it was trained on, after the transforms of the method.
    """
    for part in constant_components(policy, training):
        place = f"{part.column}[{part.name}]"
        yield RunFinding(
            "treated-as-constant", "fault", f"{place} is between {part.low:.3g} and {part.high:.3g} in the data, and "
            "the policy treats it as constant, because this range is so small: "
            + ("it never predicts another value" if role(part.column) == "action" else "it cannot see it"),
            part.high - part.low, (0, 0), "train again, with this component in a smaller unit",
            ("view", "make", "DATA", "--scale", f"{place}=1000", "--out", "VIEW"), Location(feature=place))


def _is_near(scale: np.ndarray, offset: np.ndarray) -> bool:
    """Returns whether two statistics are of the same numbers, up to the episodes that were left out."""
    return bool((np.abs(np.log(np.maximum(scale, 1e-9))) < 0.1).all() and (np.abs(offset) < 0.1).all())


def _fitted_codec(policy: Policy, config: Normalizer, training: Dataset) -> CodecModule:
    other = copy.copy(policy)
    other.config = replace(policy.config, codec=config)
    other._modules = {**policy._modules, "codec": config.build(policy.features, policy.inputs, policy.config.target)}
    return other.fit_statistics(training, refit_head=False).codec


def _statistics_changes(codec: Any, fresh: Any) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(column, scale of the run / scale of the data, (offset of the run - offset of the data) / scale of the data)."""
    pairs = [(name, codec.obs_transforms[k], fresh.obs_transforms[k]) for k, name in enumerate(codec.names)]
    if codec.scales_target:
        pairs.append(("action", codec.action_transform, fresh.action_transform))
    for name, own, data in pairs:
        scale, usual = own.scale.flatten().cpu().double().numpy(), data.scale.flatten().cpu().double().numpy()
        offset = (own.offset - data.offset.to(own.offset)).flatten().cpu().double().numpy()
        live = (usual > 0) | (scale > 0)
        size = np.where(usual > 0, usual, np.where(scale > 0, scale, 1.0))
        yield name, np.where(live, scale / size, 1.0), np.where(live, offset / size, 0.0)


def check_tiny_spread(policy: Policy, observed: Dataset) -> Iterator[RunFinding]:
    """Finds components with almost no spread in the data, and with huge normalized values where the policy acts."""
    codec = policy.codec
    if not isinstance(policy.config.codec, Normalizer) or policy.config.codec.group_by is not None:
        return
    for name, transform in zip(getattr(codec, "names", ()), getattr(codec, "obs_transforms", ()), strict=True):
        if name not in observed.features():
            continue
        scale = transform.scale.flatten().cpu().double().numpy()
        live = scale > 0
        tiny = live & (scale < TINY * np.median(scale[live])) if live.any() else live
        values = np.concatenate([np.asarray(e.steps[name], np.float64).reshape(len(e.steps[name]), -1)
                                 for e in observed])
        offset = transform.offset.flatten().cpu().double().numpy()
        coded = np.abs(values - offset).max(0) / np.where(live, scale, np.inf)
        for d in np.flatnonzero(tiny & (coded > LARGE)):
            yield RunFinding(
                "tiny-spread", "fault" if coded[d] > HUGE else "note",
                f"{name}[{d}] hardly changes in the data (scale {scale[d]:.2g}), and is up to "
                f"{coded[d]:.3g} scales away where the policy acts: the network has never seen such numbers",
                float(coded[d]), (0, LARGE), "leave the component out, or raise --policy.codec.min-scale",
                ("train", "METHOD", "DATA", "--out", "RUN-2", "--policy.codec.min-scale", "0.01"),
                Location(feature=name))


@torch.no_grad()
def check_serving(policy: Policy, actor: Actor, recorded: Dataset, n_episodes: int = 8) -> Iterator[RunFinding]:
    """Compares the actions of the deployed actor with the actions of the policy itself, on recorded observations.

    Args:
        recorded: Episodes before the transforms of the method, with the actions that the policy learned.
    """
    target = policy.config.target
    if policy.target.kind != "vector" or role(target) != "action" or target not in recorded.features():
        return
    acted, planned, usual = [], [], []
    everything = np.concatenate([np.asarray(e.steps[target], np.float64).reshape(len(e), -1) for e in recorded
                                 if len(e.steps[target]) == len(e)])
    scale = np.where(everything.std(0) > 1e-9, everything.std(0), np.inf)
    for episode in list(recorded)[:n_episodes]:
        actions = np.asarray(episode.steps[target], np.float64).reshape(-1, policy.action_dim)[:len(episode)]
        acted.append(np.abs(_act_along(actor, episode, len(actions)) - actions) / scale)
        usual.append(np.abs(actions - everything.mean(0)) / scale)
        batch = policy.windows(Dataset([episode])).gather(np.arange(len(actions)), np.random.default_rng(0))
        batch = batch.to(policy.device)
        plan = policy.plan(batch.obs, policy.noise(keys(0, range(len(actions))).to(policy.device),
                                                   torch.zeros(len(actions), dtype=torch.int64, device=policy.device)))
        error = (plan - batch.action).abs().cpu().double().numpy() / scale
        planned.append(error[batch.mask.cpu().numpy()])
    own, plans, average = (float(np.concatenate(errors).mean()) for errors in (acted, planned, usual))
    ratio = own / max(plans, 0.1 * average)
    if ratio > SKEW:
        yield RunFinding(
            "serving-skew", "fault", f"shown recorded observations, the deployed actor is {ratio:.2g} times as far "
            "from the recorded actions as the plans of the policy for the same windows: it sees or does something else "
            "than in training", ratio, (0, SKEW),
            "compare the history and the executor with those of training", ("eval", "RUN", "DATA"),
            Location(feature="action"))


def _act_along(actor: Actor, episode, steps: int) -> np.ndarray:
    """Returns the actions of an actor that is shown a recorded episode, (steps, A)."""
    columns = {k: np.asarray(episode.steps[k]) for k in episode.steps if role(k) in ("observation", "other")}
    columns = {k: v for k, v in columns.items() if v.dtype.kind in "fiub"} | {LAST_REWARD: np.zeros(steps, np.float32)}
    return np.stack([action.double().numpy() for action in act_along(actor, columns, steps, keys(0, [0]))])


def judge_by_outcome(findings: Sequence[RunFinding], outcome: Outcome) -> list[RunFinding]:
    """Weakens faults to warnings if the policy succeeds as often as the demonstrations.

    Findings on the fit become notes if at least `SUCCEEDS` of the episodes succeed, and warnings if at least half do. A
    policy may do the task in one of several demonstrated ways, and then its error is large although it succeeds. The
    finding that actions may be stored early is weakened too: where the policy succeeds, the robot just reacts late.
    Where shorter plans help, long plans are hard to fit, so their large error is only a warning.
    """
    if any(f.code == "chunk-too-long" for f in findings):
        findings = [replace(f, level="warning") if (f.code, f.level) == ("underfit", "fault") else f for f in findings]
    if 2 * outcome.successes < outcome.episodes:
        return list(findings)
    level: Level = "note" if outcome.successes >= SUCCEEDS * outcome.episodes else "warning"
    return [replace(f, level=level) if f.code in ("underfit", "overfit", "averaged-ways")
            or (f.code, f.level) == ("action-shift", "warning")
            else replace(f, level="warning") if f.level == "fault" and not outcome.is_low else f for f in findings]


def check_starts_decide(recorded: Dataset, observed: Dataset, probes: Dataset | None) -> Iterator[RunFinding]:
    """Finds that many new episodes are decided in their first step, but not the recorded ones.

    Args:
        probes: Episodes with recorded actions. None for none.
    """
    of_data, own, others = (_decided(part) for part in (recorded, observed, probes or ()))
    if own > DECIDED + of_data and (probes is None or others > DECIDED + of_data):
        yield RunFinding(
            "decided-at-the-start", "warning", f"{own:.0%} of the episodes end or succeed in the first step, and "
            f"{of_data:.0%} of the recorded ones" + ("" if probes is None else f"; with other actions {others:.0%} do")
            + ": what the policy does hardly matters there", own, (0, DECIDED),
            "look at where episodes start, and at what counts as success and as the end", ("replay", "DATA", "ENV"))


def _decided(episodes: Iterable[Episode]) -> float:
    """Returns fraction of the episodes that end or succeed in the first step."""
    decided = [len(e) == 1 or "next.success" in e.steps and bool(np.asarray(e.steps["next.success"])[0])
               for e in episodes]
    return float(np.mean(decided)) if decided else 0.0


@dataclass(frozen=True)
class ChunkTrials:
    """Successes of a policy, by start, with its plans as they are and with fewer steps of each plan executed."""

    n_action_steps: int
    successes: Sequence[bool]
    shorter: Sequence[bool]

    @property
    def gains(self) -> int:
        """Starts from which only the shorter plans succeed."""
        return sum(b > a for a, b in zip(self.successes, self.shorter, strict=True))

    @property
    def losses(self) -> int:
        """Starts from which only the plans as they are succeed."""
        return sum(a > b for a, b in zip(self.successes, self.shorter, strict=True))

    @property
    def chance(self) -> float:
        """p-value of the sign test of shorter against full plans."""
        n = self.gains + self.losses
        return float(scipy.stats.binomtest(self.gains, n, alternative="greater").pvalue) if n else 1.0


def check_chunks(trials: Sequence[ChunkTrials], steps: int) -> Iterator[RunFinding]:
    """Finds that success rises if the policy executes fewer steps of each planned chunk.

    Args:
        trials: The trials of each number of executed steps that was tried.
        steps: Steps of a plan that the policy executes.
    """
    best = min(trials, key=lambda trial: trial.chance, default=None)
    if best is not None and (chance := len(trials) * best.chance) < LIKELY:  # Bonferroni
        yield RunFinding(
            "chunk-too-long", "fault" if chance < CHANCE else "warning",
            f"the policy executes {steps} steps of each plan, and {sum(best.successes)} of {len(best.successes)} "
            f"episodes succeed. If it executes {best.n_action_steps}, {sum(best.shorter)} of the same do",
            steps, (1, best.n_action_steps), "execute fewer steps of each plan",
            ("eval", "RUN", "ENV", "--executor", "receding-horizon", "--executor.n-action-steps",
             str(best.n_action_steps)), Location(feature="action"))


def check_trials(successes: Sequence[bool]) -> Iterator[RunFinding]:
    """Reports whether there were enough trials for a statement about the success rate."""
    interval = clopper_pearson(sum(successes), len(successes))
    width = interval.high - interval.low
    if width > WIDE:
        yield RunFinding(
            "trials", "note", f"{sum(successes)} of {len(successes)} episodes succeeded, so the success rate is "
            f"between {interval.low:.0%} and {interval.high:.0%}: another {len(successes)} may look very different",
            width, (0, WIDE), "evaluate on more episodes before you compare",
            ("eval", "RUN", "ENV", "--episodes", "100"))


def best_evaluation(evaluations: Iterable[Mapping[str, Any]], step: int | None) -> Mapping[str, Any] | None:
    """Returns the evaluation with the highest success, of the latest one of a checkpoint in each environment, or None.
    """
    latest = {e["where"]: e for e in evaluations if e.get("success") and "condition" not in e
              and str(e.get("checkpoint")).isdigit() and int(e["checkpoint"]) == step}
    return max(latest.values(), key=lambda e: e["success"]["low"], default=None)


def check_success(successes: Sequence[bool], evaluations: Iterable[Mapping[str, Any]], step: int | None
                  ) -> Iterator[RunFinding]:
    """Finds that the policy surely succeeds less often than in an evaluation that the run keeps.

    Args:
        step: Updates of the checkpoint that is diagnosed.
    """
    best = best_evaluation(evaluations, step)
    own = clopper_pearson(sum(successes), len(successes))
    if best is not None and own.high < best["success"]["low"]:
        place = best.get("env", best["where"])
        yield RunFinding(
            "success-drop", "warning", f"{sum(successes)} of {len(successes)} episodes succeeded, and "
            f"{best['successes']} of {best['episodes']} in an evaluation in {place}: something is different that these "
            "checks do not see", own.estimate, (best["success"]["low"], None),
            "look at recorded actions there, and compare what differs from the evaluation", ("replay", "DATA", "ENV"))
