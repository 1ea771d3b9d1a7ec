"""The command understudy calibrate."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from ..core import Above, Below, Unsupported, UserError
from .parts.common import (
    Output,
    command_line,
    given_options,
    has_no_run,
    is_recorded,
    open_data,
    parse,
    progress_bar,
    trust_options,
)
from .parts.groups import ActingOptions, JsonOption, StepCount, command_options
from .parts.options import refuse_given
from .parts.policies import (
    ROWS,
    DoubtSource,
    doubt_data,
    load_actor,
    numbers_fingerprint,
    record_doubt,
    run_folder,
    tell_checkpoint,
    weights_digest,
    weights_path,
)
from .parts.run_options import missing_data, trained_on

if TYPE_CHECKING:
    from ..data.episode import Dataset
    from ..evaluate.failure_detection import DoubtScore, FailureDetector, RecordedEnv


@command_options
class CalibrateOptions(ActingOptions, JsonOption):
    """Calibrate a failure detector: a threshold of the policy's doubt that keeps a stated rate of errors.

    The policy acts in ENV, on starts that no evaluation uses. For a robot, give episodes of this policy on it, which
    `understudy act RUN --out DATA` recorded and you called successes and failures (y, n). The threshold is written into
    the folder of the run, where `understudy eval RUN ENV --detect` and `understudy act RUN --detect` find it. An alarm
    is raised at the first step in which the doubt reaches the threshold.
    """

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    """a run (its last checkpoint), RUN/best, or a checkpoint"""
    env: Annotated[str, Positional, arg(metavar="ENV|DATA")]
    """a toy's name, a Gymnasium id, metaworld/NAME, or module:factory, in which success is defined, or recorded
    episodes of the policy"""
    score: Literal["spread", "novelty", "loss"] = "spread"
    """what is measured at each step: the spread of sampled plans, the distance of the observation from the
    demonstrations, or the policy's loss at its own plan"""
    rate: Annotated[float, Above(0), Below(1)] = 0.1
    """largest rate of the error"""
    error: Literal["missed-failures", "false-alarms"] = "missed-failures"
    """what the rate is about: failed episodes without an alarm, or successful ones with an alarm"""
    episodes: StepCount = None
    """number of rollouts in ENV; by default 500"""


def main(args: list[str]) -> None:
    o = parse(CalibrateOptions, "calibrate", args)
    from ..envs import make
    from ..evaluate.evaluation import tuning_seed
    from ..evaluate.failure_detection import SCORES, ConformalThreshold, RecordedEnv
    from ..evaluate.rollout import rollout

    recorded = is_recorded(o.env)
    if recorded:
        refuse_given(o, ("episodes",), "is the number of rollouts in an environment",
                     "leave it out: all recorded episodes are used")
    with Output(o.json) as out:
        tell_checkpoint(o.run)
        method = ConformalThreshold(SCORES[o.score], o.rate, o.error)
        source = doubt_source(o.run, method.score)
        n = o.episodes or 500
        with closing(_labeled_episodes(o) if recorded else make(o.env, min(ROWS, n), o.trust)) as env:
            actor, by = load_actor(o.run, env, o)
            if isinstance(env, RecordedEnv):
                n = len(env.episodes)
                _refuse_other_actors(env.episodes, by, o)
            with progress_bar(f"{o.run.name} in {o.env}", n) as progress:
                episodes = rollout(record_doubt(actor, o.run, o, source), env, n, tuning_seed(o.seed),
                                   watch=lambda number, e: progress())
        read = numbers_fingerprint(doubt_data(o.run, o, source.data)) if o.score == "novelty" else ""
        detector = replace(method.fit(episodes, weights_digest(weights_path(o.run)), recorded),
                           options=_acting_options(o), demonstrations=read)
        file, detection = detector.save(run_folder(o.run)), detector.evaluate(episodes)
        kind, plural = ("failure", "s") if o.error == "missed-failures" else ("success", "es")
        out.print(f"An alarm is raised where the {o.score} reaches {detector.threshold:.4g}: at most {o.rate:.1%} "
                  f"{o.error.replace('-', ' ')}, from {detector.n_calibration} "
                  f"{kind}{plural * (detector.n_calibration != 1)}.",
                  "In the episodes of the calibration, whose own rate is met by choice:",
                  detection.describe(detector), f"Written to {file}")
        options = ("--detect", *_acting_options(o), *trust_options(o.trust, o.env, o.run))
        out.suggest(command_line("act", o.run, "--robot", "TYPE", *options) if recorded
                    else command_line("eval", o.run, o.env, *options))
        out.print_json({"detector": str(file), "n_calibration": detector.n_calibration,
                        **detection.to_json(detector)})


def _labeled_episodes(o: CalibrateOptions) -> RecordedEnv:
    from ..evaluate.failure_detection import RecordedEnv
    from ..learn.method import TrainedRun

    sizes = TrainedRun.load(o.run, o.trust).policy.image_sizes
    data = open_data(Path(o.env), next(iter(sizes.values()), None), decode=bool(sizes), run=o.run)
    for number, episode in enumerate(data):
        if "success" not in episode.metadata:
            raise UserError("nobody said whether it is a success", where=f"{o.env}, episode {number}",
                            hint="end episodes of understudy act with y or n, or leave this one out with "
                                 "understudy split")
    return RecordedEnv(data, o.env)


def _refuse_other_actors(data: Dataset, by: str, o: CalibrateOptions) -> None:
    """Raises UserError if episodes are not of this checkpoint, acting with these options."""
    for number, episode in enumerate(data):
        if (actor := episode.metadata.get("by")) != by:
            raise UserError(f"it was recorded by {actor or 'nobody that is named'}, and not by {by}",
                            where=f"{o.env}, episode {number}",
                            hint="calibrate with episodes of this checkpoint and these options of acting: "
                                 + command_line("act", o.run, "--robot", "TYPE", "--out", "DATA"))


def doubt_source(run: Path, score: DoubtScore, fingerprint: str = "") -> DoubtSource:
    """Returns the doubt score with the data that the run was trained on. For the fingerprint see `DoubtSource`."""
    if has_no_run(run):
        raise UserError("its doubt cannot be measured: it does not say what it was trained on", where=run,
                        hint="name the run itself")
    path = trained_on(run)
    if path is None or not path.exists():
        raise UserError(missing_data(path), where=run, hint="put them back, or train the run again")
    return DoubtSource(score, path, fingerprint)


def load_detector(run: Path, o: ActingOptions) -> FailureDetector:
    """Returns the failure detector of a run."""
    from ..evaluate.failure_detection import FailureDetector
    from ..serve.address import served_address

    if address := served_address(run):
        raise Unsupported("a server does not send the doubt of its policy, which a failure detector reads",
                          where=address, hint="act with the run on this machine")
    detector = FailureDetector.load(run, o.trust)
    if detector.options != _acting_options(o):
        raise UserError("the failure detector was calibrated with "
                        + (" ".join(detector.options) or "no option of acting"), where=run,
                        hint=command_line("calibrate", run, detector.env, *_acting_options(o)))
    return detector


def _acting_options(o: ActingOptions) -> tuple[str, ...]:
    return tuple(map(str, given_options(o, "executor", "task", "condition")))

