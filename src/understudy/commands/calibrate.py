"""The command understudy calibrate."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from ..core import Above, Below, Unsupported, UserError
from ..hints import path_text
from ..serve.address import lerobot_name, served_address
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
from .parts.groups import ActingOptions, DetectorOption, JsonOption, StepCount, command_options
from .parts.options import refuse_given
from .parts.policies import (
    ROWS,
    load_actor,
    load_policy,
    run_folder,
    tell_checkpoint,
    weights_digest,
    weights_path,
)
from .parts.rollouts import DoubtSource, doubt_data, numbers_fingerprint, record_doubt
from .parts.run_options import missing_data, trained_on

if TYPE_CHECKING:
    from ..data.episode import Dataset
    from ..evaluate.failure_detection import DoubtScore, FailureDetector, RecordedEnv


@command_options
class CalibrateOptions(ActingOptions, DetectorOption, JsonOption):
    """Calibrate a failure detector: a threshold of the policy's doubt that keeps a stated rate of errors.

    The policy acts in ENV, on starts that no evaluation uses. For a robot, give episodes of this policy on it, which
    `understudy act RUN --out DATA` recorded and you called successes and failures (y, n). The threshold is written into
    the folder of the run, where `understudy eval RUN ENV --detect` and `understudy act RUN --detect` find it. An alarm
    is raised at the first step in which the doubt reaches the threshold.
    """

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    """a run (its last checkpoint), RUN/best, a checkpoint, or a policy of LeRobot"""
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
    data: Annotated[Path | None, arg(metavar="DATA")] = None
    """the demonstrations from which novelty is measured; by default those that the run was trained on"""


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
        file, source = _detector_file(o), doubt_source(o.run, method.score, o.data)
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
                           options=_acting_options(o), demonstrations=read,
                           data="" if o.data is None else path_text(o.data.absolute()))
        detector.save(file)
        detection = detector.evaluate(episodes)
        kind, plural = ("failure", "s") if o.error == "missed-failures" else ("success", "es")
        out.print(f"An alarm is raised where the {o.score} reaches {detector.threshold:.4g}: at most {o.rate:.1%} "
                  f"{o.error.replace('-', ' ')}, from {detector.n_calibration} "
                  f"{kind}{plural * (detector.n_calibration != 1)}.",
                  "In the episodes of the calibration, whose own rate is met by choice:",
                  detection.describe(detector), f"Written to {file}")
        options = (*(("--detect",) if o.detector is None else ("--detector", file)), *_acting_options(o),
                   *given_options(o, "lerobot_python"), *trust_options(o.trust, o.env, o.run))
        out.suggest(command_line("act", o.run, "--robot", "TYPE", *options) if recorded
                    else command_line("eval", o.run, o.env, *options))
        out.print_json({"detector": str(file), "n_calibration": detector.n_calibration,
                        **detection.to_json(detector)})


def _labeled_episodes(o: CalibrateOptions) -> RecordedEnv:
    from ..evaluate.failure_detection import RecordedEnv
    from ..policy import camera_sizes

    planner = load_policy(o.run, o, None)[0]
    sizes = camera_sizes({name: planner.features[name] for name in planner.inputs})
    data = open_data(Path(o.env), next(iter(sizes.values()), None), decode=bool(sizes),
                     run=None if has_no_run(o.run) else o.run)
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


def _detector_file(o: CalibrateOptions) -> Path:
    """Returns the file of the detector: that of --detector, or one in the folder of the run, but not of LeRobot's."""
    from ..checkpoint import is_lerobot_checkpoint
    from ..evaluate.failure_detection import DETECTOR_FILE

    if o.detector is not None:
        return o.detector
    if _is_of_lerobot(o.run) or not has_no_run(o.run) and is_lerobot_checkpoint(weights_path(o.run)):
        raise _no_detector(o.run)
    return run_folder(o.run) / DETECTOR_FILE


def _is_of_lerobot(run: Path) -> bool:
    address = served_address(run)
    return address is not None and lerobot_name(address) is not None


def _no_detector(run: Path) -> UserError:
    return UserError("the folder of a policy of LeRobot is not changed, so its failure detector is a file that you "
                     "name", where=run, hint="such as --detector detector.json")


def doubt_source(run: Path, score: DoubtScore, data: Path | None = None, fingerprint: str = "") -> DoubtSource:
    """Returns the doubt score with the data that it reads.

    Args:
        data: The demonstrations. None for those that the run was trained on.
        fingerprint: See `DoubtSource`.
    """
    from ..evaluate.failure_detection import ObservationNovelty

    if _is_of_lerobot(run):
        if data is None and isinstance(score, ObservationNovelty):
            raise UserError("novelty is the distance from the demonstrations, and a policy of LeRobot does not say "
                            "which these are", where=run, hint="name what it was trained on: --data DATA")
        return DoubtSource(score, data, fingerprint)
    if has_no_run(run):
        raise UserError("its doubt cannot be measured: it does not say what it was trained on", where=run,
                        hint="name the run itself")
    path = data or trained_on(run)
    if path is None or not path.exists():
        raise UserError(missing_data(path), where=run, hint="put them back, or train the run again")
    return DoubtSource(score, path, fingerprint)


def detector_source(run: Path, detector: FailureDetector) -> DoubtSource:
    """Returns the doubt score of a failure detector with the data that it reads."""
    return doubt_source(run, detector.method.score, Path(detector.data) if detector.data else None,
                        detector.demonstrations)


def load_detector(run: Path, o: ActingOptions, file: Path | None) -> FailureDetector:
    """Returns the failure detector of a run, from a file or from the folder of the run."""
    from ..evaluate.failure_detection import FailureDetector

    if (address := served_address(run)) and not _is_of_lerobot(run):
        raise Unsupported("a server does not send the doubt of its policy, which a failure detector reads",
                          where=address, hint="act with the run on this machine")
    if file is not None:
        detector = FailureDetector.read(file, o.trust)
        detector.check_checkpoint(weights_digest(weights_path(run)), run)
    elif address:
        raise _no_detector(run)
    else:
        detector = FailureDetector.load(run, o.trust)
    if detector.options != _acting_options(o):
        raise UserError("the failure detector was calibrated with "
                        + (" ".join(detector.options) or "no option of acting"), where=run,
                        hint=command_line("calibrate", run, detector.env, *_acting_options(o)))
    return detector


def _acting_options(o: ActingOptions) -> tuple[str, ...]:
    return tuple(map(str, given_options(o, "executor", "task", "condition")))
