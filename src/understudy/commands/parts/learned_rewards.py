"""Applies rewards and progress that other runs have learned, as options of `understudy train` name them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core import UserError
from ...files import read_json
from .common import command_line, has_no_run, read_provenance, recorded_data_of, unused_path
from .options import refuse_given
from .policies import tell_checkpoint

if TYPE_CHECKING:
    from ...data.episode import Dataset
    from ...learn.method import Method


def warn_of_other_data(data: Dataset, run: Path, what: str) -> None:
    """Warns if none of the episodes is of an environment in which the data of a run were recorded.

    Args:
        what: What the warning calls the run.
    """
    from ...evaluate.simulator_versions import other_environments
    from ...learn.train import recorded_simulators

    if problem := other_environments(recorded_data_of(run).get("simulators") or {}, recorded_simulators(data)):
        print(f"warning: {what}, {run}, was trained on data of {problem}", file=sys.stderr)


def with_changed_rewards(method: Method, data: Dataset, o: Any) -> Method:
    """The method with --reward as its first change of episodes, and --reward-scale, -shift and -clip as its last.

    Args:
        o: The options of `understudy train`.
    """
    from ...checkpoint import FromStage, find_checkpoint
    from ...data.relabel import ScaledReward
    from ...learn.method import Method, Stage
    from ...learn.rewards.learned_reward import LearnedReward
    from ...learn.rewards.preference_reward import PreferenceReward
    from ...learn.targets import REWARD

    low, high = o.reward_clip or (None, None)
    change = ScaledReward(o.reward_scale, o.reward_shift, low, high)
    if change == ScaledReward() and o.reward is None:
        return method
    if REWARD not in method.learner.extra:
        options = {"--reward": o.reward is not None, "--reward-scale": o.reward_scale != 1,
                   "--reward-shift": o.reward_shift != 0, "--reward-clip": o.reward_clip is not None}
        raise UserError(f"{o.method} does not learn from single rewards",
                        where=" and ".join(name for name, is_given in options.items() if is_given),
                        hint="leave it out, or take a method that does, such as iql")
    if change != ScaledReward():
        method = replace(method, transforms=(*method.transforms, change))
    if o.reward is None:
        return method
    tell_checkpoint(o.reward)
    if not (find_checkpoint(o.reward) / "modules" / "reward").is_dir():
        raise UserError("the run has no reward model", where=f"--reward {o.reward}",
                        hint="name a run that trains one, such as one of dac, gail or preference-reward")
    stage = Stage("learned-reward", Method.load(o.reward, o.trust))
    reward = getattr(stage.method.learner, "reward", None)
    summed, own = getattr(reward, "learner_discount", None), getattr(method.learner, "discount", None)
    if None not in (summed, own) and summed != own:
        raise UserError(f"its rewards sum what follows an end with the discount {summed:g}, and {o.method} has {own:g}",
                        where=f"--reward {o.reward}", hint=f"set --discount {summed:g}")
    if isinstance(reward, PreferenceReward) and (lengths := set(data.lengths)) and len(lengths) > 1:
        print(f"warning: --reward {o.reward}: comparisons tell rewards up to a constant, which counts where episodes "
              f"end at different times, as these do: after {min(lengths)} to {max(lengths)} steps", file=sys.stderr)
    return replace(method, stages=(*method.stages, stage), transforms=(
        LearnedReward(FromStage(stage.name, "reward")), *method.transforms))


def with_progress(method: Method, path: Path, o: Any) -> Method:
    """Returns the method with the sample weights of --progress.

    Args:
        path: The episodes, as errors name them.
        o: The options of `understudy train`.
    """
    from ...checkpoint import FromStage, find_checkpoint
    from ...learn.behavior_cloning import BehaviorCloning
    from ...learn.method import Method, Stage
    from ...learn.rewards.progress_weights import PROGRESS_WEIGHT, ProgressWeights
    from ...learn.sample_weights import StoredWeights, UniformWeights

    if o.progress is None:
        refuse_given(o, ("progress_steps", "progress_kappa"), "needs --progress RUN", "name a run of sarm")
        return method
    learner, window = method.learner, method.policy.window
    if not isinstance(learner, BehaviorCloning) or learner.sample_weights != UniformWeights():
        raise UserError(f"{o.method} does not clone all steps alike", where="--progress",
                        hint="leave it out, or take a method that does, such as act, diffusion-policy or bc")
    tell_checkpoint(o.progress)
    if not (find_checkpoint(o.progress) / "modules" / "reward").is_dir():
        raise UserError("the run has no model of progress", where=f"--progress {o.progress}",
                        hint="train one: " + command_line("train", "sarm", path, "--out", "RUN"))
    stage = Stage("learned-progress", Method.load(o.progress, o.trust))
    n_steps = o.progress_steps or max(window.horizon + window.action_offset, 1)
    weights = ProgressWeights(FromStage(stage.name, "reward"), n_steps, o.progress_kappa)
    return replace(method, stages=(*method.stages, stage), transforms=(weights, *method.transforms),
                   learner=replace(learner, sample_weights=StoredWeights(PROGRESS_WEIGHT)))


def learns_reward(run: Path) -> bool:
    """Returns whether a run learns a reward from comparisons, so that its policy is only a clone."""
    from ...checkpoint import find_checkpoint

    if has_no_run(run):
        return False
    try:
        method = find_checkpoint(run) / "method.json"
    except UserError:  # saved rollouts; other faults are said when the policy is loaded
        return False
    return method.is_file() and str(read_json(method)["learner"]["$"]).endswith(":PreferenceLearning")


def tell_learned_reward(run: Path) -> None:
    """Says on standard error which policy acts in a run that learns a reward from comparisons, if the run is one."""
    if learns_reward(run):
        practice = command_line("train", "sac", "--env", "ENV", "--reward", run, "--out", unused_path("practiced"))
        print(f"note: {run} learns a reward. What acts is its policy, which clones the better segments of the "
              f"comparisons, and what it reaches says nothing about the reward. A policy that follows the reward: "
              f"{practice}", file=sys.stderr)


def held_out_agreement(run: Path, data: Dataset, trust: tuple[str, ...]) -> str:
    """Returns a sentence on how well a learned reward predicts the held-out comparisons.

    Args:
        data: All comparisons.
    """
    from ...improve.preferences import count_agreements
    from ...learn.method import load_modules
    from ...learn.rewards.reward_models import RewardModel

    reward = load_modules(run, trust)["reward"]
    assert isinstance(reward, RewardModel)
    agreed, clear = count_agreements(reward, data.select(read_provenance(run)["held_out"]))
    tested = (f"agrees with {agreed} of {clear} held-out comparisons that prefer a segment" if clear else
              "was not tested, since no comparison that prefers a segment was held out")
    return (f"The reward {tested}. The error on held-out episodes is that of the policy, which clones the better "
            "segments. It says nothing about the reward.")
