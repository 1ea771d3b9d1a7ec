"""The options of the command understudy improve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from ...core import Above, AtLeast, AtMost
from .groups import (
    HtmlOption,
    JsonOption,
    LeRobotOption,
    PositiveCount,
    Seconds,
    Seed,
    StepCount,
    StepRate,
    TaskWords,
    TrustOption,
    command_options,
)
from .options import Advice
from .robot_options import RobotOptions, TeleopOptions


@command_options
class ImproveOptions(LeRobotOption, HtmlOption, JsonOption, TrustOption, TeleopOptions, RobotOptions):
    """Improve a trained policy in rounds: it acts, a supervisor corrects it or labels its steps, and it trains on them.

    After each round the policy is compared with the best so far on the same starts, and becomes the best if it does at
    least as well. At the end the best one and RUN act on fresh starts. RUN stays as it is.

    These methods need a supervisor: dagger (it labels every step), hg-dagger (it watches, takes over and gives back,
    and these steps are learned), iwr, sirius and rlif (the same, with half of each batch of its steps, a weight for
    each class of steps, or a takeover as a negative reward), safe and lazy (it acts where its action and the policy's
    differ), ensemble, thrifty and doubt.

    With the last three the policy asks for help, so that nobody has to watch; doubt by the failure detector of
    `understudy calibrate`. dagger, safe and lazy need a scripted supervisor or a run.

    filtered learns from the policy's own successes. residual, rlpd, porl, dsrl, dsrl-na, dppo and residual-ppo learn
    from success as a reward, and need many episodes (--rounds, --episodes, --steps). With filtered, residual and rlpd
    you may supervise too: you say what succeeds, and may take over.

    At the keyboard (--supervisor keyboard), t takes over and gives back, p holds and continues, WASD or the arrows
    move, y and n end the episode as a success or a failure, u says that the last takeover is not to be learned, x
    begins the episode again and q stops. Every finished episode is on the disk, and the same command continues.

    The options of the method are set as in `understudy train`, such as --batch-size 64 --optimizer.lr 1e-4.

    With --robot you supervise with --supervisor keyboard, gamepad or leader (--teleop TYPE). Nothing moves before you
    press enter. Rounds are compared in blind trials that you judge (--compare N); without it none is promoted.

    A policy of LeRobot (lerobot:PATH) is not trained here: with hg-dagger and --supervisor keyboard, gamepad or leader
    your takeovers are recorded in RUN2/takeovers, from which you train it with LeRobot.
    """

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    """the run to improve (its last checkpoint), RUN/best, or with --lerobot-python lerobot:PATH for a policy of
    LeRobot"""
    method: Annotated[str, arg(name="with", metavar="METHOD")]
    """dagger, hg-dagger, safe, lazy, ensemble, thrifty, doubt, iwr, sirius, rlif, filtered, residual, rlpd, porl,
    dsrl, dsrl-na, dppo or residual-ppo"""
    out: Annotated[Path, arg(metavar="RUN2")]
    """the folder of the new run"""
    env: Annotated[str | None, arg(metavar="ENV")] = None
    """environment to act in; by default the one in which RUN's data were recorded"""
    supervisor: Annotated[str | None, arg(metavar="WHO")] = None
    """scripted (the expert of the environment; where it watches, it notices late and errs at times), keyboard (you, in
    this terminal), or the run of another policy; on a robot keyboard, gamepad or leader"""
    success: Annotated[Path | None, arg(metavar="RUN3")] = None
    """a classifier that says what success is, in an environment that does not
    (docs/practise.md#a-classifier-of-success); its false positives on held-out frames are printed"""
    rater: Annotated[Path | None, arg(metavar="RUN4")] = None
    """with filtered: a rater of whole episodes or of single steps, which says in place of success what is learned
    (docs/practise.md#ratings-of-whole-episodes)"""
    data: Annotated[Path | None, arg(metavar="DATA")] = None
    """what RUN was trained on; by default the DATA of its command"""
    task: TaskWords = None
    """the task in words, for a policy of LeRobot that reads it"""
    rounds: PositiveCount = 5
    """number of rounds"""
    episodes: PositiveCount = 5
    """number of episodes in each round"""
    steps: StepCount = None
    """number of updates after each round; by default as many in all as RUN had"""
    intervention_rate: Annotated[float, Above(0), AtMost(0.5), arg(metavar="FRACTION")] = 0.1
    """with ensemble and thrifty: fraction of the policy's steps so far that are in greater doubt than where it asks"""
    compare: Annotated[int, AtLeast(0), Advice("such as 100"), arg(metavar="N")] = 0
    """number of starts on which rounds are compared, and of fresh starts at the end (100); on a robot the largest
    number of pairs of blind trials after each round, and by default nothing is compared or promoted"""
    collect_with: Literal["last", "best"] | None = None
    """whose policy acts in each round: that of the last round, or the best so far; by default the last, and on a robot
    with --compare the best, except with residual and rlpd"""
    seed: Seed = 0
    """seed of the starts, the order of the data, and noise"""
    fps: StepRate = None
    """steps per second of a robot, if those of the training data are unknown (30)"""
    episode_time_s: Seconds = 60.0
    """longest duration of an episode on a robot"""
    handover: Literal["leader", "robot", "nobody"] = "leader"
    """who moves when you take over with a leader: it is driven to the pose of the robot, if it has motors; the robot
    goes to its pose; or nobody does, and the difference stays"""
    handover_seconds: Annotated[float, AtLeast(0), arg(metavar="SECONDS"), Advice(
        "0 lets the robot go as fast as its limits allow")] = 1.0
    """time in which the robot goes to the pose of a leader, at least"""
