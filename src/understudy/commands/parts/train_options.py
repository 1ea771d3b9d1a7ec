"""The options of the command understudy train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

from ...core import AtLeast
from .groups import (
    DeviceOption,
    IgnoredCodes,
    JsonOption,
    PositiveCount,
    ReadingOptions,
    SchemeName,
    Seed,
    StepCount,
    TrustOption,
    command_options,
)


@command_options
class TrainOptions(DeviceOption, ReadingOptions, JsonOption, TrustOption):
    """Train a policy on demonstrations, or in an environment.

    The options of the method are set after METHOD and DATA, such as --horizon 8 --optimizer.lr 3e-4. The options of its
    parts are set there too: --policy.head.n-steps 5 --executor.n-action-steps 2. `understudy train METHOD --help` lists
    them all with their defaults.

    --from RUN starts from the weights of an earlier run. Stages that the method needs are trained first, unless --stage
    gives a run for them. After Ctrl-C, a kill or a power cut the same command continues, and gives the same result as
    without the interruption.
    """

    method: Annotated[str, Positional, arg(metavar="METHOD")]
    """a method's name (understudy methods), module:function, or a method.json"""
    data: Annotated[Path | None, Positional, arg(metavar="DATA")] = None
    """a file or folder of demonstrations; without it a method that collects episodes starts with random actions in the
    environment of --env"""
    out: Annotated[Path, arg(metavar="RUN")]
    """the folder of the run"""
    steps: StepCount = None
    """number of all updates, instead of the method's; those of its stages change by the same factor
    (--stages.0.method.learner.steps N sets that of the first stage). A method that collects episodes divides them
    equally among its rounds, which stay as many and as long"""
    seed: Seed = 0
    """seed of the weights, the order of the data, and noise"""
    executor: SchemeName = None
    """the execution scheme, instead of the method's (understudy methods lists them), or an executor module:Class"""
    eval: Annotated[str | None, arg(metavar="ENV")] = None
    """roll out in this environment during training, on starts that `understudy eval` never uses; the best checkpoint is
    kept"""
    save_freq: StepCount = None
    """updates between checkpoints; by default a tenth of all updates"""
    env: Annotated[str | None, arg(metavar="ENV")] = None
    """environment in which the method collects episodes, if it does; by default the environment in which DATA were
    recorded"""
    random_steps: PositiveCount = 1000
    """number of steps with random actions, at least, if there are no DATA"""
    rollouts: PositiveCount = 20
    """number of episodes of each evaluation with --eval"""
    val_fraction: Annotated[float, arg(metavar="FRACTION")] = 0.1
    """fraction of the episodes of DATA that is held out for validation"""
    from_run: Annotated[Path | None, arg(name="from", metavar="RUN")] = None
    """start from the weights of this run (its last checkpoint, or RUN/best), to train on or to fine-tune on other
    data"""
    load: Annotated[tuple[str, ...], arg(metavar="PART")] = ("codec", "encoder", "net")
    """with --from: the parts whose weights are loaded; without codec, statistics are fitted to DATA"""
    freeze: Annotated[tuple[str, ...], arg(metavar="PART")] = ()
    """with --from: the parts that are not trained; encoder.NAME is one inside the encoder"""
    prior: Annotated[Path | None, arg(metavar="DATA")] = None
    """also learn from these episodes, such as those of other tasks: half of each batch, or what the method chooses
    (behavior-retrieval, retrieve-align-replay)"""
    reward: Annotated[Path | None, arg(metavar="RUN")] = None
    """learn from the rewards of this run's reward model (of dac or preference-reward, for example), in place of those
    of DATA and of the environment"""
    reward_scale: Annotated[float, arg(metavar="FACTOR")] = 1.0
    """multiply the rewards, also those of collected episodes; policies are judged by the rewards as they are"""
    reward_shift: Annotated[float, arg(metavar="NUMBER")] = 0.0
    """add this to the rewards, after --reward-scale"""
    reward_clip: Annotated[tuple[float, float] | None, arg(metavar="LOW HIGH")] = None
    """limit the rewards to this range, after --reward-scale and --reward-shift"""
    progress: Annotated[Path | None, arg(metavar="RUN")] = None
    """clone steps by the progress that follows, as this run's model (that of sarm) predicts it: RA-BC"""
    progress_steps: StepCount = None
    """with --progress: number of steps whose progress counts, by default those of a chunk of the policy"""
    progress_kappa: Annotated[float, AtLeast(0), arg(metavar="PROGRESS")] = 0.01
    """with --progress: progress above which a step counts fully; below 0 it does not count"""
    stage: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME=RUN")] = ()
    """use this run for a stage of the method, instead of training it"""
    language: bool = False
    """also read the task in words (the column or the metadata "task"), so that one policy learns several tasks"""
    image_size: Annotated[int | tuple[int, int] | None, arg(metavar="PIXELS")] = None
    """decode camera frames once to this side, or height and width"""
    buffer_size: Annotated[int | None, AtLeast(1), arg(metavar="STEPS")] = None
    """read DATA as a stream, shard by shard (.tar, .parquet; a folder of them, or demos-{000..099}.tar), with this many
    steps in memory at once"""
    ignore: IgnoredCodes = ()
    """train although an audit finds an error with this code"""
    include_interrupted: bool = False
    """also train on episodes whose recording was interrupted"""
    compile: bool = False
    """compile whole updates, which takes half a minute or more: those of small networks then take about two thirds of
    the time or less; not for PPO"""
    tensorboard: bool = False
    """also log to RUN/tensorboard"""
    wandb: Annotated[str | None, arg(metavar="PROJECT")] = None
    """also log to this project of Weights & Biases"""
